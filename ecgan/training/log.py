"""What a training tells: metrics.jsonl, TensorBoard, preview files, the progress bar."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ecgan.errors import UserError
from ecgan.runtime import distributed
from ecgan.runtime.files import write_whole


@dataclass
class Means:
    """Running means of named values since the last line of the log; goes into checkpoints."""

    sums: dict[str, float] = field(default_factory=dict[str, float])
    count: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step."""
        for name, number in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


class Journal:
    """Writes into a run folder; on all ranks but the first, nothing.

    Args:
        run: the folder.
        images_seen: where the training goes on; what an interrupted run wrote beyond is dropped.
        length: images of the whole run.
        quiet: no progress bar. There is none either where the output is no terminal.
    """

    def __init__(self, run: Path, images_seen: int, length: int, *, quiet: bool) -> None:
        self._writes = distributed.rank() == 0
        self._quiet = quiet
        self._path = run / "metrics.jsonl"
        self._run = run
        self._last = time.monotonic()
        self._last_images = images_seen
        self._board: SummaryWriter | None = None
        if self._writes:
            self._forget_beyond(images_seen)
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen + 1)
        self._bar = tqdm(
            total=length,
            initial=images_seen,
            unit="image",
            desc=run.name,
            disable=True if quiet or not self._writes else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def advance(self, images: int) -> None:
        """Move the bar."""
        self._bar.update(images)

    def say(self, text: str) -> None:
        """A line for the user, above the bar where there is one."""
        if self._writes and not self._quiet:
            self._bar.write(text, file=sys.stderr)

    def speed(self, images_seen: int) -> float:
        """Images a second since the last call."""
        now = time.monotonic()
        speed = (images_seen - self._last_images) / max(1e-9, now - self._last)
        self._last, self._last_images = now, images_seen
        return speed

    def log(self, images_seen: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same in TensorBoard."""
        if not self._writes or self._board is None:
            return
        record = {"images": images_seen, **values}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot write: {error.strerror}") from error
        for name, value in record.items():
            if name != "images":
                self._board.add_scalar(name, value, images_seen)

    def picture(self, images_seen: int, picture: Image.Image) -> None:
        """A preview grid, ``samples-<images seen>.png``."""
        if self._board is None:
            return
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        write_whole(self._run / f"samples-{images_seen:09d}.png", buffer.getvalue())
        self._board.add_image("samples", np.asarray(picture), images_seen, dataformats="HWC")

    def _forget_beyond(self, images_seen: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _images_of(line) <= images_seen]
        if len(kept) < len(lines):
            write_whole(self._path, "".join(line + "\n" for line in kept).encode())


def _images_of(line: str) -> float:
    try:
        return json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that was cut off
