"""Paste of things between layouts: find objects, draw a place for them, put them there.

Experimental: of 50 pasted layouts that were looked at, 41 looked right, and no gain is measured.

A *thing* is a class that can be counted: car, person, chair. A *piece* is one connected region of
a thing class, or one instance of it. An *object* is what moves: a piece, together with the pieces
of other thing classes that it touches and stands above or below of, as a rider does of a bicycle.

Of two things on the ground, the one whose bottom edge is in the lower row is nearer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array  # pyright: ignore[reportMissingTypeStubs]
from scipy.sparse import csgraph as _csgraph  # pyright: ignore[reportMissingTypeStubs]

from ecgan.data.transforms import resize_nearest
from ecgan.labels import Labels

csgraph: Any = _csgraph  # it has no types
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
_MOST_OBJECTS = 4
_TRIES = 4  # objects tried for each that is to be pasted
_ROWS = 8  # rows tried for each object
_LEAST_PIXELS, _LEAST_SHARE = 24, 0.001  # of an object, of the map: whichever is more
_FILLED = 0.2  # of the box of an instance; less, and it is a crowd that shares one id
_SCALES, _FEW = (0.3, 3.0), 5  # scales; objects that a line through heights needs
_CORRELATED = 0.7  # heights with rows, for the line to be believed
_LIKELY = (0.6, 1.67)  # height of an object by that of the line
_SAME_ROW = 0.03  # of the map's height: how far an object may move that keeps its scale
_SAME_GROUND = 0.1  # of the map's height: difference in where the ground begins, for the same
_SOLE = 0.25  # of an object's height: how far up its bottom edge goes
_RAISED = 0.1  # of the columns of a wide object: those that may end above its lower third
_STANDING = 0.8  # of the bottom edge: above the support class
_HIDDEN = 0.1  # of an object's outline: more of it beside nearer things, and it is cut off
_VISIBLE = 0.7  # of an object's pixels, once nearer things hide it
_COVERED = 0.5  # of another thing: as much of it may vanish behind the object
_APART = 0.15  # of an object's height: rows between its bottom edge and that of a thing it overlaps


class Scene(NamedTuple):
    """A layout, with its instance ids where the generator takes any."""

    key: str
    label: Labels  # (H, W), input ids; ignore_index = unlabelled
    instances: Ints | None  # (H, W)


class Window(NamedTuple):
    """Rectangle of a layout."""

    top: int
    left: int
    height: int
    width: int

    def describe(self) -> str:
        return f"crop {self.top},{self.left} {self.height}x{self.width}"


@dataclass(frozen=True, eq=False)
class Pasted:
    """An object that was put into a scene."""

    key: str  # of the layout it comes from
    name: str  # of its class, in ASCII
    scale: float  # its size by that in the layout it comes from
    source: tuple[slice, slice]  # its box in that layout, at the size of the scene
    box: tuple[slice, slice]  # in the scene
    visible: "Mask"  # pixels of that box that are the object's

    def describe(self) -> str:
        """One clause for the sample's record."""
        place = f"{self.box[0].start},{self.box[1].start} x{self.scale:.2f}"
        return f"paste {self.name.split(',')[0]} from {self.key} to {place}"


def change_maps(scene: Scene, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Scene:
    """Change label and instance ids alike."""
    instances = None if scene.instances is None else change(scene.instances)
    return Scene(scene.key, change(scene.label), instances)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A connected region of a thing class, or an instance of it."""

    kind: int  # class id
    top: int
    left: int
    mask: Mask  # of its box

    @property
    def bottom(self) -> int:
        """Its last row."""
        return self.top + len(self.mask) - 1

    @property
    def width(self) -> int:
        return self.mask.shape[1]

    @property
    def right(self) -> int:
        """Its last column."""
        return self.left + self.width - 1


@dataclass(frozen=True, eq=False)
class _Layout:
    """A layout, and what stands in it."""

    scene: Scene
    pieces: list[_Piece]  # of thing classes
    owner: Ints  # number of the piece that a pixel belongs to, -1 on all else; (H, W)
    # Row down to which what stands here reaches, -1 on the ground; (H, W). A thing reaches down to
    # its bottom edge, anything else upright as far as it goes in its column.
    feet: Ints
    begins: int  # the first row of which a fiftieth is ground


@dataclass(frozen=True, eq=False)
class _Object:
    """What moves: pieces that belong together, whole, with the ground below them."""

    key: str  # of the layout it comes from
    box: tuple[slice, slice]  # in that layout
    begins: int  # row at which the ground begins there
    bottom: int  # its last row there
    kinds: Labels  # class of each pixel of its box
    parts: Ints  # number of the piece of each pixel of its box, from 1; 0 outside of the object
    stands: int  # class of the piece that stands lowest
    height: int  # of that piece
    support: int  # class of the ground right below


@dataclass(frozen=True)
class _Perspective:
    """How the height of a thing follows the row of its bottom edge: slope * (row - horizon)."""

    slope: float
    horizon: float
    first: int  # rows between which such things were seen
    last: int

    def fits(self, thing: _Object) -> bool:
        """Whether the object is of a likely height; a part of it is hidden where it is not."""
        expected = self.slope * (thing.bottom - self.horizon)
        return _LIKELY[0] * expected <= thing.height <= _LIKELY[1] * expected


class _Spot(NamedTuple):
    """Where an object goes: the upper left corner of its box, and the object scaled to it."""

    top: int
    left: int
    scale: float
    kinds: Labels
    parts: Ints

    @property
    def bottom(self) -> int:
        return self.top + len(self.parts) - 1

    @property
    def box(self) -> tuple[slice, slice]:
        height, width = self.parts.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def paste(
    scene: Scene,
    donors: Sequence[Scene],
    window: Window,
    names: Sequence[str],
    upright: Mask,
    things: frozenset[int],
    rng: np.random.Generator,
) -> tuple[Scene, list[Pasted]]:
    """The scene with objects of the donors in its window, and what they are."""
    target = _survey(change_maps(scene, np.copy), things, upright)
    sized = [change_maps(d, lambda ids: resize_nearest(ids, scene.label.shape)) for d in donors]
    objects = [thing for donor in sized for thing in _objects(_survey(donor, things, upright))]
    perspectives = _perspectives([*objects, *_objects(target)])
    objects = [o for o in objects if o.stands not in perspectives or perspectives[o.stands].fits(o)]
    wanted = int(rng.integers(1, _MOST_OBJECTS + 1))
    done: list[Pasted] = []
    for thing in _draw_objects(objects, sized, wanted * _TRIES, rng):
        spot = _draw_spot(thing, target, perspectives.get(thing.stands), window, rng)
        if spot is not None:
            visible = _put(spot, thing.stands, target)
            name = names[thing.stands].encode("ascii", "replace").decode()
            done.append(Pasted(thing.key, name, spot.scale, thing.box, spot.box, visible))
        if len(done) == wanted:
            break
    return target.scene, done


def _survey(scene: Scene, things: frozenset[int], upright: Mask) -> _Layout:
    """Find what stands in a layout; ``upright`` says of each label id whether it is no ground."""
    pieces = list(_pieces(scene, things))
    owner = np.full(scene.label.shape, -1, np.int32)
    for number, piece in enumerate(pieces):
        owner[piece.top : piece.bottom + 1, piece.left : piece.right + 1][piece.mask] = number
    bottoms = np.array([*(piece.bottom for piece in pieces), -1], np.int32)  # the last one's for -1
    feet = np.where(upright[scene.label], _ends_of_runs(scene.label), -1).astype(np.int32)
    feet = np.where(owner >= 0, bottoms[owner], feet)
    ground = (feet < 0).mean(axis=1) >= 0.02
    return _Layout(scene, pieces, owner, feet, int(ground.argmax()))


def _pieces(scene: Scene, things: frozenset[int]) -> Iterator[_Piece]:
    present = np.flatnonzero(np.bincount(scene.label.ravel()))
    for kind in sorted(things.intersection(present.tolist())):
        area = np.asarray(scene.label == kind)
        if scene.instances is None:
            yield from _connected(kind, area)
            continue
        for instance in np.unique(scene.instances[area]):
            region = area & (scene.instances == instance)
            left, top, width, height = cv2.boundingRect(region.view(np.uint8))
            mask = region[top : top + height, left : left + width]
            if instance == 0 or mask.mean() < _FILLED:  # 0 is no instance
                yield from _connected(kind, region)
            else:
                yield _Piece(kind, top, left, mask)


def _connected(kind: int, area: Mask) -> Iterator[_Piece]:
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(area.view(np.uint8), connectivity=8)
    for number, (left, top, width, height, _) in enumerate(stats[1:].tolist(), start=1):
        mask = np.asarray(numbers[top : top + height, left : left + width] == number)
        yield _Piece(kind, top, left, mask)


def _ends_of_runs(label: Labels) -> Ints:
    """For each pixel the last row of the run of its class downwards, (H, W)."""
    height = len(label)
    ends = np.full(label.shape, height - 1, np.int32)
    rows = np.arange(height - 1, dtype=np.int32)[:, None]
    ends[:-1] = np.where(label[1:] != label[:-1], rows, height - 1)
    return np.minimum.accumulate(ends[::-1], axis=0)[::-1]


def _objects(layout: _Layout) -> list[_Object]:
    """The objects of a layout that are big enough, whole, and stand on the ground."""
    found = (_object(layout, group) for group in _groups(layout))
    return [thing for thing in found if thing is not None]


def _groups(layout: _Layout) -> list[list[_Piece]]:
    """Pieces that move together: of different classes, touching, one above the other.

    One is above the other where they share half of the columns of the narrower one.
    """
    pieces = layout.pieces

    def above(one: int, other: int) -> bool:
        a, b = pieces[one], pieces[other]
        shared = min(a.right, b.right) - max(a.left, b.left) + 1
        return a.kind != b.kind and 2 * shared >= min(a.width, b.width)

    pairs = np.array([pair for pair in _touching(layout.owner) if above(*pair)], int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), tuple(pairs.T)), (len(pieces), len(pieces)))
    groups: dict[int, list[_Piece]] = {}
    for number, piece in zip(csgraph.connected_components(graph)[1], pieces, strict=True):
        groups.setdefault(int(number), []).append(piece)
    return list(groups.values())


def _touching(owner: Ints) -> set[tuple[int, int]]:
    """Numbers of pieces that have neighbouring pixels, of the eight."""
    pairs: set[tuple[int, int]] = set()
    for here, there in (
        (owner[:, 1:], owner[:, :-1]),
        (owner[1:], owner[:-1]),
        (owner[1:, 1:], owner[:-1, :-1]),
        (owner[1:, :-1], owner[:-1, 1:]),
    ):
        border = (here != there) & (here >= 0) & (there >= 0)
        pairs.update(zip(here[border].tolist(), there[border].tolist(), strict=True))
    return pairs


def _object(layout: _Layout, group: Sequence[_Piece]) -> _Object | None:
    """Pieces that belong together as one object, if it is big enough, whole, and stands."""
    label = layout.scene.label
    top, bottom = min(p.top for p in group), max(p.bottom for p in group)
    left, right = min(p.left for p in group), max(p.right for p in group)
    if min(top, left) == 0 or bottom == label.shape[0] - 1 or right == label.shape[1] - 1:
        return None
    kinds = np.zeros_like(label[top : bottom + 1, left : right + 1])
    parts = np.zeros(kinds.shape, np.int32)
    for number, piece in enumerate(group, start=1):
        rows = slice(piece.top - top, piece.bottom - top + 1)
        columns = slice(piece.left - left, piece.right - left + 1)
        kinds[rows, columns][piece.mask] = piece.kind
        parts[rows, columns][piece.mask] = number
    mask = parts > 0
    if np.count_nonzero(mask) < _least_pixels(label):
        return None
    support = _support(layout, mask, top, left)
    if support is None or _recedes(mask) or _is_cut_off(layout.feet, mask, top, left):
        return None
    stands = max(group, key=lambda piece: (piece.bottom, np.count_nonzero(piece.mask)))
    return _Object(
        key=layout.scene.key,
        box=(slice(top, bottom + 1), slice(left, right + 1)),
        begins=layout.begins,
        bottom=bottom,
        kinds=kinds,
        parts=parts,
        stands=stands.kind,
        height=len(stands.mask),
        support=support,
    )


def _least_pixels(label: Labels) -> float:
    return max(_LEAST_PIXELS, _LEAST_SHARE * label.size)


def _bottom_edge(mask: Mask) -> tuple[Indices, Indices]:
    """Rows and columns of the lowest pixels of those columns that reach the lowest quarter."""
    height = len(mask)
    lowest = height - 1 - mask[::-1].argmax(axis=0)
    columns = np.flatnonzero(mask.any(axis=0) & (height - 1 - lowest <= _SOLE * height))
    return lowest[columns], columns


def _support(layout: _Layout, mask: Mask, top: int, left: int) -> int | None:
    """The class of most pixels right below the bottom edge; None where that is no ground."""
    rows, columns = _bottom_edge(mask)
    below = top + rows + 1, left + columns
    counts = np.bincount(layout.scene.label[below][layout.feet[below] < 0], minlength=1)
    return int(counts.argmax()) if 2 * counts.max() > len(rows) else None


def _recedes(mask: Mask) -> bool:
    """Whether it is a row of things, each farther away than the next: no single place fits it."""
    height, width = mask.shape
    raised = mask[::-1].argmax(axis=0)[mask.any(axis=0)]
    return width > height and bool((3 * raised > height).mean() > _RAISED)


def _is_cut_off(feet: Ints, mask: Mask, top: int, left: int) -> bool:
    """Whether nearer things stand along the outline of an object: they hide a part of it."""
    height, width = mask.shape
    padded = np.pad(mask, 1)
    ring = cv2.dilate(padded.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool) & ~padded
    around = feet[top - 1 : top + height + 1, left - 1 : left + width + 1][ring]
    return bool((around > top + height).mean() > _HIDDEN)  # one row lower is the luck of the pen


def _perspectives(objects: Sequence[_Object]) -> dict[int, _Perspective]:
    """For each class of which there are enough objects: how their height follows the row."""
    found: dict[int, _Perspective] = {}
    for kind in sorted({thing.stands for thing in objects}):
        of_kind = [thing for thing in objects if thing.stands == kind]
        rows, heights = np.array([(thing.bottom, thing.height) for thing in of_kind]).T
        perspective = _fit(rows, heights)
        if perspective is not None:
            found[kind] = perspective
    return found


def _fit(rows: Indices, heights: Indices) -> _Perspective | None:
    """A line through heights over rows, by the median of all slopes (Theil and Sen).

    None where there are too few of them, or where nearer things are not clearly larger.
    """
    if len(rows) < _FEW or np.ptp(rows) == 0 or np.ptp(heights) == 0:
        return None
    first, second = np.triu_indices(len(rows), k=1)
    apart = rows[first] != rows[second]
    first, second = first[apart], second[apart]
    slope = float(np.median((heights[second] - heights[first]) / (rows[second] - rows[first])))
    if slope <= 0 or np.corrcoef(rows, heights)[0, 1] < _CORRELATED:
        return None
    horizon = float(np.median(rows - heights / slope))
    return _Perspective(slope, horizon, int(rows.min()), int(rows.max()))


def _draw_objects(
    objects: Sequence[_Object], donors: Sequence[Scene], num: int, rng: np.random.Generator
) -> list[_Object]:
    """Objects in the order in which they are tried, each once.

    The first is drawn in proportion to the inverse share of its rarest class over the donors, the
    next from the rest likewise.
    """
    if not objects:
        return []
    pixels = np.bincount(np.concatenate([donor.label.ravel() for donor in donors]))
    weights = np.array([1 / np.min(pixels[o.kinds[o.parts > 0]]) for o in objects])
    num = min(num, len(objects))
    order = rng.choice(len(objects), num, replace=False, p=weights / weights.sum())
    return [objects[number] for number in order]


def _draw_spot(
    thing: _Object,
    target: _Layout,
    perspective: _Perspective | None,
    window: Window,
    rng: np.random.Generator,
) -> _Spot | None:
    """A place inside the window where the object stands on its ground and can be seen."""
    first, last = _rows(thing, target, perspective)
    first, last = max(first, window.top), min(last, window.top + window.height - 2)
    if first > last:
        return None
    for row in rng.integers(first, last + 1, _ROWS).tolist():
        spot = _scaled(thing, row, perspective)
        if np.count_nonzero(spot.parts) < _LEAST_PIXELS or spot.top < window.top:
            continue
        lefts = _standing(spot, thing.support, target.scene.label, window)
        if not len(lefts):
            continue
        spot = spot._replace(left=int(rng.choice(lefts)))
        if not _collides(spot, target):
            return spot
    return None


def _rows(thing: _Object, target: _Layout, perspective: _Perspective | None) -> tuple[int, int]:
    """First and last row that the bottom edge of an object may have; none where first > last."""
    height = len(target.scene.label)
    if perspective is None:
        slack = int(_SAME_ROW * height)
        if abs(thing.begins - target.begins) > _SAME_GROUND * height:  # another view of the world
            slack = -1
        return thing.bottom - slack, thing.bottom + slack
    depth = thing.bottom - perspective.horizon
    smallest, largest = (perspective.horizon + scale * depth for scale in _SCALES)
    first, last = max(smallest, perspective.first), min(largest, perspective.last)
    return int(np.ceil(first)), int(last)


def _scaled(thing: _Object, row: int, perspective: _Perspective | None) -> _Spot:
    """The object as large as it is with its bottom edge in this row, at the left border."""
    scale = 1.0
    if perspective is not None:
        scale = (row - perspective.horizon) / (thing.bottom - perspective.horizon)
    height, width = (max(1, round(scale * side)) for side in thing.parts.shape)
    parts = resize_nearest(thing.parts, (height, width))
    kinds = resize_nearest(thing.kinds, (height, width))
    return _Spot(row - height + 1, 0, scale, kinds, parts)


def _standing(spot: _Spot, support: int, label: Labels, window: Window) -> Indices:
    """Left columns inside the window with the support class below the object's bottom edge."""
    stop = window.left + window.width - int(spot.parts.shape[1]) + 1
    lefts = np.arange(window.left, stop)
    rows, columns = _bottom_edge(spot.parts > 0)
    below = label[spot.top + rows + 1, lefts[:, None] + columns]  # (lefts, columns)
    return lefts[(below == support).mean(axis=1) >= _STANDING]


def _visible(spot: _Spot, feet: Ints) -> Mask:
    """Pixels of an object's box that are the object's: nothing nearer stands there."""
    return (spot.parts > 0) & (feet[spot.box] <= spot.bottom)


def _collides(spot: _Spot, target: _Layout) -> bool:
    """Whether the object would be hidden, or hide a thing, or stand in the middle of one."""
    visible, owner = _visible(spot, target.feet), target.owner[spot.box]
    if np.count_nonzero(visible) < _VISIBLE * np.count_nonzero(spot.parts):
        return True
    numbers: list[int] = np.unique(owner[(spot.parts > 0) & (owner >= 0)]).tolist()
    for number in numbers:
        piece = target.pieces[number]
        pixels = np.count_nonzero(piece.mask)
        if pixels < _least_pixels(target.scene.label):
            continue
        if abs(piece.bottom - spot.bottom) < _APART * len(spot.parts):
            return True
        if np.count_nonzero(visible & (owner == number)) > _COVERED * pixels:
            return True
    return False


def _put(spot: _Spot, kind: int, target: _Layout) -> Mask:
    """Draw an object into the target, each part with an instance id of its own; what shows."""
    visible = _visible(spot, target.feet)
    label, instances = target.scene.label, target.scene.instances
    label[spot.box][visible] = spot.kinds[visible]
    target.feet[spot.box][visible] = spot.bottom
    target.owner[spot.box][visible] = len(target.pieces)
    target.pieces.append(_Piece(kind, spot.top, spot.left, visible))
    if instances is not None:
        highest = max(0, int(instances.max()))
        instances[spot.box][visible] = highest + spot.parts[visible]
    return visible
