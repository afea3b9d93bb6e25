"""Street scenes drawn by code: a data set for the demo, tests and benchmarks, free of any licence.

A straight street in true perspective, seen from a car. Light, weather, season and colours are
drawn for each scene on top of its label map, so that styles mean something; windows, lane markings,
paving and leaves are structure inside a class that the label map does not show, so that edges mean
something. Poles, signs and people are small and rare, as in real streets. A few pixels have no
label: the bonnet of the camera's own car.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ecgan.demo.background import draw_ground, draw_sky, draw_skyline
from ecgan.demo.buildings import draw_buildings
from ecgan.demo.roadside import roadside
from ecgan.demo.street import (
    BUILDING,
    GRASS,
    OVERSAMPLING,
    PAINTS,
    PAVEMENT,
    ROAD,
    SPACE,
    TREE,
    UNLABELLED,
    Bytes,
    Floats,
    Street,
    pick,
)
from ecgan.demo.traffic import traffic
from ecgan.errors import UsageError
from ecgan.runtime.files import whole_folder, writing

# Contrast of the fine texture of each class


_TEXTURE = {ROAD: 0.035, PAVEMENT: 0.04, BUILDING: 0.025, GRASS: 0.12, TREE: 0.07}


def draw_scene(
    seed: int | Sequence[int], height: int = 128, width: int = 256
) -> tuple[Bytes, Bytes]:
    """One scene: RGB image, (height, width, 3), and label, (height, width).

    The label holds ids of ``SPACE``, and 255. The same seed gives the same scene, also at another
    size of the same shape.
    """
    rng = np.random.default_rng(seed)
    street = Street.draw(rng, height, width)
    draw_sky(street)
    draw_ground(street)
    draw_skyline(street)
    draw_buildings(street)
    for _, draw in sorted([*roadside(street), *traffic(street)], key=lambda entry: -entry[0]):
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
        raise UsageError(f"{out} is not empty; choose another folder, or remove it first")
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


def _finish(street: Street) -> tuple[Bytes, Bytes]:
    """The canvas as a photo: bonnet, averaged pixels, texture, wet road, glow, lens and noise."""
    _draw_bonnet(street)
    size = street.width, street.height
    pixels = cv2.resize(street.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    middle = OVERSAMPLING // 2
    label = street.label[middle::OVERSAMPLING, middle::OVERSAMPLING].copy()
    _reflect(street, pixels, label)
    _texture(street, pixels, label)
    _shine(street, pixels)
    y, x = np.ogrid[-1 : 1 : street.height * 1j, -1 : 1 : street.width * 1j]
    pixels *= (1.02 - 0.09 * (x * x + y * y)).astype(np.float32)[..., None]
    pixels += street.rng.normal(0, 1.6, (*pixels.shape[:2], 1)).astype(np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), label


def _draw_bonnet(street: Street) -> None:
    """The bonnet of the camera's own car, unlabelled, in most scenes."""
    rng = street.rng
    if rng.random() < 0.3:
        return
    rows, columns = street.label.shape
    paint = street.lit(pick(rng, PAINTS), 1.0, 0.55)
    centre = round(0.5 * columns), round(1.03 * rows)
    axes = round(rng.uniform(0.42, 0.58) * columns), round(rng.uniform(0.07, 0.1) * rows)
    cv2.ellipse(street.image, centre, axes, 0, 0, 360, paint, -1)
    cv2.ellipse(street.label, centre, axes, 0, 0, 360, UNLABELLED, -1)
    shine = min(255.0, paint[0] * 1.5 + 10), min(255.0, paint[1] * 1.5 + 10), paint[2] * 1.5 + 10
    inner = round(0.8 * axes[0]), round(0.62 * axes[1])
    cv2.ellipse(street.image, centre, inner, 0, 0, 360, shine, -1)


def _reflect(street: Street, pixels: Floats, label: Bytes) -> None:
    """A wet road mirrors what stands above it."""
    if street.weather.wet == 0:
        return
    horizon = round(street.horizon / OVERSAMPLING)
    rows = np.clip(2 * horizon - np.arange(street.height), 0, street.height - 1)
    mirrored = cv2.GaussianBlur(pixels[rows], (0, 0), 1.0, sigmaY=street.height / 28)
    share = (street.weather.wet * (label == ROAD)).astype(np.float32)[..., None]
    pixels += share * (mirrored - pixels)


def _texture(street: Street, pixels: Floats, label: Bytes) -> None:
    """Grain of each class: coarse in the grass near the camera, fine on asphalt."""
    rng = street.rng
    grain = rng.standard_normal((128, 256), np.float32)
    grain = cv2.resize(grain, (street.width, street.height), interpolation=cv2.INTER_LINEAR)
    patches = rng.standard_normal((14, 28), np.float32)
    patches = cv2.resize(patches, (street.width, street.height), interpolation=cv2.INTER_CUBIC)
    contrast = np.zeros(256, np.float32)
    contrast[list(_TEXTURE)] = list(_TEXTURE.values())
    pixels *= (1 + contrast[label] * (0.7 * grain + 0.5 * patches))[..., None]


def _shine(street: Street, pixels: Floats) -> None:
    """Light around lamps, and that of the camera's own headlights on the ground."""
    if not street.weather.lamps:
        return
    glow = street.glow.astype(np.float32)
    for share, spread in ((0.75, 0.012), (1.3, 0.045)):
        pixels += share * cv2.GaussianBlur(glow, (0, 0), spread * street.height)
    y, x = np.mgrid[0 : street.height, 0 : street.width].astype(np.float32)
    x = (x - street.vanish / OVERSAMPLING) / street.width
    y = (y - 0.8 * street.height) / street.height
    ground = y > (street.horizon / OVERSAMPLING - 0.8 * street.height) / street.height
    dark = 1 - sum(street.weather.light) / 3
    beam = np.exp(-((x / 0.28) ** 2) - (y / 0.16) ** 2) * ground
    pixels *= (1 + 1.3 * dark * beam)[..., None]
