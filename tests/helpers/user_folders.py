"""Small labelled folders as users bring them, drawn by code: most of them went wrong once."""

import json
import struct
import zlib
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


def tiff_of_bands(pixels):
    """An uncompressed TIFF of bands of which none is said to be alpha, from (H, W, N) bytes."""
    height, width, bands = pixels.shape
    data = pixels.tobytes()
    bits = struct.pack(f"<{bands}H", *[8] * bands)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, 8 + len(data)), (259, 3, 1, 1),
        (262, 3, 1, 2 if bands == 4 else 1), (273, 4, 1, 8), (277, 3, 1, bands),
        (278, 4, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data) + len(bits)) + data + bits + directory


def png_of_bits(numbers, bits):
    """A grey PNG of one row, of fewer than 8 bits."""
    row = sum(int(n) << (len(numbers[0]) - 1 - i) * bits for i, n in enumerate(numbers[0]))
    size = -(-len(numbers[0]) * bits // 8)
    row <<= size * 8 - len(numbers[0]) * bits
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", numbers.shape[1], 1, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + row.to_bytes(size, "big"))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
