"""Camera and canvas of a toy street, and the colours that its parts are drawn in.

World coordinates are metres: X to the right, Y up from the ground, Z ahead of the camera. All is
drawn on a canvas three times as large; the image is its average, the label its central pixel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from ecgan.labels import LabelClass, LabelSpace

Floats = npt.NDArray[np.floating]
Bytes = npt.NDArray[np.uint8]
Color = tuple[float, float, float]  # RGB, 0 to 255
Point = tuple[float, float, float]  # metres
Objects = list[tuple[float, Callable[[], None]]]  # distance and drawing of each

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
UNLABELLED = 255
OVERSAMPLING = 3  # odd: the central pixel is the label's
NEAR, FAR = 0.7, 160.0  # metres: where the street begins and ends
_EYE = 1.55  # metres above the ground


def _colors(text: str) -> tuple[Color, ...]:
    return tuple((float(r), float(g), float(b)) for r, g, b in map(bytes.fromhex, text.split()))


FACADES = _colors("b06048 c8a076 ded0b0 96969c 788698 ce8660 a8b096 e4ded6 8e544e beaec8")
PAINTS = _colors("bc2024 2446a0 e8e8e6 282a30 969aa0 deaa28 2c7054 6eaac8")
CLOTHES = _colors("c8323c 2850a0 e6c846 3c3c46 f0ece4 5a965a 965096 e6823c")
SKINS = _colors("eec8aa c89673 8c5f46 5f4132")
_SEASONS = _colors("467830 608e3c ba8030")


@dataclass(frozen=True)
class Weather:
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
    Weather((62, 122, 205), (178, 208, 236), (1.06, 1.04, 1.0), 260, 0.35, shadow=0.42),
    Weather((88, 150, 215), (205, 222, 235), (1.0, 1.0, 1.0), 200, 0.55, shadow=0.25),
    Weather((84, 104, 160), (252, 190, 128), (1.12, 0.88, 0.66), 150, 0.4, shadow=0.35),
    Weather((150, 158, 168), (196, 200, 204), (0.84, 0.87, 0.92), 110, 0.75),
    Weather((196, 202, 206), (222, 223, 220), (0.9, 0.93, 0.96), 38, 0.0, lamps=True),
    Weather((104, 112, 124), (150, 154, 160), (0.6, 0.64, 0.72), 75, 0.9, lamps=True, wet=0.45),
    Weather((16, 20, 52), (84, 66, 98), (0.34, 0.36, 0.54), 130, 0.3, lamps=True, wet=0.1),
)
_WEATHER_SHARES = (0.24, 0.2, 0.16, 0.14, 0.06, 0.08, 0.12)


@dataclass
class Street:
    """Geometry of the street, camera, weather and canvases of one scene."""

    rng: np.random.Generator
    height: int  # of the image
    width: int
    weather: Weather
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
        size = self.height * OVERSAMPLING, self.width * OVERSAMPLING
        self.image = np.zeros((*size, 3), np.uint8)
        self.label = np.full(size, SKY, np.uint8)
        self.glow = np.zeros((self.height, self.width, 3), np.uint8)

    @classmethod
    def draw(cls, rng: np.random.Generator, height: int, width: int) -> "Street":
        """Random street: first its geometry, then its weather."""
        parking = bool(rng.random() < 0.45), bool(rng.random() < 0.6)
        kind = int(rng.choice(3, p=(0.5, 0.35, 0.15)))  # city, suburb, park at one side
        built = ((0.95, 0.95), (0.7, 0.7), (0.1, 0.9))[kind]
        return cls(
            rng,
            height,
            width,
            horizon=OVERSAMPLING * height * rng.uniform(0.4, 0.5),
            vanish=OVERSAMPLING * width * rng.uniform(0.4, 0.58),
            focal=OVERSAMPLING * height * rng.uniform(1.05, 1.3),
            left=-rng.uniform(5.0, 5.8) - 2.2 * parking[0],
            right=rng.uniform(1.8, 2.6) + 2.2 * parking[1],
            pavement=rng.uniform(1.8, 3.6),
            verge=(rng.uniform(0, 0.3), rng.uniform(2, 6), rng.uniform(1, 4))[kind],
            parking=parking,
            built=built if rng.random() < 0.5 else (built[1], built[0]),
            storeys=((3, 7), (1, 3), (2, 5))[kind],
            season=jitter(rng, _SEASONS[int(rng.choice(3))], 14),
            weather=_draw_weather(rng),
        )

    def project(self, points: Sequence[Point] | Floats) -> Floats:
        """Metres -> canvas pixels, (..., 3) -> (..., 2)."""
        metres = np.asarray(points, np.float64)
        scale = self.focal / np.maximum(metres[..., 2:], NEAR)
        return (metres[..., :2] - (0, _EYE)) * (1, -1) * scale + (self.vanish, self.horizon)

    @property
    def frontage(self) -> tuple[float, float]:
        """X of the house fronts, left and right."""
        beside = self.pavement + self.verge
        return self.left - beside, self.right + beside

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
        middle = round(x * 16), round(y * 16)
        axes = round(radius[0] * metre * 16), round(radius[1] * metre * 16)
        if max(map(abs, middle)) > 2**18:
            return
        cv2.ellipse(self.image, middle, axes, 0, 0, 360, color, -1, shift=4)
        if label is not None:
            cv2.ellipse(self.label, middle, axes, 0, 0, 360, label, -1, shift=4)

    def fill_all(self, quads: Floats, color: Color) -> None:
        """Fill quadrangles, (n, 4, 3), that do not overlap much, inside what is drawn already."""
        if len(quads):
            cv2.fillPoly(self.image, list(_fixed_point(self.project(quads))), color, shift=4)

    def shine(self, point: Point, radius: float, color: Color) -> None:
        """A lamp that glows at night: light around it in the finished image."""
        if self.weather.lamps:
            x, y = self.project([point])[0] / OVERSAMPLING
            size = max(1, round(radius * self.scale(point[2]) / OVERSAMPLING))
            if abs(x) < 4 * self.width and abs(y) < 4 * self.height:
                cv2.circle(self.glow, (round(x), round(y)), size, color, -1)

    def shadow(self, x: float, z: float, half_width: float, half_length: float) -> None:
        """Shadow of an object: the ground below it, whatever its class, is darker."""
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


def _draw_weather(rng: np.random.Generator) -> Weather:
    weather = _WEATHERS[int(rng.choice(len(_WEATHERS), p=_WEATHER_SHARES))]
    tint = rng.normal(1, 0.03, 3)
    light = tuple(float(l * t) for l, t in zip(weather.light, tint, strict=True))
    return replace(
        weather,
        zenith=jitter(rng, weather.zenith, 8),
        horizon=jitter(rng, weather.horizon, 8),
        light=cast("Color", light),
        haze_length=weather.haze_length * rng.uniform(0.8, 1.3),
        clouds=min(1.0, weather.clouds * rng.uniform(0.3, 1.4)),
        shadow=weather.shadow * rng.uniform(0.7, 1.1),
    )


def jitter(rng: np.random.Generator, color: Color, amount: float) -> Color:
    """A colour nearby: normal noise of ``amount`` on each channel."""
    r, g, b = np.clip(np.asarray(color) + rng.normal(0, amount, 3), 4, 255)
    return float(r), float(g), float(b)


def pick(rng: np.random.Generator, colors: Sequence[Color], amount: float = 10) -> Color:
    """One of the colours at random, jittered."""
    return jitter(rng, colors[int(rng.integers(len(colors)))], amount)


def upright(x: float, y: float, z: float, half: tuple[float, float]) -> list[Point]:
    """A rectangle that faces the camera, by its middle and half sides."""
    a, b = half
    return [(x - a, y - b, z), (x + a, y - b, z), (x + a, y + b, z), (x - a, y + b, z)]
