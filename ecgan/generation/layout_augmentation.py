"""Vary layouts before synthesis: mirror them, cut windows, paste things from other layouts.

    layout --flip--> --paste from donors, inside the window--> --crop--> varied layout

The order is always this one, whatever the order in which changes are asked for: what is pasted has
to fit the perspective of the layout that it comes into, so the window is cut last, but drawn first,
and things are only pasted inside it.

A *thing* is a class that can be counted: car, person, chair. A *piece* is one connected region of
a thing class, or one instance of it. An *object* is what moves: a piece, together with the pieces
of other thing classes that it touches and stands above or below of, as a rider does of a bicycle.
All numbers that a label map has after a change it had before, or a donor had them.

Rows count from the top: of two things on the ground, the one whose bottom edge has the larger row
is nearer.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ecgan.data.transforms import resize_nearest
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace, spellings

Change = Literal["flip", "crop", "paste"]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]

_LEAST_WINDOW = 0.6  # of each side
_WINDOWS = 8  # draws of a window until one has two classes
_MOST_OBJECTS = 4
_TRIES = 4  # objects tried for each that is to be pasted
_ROWS = 8  # rows tried for each object
_LEAST_PIXELS, _LEAST_SHARE = 24, 0.001  # of an object, of the map: whichever is more
_FILLED = 0.2  # of the box of an instance; less, and it is a crowd that shares one id
_SCALES = (0.3, 3.0)
_FEW = 5  # objects that a line through heights needs
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
_LENGTH = 200  # characters of what was done

# Countable classes of street scenes, rooms and farms, as data sets write them: COCO's 80, those
# with instances in Cityscapes, CamVid's, ADE20K's that stand free and are found again and again.
_THINGS = """
    person, people, pedestrian, child, rider, bicyclist, cyclist, motorcyclist, other rider,
    bicycle, bike, motorcycle, motorbike, minibike, motorcyclescooter, scooter, car, auto,
    automobile, suvpickuptruck, pickup, van, truck, truck bus, bus, caravan, trailer, train, tram,
    on rails, autorickshaw, vehicle, other vehicle, vehicle fallback, othermoving, airplane, plane,
    aeroplane, boat, ship, wheelchair, stroller, cartluggagepram, traffic light, trafficlight,
    traffic cone, trafficcone, fire hydrant, stop sign, parking meter, mailbox, trash can, ashcan,
    bench, barrel,
    animal, ground animal, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, bag, tie, suitcase, frisbee, skis, snowboard, sports ball, ball,
    kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, plaything, basket,
    bottle, wine glass, cup, fork, knife, spoon, bowl, pot, tray, plate, banana, apple, sandwich,
    orange, broccoli, carrot, hot dog, pizza, donut, cake,
    chair, armchair, swivel chair, couch, sofa, ottoman, stool, seat, cushion, pillow, potted plant,
    bed, cradle, dining table, diningtable, table, coffee table, pool table, desk, wardrobe,
    chest of drawers, buffet, bookcase, lamp, fan, toilet, bathtub, sink, tv, tvmonitor, tv monitor,
    television, television receiver, crt screen, monitor, computer, laptop, mouse, remote, keyboard,
    cell phone, microwave, oven, stove, toaster, refrigerator, dishwasher, washer, arcade machine,
    blender, book, clock, vase, flower, sculpture, box, scissors, teddy bear, hair drier, toothbrush
"""

# What stands upright or hangs: it carries nothing, and hides what stands farther away. A first word
# does for "wall-brick" and "sky-other". With them what is no surface at all.
_UPRIGHT = """
    sky, clouds, fog, building, edifice, house, skyscraper, hovel, tower, archway, wall, fence,
    guard rail, railing, bannister, bridge, tunnel, roof, tent, booth, pole, polegroup, column,
    column pole, streetlight, street light, light, chandelier, sconce, traffic light, trafficlight,
    traffic sign, sign, signsymbol, signboard, street sign, billboard, banner, bulletin board, flag,
    tree, trees, palm, branch, leaves, vegetation, vegetationmisc, bush, hedge, plant, mountain,
    window, windowpane, door, screen door, curtain, blind, ceiling, mirror, painting, poster,
    awning, canopy, cabinet, cupboard, cage, fireplace, radiator, hood, towel, structural,
    text, misc text, unlabeled, unlabelled, void, background, ego vehicle, rectification border,
    out of roi, static, dynamic
"""


class Scene(NamedTuple):
    """A layout, with its instance ids where the generator takes any."""

    key: str
    label: Labels  # (H, W), input ids; ignore_index = unlabelled
    instances: Ints | None  # (H, W)


@dataclass(frozen=True, eq=False)
class Varied:
    """What became of a scene.

    Attributes:
        label: (H, W), of the scene's size and type.
        instances: (H, W); None where the scene has none.
        done: one sentence in ASCII, at most 200 characters, for the sample's record; empty where
            nothing could be done, then both maps are the scene's. Rows and columns are those of the
            mirrored layout before the crop, of the upper left corner.
    """

    label: Labels
    instances: Ints | None
    done: str


def thing_classes(space: LabelSpace, names: Sequence[str] = ()) -> frozenset[int]:
    """Ids of the classes that ``paste`` moves: those named, else all whose name is a thing's.

    Case and punctuation do not matter, and of several names with commas between each counts, as
    where a segmenter's classes are mapped. To be called where ``paste`` is asked for: a class list
    without things is no fault otherwise.

    Args:
        space: the class list.
        names: of thing classes; empty: the built-in list decides.

    Raises:
        UserError: a name that the class list lacks, or no thing class at all.
    """
    ids: dict[str, set[int]] = {}
    for c in space.classes:
        for word in spellings(c.name):
            ids.setdefault(word, set()).add(c.id)
    if names:
        faults = [_unknown(name, space) for name in names if not ids.keys() & {*spellings(name)}]
        if faults:
            raise UserError(
                f"sampling.things: the class list has {len(space.names)} classes, "
                f"{', '.join(space.names)}; not among them",
                faults,
            )
        words = {word for name in names for word in spellings(name)}
    else:
        words = _words(_THINGS)
    things = frozenset(number for word in words for number in ids.get(word, ()))
    if not things:
        raise UserError(
            f"paste: none of the {len(space.names)} classes ({', '.join(space.names)}) is known as "
            "a thing that can be moved; name some with sampling.things in the recipe, or "
            "--set sampling.things=[car,person]"
        )
    return things


def vary(
    scene: Scene,
    donors: Sequence[Scene],
    changes: Sequence[Change],
    space: LabelSpace,
    *,
    things: frozenset[int],
    seed: int,
) -> Varied:
    """A variant of a layout, drawn from the seed alone.

    ``flip`` mirrors half of the variants where other changes are asked for too, else all; and those
    that no other change could be made to. ``crop`` takes a window of 60 to 100 % of each side and
    brings it to the size of the layout. ``paste`` puts one to four objects of the donors on ground
    like that which they stood on, as large as the row asks for, behind what is nearer.

    Args:
        scene: the layout.
        donors: layouts to take objects from; each costs about as much time as the layout itself.
            Those of another size are brought to that of the layout.
        changes: what to do; their order does not matter.
        space: the class list of all of them.
        things: classes that ``paste`` moves, see :func:`thing_classes`.
        seed: of every draw, from 0.
    """
    rng = np.random.default_rng(seed)
    mirrored = "flip" in changes and (len(set(changes)) == 1 or rng.random() < 0.5)
    changed = _each(scene, _mirror) if mirrored else scene
    window = _whole(scene.label)
    if "crop" in changes:
        window = _draw_window(changed.label, space.ignore_index, rng)
    pasted: list[str] = []
    if "paste" in changes:
        changed, pasted = _paste(changed, donors, window, space, things, rng)
    changed = _each(changed, lambda ids: _cut(ids, window))
    if not _same(changed, scene):
        crop = "" if window == _whole(scene.label) else window.describe()
        done = _sentence("flip" if mirrored else "", pasted, crop)
        return Varied(changed.label, changed.instances, done)
    if "flip" in changes and not mirrored:
        return vary(scene, (), ("flip",), space, things=things, seed=seed)
    return Varied(scene.label, scene.instances, "")


class _Window(NamedTuple):
    top: int
    left: int
    height: int
    width: int

    def describe(self) -> str:
        return f"crop {self.top},{self.left} {self.height}x{self.width}"


def _whole(label: Labels) -> _Window:
    return _Window(0, 0, *label.shape)


def _draw_window(label: Labels, ignore_index: int, rng: np.random.Generator) -> _Window:
    """A window of 60 to 100 % of each side.

    If it can be had, one with two classes, at most half of it unlabelled, that changes the layout.
    """
    window = _whole(label)
    for _ in range(_WINDOWS):
        share = rng.uniform(_LEAST_WINDOW, 1)
        height, width = (max(1, round(share * side)) for side in label.shape)
        top = int(rng.integers(label.shape[0] - height + 1))
        left = int(rng.integers(label.shape[1] - width + 1))
        window = _Window(top, left, height, width)
        inside = label[top : top + height, left : left + width]
        counts = np.bincount(inside.ravel(), minlength=ignore_index + 1)
        worth_it = np.count_nonzero(counts[:-1]) >= 2 and 2 * counts[-1] <= inside.size
        if worth_it and not np.array_equal(_cut(label, window), label):
            break
    return window


def _each(scene: Scene, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Scene:
    """Change label and instance ids alike."""
    instances = None if scene.instances is None else change(scene.instances)
    return Scene(scene.key, change(scene.label), instances)


def _mirror(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(ids[:, ::-1])


def _cut(ids: npt.NDArray[Any], window: _Window) -> npt.NDArray[Any]:
    """A window, at the size of the map it is cut from."""
    top, left, height, width = window
    return resize_nearest(ids[top : top + height, left : left + width], ids.shape)


def _same(one: Scene, other: Scene) -> bool:
    return np.array_equal(one.label, other.label) and (
        one.instances is None
        or other.instances is None
        or np.array_equal(one.instances, other.instances)
    )


def _sentence(flip: str, pasted: Sequence[str], crop: str) -> str:
    """What was done, in this order; as many objects by name as there is room for."""
    text = ""
    for shown in range(len(pasted), -1, -1):
        left_out = len(pasted) - shown
        rest = f"paste {left_out} {'more' if shown else 'objects'}" if left_out else ""
        text = "; ".join(part for part in (flip, *pasted[:shown], rest, crop) if part)
        if len(text) <= _LENGTH:
            break
    return text


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
        return self.top + self.mask.shape[0] - 1

    @property
    def right(self) -> int:
        """Its last column."""
        return self.left + self.mask.shape[1] - 1


@dataclass(frozen=True, eq=False)
class _Layout:
    """A layout, and what stands in it.

    Attributes:
        scene: label and instance ids.
        pieces: of thing classes.
        owner: number of the piece that a pixel belongs to, -1 on all else; (H, W).
        feet: row down to which what stands here reaches, -1 on the ground; (H, W). A thing reaches
            down to its bottom edge, anything else upright as far as it goes in its column.
        begins: the first row of which a fiftieth is ground.
    """

    scene: Scene
    pieces: list[_Piece]
    owner: Ints
    feet: Ints
    begins: int


@dataclass(frozen=True, eq=False)
class _Object:
    """What moves: pieces that belong together, whole, with the ground below them.

    Attributes:
        key: of the layout it comes from.
        begins: where the ground begins there.
        bottom: its last row there.
        kinds: class of each pixel of its box.
        parts: number of the piece of each pixel of its box, from 1; 0 outside of the object.
        stands: class of the piece that stands lowest.
        height: of that piece.
        support: class of the ground right below.
    """

    key: str
    begins: int
    bottom: int
    kinds: Labels
    parts: Ints
    stands: int
    height: int
    support: int


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


def _paste(
    scene: Scene,
    donors: Sequence[Scene],
    window: _Window,
    space: LabelSpace,
    things: frozenset[int],
    rng: np.random.Generator,
) -> tuple[Scene, list[str]]:
    """Put objects of the donors into a window of the scene; say what came where."""
    upright = _upright(space)
    target = _survey(_each(scene, np.copy), things, upright)
    sized = [_each(d, lambda ids: resize_nearest(ids, scene.label.shape)) for d in donors]
    objects = [thing for donor in sized for thing in _objects(_survey(donor, things, upright))]
    perspectives = _perspectives([*objects, *_objects(target)])
    objects = [o for o in objects if o.stands not in perspectives or perspectives[o.stands].fits(o)]
    wanted = int(rng.integers(1, _MOST_OBJECTS + 1))
    done: list[str] = []
    for thing in _draw_objects(objects, sized, wanted * _TRIES, rng):
        spot = _draw_spot(thing, target, perspectives.get(thing.stands), window, rng)
        if spot is not None:
            _put(spot, thing.stands, target)
            name = space.names[thing.stands].encode("ascii", "replace").decode()
            place = f"{spot.top},{spot.left} x{spot.scale:.2f}"
            done.append(f"paste {name.split(',')[0]} from {thing.key} to {place}")
        if len(done) == wanted:
            break
    return target.scene, done


def _survey(scene: Scene, things: frozenset[int], upright: Mask) -> _Layout:
    """Find what stands in a layout.

    Args:
        scene: the layout.
        things: thing classes.
        upright: for each value of a label whether such pixels are no ground; (ignore_index + 1,).
    """
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
    pieces, leader = layout.pieces, list(range(len(layout.pieces)))

    def lead(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for one, other in _touching(layout.owner):
        a, b = pieces[one], pieces[other]
        shared = min(a.right, b.right) - max(a.left, b.left) + 1
        if a.kind != b.kind and 2 * shared >= min(a.mask.shape[1], b.mask.shape[1]):
            leader[lead(other)] = lead(one)
    groups: dict[int, list[_Piece]] = {}
    for number, piece in enumerate(pieces):
        groups.setdefault(lead(number), []).append(piece)
    return list(groups.values())


def _touching(owner: Ints) -> list[tuple[int, int]]:
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
    return sorted(pairs)


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
    window: _Window,
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


def _standing(spot: _Spot, support: int, label: Labels, window: _Window) -> Indices:
    """Left columns inside the window with the support class below the object's bottom edge."""
    lefts = np.arange(window.left, window.left + window.width - spot.parts.shape[1] + 1)
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
    for number in np.unique(owner[(spot.parts > 0) & (owner >= 0)]).tolist():
        piece = target.pieces[number]
        pixels = np.count_nonzero(piece.mask)
        if pixels < _least_pixels(target.scene.label):
            continue
        if abs(piece.bottom - spot.bottom) < _APART * len(spot.parts):
            return True
        if np.count_nonzero(visible & (owner == number)) > _COVERED * pixels:
            return True
    return False


def _put(spot: _Spot, kind: int, target: _Layout) -> None:
    """Draw an object into the target, each part with an instance id of its own."""
    visible = _visible(spot, target.feet)
    label, instances = target.scene.label, target.scene.instances
    label[spot.box][visible] = spot.kinds[visible]
    target.feet[spot.box][visible] = spot.bottom
    target.owner[spot.box][visible] = len(target.pieces)
    target.pieces.append(_Piece(kind, spot.top, spot.left, visible))
    if instances is not None:
        highest = max(0, int(instances.max()))
        instances[spot.box][visible] = highest + spot.parts[visible]


def _words(text: str) -> set[str]:
    return {" ".join(name.split()) for name in text.split(",")}


def _upright(space: LabelSpace) -> Mask:
    """For each value of a label, whether such pixels are no ground; (ignore_index + 1,)."""
    words = _words(_UPRIGHT)
    upright = np.zeros(space.ignore_index + 1, bool)
    upright[space.ignore_index] = True
    for c in space.classes:
        upright[c.id] = any(word in words or word.split()[0] in words for word in spellings(c.name))
    return upright


def _unknown(name: str, space: LabelSpace) -> str:
    """A fault of a name, with the names that look like it."""
    close = difflib.get_close_matches(name.lower(), space.names, n=3)
    return f"{name!r}" + (f" (did you mean {' or '.join(close)}?)" if close else "")
