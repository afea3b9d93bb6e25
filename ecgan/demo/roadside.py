"""Lamp posts, signs, traffic lights and trees of a toy street."""

from functools import partial

import numpy as np

from ecgan.demo.street import (
    OVERSAMPLING,
    POLE,
    SIGN,
    TREE,
    Color,
    Objects,
    Point,
    Street,
    jitter,
    pick,
    upright,
)


def roadside(street: Street) -> Objects:
    """Things at the edges of the street, in no order of distance."""
    return [*_lamp_posts(street), *_signs(street), *_trees(street)]


def _lamp_posts(street: Street) -> Objects:
    rng = street.rng
    spacing, offset = rng.uniform(20, 30), rng.uniform(5, 16)
    color = pick(rng, ((70, 74, 78), (120, 124, 126), (56, 72, 64)))
    height = rng.uniform(5.5, 7.5)
    posts: Objects = []
    for index in range(int(90 / spacing)):
        right = bool(index % 2)
        x = street.right + 0.5 if right else street.left - 0.5
        z = offset + index * spacing
        posts.append((z, partial(_draw_lamp_post, street, (x, height, z), color)))
    return posts


def _post(street: Street, foot: Point, height: float, color: Color, thick: float) -> None:
    """A vertical bar, at least one final pixel wide."""
    x, _, z = foot
    base, top = street.project([foot, (x, height, z)])
    half = max(thick * street.scale(z), OVERSAMPLING * 1.05) / 2
    aside = np.array([half, 0.0])
    street.fill(np.stack([base - aside, base + aside, top + aside, top - aside]), color, POLE)


def _draw_lamp_post(street: Street, top: Point, albedo: Color) -> None:
    x, height, z = top
    color = street.lit(albedo, z)
    _post(street, (x, 0, z), height, color, 0.14)
    inward = 1 if x < 0 else -1
    start, end = street.project([(x, height, z), (x + inward * 1.3, height + 0.15, z)])
    above = np.array([0.0, max(0.05 * street.scale(z), OVERSAMPLING * 0.5)])
    arm = np.stack([start - above, end - above, end + above, start + above])
    street.fill(arm, color, POLE)
    lamp = (x + inward * 1.3, height + 0.08, z)
    bulb = (255, 236, 190) if street.weather.lamps else street.lit((224, 224, 214), z)
    street.disc(lamp, (0.42, 0.15), bulb, POLE)
    street.shine(lamp, 0.6, (255, 220, 150))


def _signs(street: Street) -> Objects:
    rng = street.rng
    signs: Objects = []
    for _ in range(int(rng.integers(1, 4))):
        right = rng.random() < 0.7
        x = street.right + rng.uniform(0.3, 0.8) if right else street.left - rng.uniform(0.3, 0.8)
        z = rng.uniform(6.5, 30)
        draw = _draw_traffic_light if rng.random() < 0.3 else _draw_sign
        signs.append((z, partial(draw, street, x, z, int(rng.integers(4)))))
    return signs


def _draw_sign(street: Street, x: float, z: float, kind: int) -> None:
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
            street.fill(street.project(upright(x, y, z, size)), color, label)


def _draw_traffic_light(street: Street, x: float, z: float, kind: int) -> None:
    _post(street, (x, 0, z), 3.4, street.lit((90, 92, 94), z), 0.11)
    street.fill(street.project(upright(x, 3.2, z, (0.26, 0.62))), street.lit((38, 40, 42), z), SIGN)
    colors = ((255, 48, 40), (255, 190, 40), (60, 240, 120))
    burning = kind % 3
    for index, color in enumerate(colors):
        lamp = (x, 3.58 - 0.38 * index, z)
        dark = (color[0] * 0.25, color[1] * 0.25, color[2] * 0.25)
        street.disc(lamp, (0.15, 0.15), color if index == burning else dark)
        if index == burning:
            street.shine(lamp, 0.3, color)


def _trees(street: Street) -> Objects:
    rng = street.rng
    trees: Objects = []
    outer = street.frontage
    for side, outward in enumerate((-1, 1)):
        kerb = (street.left, street.right)[side] + outward * 0.7
        lawn = outer[side] - outward * street.verge / 2
        feet: list[tuple[float, float]] = []
        if rng.random() < 0.55:
            x = lawn if street.verge > 1.2 else kerb
            spacing = rng.uniform(7, 15)
            z = rng.uniform(5, 14) + spacing * np.arange(int(75 / spacing))
            feet += [(x, float(d)) for d in z if rng.random() < 0.8]
        wild = 1 - street.built[side]
        for _ in range(rng.poisson(28 * wild)):
            z = float(rng.uniform(8, 90))
            feet.append((outer[side] + outward * rng.uniform(1, 4 + 0.5 * z), z))
        for x, z in feet:
            size = rng.uniform(0.8, 1.3)
            seed = int(rng.integers(2**32))
            trees.append((z, partial(_draw_tree, street, (x, 0.0, z), size, seed)))
    return trees


def _draw_tree(street: Street, foot: Point, size: float, seed: int) -> None:
    """A trunk, and a crown of leaf clumps, lighter towards the top."""
    rng = np.random.default_rng(seed)
    x, _, z = foot
    street.shadow(x, z, 1.7 * size, 1.7 * size)
    half, crown = 0.13 * size, 3.7 * size
    trunk = [(x - 1.4 * half, 0, z), (x + 1.4 * half, 0, z), (x + half, crown, z)]
    street.surface([*trunk, (x - half, crown, z)], (92, 72, 56), TREE)
    leaves = jitter(rng, street.season, 10)
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
    street: Street, centre: Point, size: float, leaves: Color, rng: np.random.Generator
) -> None:
    """Specks of light and shade inside the crown."""
    count = 80
    angle, reach = rng.uniform(0, 2 * np.pi, count), 1.7 * size * np.sqrt(rng.random(count))
    middle = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=-1) * reach[:, None]
    speck = np.array([(-0.16, 0, 0), (0, -0.1, 0), (0.16, 0, 0), (0, 0.1, 0)]) * size
    specks = np.array(centre) + middle[:, None] + speck  # (count, 4, 3)
    for some, shade in ((specks[::2], 0.7), (specks[1::2], 1.25)):
        street.fill_all(some, street.lit(leaves, centre[2], shade))
