"""Photos without label maps (``data.unlabelled``): found, refused where tested on, labelled once.

    photos --but those of pairs--> segmenter of the pairs --thresholds by class--> RUN/unlabelled/

A pixel keeps the class that it is read as if it is among the surest of that class over all photos;
the others stay unlabelled, in the condition as in the losses. The label maps stay in the run
folder, under a hash of all that decides them, so that a run that goes on does not label anew.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ecgan.data import transforms
from ecgan.data.datasets import Item
from ecgan.data.decode import Encoding
from ecgan.data.files.images import digests_of, probe_photos, read_photo
from ecgan.data.files.names import photos_below
from ecgan.data.files.pairing import capped
from ecgan.data.files.photo_sets import Reading
from ecgan.data.loader import CACHE_BYTES, TripleDataset, to_images
from ecgan.errors import UserError
from ecgan.labels import LabelSpace, clean_key
from ecgan.recipe import Data, data_folder
from ecgan.runtime import distributed
from ecgan.runtime.files import whole_folder, writing
from ecgan.runtime.timing import Progress, counted, say
from ecgan.seeds import sample_seed
from ecgan.segmentation.label_filter import KEPT, Confidence, deterministic, surest
from ecgan.segmentation.segmenter import Segmenter
from ecgan.training.loop.data_files import DataFiles
from ecgan.training.loop.state import Job
from ecgan.training.networks import segmenter_of_pairs

FOLDER = "unlabelled"  # of the label maps, in the run folder
_INDEX = "index.json"
_VERSION = 1  # of how photos are labelled
_OPTION = "data.unlabelled"
_BYTES_PER_PIXEL = 12  # of a class and its confidence, as they are read


def check_recipe(data: Data, space: LabelSpace) -> None:
    """Refuse photos without label maps where they cannot be used, before a file is read.

    Raises:
        UserError: no such folder, no photos in it, or a class list without unlabelled pixels.
    """
    if data.unlabelled is None:
        return
    photos_below(Path(data.unlabelled), _OPTION)
    if space.ignore is None:
        raise UserError(
            f"{_OPTION} {data.unlabelled}: pixels that the segmenter is not sure of stay "
            "unlabelled, but the class list says that every pixel has a class (ignore: null); give "
            "it a value of unlabelled pixels, such as 255"
        )


def find(data: Data, files: DataFiles, out: Path, *, quiet: bool) -> dict[str, Path]:
    """Photos to learn from without label maps, by their SHA-256, in the order of their paths.

    Photos that are those of training pairs, or that were there before, are left out with a note.

    Args:
        data: section data of the recipe.
        files: pairs of the run.
        out: run folder; photos that it has labelled are not decoded again.
        quiet: no note.

    Raises:
        UserError: photos that are held out, as byte-equal files, or that cannot be read; none is
            left.
    """
    if data.unlabelled is None:
        return {}
    folder = Path(data.unlabelled)
    photos = photos_below(folder, _OPTION)
    before = {path.stem for path in (out / FOLDER).glob("*/*.png")}
    levels = data_folder(data).reading.levels
    digests, faults = probe_photos(photos, levels, lambda digest: _stem(digest) in before)
    in_pairs = {one.get("photo") for one in files.train.values()}
    found: dict[str, Path] = {}
    for path, digest in digests.items():
        if digest not in in_pairs:
            found.setdefault(digest, path)
    faults += _held_out_faults(data, files, found)
    if faults:
        raise UserError(f"{_OPTION} {folder}", capped(faults))
    left_out = len(photos) - len(found)
    if not found:
        raise UserError(
            f"{_OPTION} {folder}: every photo is that of a training pair already; give others"
        )
    if left_out and not quiet:
        say(
            f"{_OPTION}: {counted(left_out, 'photo')} of {len(photos):,} left out: equal to photos "
            "of training pairs, or to one another."
        )
    return found


def names(data: Data, photos: Mapping[str, Path]) -> dict[str, str]:
    """Names of photos below their folder, by their SHA-256."""
    folder = Path(data.unlabelled or "")
    return {digest: path.relative_to(folder).as_posix() for digest, path in photos.items()}


def _held_out_faults(data: Data, files: DataFiles, found: Mapping[str, Path]) -> list[str]:
    """A sentence for each split that photos are of and that nobody may learn from."""
    root = data_folder(data)
    held: dict[str, set[str]] = {
        "val": {digests["photo"] for digests in files.held_out.values() if "photo" in digests}
    }
    for split in root.splits():
        if split not in {data.split, "val"}:
            held[split] = digests_of(root.photos(split, data.split), found.values())
    faults: list[str] = []
    for split, digests in held.items():
        if shared := [path.name for digest, path in found.items() if digest in digests]:
            faults.append(
                f"{counted(len(shared), 'photo')} (first: {shared[0]}) of the split {split}, on "
                "which generators are tested; take them out"
            )
    return faults


# Labelling


def labelled(job: Job) -> TripleDataset | None:
    """Photos of a job with the label maps that a segmenter of its pairs reads; None without any.

    The first rank labels them, or finds what an earlier start of the run has written; the others
    wait for it.

    Raises:
        UserError: the segmenter's training diverged, or the run folder cannot be written.
    """
    if not job.unlabelled:
        return None
    folder = distributed.from_first(_label(job) if distributed.is_first() else job.out)
    data, pairs = job.recipe.data, job.train_set
    about = names(data, job.unlabelled)
    items = [
        Item(
            clean_key(f"unlabelled/{Path(about[digest]).with_suffix('')}"),
            folder / f"{_stem(digest)}.png",
            path,
            reading=_reading(pairs),
        )
        for digest, path in job.unlabelled.items()
    ]
    return TripleDataset(
        items,
        job.space.written(),
        "folder",
        height=data.height,
        width=data.width,
        resize_to=data.resize_to,
        flip=data.flip,
        seed=sample_seed(job.recipe.train.seed, _OPTION, 0),
        edges=pairs.edges,
    )


def _reading(pairs: TripleDataset) -> Reading:
    """Photos are read as those of the pairs are, and upright where theirs are not turned."""
    own = pairs.items[0].reading
    way = "stored" if own.orientation == "stored" else "apply"
    return Reading(Encoding.INDEX, way, own.levels)


def _label(job: Job) -> Path:
    """Folder of the label maps; written where it is not there."""
    role = None if job.quiet else f"segmenter that labels the photos of {_OPTION}"
    segmenter = segmenter_of_pairs(
        job.recipe, job.space, job.train_set, job.segmenters, job.device, role
    )
    size, reading = job.train_set.size_before_crop, _reading(job.train_set)
    decisive = [
        *(_VERSION, KEPT, segmenter.hash, job.space.identity(), size),
        *(reading.orientation, reading.levels, sorted(job.unlabelled)),
    ]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    above = job.out / FOLDER
    folder = above / digest[:16]
    wanted = {_INDEX, *(f"{_stem(one)}.png" for one in job.unlabelled)}
    if folder.is_dir() and wanted <= {path.name for path in folder.iterdir()}:
        return folder
    with writing(folder):
        shutil.rmtree(above, ignore_errors=True)  # of other photos, or of another segmenter
        above.mkdir(parents=True)
        with whole_folder(folder) as partial:
            _write(job, segmenter, partial)
    return folder


class _Read(NamedTuple):
    """What a segmenter reads in a photo."""

    size: tuple[int, int]  # of the photo, height and width
    classes: npt.NDArray[np.int64]  # at the size of the training
    confidence: npt.NDArray[np.float32]


def _write(job: Job, segmenter: Segmenter, folder: Path) -> None:
    """Read photos for the thresholds, then write label maps; read them again where memory asks."""
    photos, size = job.unlabelled, job.train_set.size_before_crop
    reading, space = _reading(job.train_set), job.space
    tally = Confidence.of(space.num_classes)
    kept = np.zeros(2, np.int64)  # labelled pixels, and all
    fits = len(photos) * size[0] * size[1] * _BYTES_PER_PIXEL <= CACHE_BYTES
    kept_readings: list[_Read] = []

    def readings() -> Iterator[_Read]:
        return _readings(segmenter, [*photos.values()], reading, size, job.device)

    total = len(photos) if fits else 2 * len(photos)
    bar = Progress(total, "labelling photos", "photo", show=not job.quiet)
    with bar, deterministic(job.device):
        for found in readings():
            tally.add(found.classes, found.confidence)
            kept_readings += [found] if fits else []
            bar.update()
        thresholds = tally.thresholds(KEPT)
        for digest, found in zip(photos, kept_readings or readings(), strict=True):
            label = surest(found.classes, found.confidence, thresholds, space)
            kept += (label != space.ignore_index).sum(), label.size
            # As large as the photo, as every label map is: the same pixels are read back from it
            done, png = cv2.imencode(".png", transforms.resize_nearest(label, found.size))
            assert done
            (folder / f"{_stem(digest)}.png").write_bytes(png.tobytes())
            bar.update(0 if fits else 1)
    counts = dict(zip(space.names, tally.pixels.sum(axis=1).tolist(), strict=True))
    about = {
        "version": _VERSION,
        "segmenter": segmenter.describe(),
        "photos": names(job.recipe.data, photos),
        "read_pixels": counts,
        "labelled": float(kept[0] / kept[1]),
    }
    (folder / _INDEX).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if not job.quiet:
        absent = [name for name, count in counts.items() if not count]
        lacking = f"; none is read as {', '.join(absent[:8])}" if absent else ""
        say(
            f"{counted(len(photos), 'photo')} labelled: {about['labelled']:.0%} of their pixels, "
            f"the surest of each class{lacking}"
        )


@torch.inference_mode()
def _readings(
    segmenter: Segmenter,
    photos: Sequence[Path],
    reading: Reading,
    size: tuple[int, int],
    device: torch.device,
) -> Iterator[_Read]:
    for path in photos:
        photo = read_photo(path, upright=reading.orientation != "stored", levels=reading.levels)
        pixels = torch.tensor(transforms.resize_image(photo, size))
        image = to_images(pixels.to(device).permute(2, 0, 1)[None])
        confidence, classes = segmenter.probabilities(image)[0].float().max(dim=0)
        yield _Read(photo.shape[:2], classes.cpu().numpy(), confidence.cpu().numpy())


def _stem(digest: str) -> str:
    return digest[:32]
