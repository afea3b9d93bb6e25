"""Training logs: metrics.jsonl, TensorBoard, preview files and the progress bar."""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from ecgan.checkpoint import InheritedTraining
from ecgan.errors import UserError
from ecgan.reading.documents import read_bytes
from ecgan.runtime import distributed, timing
from ecgan.runtime.files import write_whole, writing

_proto: Any = event_pb2
RATE_STEPS, RATE_SECONDS = 20, 60.0  # after which a training says how long it will take


@dataclass
class Means:
    """Running means of loss terms since the last line of the log; saved in checkpoints."""

    sums: dict[str, float] = field(default_factory=dict[str, float])
    count: int = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one step."""
        for name, number in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + number
        self.count += 1

    def read(self) -> dict[str, float]:
        """The means; empty without values."""
        return {name: total / self.count for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """Return the means and reset."""
        means = self.read()
        self.sums, self.count = {}, 0
        return means


@dataclass
class Progress:
    """Progress of a training, saved in checkpoints beside the networks.

    Attributes:
        images_seen: length of the training so far.
        means: means since the last line of the log.
        best: images and value of the best validation score.
        init: SHA-256 of the generator that the training started from; empty without.
        inherited: layouts that earlier trainings saw.
        owes_score: an interruption cut off the score at this position.
    """

    images_seen: int = 0
    means: Means = field(default_factory=Means)
    best: dict[str, float] | None = None
    init: str = ""
    inherited: list[InheritedTraining] = field(default_factory=list[InheritedTraining])
    owes_score: bool = False

    def to_json(self) -> dict[str, Any]:
        """Everything but images_seen, which names the checkpoint."""
        return {
            "means": {"sums": self.means.sums, "count": self.means.count},
            "best": self.best,
            "init": self.init,
            "inherited": [one.model_dump() for one in self.inherited],
            "owes_score": self.owes_score,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Progress":
        """Read the ``state`` of a training checkpoint."""
        init = state["init"]
        named = state["inherited"]
        if named is None:  # a checkpoint of an earlier version does not name those layouts
            named = [{"sha256": init, "classes": [], "keys": []}] if init else []
        means, inherited = Means(**state["means"]), [InheritedTraining(**one) for one in named]
        return cls(state["images_seen"], means, state["best"], init, inherited, state["owes_score"])


class RunLogger:
    """Logger of a run; on all ranks but the first it does nothing.

    Args:
        run: the run folder.
        images_seen: length of the training so far; later lines of an interrupted run are dropped.
        length: images of the whole run.
        quiet: no output on stderr.
    """

    def __init__(self, run: Path, images_seen: int, length: int, *, quiet: bool) -> None:
        self._writes = distributed.rank() == 0
        self._quiet = quiet
        self._path = run / "metrics.jsonl"
        self._run = run
        self._last = time.monotonic()
        self._last_images = images_seen
        self._board: _Board | None = None
        if self._writes:
            self._drop_later_lines(images_seen)
            board = run / "tensorboard"
            with writing(board):
                self._board = _Board(board, images_seen + 1, self.message)
        show = self._writes and not quiet
        self._steps, self._started = 0, (0.0, images_seen)
        self._seen, self._measured = images_seen, False
        self._bar = timing.Progress(
            length, f"training {run.name}", "image", show=show, done=images_seen
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

    def advance(self, images: int, means: Means) -> None:
        """Count images of a step, and show the means of the losses."""
        self._bar.update(images, means.read)
        self._steps += 1
        self._seen += images
        if self._steps == 1:  # may have compiled
            self._started = time.monotonic(), self._seen

    def first_rate(self) -> float | None:
        """Images per second of the steps after the first, once: after 20 steps or a minute."""
        since, images = self._started
        seconds = time.monotonic() - since
        enough = self._steps >= RATE_STEPS or (self._steps > 1 and seconds >= RATE_SECONDS)
        if self._measured or not enough:
            return None
        self._measured = True
        return (self._seen - images) / max(1e-9, seconds)

    def message(self, text: str) -> None:
        """Print a line."""
        if self._writes and not self._quiet:
            timing.say(text)

    def images_per_second(self, images_seen: int) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        speed = (images_seen - self._last_images) / max(1e-9, now - self._last)
        self._last, self._last_images = now, images_seen
        return speed

    def log(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Write a line of metrics.jsonl, and the same to TensorBoard."""
        if not self._writes or self._board is None:
            return
        record = {"images": images_seen, **values}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self._path}: cannot write: {error.strerror}") from error
        self._board.write(
            images_seen, *(summary.scalar(name, value) for name, value in values.items())
        )

    def preview(self, images_seen: int, picture: Image.Image) -> None:
        """Write a preview grid, ``samples-<images seen>.png``."""
        if self._board is None:
            return
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        write_whole(self._run / f"samples-{images_seen:09d}.png", buffer.getvalue())
        shown = summary.image("samples", np.asarray(picture), dataformats="HWC")
        self._board.write(images_seen, shown)

    def _drop_later_lines(self, images_seen: int) -> None:
        """Drop lines of later images and, with a note, those that are damaged."""
        if not self._path.is_file():
            return
        lines = read_bytes(self._path).split(b"\n")
        found = [(_images_of(line), line) for line in lines if line.strip()]
        damaged = sum(images is None for images, _ in found)
        kept = [line for images, line in found if images is not None and images <= images_seen]
        if damaged:
            name = "a damaged line" if damaged == 1 else f"{damaged} damaged lines"
            self.message(f"{self._path}: {name} left out")
        if len(kept) < len(found):
            write_whole(self._path, b"".join(line + b"\n" for line in kept))


class _Board:
    """TensorBoard's log of a run.

    What is needed of torch's ``SummaryWriter``, without its thread, which prints a traceback where
    the disk is full.

    Args:
        folder: of the log; created if necessary.
        first_step: step from which an interrupted run's entries are dropped.
        note: told once if the file cannot be written; nothing is written from then on.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, first_step: int, note: Callable[[str], None]) -> None:
        self._note = note
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.0"
        self._path = folder / name
        self._file = self._path.open("xb")
        self._writes = True
        self._add(_proto.Event(file_version="brain.Event:2"))
        self._add(
            _proto.Event(
                step=first_step, session_log=_proto.SessionLog(status=_proto.SessionLog.START)
            )
        )

    def write(self, step: int, *summaries: Any) -> None:  # noqa: ANN401  protocol buffers
        """Write values of a step, if all before could be."""
        for one in summaries:
            self._add(_proto.Event(step=step, summary=one))

    def _add(self, event: Any) -> None:  # noqa: ANN401
        if not self._writes:
            return
        event.wall_time = time.time()
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._writes = False
            self._note(
                f"{self._path}: cannot write: {error.strerror}; TensorBoard's log ends here, "
                "metrics.jsonl goes on"
            )

    def close(self) -> None:
        """Close the file; what could not be written before is left out."""
        with suppress(OSError):
            self._file.close()


def _images_of(line: bytes) -> float | None:
    """Position of a line of metrics.jsonl; None for one that was cut off or otherwise damaged."""
    try:
        images = json.loads(line)["images"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return images if type(images) in {int, float} else None
