"""Small labelled folders as users bring them, drawn by code: most of them went wrong once."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["background", "cat", "dog", "person"]
COLORS = np.array([[90, 90, 90], [200, 60, 60], [60, 200, 60], [60, 60, 200]], np.uint8)
VOC = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)
HEIGHT, WIDTH = 48, 64


def ids(seed, num_classes=4, height=HEIGHT, width=WIDTH):
    """Rectangles of the classes 1, 2, ... on class 0."""
    rng, label = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for number in range(1, num_classes):
        y, x = rng.integers(0, height - 16), rng.integers(0, width - 20)
        label[y : y + 16, x : x + 20] = number
    return label


def photo_of(label, seed):
    """Photo whose colours are those of the classes, with noise."""
    table = np.random.default_rng(7).integers(30, 226, (64, 3))
    table[:4] = COLORS
    noise = np.random.default_rng(seed).integers(-20, 20, (*label.shape, 3))
    return (table[label] + noise).clip(0, 255).astype(np.uint8)


def as_ids(path, label, _):
    Image.fromarray(label).save(f"{path}.png")


def as_png(path, pixels):
    Image.fromarray(pixels).save(f"{path}.png")


def in_colors(table):
    return lambda path, label, _: Image.fromarray(table[label]).save(f"{path}.png")


def in_palette(table, order=lambda _: np.arange(4)):
    """Palette files whose number k has the colour of class order[k]."""

    def save(path, label, seed):
        number_of = np.argsort(order(seed))
        image = Image.fromarray(number_of[label].astype(np.uint8), "P")
        image.putpalette(table[order(seed)].ravel().tolist())
        image.save(f"{path}.png")

    return save


def turned(orientation):
    """Photos that are stored turned, with the orientation that sets them upright."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path, pixels: (
        Image.fromarray(pixels).transpose(back).save(f"{path}.jpg", quality=95, exif=exif)
    )


def colored(table=COLORS, names=NAMES):
    """Class list with colours."""
    return [{"name": name, "color": c} for name, c in zip(names, table.tolist(), strict=True)]


def draw(
    root,
    save=as_ids,
    *,
    shoot=as_png,
    classes=NAMES,
    folders=("images", "labels"),
    suffixes=("", ""),
    first=0,
    num=6,
    num_classes=4,
    size=(HEIGHT, WIDTH),
):
    """Photos and label maps.

    Args:
        root: folder.
        save: writes a label map: path without ending, ids, seed.
        shoot: writes a photo: path without ending, pixels.
        classes: content of classes.json; None: no file.
        folders: of photos and of label maps.
        suffixes: ends of the names of photos and of label maps.
        first: number of the first pair.
        num: number of pairs.
        num_classes: classes that occur.
        size: height and width.
    """
    for seed in range(first, first + num):
        label = ids(seed, num_classes, *size)
        paths = [
            Path(root, folder, f"{seed:03}{suffix}")
            for folder, suffix in zip(folders, suffixes, strict=True)
        ]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        shoot(paths[0], photo_of(label, seed))
        save(paths[1], label, seed)
    if classes is not None:
        write_classes(root, classes if isinstance(classes, dict) else {"classes": classes})
    return Path(root)


def write_classes(root, document):
    Path(root, "classes.json").write_text(json.dumps(document))
