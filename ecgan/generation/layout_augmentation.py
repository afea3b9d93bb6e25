"""Layout augmentation before synthesis: mirrored layouts, windows of them, pasted things.

    layout --flip--> --paste from donors, inside the window--> --crop--> variant

The order is always this one, whatever the order in which changes are asked for: what is pasted has
to fit the perspective of the layout that it comes into, so the window is cut last, but drawn first,
and things are only pasted inside it. All numbers that a label map has after a change it had before,
or a donor had them.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ecgan.data.transforms import resize_nearest
from ecgan.errors import UserError
from ecgan.generation.paste import Ints, Mask, Pasted, Scene, Window, change_maps, paste
from ecgan.labels import Labels, LabelSpace, spellings

Change = Literal["flip", "crop", "paste"]
_LEAST_WINDOW = 0.6  # of each side
_WINDOWS = 8  # draws of a window until one has two classes
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


@dataclass(frozen=True, eq=False)
class Varied:
    """What became of a scene."""

    label: Labels  # (H, W), of the scene's size and type
    instances: Ints | None  # (H, W); None where the scene has none
    # One sentence in ASCII, at most 200 characters, for the sample's record; empty where nothing
    # could be done, then both maps are the scene's. Rows and columns are those of the mirrored
    # layout before the crop, of the upper left corner.
    done: str
    pasted: Mask | None = None  # (H, W), where objects were pasted; None where none was


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
                f"sampling.things: the class list has {', '.join(space.names)}; not among them",
                faults,
            )
        words = {word for name in names for word in spellings(name)}
    else:
        words = _words(_THINGS)
    things = frozenset(number for word in words for number in ids.get(word, ()))
    if not things:
        raise UserError(
            f"paste: no class of the {len(space.names)} ({', '.join(space.names)}) is known as "
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
    changed = change_maps(scene, _mirror) if mirrored else scene
    window = _whole(scene.label)
    if "crop" in changes:
        window = _draw_window(changed.label, space.ignore_index, rng)
    found: list[Pasted] = []
    if "paste" in changes:
        changed, found = paste(changed, donors, window, space.names, _upright(space), things, rng)
    changed = change_maps(changed, lambda ids: _cut(ids, window))
    if not _same(changed, scene):
        crop = "" if window == _whole(scene.label) else window.describe()
        done = _sentence("flip" if mirrored else "", [one.describe() for one in found], crop)
        pasted = _cut(_covered(found, scene.label), window) if found else None
        return Varied(changed.label, changed.instances, done, pasted)
    if "flip" in changes and not mirrored:
        return vary(scene, (), ("flip",), space, things=things, seed=seed)
    return Varied(scene.label, scene.instances, "")


def _covered(found: Sequence[Pasted], label: Labels) -> Mask:
    """Pixels of a map that are those of pasted objects."""
    covered = np.zeros(label.shape, bool)
    for one in found:
        covered[one.box] |= one.visible
    return covered


def feathered(mask: Mask) -> npt.NDArray[np.float32]:
    """Share of what comes into a picture at each pixel, soft over one on both sides, (H, W, 1)."""
    alpha = cv2.blur(mask.astype(np.float32), (3, 3))[..., None]
    soft = np.where(mask[..., None], np.maximum(alpha, 0.5), alpha * (alpha < 0.5))
    return soft.astype(np.float32)


def blended(
    under: npt.NDArray[np.uint8], over: npt.NDArray[np.uint8], alpha: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """A picture with another in front of it, (H, W, 3); the same bytes where alpha is 0."""
    low = under.astype(np.float32)
    return np.rint(low + alpha * (over.astype(np.float32) - low)).astype(np.uint8)


def _whole(label: Labels) -> Window:
    return Window(0, 0, *label.shape)


def _draw_window(label: Labels, ignore_index: int, rng: np.random.Generator) -> Window:
    """A window of 60 to 100 % of each side.

    If it can be had, one with two classes, at most half of it unlabelled, that changes the layout.
    """
    window = _whole(label)
    rows, columns = map(int, label.shape)
    for _ in range(_WINDOWS):
        share = rng.uniform(_LEAST_WINDOW, 1)
        height, width = (max(1, round(share * side)) for side in (rows, columns))
        top = int(rng.integers(rows - height + 1))
        left = int(rng.integers(columns - width + 1))
        window = Window(top, left, height, width)
        inside = label[top : top + height, left : left + width]
        counts = np.bincount(inside.ravel(), minlength=ignore_index + 1)
        worth_it = np.count_nonzero(counts[:-1]) >= 2 and 2 * counts[-1] <= inside.size
        if worth_it and not np.array_equal(_cut(label, window), label):
            break
    return window


def _mirror(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(ids[:, ::-1])


def _cut(ids: npt.NDArray[Any], window: Window) -> npt.NDArray[Any]:
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


def _words(text: str) -> set[str]:
    return {" ".join(name.split()) for name in text.split(",")}


def pasted_scene(
    scene: Scene,
    donors: Sequence[Scene],
    space: LabelSpace,
    *,
    things: frozenset[int],
    rng: np.random.Generator,
) -> tuple[Scene, list[Pasted]]:
    """The scene with objects of the donors as ``vary`` pastes them, and where each came from."""
    return paste(scene, donors, _whole(scene.label), space.names, _upright(space), things, rng)


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
