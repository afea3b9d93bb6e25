"""Houses of a toy street: walls, roofs, windows, doors and shops."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from ecgan.demo.street import (
    BUILDING,
    FACADES,
    FAR,
    PAINTS,
    Color,
    Floats,
    Point,
    Street,
    jitter,
    pick,
)


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


def draw_buildings(street: Street) -> None:
    """Houses on both sides, the farthest first."""
    sunny = street.rng.choice((-1, 1))
    for outward, front in zip((-1, 1), street.frontage, strict=True):
        shade = 1.0 if outward == sunny else 0.8
        for house in reversed(_houses(street, front, outward, shade)):
            _draw_house(street, house)


def _houses(street: Street, front: float, outward: int, shade: float) -> list[_House]:
    rng = street.rng
    share = street.built[outward > 0]
    houses: list[_House] = []
    near = rng.uniform(-6, 3)
    while near < 0.75 * FAR:
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
                    pick(rng, FACADES),
                    pitched=storeys <= 3 and rng.random() < 0.7,
                    shop=rng.random() < 0.4,
                    shade=shade,
                )
            )
        near = far + (0 if share > 0.9 else rng.uniform(1, 5))
    return houses


def _draw_house(street: Street, house: _House) -> None:
    rng = street.rng
    x, depth = house.front, house.front + house.outward * 11
    near, far, top = house.near, house.far, house.height
    if house.pitched:
        ridge = (x + depth) / 2
        roof = pick(rng, ((150, 74, 56), (96, 92, 96), (120, 84, 64)))
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


def _draw_bands(street: Street, house: _House) -> None:
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


def _draw_windows(street: Street, house: _House) -> None:
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
    street.fill_all(frames, frame)
    panes = house.wall_quads(z, 3.1 * floors + 1.0, (wide, high))
    glass = street.lit((74, 90, 108), middle, rng.uniform(0.7, 1.1))
    street.fill_all(panes, glass)
    reflecting = panes[rng.random(len(panes)) < 0.3]
    bright = tuple(0.5 * g + 0.5 * h for g, h in zip(glass, street.weather.horizon, strict=True))
    street.fill_all(reflecting, cast("Color", bright))
    if street.weather.lamps:
        lit = panes[rng.random(len(panes)) < 0.35]
        street.fill_all(lit, jitter(rng, (252, 214, 140), 6))
    bars = house.wall_quads(z + wide / 2 - 0.05, 3.1 * floors + 1.0, (0.1, high))
    street.fill_all(bars, frame)
    if house.shop:
        _draw_shop(street, house)
    elif columns > 0:
        door = house.wall_quads(
            z[rng.integers(columns)] - np.array([0.05]), np.zeros(1), (1.2, 2.3)
        )
        street.fill_all(door, street.lit(pick(rng, PAINTS), middle, house.shade * 0.7))


def _draw_shop(street: Street, house: _House) -> None:
    """A shop at street level: wide panes below an awning."""
    rng = street.rng
    middle = (house.near + house.far) / 2
    lit = street.weather.lamps or rng.random() < 0.3
    inside = (250, 226, 170) if lit else street.lit((88, 100, 112), middle)
    bays = max(1, int((house.far - house.near) / 3.2))
    z = house.near + 0.5 + (house.far - house.near) / bays * np.arange(bays)
    width = (house.far - house.near) / bays - 0.9
    street.fill_all(house.wall_quads(z, np.array([0.55]), (width, 1.8)), inside)
    awning = street.lit(pick(rng, PAINTS), middle, house.shade)
    start, length = np.array([house.near + 0.2]), house.far - house.near - 0.4
    street.fill_all(house.wall_quads(start, np.array([2.45]), (length, 0.55)), awning)
