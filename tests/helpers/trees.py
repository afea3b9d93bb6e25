"""Small data sets with the true names of the paper's, written by the tests that read them."""

import json

import numpy as np
from PIL import Image

CLASSES = {
    "classes": [
        {"id": 0, "name": "road", "color": [128, 64, 128]},
        {"id": 1, "name": "sky", "color": [70, 130, 180]},
        {"id": 2, "name": "car", "color": [0, 0, 142]},
    ],
    "ignore": 255,
}


def save(path, array, mode=None, **options):
    """An array as an image file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode is not None:
        image = image.convert(mode)
    image.save(path, **options)
    return path


def photo(seed, height=32, width=64):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stripes(values, height=32, width=64, dtype=np.uint8):
    """A label map: vertical stripes of the given values."""
    row = np.array(values)[np.arange(width) * len(values) // width]
    return np.tile(row, (height, 1)).astype(dtype)


def in_palette(values, colors, path):
    image = Image.fromarray(stripes(values))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_folder(root, splits=("train", "val"), num=4, values=(0, 1, 2, 255), dtype=np.uint8):
    for split in splits:
        for i in range(num):
            save(root / "images" / split / f"{i}.jpg", photo(i))
            save(root / "labels" / split / f"{i}.png", stripes(values, dtype=dtype))
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def write_cityscapes(root, splits=("train", "val"), num=2):
    """Two cities; ids 0, 7, 26 and 33; instance ids as published: id * 1000 + n, 16 bits."""
    for split in splits:
        for city in ("aachen", "weimar"):
            for i in range(num):
                stem = f"{city}_{i:06d}_000019"
                save(root / f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", photo(i))
                fine = root / f"gtFine/{split}/{city}/{stem}_gtFine_"
                save(fine.with_name(fine.name + "labelIds.png"), stripes([0, 7, 26, 33]))
                save(
                    fine.with_name(fine.name + "instanceIds.png"),
                    stripes([0, 7, 26000, 33001], dtype=np.uint16),
                )
                save(fine.with_name(fine.name + "color.png"), photo(0))
                save(fine.with_name(fine.name + "labelTrainIds.png"), stripes([255, 0, 13, 18]))
    return root


def write_ade20k(root, num=2):
    """Raw ids 0 (unlabelled), 1 and 150; a greyscale and a CMYK photo among them."""
    base = root / "ADEChallengeData2016"
    for split, short in (("training", "train"), ("validation", "val")):
        for i in range(num):
            name = f"ADE_{short}_{i + 1:08d}"
            mode = ("L", "CMYK")[i % 2]
            save(base / f"images/{split}/{name}.jpg", photo(i), mode)
            save(base / f"annotations/{split}/{name}.png", stripes([0, 1, 150]))
    return root


def write_coco_stuff(root, num=2):
    """Ids 0, 181 and 255 (unlabelled); instance maps as SPADE's users make them."""
    for split in ("train2017", "val2017"):
        for i in range(num):
            name = f"{i + 1:012d}"
            save(root / f"images/{split}/{name}.jpg", photo(i))
            save(root / f"stuffthingmaps/{split}/{name}.png", stripes([0, 181, 255]))
            save(root / f"inst/{split}/{name}.png", stripes([0, 1, 181, 255]))
    return root
