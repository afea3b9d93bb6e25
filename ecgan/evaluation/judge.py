"""Which judge reads the samples, and what speaks against it.

A judge that trained the generator would find what it taught. One that learnt from a sample's own
layout knows the scene by heart. The first is refused, unless it is forced; both are marked.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import LabelSpace
from ecgan.recipe import Recipe
from ecgan.runtime.files import sha256
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import Segmenter
from ecgan.segmentation.training import train_segmenter
from ecgan.shards.manifest import Manifest


class Judge(NamedTuple):
    """A segmenter that reads evaluation ids, and where other processes find it."""

    segmenter: Segmenter
    path: str  # folder or hub name

    def about(self, recipe: Recipe, split: str) -> str:
        """What a protocol says of it."""
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
    """The judge that the user named, or one trained on real pairs.

    Args:
        name: ``train``, or a segmenter of transformers or of ours by path or name.
        recipe: says how it is trained.
        space: the recipe's classes.
        pairs: what it is trained on.
        cache: folder of trained judges.
        device: where it goes.
        progress: show progress bars.

    Raises:
        UserError: no such segmenter, or its classes do not fit.
    """
    if name != "train":
        return Judge(load_segmenter(name, space, device=device, evaluation=True), name)
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
    """Marks for sets whose generator was trained by this very judge, or that it has filtered.

    Args:
        judge: the judge.
        manifests: of the sets that have one, by name.
        force: judge all the same.

    Returns:
        Marks of each set.

    Raises:
        UserError: it is the label generator of a set, or its filter, and was not forced.
    """
    marks: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        role = _role_in(judge, manifest)
        if role is None:
            continue
        if not force:
            raise UserError(
                f"judge {judge.path}: it is the {role.title} of {name}, so it would find what "
                f"{role.deed}. Give another with --judge, train one with --judge train "
                "(evaluate.judge_training), or force it with --force-judge: the "
                "report is marked then"
            )
        marks[name] = [f"the judge is the {role.title} of this set (forced)"]
    return marks


class _Role(NamedTuple):
    """What a judge did for samples before it was to judge them."""

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
    """Layouts that the judge learnt from: by their label maps where these are at hand, else by key.

    A key that two splits share tells nothing; the label map does.
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


def seen_mark(judge: Judge, layouts: Iterable[str], reference: TripleDataset) -> list[str]:
    """The mark of :func:`seen_layouts`, if there are any."""
    distinct = set(layouts)
    seen = seen_layouts(judge, distinct, reference)
    if not seen:
        return []
    return [
        f"{len(seen)} of {len(distinct)} layouts of these samples are in the judge's own training: "
        "its agreement says less about them"
    ]
