"""Sky, ground, road markings and skyline of a toy street."""

from itertools import pairwise

import cv2
import numpy as np

from ecgan.demo.street import (
    BUILDING,
    FACADES,
    FAR,
    GRASS,
    NEAR,
    PAVEMENT,
    ROAD,
    TREE,
    Color,
    Floats,
    Point,
    Street,
    jitter,
    pick,
)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Smooth noise in four octaves, flat as clouds are, about -1 to 1, (height, width)."""
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        grid = rng.standard_normal((2 + 3 * 2**octave, 2 + 2 * 2**octave), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.55**octave
    return total


def draw_sky(street: Street) -> None:
    """Sky above the horizon, with clouds."""
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


def _strip(street: Street, left: float, right: float, albedo: Color, label: int | None) -> None:
    """A strip of ground along the street, in bands so that haze and light change with distance."""
    bands = [NEAR, 4, 7, 12, 20, 32, 50, 80, 120, FAR, 4 * FAR]
    for ends in reversed(list(pairwise(bands))):
        street.surface(_rectangle((left, right), ends), albedo, label)


def _rectangle(x: tuple[float, float], z: tuple[float, float]) -> list[Point]:
    """A rectangle on the ground by its ends across and along the street."""
    (left, right), (near, far) = x, z
    return [(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)]


def draw_ground(street: Street) -> None:
    """Lawns, pavements and the road with its markings."""
    rng = street.rng
    grey = rng.uniform(84, 118)
    asphalt = jitter(rng, (grey, grey, grey + 5), 3)
    slabs = jitter(rng, (172, 166, 156), 10)
    lawn = jitter(rng, (104, 142, 70), 10)
    outer_left, outer_right = street.frontage
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


def _draw_paving(street: Street, slabs: Color) -> None:
    """Kerbs and joints between the slabs."""
    joint = (slabs[0] * 0.72, slabs[1] * 0.72, slabs[2] * 0.72)
    for edge, outward in ((street.left, -1), (street.right, 1)):
        for row in range(1, int(street.pavement / 0.9) + 1):
            x = edge + outward * 0.9 * row
            _line(street, x, (2, 24), 0.05, joint)
        for z in np.arange(3.0, 26, 1.4):
            end = edge + outward * street.pavement
            street.surface(_rectangle((edge, end), (float(z), float(z) + 0.06)), joint)
        _line(street, edge + outward * 0.1, (1, 90), 0.24, (206, 204, 198))


def _line(street: Street, x: float, along: tuple[float, float], wide: float, albedo: Color) -> None:
    """A line on the ground along the street."""
    street.surface(_rectangle((x - wide / 2, x + wide / 2), along), albedo)


def _draw_markings(street: Street) -> None:
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


def _draw_house_shadow(street: Street) -> None:
    """The houses of one side shade their side of the street."""
    outer = street.frontage
    left = street.rng.random() < 0.5
    reach = street.rng.uniform(2, 7)
    ends = (outer[0], outer[0] + reach) if left else (outer[1] - reach, outer[1])
    for along in pairwise((NEAR, 6, 14, 30, 60, FAR)):
        street.darken(street.project(_rectangle(ends, along)), street.weather.shadow)


def draw_skyline(street: Street) -> None:
    """Skyline: hills of trees, and towers in the haze."""
    rng = street.rng
    width = street.image.shape[1]
    hill = street.lit(street.season, 0.6 * FAR)
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
        color = street.lit(pick(rng, FACADES), rng.uniform(0.45, 0.8) * FAR, 0.8)
        corners = [[centre - half, street.horizon + 1], [centre - half, top]]
        corners += [[centre + half, top], [centre + half, street.horizon + 1]]
        street.fill(np.array(corners), color, BUILDING)
        for y in np.arange(top + 4, street.horizon - 2, 5.0):
            row = [[centre - half + 2, y], [centre + half - 2, y]]
            row += [[centre + half - 2, y + 2], [centre - half + 2, y + 2]]
            street.fill(np.array(row), (color[0] * 0.85, color[1] * 0.87, color[2] * 0.9))


def _round_hill(street: Street, x: float, half: float, rise: float, color: Color) -> None:
    angle = np.linspace(0, np.pi, 12)
    top = street.horizon + 2 - (rise + 2) * np.sin(angle)
    street.fill(np.stack([x + half * np.cos(angle), top], axis=-1), color, TREE)
