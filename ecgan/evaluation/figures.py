"""Pictures of a report: layouts with their images, and training curves."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ecgan.checkpoint import read_metadata
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.evaluation.judge import Judge
from ecgan.evaluation.measure import images_of
from ecgan.evaluation.report import page
from ecgan.evaluation.sources import Samples, Scene
from ecgan.metrics.segmentation import PerImageConfusion
from ecgan.reading.documents import parse_json, read_bytes
from ecgan.runtime.files import sha256
from ecgan.shards.manifest import Manifest
from ecgan.visualization import colorize

_ROWS, _EXTREMES = 6, 4
_COLUMNS = ("layout", "edge", "image", "real photo", "judge's prediction")
_CURVES = (
    "discriminator",
    "adversarial",
    "similarity",
    "contrastive",
    "perceptual",
    "miou",
    "fd_efficientnet_lite0",
)


def extremes(confusion: PerImageConfusion) -> tuple[list[int], list[int]]:
    """The best and the worst samples by consistency, one of each layout."""
    scores = confusion.consistencies()
    if not np.isfinite(scores).any():
        scores = confusion.accuracies()
    order = np.argsort(scores, kind="stable")  # NaN, where nothing is labelled, comes last
    known = order[np.isfinite(scores[order])]
    return _first_of_layouts(confusion, known[::-1]), _first_of_layouts(confusion, known)


def _first_of_layouts(confusion: PerImageConfusion, order: npt.NDArray[np.intp]) -> list[int]:
    first: dict[str, int] = {}
    for index in order.tolist():
        first.setdefault(confusion.layouts[index], index)
    return list(first.values())[:_EXTREMES]


@dataclass(frozen=True)
class Rows:
    """Sources of the rows of a gallery.

    Attributes:
        samples: the set.
        confusion: the judge's predictions.
        judge: the judge.
        reference: the photos.
        photos: layouts of the set that have a photo there.
        device: where the judge is.
    """

    samples: Samples
    confusion: PerImageConfusion
    judge: Judge
    reference: TripleDataset
    photos: Collection[str]
    device: torch.device

    @cached_property
    def _accuracies(self) -> npt.NDArray[np.float64]:
        return self.confusion.accuracies()

    @cached_property
    def _consistencies(self) -> npt.NDArray[np.float64]:
        return self.confusion.consistencies()

    def row(self, index: int) -> page.Row:
        """A sample with its layout, its photo and the judge's prediction."""
        sample = self.samples.scene(index)
        key, palette = sample.key, self.samples.space.evaluation_palette
        images = images_of([sample], self.device)
        prediction = self.judge.segmenter.predict(images)[0].cpu().numpy()
        cells = [
            page.Picture(colorize(sample.label, palette), f"layout of {key}", exact=True),
            None if sample.edge is None else page.Picture(sample.edge, f"edges of {key}"),
            page.Picture(sample.image, f"image {key}"),
            self._photo(sample),
            page.Picture(colorize(prediction, palette), f"judge's prediction of {key}", exact=True),
        ]
        text = (
            f"{self._accuracies[index]:.1%} of the labelled pixels predicted as in the layout, "
            f"consistency {self._consistencies[index]:.3f}"
        )
        return page.Row(key, text, cells)

    def _photo(self, sample: Scene) -> page.Picture | None:
        if sample.source not in self.photos:
            return None
        photo = self.reference.load_plain(self.reference.keys.index(sample.source)).image
        assert photo is not None
        return page.Picture(photo, f"real photo of {sample.source}")


def galleries(rows: Rows) -> list[page.Gallery]:
    """Samples spread over the set, the best and the worst."""
    num = len(rows.confusion)
    spread = np.linspace(0, num - 1, min(_ROWS, num)).round().astype(int).tolist()
    best, worst = extremes(rows.confusion)
    picked = (
        ("Samples", "Evenly spread over the set, in its order.", spread),
        ("Best", "Where the judge gives the layout's classes the highest probability.", best),
        ("Worst", "Where it gives them the lowest.", worst),
    )
    return [
        page.Gallery(title, text, _COLUMNS, [rows.row(index) for index in indices])
        for title, text, indices in picked
    ]


def curves(manifest: Manifest | None, near: Path) -> list[page.Curve]:
    """Training curves of the run whose generator made a set, where it is still at hand.

    Args:
        manifest: manifest of the set; None for a set of others.
        near: folder in which runs may lie, as in ``runs/``.
    """
    if manifest is None or manifest.fingerprint.checkpoint is None:
        return []
    made_by, images = manifest.fingerprint.checkpoint, None
    if manifest.provenance is not None:
        images = manifest.provenance.checkpoint.images_seen
    for folder in [*Path("runs").glob("*"), *near.glob("*")]:
        log = folder / "metrics.jsonl"
        try:
            generators = sorted(folder.glob("generator*.safetensors")) if log.is_file() else []
            if any(_is_generator(path, made_by, images) for path in generators):
                return _curves(read_bytes(log).decode(errors="replace").splitlines())
        except (OSError, UserError):  # a neighbour that is not ours to read
            continue
    return []


def _is_generator(path: Path, digest: str, images: int | None) -> bool:
    """Whether a file has this SHA-256; one of another length of training is not read for it."""
    return images in {None, read_metadata(path).images_seen} and sha256(path) == digest


def _curves(lines: Sequence[str]) -> list[page.Curve]:
    records = [record for line in lines if (record := _record(line)) is not None]
    found: list[page.Curve] = []
    for name in _CURVES:
        points = [(r["images"], r[name]) for r in records if name in r]
        if len(points) > 1:
            found.append(page.Curve(name, points))
    return found


def _record(line: str) -> dict[str, float] | None:
    """Numbers of a line of a log; None of a damaged one, as a run that was killed may leave."""
    try:
        value = parse_json(line, "metrics.jsonl", "a record", "")
    except UserError:
        return None
    if not isinstance(value, dict):
        return None
    numbers = {k: float(v) for k, v in value.items() if type(v) in {int, float}}
    return numbers if "images" in numbers else None
