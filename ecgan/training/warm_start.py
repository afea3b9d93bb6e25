"""Start a generator from another one, of the same or of another class list (``train --init``).

Channels that stand for classes are matched by the classes' names, so a generator of 35 classes
can start one of 11. Which axes of which weights those are is not written down anywhere: it is seen
by building the same generator with one class more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ecgan.checkpoint import GeneratorFile, build_generator
from ecgan.labels import LabelClass, LabelSpace
from ecgan.recipe import Recipe


@dataclass(frozen=True)
class Conditions:
    """The channels of S by name."""

    classes: tuple[str, ...]
    extra: tuple[str, ...]  # unlabelled pixels, instance boundaries

    @classmethod
    def of(cls, recipe: Recipe, space: LabelSpace) -> "Conditions":
        """Those of a run."""
        extra = [" unlabelled"] * (space.ignore is not None) + [" boundary"] * recipe.data.instances
        return cls(space.names, tuple(extra))

    def axis(self, size: int) -> list[str]:
        """Names along an axis of a weight: all classes, or S after some other channels."""
        if size == len(self.classes):
            return list(self.classes)
        channels = [*self.classes, *self.extra]
        return [f" {i}" for i in range(size - len(channels))] + channels


@dataclass(frozen=True)
class Transfer:
    """What was taken from the other generator.

    Attributes:
        taken: weights of ours that got values.
        left: weights of ours that did not, with the reason.
        classes: of ours that were matched by name.
        new_classes: of ours that the other does not have.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the user."""
        lines = [
            f"{len(self.taken)} of {len(self.taken) + len(self.left)} weights taken, "
            f"{len(self.classes)} classes matched by name"
        ]
        if self.new_classes:
            lines.append(f"classes that start anew: {', '.join(self.new_classes)}")
        shown = self.left[:8]
        lines += [f"not taken: {reason}" for reason in shown]
        if len(self.left) > len(shown):
            lines.append(f"not taken: {len(self.left) - len(shown)} more, listed in init.txt")
        return lines

    def listing(self) -> str:
        """Every weight, for a file beside the run."""
        lines = [
            *(f"taken: {name}" for name in self.taken),
            *(f"not taken: {r}" for r in self.left),
        ]
        return "\n".join(lines) + "\n"


def transfer(
    generator: nn.Module,
    style_encoder: nn.Module | None,
    recipe: Recipe,
    space: LabelSpace,
    source: GeneratorFile,
) -> Transfer:
    """Copy from another generator what fits.

    Args:
        generator: changed in place.
        style_encoder: changed in place, if there is one.
        recipe: of the generator.
        space: its class list.
        source: the other one.
    """
    ours, theirs = Conditions.of(recipe, space), Conditions.of(source.recipe, source.space)
    axes = _class_axes(recipe, space)
    taken: list[str] = []
    left: list[str] = []
    named = [
        ("", generator, source.generator),
        ("style_encoder.", style_encoder, source.style_encoder),
    ]
    for prefix, own, other in named:
        if own is None:
            continue
        state = dict(own.state_dict())
        available = {} if other is None else other.state_dict()
        for name, value in state.items():
            if name not in available:
                left.append(f"{prefix}{name}: not in the file")
                continue
            merged = _merge(
                value, available[name].to(value.device), axes.get(name, ()) if not prefix else (),
                ours, theirs,
            )  # fmt: skip
            if merged is None:
                shapes = f"{tuple(available[name].shape)} in the file, {tuple(value.shape)} here"
                left.append(f"{prefix}{name}: {shapes}")
                continue
            state[name] = merged
            taken.append(prefix + name)
        own.load_state_dict(state)
    common = set(theirs.classes)
    return Transfer(
        tuple(taken),
        tuple(left),
        tuple(name for name in ours.classes if name in common),
        tuple(name for name in ours.classes if name not in common),
    )


def _class_axes(recipe: Recipe, space: LabelSpace) -> Mapping[str, Sequence[int]]:
    """For each weight of G the axes that are longer with one class more."""
    extra = LabelClass(space.num_classes, " one more", (0, 0, 0))
    larger = replace(space, classes=(*space.classes, extra), evaluation=None, evaluation_names=())
    with torch.device("meta"):
        before = build_generator(recipe, space).state_dict()
        after = build_generator(recipe, larger).state_dict()
    return {
        name: [
            axis
            for axis, (size, size_after) in enumerate(
                zip(value.shape, after[name].shape, strict=True)
            )
            if size != size_after
        ]
        for name, value in before.items()
    }


def _merge(
    own: Tensor, other: Tensor, axes: Sequence[int], ours: Conditions, theirs: Conditions
) -> Tensor | None:
    """``own`` with the other's values where both have a channel of that name; None if none fits."""
    if own.ndim != other.ndim:
        return None
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for axis, (size, size_there) in enumerate(zip(own.shape, other.shape, strict=True)):
        if axis not in axes:
            if size != size_there:
                return None
            continue
        there = {name: index for index, name in enumerate(theirs.axis(size_there))}
        matched = [(i, there[name]) for i, name in enumerate(ours.axis(size)) if name in there]
        if not matched:
            return None
        here, where = torch.tensor(matched, device=own.device).T
        pairs[axis] = here, where
        other = other.index_select(axis, where)
    return _put(own, other.to(own.dtype), [(axis, here) for axis, (here, _) in pairs.items()])


def _put(own: Tensor, values: Tensor, places: Sequence[tuple[int, Tensor]]) -> Tensor:
    """A copy of ``own`` with values at these places along several axes."""
    if not places:
        return values.clone()
    (axis, here), *rest = places
    inner = _put(own.index_select(axis, here), values, rest) if rest else values
    return own.index_copy(axis, here, inner)
