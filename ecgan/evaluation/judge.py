"""The judge: a segmenter of real photos, and its independence of the samples.

A judge that trained the generator would find what it taught. One that learnt from a sample's own
layout may have memorised the scene. The first is refused, unless it is forced; the report warns of
both.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ecgan.data.files.images import sha256
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.recipe import Recipe
from ecgan.runtime import storage
from ecgan.runtime.timing import say
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter
from ecgan.segmentation.training import train_segmenter
from ecgan.shards.manifest import Manifest


class Judge(NamedTuple):
    """Segmenter of evaluation ids, and the place where other processes find it."""

    segmenter: Segmenter
    path: str  # folder or hub name

    def about(self, recipe: Recipe, split: str) -> str:
        """Description for the protocol of a report."""
        judge = self.segmenter.describe()
        if judge["kind"] != "trained":
            return self.path
        width = f", width {judge['width']}" if judge["width"] else ""
        about = f"{judge['source']}{width}, trained by ecgan, {judge['images']} images seen"
        if split:
            seed = recipe.evaluate.judge_training.seed
            return f"{about}, on the reference's split {split}, seed {seed}"
        return f"{self.path}: {about}, data and settings {judge['data'][:16]}"


def find_judge(
    name: str,
    recipe: Recipe,
    space: LabelSpace,
    pairs: TripleDataset,
    *,
    cache: Path,
    device: torch.device,
    progress: bool,
) -> Judge:
    """Load the judge that the user named, or train one on real pairs.

    Args:
        name: ``train``, or a segmenter of transformers or of ours by path or name.
        recipe: recipe with the settings of its training.
        space: the recipe's classes.
        pairs: real pairs to train on.
        cache: folder of trained judges.
        device: where it goes.
        progress: show progress bars.

    Raises:
        UserError: no such segmenter, or its classes do not fit.
    """
    if name != "train":
        found = load_segmenter(name, space, device=device, evaluation=True, role="judge")
        return Judge(found, name)
    segmenter = train_segmenter(
        pairs,
        space,
        recipe.evaluate.judge_training,
        cache,
        device,
        role="judge" if progress else None,
        evaluation=True,
        workers=recipe.data.workers,
    )
    return Judge(segmenter, segmenter.loaded_from)


def own_label_generators(
    judge: Judge, manifests: Mapping[str, Manifest], *, force: bool
) -> dict[str, list[str]]:
    """Warnings for sets whose generator was trained by this very judge, or that it has filtered.

    Args:
        judge: the judge.
        manifests: manifests of the sets that have one, by name.
        force: accept it all the same.

    Returns:
        Warnings of each set.

    Raises:
        UserError: it is the label generator of a set, or its filter, and was not forced.
    """
    warnings: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        role = _role_in(judge, manifest)
        if role is None:
            continue
        if not force:
            raise UserError(
                f"judge {judge.path}: it is the {role.title} of {name}, so it would find what "
                f"{role.deed}. Give another with --judge, train one with --judge train "
                "(evaluate.judge_training), or force it with --force-judge: the "
                "report warns of it then"
            )
        warnings[name] = [f"the judge is the {role.title} of this set (forced)"]
    return warnings


class _Role(NamedTuple):
    """Part that a judge had in the making of samples."""

    title: str
    deed: str


_TAUGHT = _Role("label generator that trained the generator", "it taught")
_FILTERED = _Role("label filter", "it left in the labels")


def _role_in(judge: Judge, manifest: Manifest) -> _Role | None:
    if _is_same(judge, manifest):
        return _TAUGHT
    about = manifest.filter
    named = about.segmenter or "train"
    same = named != "train" and _same_place(named, judge.path)
    return _FILTERED if same or judge.segmenter.weights_hash in about.weights else None


def _is_same(judge: Judge, manifest: Manifest) -> bool:
    own, taught = judge.segmenter.provenance, manifest.label_generator
    if taught is not None and (
        taught.hash == judge.segmenter.hash
        or taught.weights == judge.segmenter.weights_hash
        or (own.data and taught.data == own.data)
    ):
        return True
    named = manifest.of_recipe("model", "label_generator", "off")
    return named not in {"off", "train"} and _same_place(named, judge.path)


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def seen_layouts(judge: Judge, layouts: Iterable[str], reference: TripleDataset) -> set[str]:
    """Layouts that the judge was trained on, by their label maps where at hand, else by key.

    A key that two splits share proves nothing; the label map does.
    """
    sources = judge.segmenter.sources
    files = {item.key: item.label for item in reference.items}
    return {
        layout
        for layout in layouts
        if (
            sha256(files[layout]) in sources.labels
            if layout in files and sources.labels
            else layout in sources.keys
        )
    }


def seen_layouts_warning(
    judge: Judge, layouts: Iterable[str], reference: TripleDataset
) -> list[str]:
    """Warning of :func:`seen_layouts`, if there are any."""
    distinct = set(layouts)
    seen = seen_layouts(judge, distinct, reference)
    if not seen:
        return []
    return [
        f"{len(seen)} of {len(distinct)} layouts of these samples are in the judge's own training: "
        "it may have memorised them"
    ]


# Where it is kept


@contextmanager
def usable_cache() -> Iterator[None]:
    """The user's cache, or for the length of the block a temporary folder where it is not writable.

    A judge is trained for hours: whether it can be kept is found out before.

    Raises:
        UserError: neither can be written.
    """
    try:
        _write_once(storage.cache_folder())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        yield
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="ecgan-")
        _write_once(Path(folder.name))
    except OSError as error:
        raise UserError(
            f"the cache cannot be written ({reason}), nor a temporary folder ({error.strerror}); "
            "make room, or set ECGAN_CACHE to a folder that can"
        ) from error
    say(
        f"the cache cannot be written ({reason}): judge and measurements are kept until the end of "
        "this command only; set ECGAN_CACHE to a folder that can"
    )
    before = os.environ.get("ECGAN_CACHE")
    with folder as name:
        os.environ["ECGAN_CACHE"] = name
        try:
            yield
        finally:
            os.environ.pop("ECGAN_CACHE")
            if before is not None:
                os.environ["ECGAN_CACHE"] = before


def _write_once(folder: Path) -> None:
    """Write some bytes and remove them: rights alone tell nothing of a full or read-only disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())
