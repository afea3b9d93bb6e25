"""Street scenes drawn by code: a data set for the demo, tests and benchmarks, free of any licence.

A straight street in true perspective, seen from a car. What stands where is the layout; light,
weather, season and colours are drawn for each scene on top of it, so that styles mean something;
windows, lane markings, paving and leaves are structure inside a class that the label map does not
show, so that edges mean something. Poles, signs and people are small and rare, as in real streets.
A few pixels have no label: the bonnet of the camera's own car.

World coordinates are metres: X to the right, Y up from the ground, Z ahead of the camera. All is
drawn on a canvas three times as large; the image is its average, the label its central pixel.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ecgan.errors import UsageError, UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.runtime.files import whole_folder, writing

Floats = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]
Color = tuple[float, float, float]  # RGB, 0 to 255
Point = tuple[float, float, float]  # metres

SKY, ROAD, PAVEMENT, BUILDING, GRASS, TREE, CAR, POLE, SIGN, PERSON = range(10)
SPACE = LabelSpace(
    (
        LabelClass(SKY, "sky", (110, 170, 220)),
        LabelClass(ROAD, "road", (128, 64, 128)),
        LabelClass(PAVEMENT, "pavement", (240, 130, 220)),
        LabelClass(BUILDING, "building", (150, 90, 60)),
        LabelClass(GRASS, "grass", (160, 220, 120)),
        LabelClass(TREE, "tree", (60, 130, 40)),
        LabelClass(CAR, "car", (40, 60, 190)),
        LabelClass(POLE, "pole", (170, 170, 170)),
        LabelClass(SIGN, "sign", (250, 210, 0)),
        LabelClass(PERSON, "person", (220, 30, 50)),
    ),
    ignore=255,
)
_UNLABELLED = 255
_OVERSAMPLING = 3  # odd: the central pixel is the label's
_EYE = 1.55  # metres above the ground
_NEAR, _FAR = 0.7, 160.0  # metres: where the street begins and ends

# Contrast of the fine texture of each class, and its grain in final pixels at a height of 128.
_TEXTURE = {ROAD: 0.035, PAVEMENT: 0.04, BUILDING: 0.025, GRASS: 0.12, TREE: 0.07}


@dataclass(frozen=True)
class _Weather:
    """Light and air of one scene."""

    zenith: Color
    horizon: Color
    light: Color  # factor for each channel
    haze_length: float  # metres over which contrast falls to 1/e
    clouds: float = 0.3  # share of the sky
    shadow: float = 0.0  # how much darker the ground is where the sun does not reach
    lamps: bool = False
    wet: float = 0.0


_WEATHERS = (
    _Weather((62, 122, 205), (178, 208, 236), (1.06, 1.04, 1.0), 260, 0.35, shadow=0.42),
    _Weather((88, 150, 215), (205, 222, 235), (1.0, 1.0, 1.0), 200, 0.55, shadow=0.25),
    _Weather((84, 104, 160), (252, 190, 128), (1.12, 0.88, 0.66), 150, 0.4, shadow=0.35),
    _Weather((150, 158, 168), (196, 200, 204), (0.84, 0.87, 0.92), 110, 0.75),
    _Weather((196, 202, 206), (222, 223, 220), (0.9, 0.93, 0.96), 38, 0.0, lamps=True),
    _Weather((104, 112, 124), (150, 154, 160), (0.6, 0.64, 0.72), 75, 0.9, lamps=True, wet=0.45),
    _Weather((16, 20, 52), (84, 66, 98), (0.34, 0.36, 0.54), 130, 0.3, lamps=True, wet=0.1),
)
_WEATHER_SHARES = (0.24, 0.2, 0.16, 0.14, 0.06, 0.08, 0.12)
_FACADES: tuple[Color, ...] = (
    (176, 96, 72),
    (200, 160, 118),
    (222, 208, 176),
    (150, 150, 156),
    (120, 134, 152),
    (206, 134, 96),
    (168, 176, 150),
    (228, 222, 214),
    (142, 84, 78),
    (190, 174, 200),
)
_PAINTS: tuple[Color, ...] = (
    (188, 32, 36),
    (36, 70, 160),
    (232, 232, 230),
    (40, 42, 48),
    (150, 154, 160),
    (222, 170, 40),
    (44, 112, 84),
    (110, 170, 200),
)
_CLOTHES: tuple[Color, ...] = (
    (200, 50, 60),
    (40, 80, 160),
    (230, 200, 70),
    (60, 60, 70),
    (240, 236, 228),
    (90, 150, 90),
    (150, 80, 150),
    (230, 130, 60),
)
_SEASONS: tuple[Color, ...] = ((70, 120, 48), (96, 142, 60), (186, 128, 48))
_SKINS: tuple[Color, ...] = ((238, 200, 170), (200, 150, 115), (140, 95, 70), (95, 65, 50))


def draw_scene(
    seed: int | Sequence[int], height: int = 128, width: int = 256
) -> tuple[Bytes, Bytes]:
    """One scene: RGB image, (height, width, 3), and label, (height, width).

    The label holds ids of ``SPACE``, and 255. The same seed gives the same scene, also at another
    size of the same shape.
    """
    rng = np.random.default_rng(seed)
    street = _Street.draw(rng, height, width)
    _draw_sky(street)
    _draw_ground(street)
    _draw_skyline(street)
    _draw_buildings(street)
    for _, draw in sorted(_objects(street), key=lambda entry: -entry[0]):
        draw()
    return _finish(street)


def write_toy(out: Path, num: int, seed: int, height: int = 128, width: int = 256) -> None:
    """Write a folder data set: ``images/SPLIT/*.jpg``, ``labels/SPLIT/*.png``, ``classes.json``.

    Of ten scenes, eight are in ``train``, one in ``val``, one in ``test``. The folder appears when
    it is complete.

    Raises:
        UserError: the folder is there already and not empty, or nothing can be written there.
    """
    if num < 1:
        raise UsageError(f"--num {num}: at least one scene")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; choose another folder, or remove it first")
    with writing(out), whole_folder(out) as folder:
        for index in range(num):
            split = {8: "val", 9: "test"}.get(index % 10, "train")
            image, label = draw_scene((seed, index), height, width)
            _save(folder / "images" / split / f"scene-{index:05}.jpg", image)
            _save(folder / "labels" / split / f"scene-{index:05}.png", label)
        text = json.dumps(SPACE.to_json(), indent=1) + "\n"
        (folder / "classes.json").write_text(text, encoding="utf-8")


def _save(path: Path, pixels: Bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)


@dataclass
class _Street:
    """Camera, plan of the street, and the two canvases."""

    rng: np.random.Generator
    height: int  # of the image
    width: int
    weather: _Weather
    horizon: float  # canvas pixels
    vanish: float  # canvas pixels
    focal: float  # canvas pixels
    left: float  # edges of the road, metres
    right: float
    pavement: float  # widths, metres
    verge: float
    parking: tuple[bool, bool]  # cars stand at the left, right edge
    season: Color  # of leaves
    built: tuple[float, float]  # share of the frontage that is built on, left and right
    storeys: tuple[int, int]  # of buildings, from and to
    image: Bytes = field(init=False)
    label: Bytes = field(init=False)
    glow: Bytes = field(init=False)

    def __post_init__(self) -> None:
        size = self.height * _OVERSAMPLING, self.width * _OVERSAMPLING
        self.image = np.zeros((*size, 3), np.uint8)
        self.label = np.full(size, SKY, np.uint8)
        self.glow = np.zeros((self.height, self.width, 3), np.uint8)

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> "_Street":
        """A street at random: first its plan, then its weather."""
        parking = bool(rng.random() < 0.45), bool(rng.random() < 0.6)
        kind = int(rng.choice(3, p=(0.5, 0.35, 0.15)))  # city, suburb, park at one side
        built = ((0.95, 0.95), (0.7, 0.7), (0.1, 0.9))[kind]
        return cls(
            rng,
            height,
            width,
            horizon=_OVERSAMPLING * height * rng.uniform(0.4, 0.5),
            vanish=_OVERSAMPLING * width * rng.uniform(0.4, 0.58),
            focal=_OVERSAMPLING * height * rng.uniform(1.05, 1.3),
            left=-rng.uniform(5.0, 5.8) - 2.2 * parking[0],
            right=rng.uniform(1.8, 2.6) + 2.2 * parking[1],
            pavement=rng.uniform(1.8, 3.6),
            verge=(rng.uniform(0, 0.3), rng.uniform(2, 6), rng.uniform(1, 4))[kind],
            parking=parking,
            built=built if rng.random() < 0.5 else (built[1], built[0]),
            storeys=((3, 7), (1, 3), (2, 5))[kind],
            season=_jitter(rng, _SEASONS[int(rng.choice(3))], 14),
            weather=_draw_weather(rng),
        )

    def project(self, points: Sequence[Point] | Floats) -> Floats:
        """Metres -> canvas pixels, (..., 3) -> (..., 2)."""
        placed = np.asarray(points, np.float64)
        scale = self.focal / np.maximum(placed[..., 2:], _NEAR)
        return (placed[..., :2] - (0, _EYE)) * (1, -1) * scale + (self.vanish, self.horizon)

    def scale(self, z: float) -> float:
        """Canvas pixels of a metre at distance z."""
        return self.focal / z

    def lit(self, albedo: Color, z: float, shade: float = 1.0) -> Color:
        """The colour of a surface at distance z, in this light and through this air."""
        clear = math.exp(-z / self.weather.haze_length)
        seen = [
            clear * min(255.0, a * l * shade) + (1 - clear) * h
            for a, l, h in zip(albedo, self.weather.light, self.weather.horizon, strict=True)
        ]
        return seen[0], seen[1], seen[2]

    def fill(self, outline: Floats, color: Color, label: int | None = None) -> None:
        """Fill a convex outline, (n, 2) canvas pixels; None keeps the label: inner structure."""
        corners = _fixed_point(outline)
        cv2.fillConvexPoly(self.image, corners, color, shift=4)
        if label is not None:
            cv2.fillConvexPoly(self.label, corners, label, shift=4)

    def surface(
        self,
        points: Sequence[Point] | Floats,
        albedo: Color,
        label: int | None = None,
        shade: float = 1.0,
    ) -> None:
        """Fill a convex surface given in metres, in the light and haze of its middle."""
        z = sum(point[2] for point in points) / len(points)
        self.fill(self.project(points), self.lit(albedo, z, shade), label)

    def disc(
        self, centre: Point, radius: tuple[float, float], color: Color, label: int | None = None
    ) -> None:
        """Fill an ellipse that faces the camera; its half axes in metres; the colour as seen."""
        metre = self.scale(centre[2])
        x, y = self.vanish + centre[0] * metre, self.horizon + (_EYE - centre[1]) * metre
        place = round(x * 16), round(y * 16)
        axes = round(radius[0] * metre * 16), round(radius[1] * metre * 16)
        if max(map(abs, place)) > 2**18:
            return
        cv2.ellipse(self.image, place, axes, 0, 0, 360, color, -1, shift=4)
        if label is not None:
            cv2.ellipse(self.label, place, axes, 0, 0, 360, label, -1, shift=4)

    def shine(self, point: Point, radius: float, color: Color) -> None:
        """A lamp that glows at night: light around it in the finished image."""
        if self.weather.lamps:
            x, y = self.project([point])[0] / _OVERSAMPLING
            size = max(1, round(radius * self.scale(point[2]) / _OVERSAMPLING))
            if abs(x) < 4 * self.width and abs(y) < 4 * self.height:
                cv2.circle(self.glow, (round(x), round(y)), size, color, -1)

    def shadow(self, x: float, z: float, half_width: float, half_length: float) -> None:
        """What stands here darkens the ground: the canvas below it, whatever its class."""
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        outline = np.stack(
            [x + half_width * np.cos(angle), 0 * angle, z + half_length * np.sin(angle)], axis=-1
        )
        self.darken(self.project(outline), 0.35 + self.weather.shadow / 2)

    def darken(self, outline: Floats, amount: float) -> None:
        """Make the ground inside a convex outline darker."""
        low = np.floor(outline.min(axis=0)).clip(0, self.label.shape[::-1]).astype(int)
        high = np.ceil(outline.max(axis=0) + 1).clip(0, self.label.shape[::-1]).astype(int)
        if (high <= low).any():
            return
        mask = np.zeros((high - low)[::-1], np.uint8)
        cv2.fillConvexPoly(mask, _fixed_point(outline - low), 255, shift=4)
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        ground = np.isin(self.label[window], (ROAD, PAVEMENT, GRASS)) & (mask > 0)
        self.image[window][ground] = self.image[window][ground] * (1 - amount)


def _fixed_point(outline: Floats) -> npt.NDArray[np.int32]:
    """Canvas pixels in sixteenths, as OpenCV draws them with ``shift=4``."""
    return np.rint(outline.clip(-8000, 8000) * 16).astype(np.int32)


def _draw_weather(rng: np.random.Generator) -> _Weather:
    weather = _WEATHERS[int(rng.choice(len(_WEATHERS), p=_WEATHER_SHARES))]
    tint = rng.normal(1, 0.03, 3)
    light = tuple(float(l * t) for l, t in zip(weather.light, tint, strict=True))
    return replace(
        weather,
        zenith=_jitter(rng, weather.zenith, 8),
        horizon=_jitter(rng, weather.horizon, 8),
        light=cast("Color", light),
        haze_length=weather.haze_length * rng.uniform(0.8, 1.3),
        clouds=min(1.0, weather.clouds * rng.uniform(0.3, 1.4)),
        shadow=weather.shadow * rng.uniform(0.7, 1.1),
    )


def _jitter(rng: np.random.Generator, color: Color, amount: float) -> Color:
    r, g, b = np.clip(np.asarray(color) + rng.normal(0, amount, 3), 4, 255)
    return float(r), float(g), float(b)


def _pick(rng: np.random.Generator, colors: Sequence[Color], amount: float = 10) -> Color:
    return _jitter(rng, colors[int(rng.integers(len(colors)))], amount)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Smooth noise in four octaves, flat as clouds are, about -1 to 1, (height, width)."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        grid = rng.standard_normal((2 + 3 * 2**octave, 2 + 2 * 2**octave), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    return total


def _draw_sky(street: _Street) -> None:
    weather, rng = street.weather, street.rng
    rows = int(street.horizon) + 2
    step = 4  # clouds are soft: a small picture will do
    small_rows, small_columns = -(-rows // step), -(-street.image.shape[1] // step)
    up = np.linspace(1, 0, small_rows, dtype=np.float32)[:, None, None] ** 0.8
    sky = up * np.array(weather.zenith, np.float32) + (1 - up) * np.array(
        weather.horizon, np.float32
    )
    noise = _clouds(rng, small_rows, small_columns)
    cover = np.clip((noise + 2.2 * weather.clouds - 1.2) * 1.3, 0, 0.85)[..., None]
    below = np.clip(0.5 + 0.3 * np.roll(noise, 3, axis=0), 0, 1)[..., None]  # shaded undersides
    white = np.array(weather.horizon, np.float32) * 0.35 + np.array(weather.light, np.float32) * 165
    cover = cover * (1 - 0.6 * (1 - up) ** 2)
    sky = sky * (1 - cover) + cover * white * (0.82 + 0.2 * below)
    size = small_columns * step, small_rows * step
    whole = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    street.image[:rows] = whole[:rows, : street.image.shape[1]]


def _strip(street: _Street, left: float, right: float, albedo: Color, label: int | None) -> None:
    """A strip of ground along the street, in bands so that haze and light change with distance."""
    bands = [_NEAR, 4, 7, 12, 20, 32, 50, 80, 120, _FAR, 4 * _FAR]
    for near, far in reversed(list(pairwise(bands))):
        outline = [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]
        street.surface(cast("list[Point]", outline), albedo, label)


def _draw_ground(street: _Street) -> None:
    rng = street.rng
    grey = rng.uniform(84, 118)
    asphalt = _jitter(rng, (grey, grey, grey + 5), 3)
    slabs = _jitter(rng, (172, 166, 156), 10)
    lawn = _jitter(rng, (104, 142, 70), 10)
    outer_left, outer_right = _frontage(street)
    ends = street.left - street.pavement, street.right + street.pavement
    _strip(street, -400, outer_left, lawn, GRASS)
    _strip(street, outer_right, 400, lawn, GRASS)
    _strip(street, outer_left, ends[0], lawn, GRASS)
    _strip(street, ends[1], outer_right, lawn, GRASS)
    _strip(street, ends[0], street.left, slabs, PAVEMENT)
    _strip(street, street.right, ends[1], slabs, PAVEMENT)
    _strip(street, street.left, street.right, asphalt, ROAD)
    _draw_paving(street, slabs)
    _draw_markings(street)


def _frontage(street: _Street) -> tuple[float, float]:
    """Where the house fronts stand, left and right."""
    beside = street.pavement + street.verge
    return street.left - beside, street.right + beside


def _draw_paving(street: _Street, slabs: Color) -> None:
    """Kerbs and joints between the slabs."""
    joint = (slabs[0] * 0.72, slabs[1] * 0.72, slabs[2] * 0.72)
    for edge, outward in ((street.left, -1), (street.right, 1)):
        for row in range(1, int(street.pavement / 0.9) + 1):
            x = edge + outward * 0.9 * row
            _line(street, x, (2, 24), 0.05, joint)
        for z in np.arange(3.0, 26, 1.4):
            end = edge + outward * street.pavement
            _across(street, (edge, end), float(z), 0.06, joint)
        _line(street, edge + outward * 0.1, (1, 90), 0.24, (206, 204, 198))


def _line(
    street: _Street, x: float, along: tuple[float, float], wide: float, albedo: Color
) -> None:
    """A line on the ground along the street."""
    (near, far), half = along, wide / 2
    outline = [(x - half, 0, near), (x + half, 0, near), (x + half, 0, far), (x - half, 0, far)]
    street.surface(cast("list[Point]", outline), albedo)


def _across(
    street: _Street, ends: tuple[float, float], z: float, long: float, albedo: Color
) -> None:
    """A line on the ground across the street."""
    (left, right), far = ends, z + long
    outline = [(left, 0, z), (right, 0, z), (right, 0, far), (left, 0, far)]
    street.surface(cast("list[Point]", outline), albedo)


def _draw_markings(street: _Street) -> None:
    """Dashes between the lanes, lines at the edges, at times a zebra crossing."""
    rng = street.rng
    paint = (226, 226, 218)
    for z in np.arange(rng.uniform(1, 7), 90, 6.5):
        _line(street, -1.75, (float(z), float(z) + 3), 0.17, paint)
    for x, parking in ((street.left, street.parking[0]), (street.right, street.parking[1])):
        inward = 1 if x < 0 else -1
        _line(street, x + inward * (2.2 if parking else 0.35), (1, 100), 0.14, paint)
    if rng.random() < 0.25:
        z = rng.uniform(6, 16)
        for x in np.arange(street.left + 0.5, street.right - 0.6, 1.1):
            _line(street, float(x) + 0.28, (z, z + 3), 0.55, paint)
    if street.weather.shadow > 0 and rng.random() < 0.7:
        _draw_house_shadow(street)


def _draw_house_shadow(street: _Street) -> None:
    """The houses of one side shade their side of the street."""
    outer = _frontage(street)
    left = street.rng.random() < 0.5
    reach = street.rng.uniform(2, 7)
    ends = (outer[0], outer[0] + reach) if left else (outer[1] - reach, outer[1])
    for near, far in pairwise((_NEAR, 6, 14, 30, 60, _FAR)):
        outline = [(ends[0], 0, near), (ends[1], 0, near), (ends[1], 0, far), (ends[0], 0, far)]
        street.darken(street.project(np.array(outline)), street.weather.shadow)


def _draw_skyline(street: _Street) -> None:
    """What closes the street far away: hills of trees, and towers in the haze."""
    rng = street.rng
    width = street.image.shape[1]
    hill = street.lit(street.season, 0.6 * _FAR)
    x = -0.1 * width
    while x < 1.1 * width:
        half = rng.uniform(0.02, 0.05) * width
        rise = rng.uniform(0.012, 0.035) * street.image.shape[0]
        _round_hill(street, x, half, rise, hill)
        x += half
    for _ in range(int(rng.integers(0, 9))):
        centre = street.vanish + rng.normal(0, 0.13) * width
        half = rng.uniform(0.008, 0.025) * width
        top = street.horizon - rng.uniform(0.04, 0.17) * street.image.shape[0]
        color = street.lit(_pick(rng, _FACADES), rng.uniform(0.45, 0.8) * _FAR, 0.8)
        corners = [[centre - half, street.horizon + 1], [centre - half, top]]
        corners += [[centre + half, top], [centre + half, street.horizon + 1]]
        street.fill(np.array(corners), color, BUILDING)
        for y in np.arange(top + 4, street.horizon - 2, 5.0):
            row = [[centre - half + 2, y], [centre + half - 2, y]]
            row += [[centre + half - 2, y + 2], [centre - half + 2, y + 2]]
            street.fill(np.array(row), (color[0] * 0.85, color[1] * 0.87, color[2] * 0.9))


def _round_hill(street: _Street, x: float, half: float, rise: float, color: Color) -> None:
    angle = np.linspace(0, np.pi, 12)
    top = street.horizon + 2 - (rise + 2) * np.sin(angle)
    street.fill(np.stack([x + half * np.cos(angle), top], axis=-1), color, TREE)


@dataclass(frozen=True)
class _House:
    """A building: its front is the plane X = front, from near to far; it reaches outwards."""

    front: float
    outward: int  # -1 on the left, 1 on the right
    near: float
    far: float
    storeys: int
    wall: Color
    pitched: bool
    shop: bool
    shade: float  # of the front; the sun stands at one side

    @property
    def height(self) -> float:
        return 3.1 * self.storeys + 0.7

    def wall_quads(self, z: Floats, y: Floats, size: tuple[float, float]) -> Floats:
        """Rectangles on the front: lower near corners at every (z, y) -> (n, 4, 3)."""
        near, low = (grid.ravel() for grid in np.meshgrid(z, y))
        x = np.full_like(near, self.front)
        far, high = near + size[0], low + size[1]
        corners = [(near, low), (far, low), (far, high), (near, high)]
        return np.stack([np.stack([x, b, a], axis=-1) for a, b in corners], axis=1)


def _draw_buildings(street: _Street) -> None:
    sunny = street.rng.choice((-1, 1))
    for outward, front in zip((-1, 1), _frontage(street), strict=True):
        shade = 1.0 if outward == sunny else 0.8
        for house in reversed(_houses(street, front, outward, shade)):
            _draw_house(street, house)


def _houses(street: _Street, front: float, outward: int, shade: float) -> list[_House]:
    rng = street.rng
    share = street.built[outward > 0]
    houses: list[_House] = []
    near = rng.uniform(-6, 3)
    while near < 0.75 * _FAR:
        far = near + rng.uniform(7, 15)
        if rng.random() < share and far > 2:
            low, high = street.storeys
            storeys = int(rng.integers(low, high + 1))
            houses.append(
                _House(
                    front + outward * rng.uniform(0, 0.4),
                    outward,
                    max(near, 1.0),
                    far,
                    storeys,
                    _pick(rng, _FACADES),
                    pitched=storeys <= 3 and rng.random() < 0.7,
                    shop=rng.random() < 0.4,
                    shade=shade,
                )
            )
        near = far + (0 if share > 0.9 else rng.uniform(1, 5))
    return houses


def _draw_house(street: _Street, house: _House) -> None:
    rng = street.rng
    x, depth = house.front, house.front + house.outward * 11
    near, far, top = house.near, house.far, house.height
    if house.pitched:
        ridge = (x + depth) / 2
        roof = _pick(rng, ((150, 74, 56), (96, 92, 96), (120, 84, 64)))
        slope = [(x, top, near), (x, top, far), (ridge, top + 3, far), (ridge, top + 3, near)]
        street.surface(slope, roof, BUILDING, 0.9)
        gable = [(x, top, near), (depth, top, near), (ridge, top + 3, near)]
        street.surface(gable, house.wall, BUILDING, 0.68)
    end = [(x, 0, near), (depth, 0, near), (depth, top, near), (x, top, near)]
    street.surface(cast("list[Point]", end), house.wall, BUILDING, 0.68)
    front = [(x, 0, near), (x, 0, far), (x, top, far), (x, top, near)]
    street.surface(cast("list[Point]", front), house.wall, BUILDING, house.shade)
    _draw_bands(street, house)
    _draw_windows(street, house)


def _draw_bands(street: _Street, house: _House) -> None:
    """Cornice, plinth, and a line between storeys."""
    length = house.far - house.near
    start = np.array([house.near])
    trim = min(255.0, house.wall[0] * 1.2), min(255.0, house.wall[1] * 1.2), house.wall[2] * 1.1
    middle = (house.near + house.far) / 2
    for y, high, albedo, shade in (
        (house.height - 0.45, 0.45, trim, 1.0),
        (0.0, 0.5, house.wall, 0.62),
        *((3.1 * storey + 0.05, 0.16, trim, 0.94) for storey in range(1, house.storeys)),
    ):
        quad = house.wall_quads(start, np.array([y]), (length, high))[0]
        color = street.lit(albedo, middle, shade * house.shade)
        street.fill(street.project(quad), color)


def _draw_windows(street: _Street, house: _House) -> None:
    rng = street.rng
    middle = (house.near + house.far) / 2
    spacing = rng.uniform(2.0, 2.9)
    wide, high = rng.uniform(1.0, 1.35), rng.uniform(1.4, 1.8)
    columns = int((house.far - house.near - 0.8) / spacing)
    margin = (house.far - house.near - columns * spacing + spacing - wide) / 2
    z = house.near + margin + spacing * np.arange(columns)
    floors = np.arange(1 if house.shop else 0, house.storeys)
    frame = street.lit((236, 232, 222), middle, house.shade * 0.92)
    frames = house.wall_quads(z - 0.14, 3.1 * floors + 0.86, (wide + 0.28, high + 0.28))
    _fill_all(street, frames, frame)
    panes = house.wall_quads(z, 3.1 * floors + 1.0, (wide, high))
    glass = street.lit((74, 90, 108), middle, rng.uniform(0.7, 1.1))
    _fill_all(street, panes, glass)
    reflecting = panes[rng.random(len(panes)) < 0.3]
    bright = tuple(0.5 * g + 0.5 * h for g, h in zip(glass, street.weather.horizon, strict=True))
    _fill_all(street, reflecting, cast("Color", bright))
    if street.weather.lamps:
        lit = panes[rng.random(len(panes)) < 0.35]
        _fill_all(street, lit, _jitter(rng, (252, 214, 140), 6))
    bars = house.wall_quads(z + wide / 2 - 0.05, 3.1 * floors + 1.0, (0.1, high))
    _fill_all(street, bars, frame)
    if house.shop:
        _draw_shop(street, house)
    elif columns > 0:
        door = house.wall_quads(
            z[rng.integers(columns)] - np.array([0.05]), np.zeros(1), (1.2, 2.3)
        )
        _fill_all(street, door, street.lit(_pick(rng, _PAINTS), middle, house.shade * 0.7))


def _draw_shop(street: _Street, house: _House) -> None:
    """A shop at street level: wide panes below an awning."""
    rng = street.rng
    middle = (house.near + house.far) / 2
    lit = street.weather.lamps or rng.random() < 0.3
    inside = (250, 226, 170) if lit else street.lit((88, 100, 112), middle)
    bays = max(1, int((house.far - house.near) / 3.2))
    z = house.near + 0.5 + (house.far - house.near) / bays * np.arange(bays)
    width = (house.far - house.near) / bays - 0.9
    _fill_all(street, house.wall_quads(z, np.array([0.55]), (width, 1.8)), inside)
    awning = street.lit(_pick(rng, _PAINTS), middle, house.shade)
    start, length = np.array([house.near + 0.2]), house.far - house.near - 0.4
    _fill_all(street, house.wall_quads(start, np.array([2.45]), (length, 0.55)), awning)


def _fill_all(street: _Street, quads: Floats, color: Color) -> None:
    """Fill quadrangles, (n, 4, 3), that do not overlap much, inside what is drawn already."""
    if len(quads):
        cv2.fillPoly(street.image, list(_fixed_point(street.project(quads))), color, shift=4)


Objects = list[tuple[float, Callable[[], None]]]  # distance, how to draw it


def _objects(street: _Street) -> Objects:
    return [
        *_lamp_posts(street),
        *_signs(street),
        *_trees(street),
        *_cars(street),
        *_people(street),
    ]


def _lamp_posts(street: _Street) -> Objects:
    rng = street.rng
    spacing, offset = rng.uniform(20, 30), rng.uniform(5, 16)
    color = _pick(rng, ((70, 74, 78), (120, 124, 126), (56, 72, 64)))
    height = rng.uniform(5.5, 7.5)
    posts: Objects = []
    for index in range(int(90 / spacing)):
        right = bool(index % 2)
        x = street.right + 0.5 if right else street.left - 0.5
        z = offset + index * spacing
        posts.append((z, partial(_draw_lamp_post, street, (x, height, z), color)))
    return posts


def _post(street: _Street, foot: Point, height: float, color: Color, thick: float) -> None:
    """A vertical bar, at least one final pixel wide."""
    x, _, z = foot
    base, top = street.project([foot, (x, height, z)])
    half = max(thick * street.scale(z), _OVERSAMPLING * 1.05) / 2
    aside = np.array([half, 0.0])
    street.fill(np.stack([base - aside, base + aside, top + aside, top - aside]), color, POLE)


def _draw_lamp_post(street: _Street, top: Point, albedo: Color) -> None:
    x, height, z = top
    color = street.lit(albedo, z)
    _post(street, (x, 0, z), height, color, 0.14)
    inward = 1 if x < 0 else -1
    start, end = street.project([(x, height, z), (x + inward * 1.3, height + 0.15, z)])
    above = np.array([0.0, max(0.05 * street.scale(z), _OVERSAMPLING * 0.5)])
    arm = np.stack([start - above, end - above, end + above, start + above])
    street.fill(arm, color, POLE)
    lamp = (x + inward * 1.3, height + 0.08, z)
    bulb = (255, 236, 190) if street.weather.lamps else street.lit((224, 224, 214), z)
    street.disc(lamp, (0.42, 0.15), bulb, POLE)
    street.shine(lamp, 0.6, (255, 220, 150))


def _signs(street: _Street) -> Objects:
    rng = street.rng
    signs: Objects = []
    for _ in range(int(rng.integers(1, 4))):
        right = rng.random() < 0.7
        x = street.right + rng.uniform(0.3, 0.8) if right else street.left - rng.uniform(0.3, 0.8)
        z = rng.uniform(6.5, 30)
        draw = _draw_traffic_light if rng.random() < 0.3 else _draw_sign
        signs.append((z, partial(draw, street, x, z, int(rng.integers(4)))))
    return signs


def _draw_sign(street: _Street, x: float, z: float, kind: int) -> None:
    """Speed limit, warning triangle, parking, direction."""
    _post(street, (x, 0, z), 2.5, street.lit((150, 152, 154), z), 0.08)
    red, white, blue = (
        street.lit(c, z, 1.1) for c in ((206, 30, 36), (240, 240, 236), (34, 84, 178))
    )
    y = 2.55
    if kind == 0:
        street.disc((x, y, z), (0.42, 0.42), red, SIGN)
        street.disc((x, y, z), (0.29, 0.29), white)
        street.disc((x, y, z), (0.1, 0.15), (40, 40, 44))
    elif kind == 1:
        for size, color, label in ((0.52, red, SIGN), (0.3, white, None)):
            corners = [(x - size, y - size * 0.7, z), (x + size, y - size * 0.7, z)]
            street.fill(street.project([*corners, (x, y + size, z)]), color, label)
    else:
        outer, inner = ((0.4, 0.4), (0.14, 0.26)) if kind == 2 else ((0.75, 0.3), (0.5, 0.08))
        for size, color, label in ((outer, blue, SIGN), (inner, white, None)):
            street.fill(street.project(_upright(x, y, z, size)), color, label)


def _upright(x: float, y: float, z: float, half: tuple[float, float]) -> list[Point]:
    """A rectangle that faces the camera, by its middle and half sides."""
    a, b = half
    return [(x - a, y - b, z), (x + a, y - b, z), (x + a, y + b, z), (x - a, y + b, z)]


def _draw_traffic_light(street: _Street, x: float, z: float, kind: int) -> None:
    _post(street, (x, 0, z), 3.4, street.lit((90, 92, 94), z), 0.11)
    street.fill(
        street.project(_upright(x, 3.2, z, (0.26, 0.62))), street.lit((38, 40, 42), z), SIGN
    )
    colors = ((255, 48, 40), (255, 190, 40), (60, 240, 120))
    burning = kind % 3
    for index, color in enumerate(colors):
        lamp = (x, 3.58 - 0.38 * index, z)
        dark = (color[0] * 0.25, color[1] * 0.25, color[2] * 0.25)
        street.disc(lamp, (0.15, 0.15), color if index == burning else dark)
        if index == burning:
            street.shine(lamp, 0.3, color)


def _trees(street: _Street) -> Objects:
    rng = street.rng
    trees: Objects = []
    outer = _frontage(street)
    for side, outward in enumerate((-1, 1)):
        kerb = (street.left, street.right)[side] + outward * 0.7
        lawn = outer[side] - outward * street.verge / 2
        places: list[tuple[float, float]] = []
        if rng.random() < 0.55:
            x = lawn if street.verge > 1.2 else kerb
            spacing = rng.uniform(7, 15)
            z = rng.uniform(5, 14) + spacing * np.arange(int(75 / spacing))
            places += [(x, float(d)) for d in z if rng.random() < 0.8]
        wild = 1 - street.built[side]
        for _ in range(rng.poisson(28 * wild)):
            z = float(rng.uniform(8, 90))
            places.append((outer[side] + outward * rng.uniform(1, 4 + 0.5 * z), z))
        for x, z in places:
            size = rng.uniform(0.8, 1.3)
            seed = int(rng.integers(2**32))
            trees.append((z, partial(_draw_tree, street, (x, 0.0, z), size, seed)))
    return trees


def _draw_tree(street: _Street, foot: Point, size: float, seed: int) -> None:
    """A trunk, and a crown of leaf clumps, lighter towards the top."""
    rng = np.random.default_rng(seed)
    x, _, z = foot
    street.shadow(x, z, 1.7 * size, 1.7 * size)
    half, crown = 0.13 * size, 3.7 * size
    trunk = [(x - 1.4 * half, 0, z), (x + 1.4 * half, 0, z), (x + half, crown, z)]
    street.surface([*trunk, (x - half, crown, z)], (92, 72, 56), TREE)
    leaves = _jitter(rng, street.season, 10)
    count = 26 if z < 45 else 9
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
    across = 1.45 * size * reach * np.cos(angle)
    up = 1.5 * size * reach * np.sin(angle)
    for a, b in sorted(zip(across, up, strict=True), key=lambda clump: clump[1]):
        shade = 0.82 + 0.26 * b / size + rng.normal(0, 0.06)
        radius = size * rng.uniform(0.45, 0.75)
        clump = (x + a, crown + 0.7 * size + b, z)
        street.disc(clump, (radius, 0.85 * radius), street.lit(leaves, z, shade), TREE)
    if z < 45:
        _draw_leaves(street, (x, crown + 0.7 * size, z), size, leaves, rng)


def _draw_leaves(
    street: _Street, centre: Point, size: float, leaves: Color, rng: np.random.Generator
) -> None:
    """Specks of light and shade inside the crown."""
    count = 80
    angle, reach = rng.uniform(0, 2 * np.pi, count), 1.7 * size * np.sqrt(rng.random(count))
    middle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1) * reach[:, None]
    speck = np.array([(-0.16, 0, 0), (0, -0.1, 0), (0.16, 0, 0), (0, 0.1, 0)]) * size
    specks = np.array(centre) + middle[:, None] + speck  # (count, 4, 3)
    for some, shade in ((specks[::2], 0.7), (specks[1::2], 1.25)):
        _fill_all(street, some, street.lit(leaves, centre[2], shade))


def _cars(street: _Street) -> Objects:
    rng = street.rng
    cars: Objects = []

    def add(x: float, z: float, *, oncoming: bool, moving: bool) -> None:
        paint, tall = _pick(rng, _PAINTS, 12), rng.uniform(0.92, 1.2)
        car = _Car(street, x, z, paint, tall, oncoming, moving)
        cars.append((z, car.draw))

    for side, x in enumerate((street.left + 1.15, street.right - 1.15)):
        if street.parking[side]:
            z = rng.uniform(4.5, 12)
            while z < 70:
                if rng.random() < 0.7:
                    add(x + rng.normal(0, 0.06), z, oncoming=side == 0, moving=False)
                z += rng.uniform(5.3, 7)
    z = rng.uniform(8, 40)
    while z < 90:
        add(-3.5 + rng.normal(0, 0.15), z, oncoming=True, moving=True)
        z += rng.uniform(9, 45)
    z = rng.uniform(9, 50)
    while z < 90:
        add(rng.normal(0.1, 0.15), z, oncoming=False, moving=True)
        z += rng.uniform(10, 50)
    return cars


@dataclass(frozen=True)
class _Car:
    """A car by its near end: middle, distance, paint; seen from ahead when oncoming."""

    street: _Street
    x: float
    z: float
    paint: Color
    tall: float
    oncoming: bool
    moving: bool

    def draw(self) -> None:
        street = self.street
        street.shadow(self.x, self.z + 2.1, 1.15, 2.5)
        visible = -1 if self.x > 0 else 1  # the side that faces the middle of the street
        if abs(self.x) > 0.9:
            self._draw_side(visible)
        self._draw_end()

    def _at(self, across: float, y: float, along: float) -> Point:
        return self.x + across, y * self.tall, self.z + along

    def _face(self, points: Sequence[tuple[float, float, float]], shade: float) -> None:
        """A face of the body: (across, up, along) of its corners."""
        self.street.surface([self._at(*p) for p in points], self.paint, CAR, shade)

    def _glass(self, points: Sequence[tuple[float, float, float]], shade: float = 1.0) -> None:
        self.street.surface([self._at(*p) for p in points], (62, 76, 90), CAR, shade)

    def _draw_side(self, side: int) -> None:
        """Body, windows, wheels of the side that the camera sees."""
        a, b = side * 0.88, side * 0.66
        self._face([(a, 0.25, 0), (a, 0.25, 4.2), (a, 0.8, 4.2), (a, 0.92, 0)], 0.82)
        start, end = (1.1, 4.0) if self.oncoming else (0.1, 3.1)
        roof = start + 0.7, end - 0.7
        self._face([(a, 0.78, start), (a, 0.78, end), (b, 1.45, roof[1]), (b, 1.45, roof[0])], 0.86)
        middle = (start + end) / 2
        for low, high in (((start + 0.3), middle - 0.06), (middle + 0.06, end - 0.3)):
            top = [(b, 1.36, min(high, roof[1])), (b, 1.36, max(low, roof[0]))]
            self._glass([(a, 0.92, low), (a, 0.92, high), *top])
        for along in (0.75, 3.4):
            self._draw_wheel(a, along)

    def _draw_wheel(self, across: float, along: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        for radius, albedo in ((0.33, (30, 30, 32)), (0.17, (150, 152, 156))):
            rim = [
                (self.x + across, 0.33 + radius * np.sin(t), self.z + along + radius * np.cos(t))
                for t in angle
            ]
            self.street.surface(rim, albedo, CAR)

    def _draw_end(self) -> None:
        """The end that the camera sees: tyres, body, bonnet or boot, window, lamps, plate."""
        street, z = self.street, self.z
        for across in (-0.72, 0.72):
            tyre = _upright(self.x + across, 0.17, z + 0.05, (0.12, 0.17))
            street.surface(tyre, (26, 26, 28), CAR)
        deck, roof = (1.0, 1.75) if self.oncoming else (0.12, 0.75)
        self._face(
            [(-0.86, 0.9, deck), (0.86, 0.9, deck), (0.66, 1.46, roof), (-0.66, 1.46, roof)], 1
        )
        self._glass(
            [(-0.76, 0.94, deck), (0.76, 0.94, deck), (0.6, 1.38, roof), (-0.6, 1.38, roof)]
        )
        self._face(
            [(-0.66, 1.46, roof), (0.66, 1.46, roof), (0.64, 1.48, 2.6), (-0.64, 1.48, 2.6)], 1.1
        )
        if self.oncoming:
            self._face([(-0.88, 0.78, 0), (0.88, 0.78, 0), (0.86, 0.93, 1), (-0.86, 0.93, 1)], 1.12)
        high = 0.78 if self.oncoming else 0.93
        self._face([(-0.9, 0.22, 0), (0.9, 0.22, 0), (0.88, high, 0), (-0.88, high, 0)], 0.94)
        self.street.surface(_upright(self.x, 0.3 * self.tall, z, (0.86, 0.1)), (46, 46, 50), CAR)
        plate = _upright(self.x, 0.46 * self.tall, z, (0.26, 0.07))
        street.surface(plate, (236, 232, 210))
        self._draw_lamps()

    def _draw_lamps(self) -> None:
        street = self.street
        lamps_on = street.weather.lamps and self.moving
        if self.oncoming:
            color = (255, 250, 226) if lamps_on else street.lit((226, 230, 232), self.z)
        else:
            color = (255, 40, 34) if lamps_on else street.lit((176, 24, 28), self.z)
        for across in (-0.68, 0.68):
            lamp = self._at(across, 0.64, 0)
            street.disc(lamp, (0.19, 0.1), color, CAR)
            if lamps_on:
                street.shine(lamp, 0.3 if self.oncoming else 0.2, color)


def _people(street: _Street) -> Objects:
    rng = street.rng
    people: Objects = []
    for _ in range(rng.poisson(1.8)):
        z = float(rng.uniform(5, 26))
        if rng.random() < 0.1:
            x = float(rng.uniform(street.left, street.right))
            z = max(z, 11.0)
        else:
            edge, outward = ((street.left, -1), (street.right, 1))[rng.integers(2)]
            x = edge + outward * float(rng.uniform(0.5, street.pavement - 0.2))
        people.append((z, partial(_draw_person, street, x, z, int(rng.integers(2**32)))))
    return people


def _draw_person(street: _Street, x: float, z: float, seed: int) -> None:
    """Legs in step, coat, arms, head, hair, sometimes a bag."""
    rng = np.random.default_rng(seed)
    size, stride = rng.uniform(0.82, 1.06), rng.uniform(0.05, 0.24)
    coat, trousers = _pick(rng, _CLOTHES), _pick(rng, ((44, 50, 76), (60, 58, 60), (120, 104, 84)))
    skin, hair = _pick(rng, _SKINS, 5), _pick(rng, ((40, 30, 26), (110, 74, 40), (190, 160, 100)))
    street.shadow(x, z, 0.42, 0.4)

    def part(corners: Sequence[tuple[float, float]], albedo: Color, shade: float = 1.0) -> None:
        placed = [(x + a * size, b * size, z) for a, b in corners]
        street.surface(cast("list[Point]", placed), albedo, PERSON, shade)

    for sign in (-1, 1):
        foot = sign * stride
        part([(foot - 0.09, 0), (foot + 0.1, 0), (0.13, 0.85), (-0.13, 0.85)], trousers)
    for sign in (-1, 1):
        hand = sign * (0.3 + stride / 3)
        part(
            [(hand - 0.05, 0.8), (hand + 0.06, 0.8), (sign * 0.2 + 0.06, 1.4), (sign * 0.2, 1.42)],
            coat,
            0.82,
        )
    part([(-0.2, 0.78), (0.2, 0.78), (0.24, 1.38), (0.1, 1.46), (-0.1, 1.46), (-0.24, 1.38)], coat)
    if rng.random() < 0.35:
        part([(0.2, 0.7), (0.42, 0.7), (0.4, 1.0), (0.22, 1.0)], _pick(rng, _PAINTS))
    head = (x, 1.6 * size, z)
    street.disc((x, 1.64 * size, z), (0.125 * size, 0.15 * size), street.lit(hair, z), PERSON)
    street.disc(head, (0.1 * size, 0.125 * size), street.lit(skin, z), PERSON)


def _finish(street: _Street) -> tuple[Bytes, Bytes]:
    """The canvas as a photo: bonnet, averaged pixels, texture, wet road, glow, lens and noise."""
    _draw_bonnet(street)
    size = street.width, street.height
    pixels = cv2.resize(street.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    middle = _OVERSAMPLING // 2
    label = street.label[middle::_OVERSAMPLING, middle::_OVERSAMPLING].copy()
    _reflect(street, pixels, label)
    _texture(street, pixels, label)
    _shine(street, pixels)
    y, x = np.ogrid[-1 : 1 : street.height * 1j, -1 : 1 : street.width * 1j]
    pixels *= (1.02 - 0.09 * (x * x + y * y)).astype(np.float32)[..., None]
    pixels += street.rng.normal(0, 1.6, (*pixels.shape[:2], 1)).astype(np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), label


def _draw_bonnet(street: _Street) -> None:
    """The bonnet of the camera's own car, unlabelled, in most scenes."""
    rng = street.rng
    if rng.random() < 0.3:
        return
    rows, columns = street.label.shape
    paint = street.lit(_pick(rng, _PAINTS), 1.0, 0.55)
    centre = round(0.5 * columns), round(1.03 * rows)
    axes = round(rng.uniform(0.42, 0.58) * columns), round(rng.uniform(0.07, 0.1) * rows)
    cv2.ellipse(street.image, centre, axes, 0, 0, 360, paint, -1)
    cv2.ellipse(street.label, centre, axes, 0, 0, 360, _UNLABELLED, -1)
    shine = min(255.0, paint[0] * 1.5 + 10), min(255.0, paint[1] * 1.5 + 10), paint[2] * 1.5 + 10
    inner = round(0.8 * axes[0]), round(0.62 * axes[1])
    cv2.ellipse(street.image, centre, inner, 0, 0, 360, shine, -1)


def _reflect(street: _Street, pixels: Floats, label: Bytes) -> None:
    """A wet road mirrors what stands above it."""
    if street.weather.wet == 0:
        return
    horizon = round(street.horizon / _OVERSAMPLING)
    rows = np.clip(2 * horizon - np.arange(street.height), 0, street.height - 1)
    mirrored = cv2.GaussianBlur(pixels[rows], (0, 0), 1.0, sigmaY=street.height / 28)
    share = (street.weather.wet * (label == ROAD)).astype(np.float32)[..., None]
    pixels += share * (mirrored - pixels)


def _texture(street: _Street, pixels: Floats, label: Bytes) -> None:
    """Grain of each class: coarse in the grass near the camera, fine on asphalt."""
    rng = street.rng
    grain = rng.standard_normal((128, 256), np.float32)
    grain = cv2.resize(grain, (street.width, street.height), interpolation=cv2.INTER_LINEAR)
    patches = rng.standard_normal((14, 28), np.float32)
    patches = cv2.resize(patches, (street.width, street.height), interpolation=cv2.INTER_CUBIC)
    contrast = np.zeros(256, np.float32)
    contrast[list(_TEXTURE)] = list(_TEXTURE.values())
    pixels *= (1 + contrast[label] * (0.7 * grain + 0.5 * patches))[..., None]


def _shine(street: _Street, pixels: Floats) -> None:
    """Light around lamps, and that of the camera's own headlights on the ground."""
    if not street.weather.lamps:
        return
    glow = street.glow.astype(np.float32)
    for share, spread in ((0.75, 0.012), (1.3, 0.045)):
        pixels += share * cv2.GaussianBlur(glow, (0, 0), spread * street.height)
    y, x = np.mgrid[0 : street.height, 0 : street.width].astype(np.float32)
    x = (x - street.vanish / _OVERSAMPLING) / street.width
    y = (y - 0.8 * street.height) / street.height
    ground = y > (street.horizon / _OVERSAMPLING - 0.8 * street.height) / street.height
    dark = 1 - sum(street.weather.light) / 3
    beam = np.exp(-((x / 0.28) ** 2) - (y / 0.16) ** 2) * ground
    pixels *= (1 + 1.3 * dark * beam)[..., None]
