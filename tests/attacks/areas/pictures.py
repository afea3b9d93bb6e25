"""Photos and label maps of a stranger: other formats, bombs, and what is no file at all."""

import functools
import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.mutations import as_link, damaged
from tests.attacks.world import World

KIND = "pictures"
COMMANDS = ("inspect", "train", "augment", "cache")
SIZE = (64, 32)  # width and height of the pictures of the data
PLACES = ("images/train/scene-03.png", "labels/train/scene-03.png")
_TRAIN = ("--recipe", "demo", "--set", "model.width=4")
_TRAIN += ("--set", "data.height=32", "--set", "data.width=64")
Change = Callable[[Path], object]
Attack = Callable[..., Try]


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """``data inspect``, ``train --dry-run``, ``augment --labels`` and ``data cache``."""
    attack = functools.partial(_attack, world)
    for command in COMMANDS:
        yield attack(command, "as they are", lambda data: None, Expect.TAKEN)
    yield from _formats(rng, attack)
    yield from _bytes(rng, attack, (world.data / PLACES[1]).read_bytes())
    yield from _headers(rng, attack)
    yield from _files(rng, attack)
    yield from _names(rng, attack)
    yield from _disks(world)


def _disks(world: World) -> Iterator[Try]:
    """The whole disk as a folder, by its name and by a link: refused before it is walked."""
    classes = ("--set", f"data.classes={world.data / 'classes.json'}")
    train = ("train", "--dry-run", *_TRAIN, *classes, "--device", "cpu", "-q", "--data")
    augment = ("augment", "--checkpoint", world.generator, "--device", "cpu", "-q", "--out", "out")
    samples = world.samples("webdataset")
    commands: dict[str, Sequence[object]] = {
        "inspect": ("data", "inspect"),
        "import": ("data", "import", "--out", "out"),
        "train": train,
        "augment": (*augment, "--labels"),
        "styles": (*augment, "--labels", world.data / "labels/train", "--style-images"),
        "evaluate": ("evaluate", "--samples", samples, "--out", "out", "--reference"),
        "photos": (
            *("downstream", "--samples", samples, "--reference", world.data, "--out", "out"),
            *("--mix", "self-training", "--unlabelled"),
        ),
    }

    def prepare(folder: Path, words: Sequence[object], *, linked: bool) -> Sequence[object]:
        (folder / "work/disk").symlink_to("/")
        return [*words, "disk" if linked else "/"]

    def soon(folder: Path, output: str) -> Iterator[str]:
        if "holds the whole disk" not in output:
            yield "refused for another reason"

    for name, words in commands.items():
        for linked in (False, True):
            own = functools.partial(prepare, words=words, linked=linked)
            text = f"{name}: the whole disk{' by a link' if linked else ''}"
            yield Try(KIND, text, own, writes=("out", "runs"), check=soon)


def _attack(
    world: World, command: str, name: str, change: Change, expect: Expect = Expect.EITHER
) -> Try:
    """A command on a copy of the data that ``change`` has altered."""
    source, generator = world.data, world.generator

    def prepare(folder: Path) -> Sequence[object]:
        data = world.copy(source, folder / "work/data")
        change(data)
        words: dict[str, Sequence[object]] = {
            "inspect": ["data", "inspect", "data"],
            "train": ["train", "--dry-run", *_TRAIN, "--data", "data", "--device", "cpu", "-q"],
            "cache": ["data", "cache", *_TRAIN, "--data", "data", "--out", "out", "--threads", 1],
            "augment": [
                *("augment", "--checkpoint", generator, "--labels", "data/labels/train"),
                *("--device", "cpu", "-q", "--out", "out"),
            ],
        }
        return words[command]

    return Try(KIND, f"{command}: {name}", prepare, expect, writes=("out", "runs"))


def _at(rng: random.Random, attack: Attack, name: str, put: Change, expect: Expect) -> Iterator:
    """A file as a photo, and as a label map: a command each, mostly a quick one."""
    for place in PLACES:
        kind = place.split("/", maxsplit=1)[0]
        known = ["inspect", "inspect", "cache", "augment" if kind == "labels" else "cache", "train"]
        # A training in preparation opens label maps and a few photos; the others open them all
        command = rng.choice(known)
        own = Expect.EITHER if command == "train" and kind == "images" else expect
        change = functools.partial(_placed, put=put, place=place)
        yield attack(command, f"{kind}: {name}", change, own)


def _placed(data: Path, put: Change, place: str) -> None:
    (data / place).unlink()
    put(data / place)


def _write(content: bytes) -> Change:
    return lambda path: path.write_bytes(content)


def _saved(kind: str, mode: str = "L", size: tuple[int, int] = SIZE, **options: object) -> bytes:
    stream = io.BytesIO()
    picture = Image.new(mode, size)
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _formats(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """Formats that Pillow opens by content, some of them with other programs' help."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n%%EndComments\n"
    run = b"(%pipe%touch ../executed) (w) file pop\n(../executed) (w) file closefile\nshowpage\n"
    fax = struct.pack("<2sHIH", b"II", 42, 8, 7) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in (
            *((256, 1 << 16), (257, 1 << 16), (258, 1), (259, 4)),
            *((262, 0), (273, 98), (279, 4)),
        )
    )
    refused = {
        "EPS": postscript + run,
        "EPS in DOS": struct.pack("<4sII", b"\xc5\xd0\xd3\xc6", 32, 200) + bytes(20) + postscript,
        "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 32, 64, 8, 3) + bytes(12),
        "fax": fax + b"\0\0\0\0" + b"\xff" * 64,
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "XPM": b'/* XPM */\nstatic char *a[] = {"64 32 1 1", "a c #000"};\n',
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(80),
        "ICO": _saved("ICO", "RGB", (32, 32)),
        "PCX": _saved("PCX"),
        "PPM": _saved("PPM"),
        "SGI": _saved("SGI"),
        "TGA": _saved("TGA"),
        "DDS": _saved("DDS", "RGB"),
        "JPEG 2000": _saved("JPEG2000"),
        "IM": _saved("IM"),
        "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "pickle": b"cos\nsystem\n(S'touch ../executed'\ntR.",
        "NumPy": b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
        "HTML": b"<html><script>alert(1)</script>",
        "shell": b"#!/bin/sh\ntouch ../executed\n",
        "GIF of 40 frames": _frames("GIF", 40),
        "TIFF of 40 pages": _frames("TIFF", 40),
        "WebP of 8 frames": _frames("WEBP", 8),
        "zip": b"PK\3\4" + bytes(100),
    }
    either = {
        "GIF": _saved("GIF", "P"),
        "TIFF": _saved("TIFF"),
        "BMP": _saved("BMP"),
        "floats": _saved("TIFF", "F"),
        "16 bits": _saved("PNG", "I;16"),
        "CMYK": _saved("JPEG", "CMYK"),
        "1 bit": _saved("PNG", "1"),
        "another size": _saved("PNG", size=(7, 5)),
        "one pixel": _saved("PNG", size=(1, 1)),
        "one row": _saved("PNG", size=(20_000, 1)),
        "NaN": _floats(float("nan")),
        "infinite": _floats(float("inf")),
    }
    for contents, expect in ((refused, Expect.REFUSED), (either, Expect.EITHER)):
        for name, content in contents.items():
            yield from _at(rng, attack, f"{name} named .png", _write(content), expect)


def _frames(kind: str, count: int) -> bytes:
    frames = [Image.fromarray(np.full((32, 64), n * 5, np.uint8)) for n in range(count)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def _floats(value: float) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full(SIZE[::-1], value, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def _bytes(rng: random.Random, attack: Attack, whole: bytes) -> Iterator[Try]:
    """Damaged files."""
    for number in range(24):
        name, content = damaged(whole, rng)
        yield from chosen(
            [*_at(rng, attack, f"{number}: {name}", _write(content), Expect.EITHER)], rng, 1
        )
    for kind in ("JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        content = _saved(kind)
        cut = _write(content[: len(content) * 2 // 3])
        yield from _at(rng, attack, f"{kind} cut", cut, Expect.EITHER)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _header(width: int, height: int, depth: int = 8, color: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)


def _headers(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """Small files that stand for large ones, and chunks that lead elsewhere."""
    pixels = b"IDAT", zlib.compress(bytes(65 * 32))
    zeros = zlib.compress(bytes(64 << 20))
    end = b"IEND", b""
    webp = b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    bombs = {
        "2^31 pixels wide": _png(_header((1 << 31) - 1, 1), pixels, end),
        "2^31 x 2^31": _png(_header((1 << 31) - 1, (1 << 31) - 1), pixels, end),
        "60,000 x 60,000": _png(_header(60_000, 60_000), pixels, end),
        "13,000 x 13,000": _png(_header(13_000, 13_000), (b"IDAT", zeros), end),
        "no pixels": _png(_header(64, 32), end),
        "0 x 0": _png(_header(0, 0), pixels, end),
        "a text of 64 MB": _png(
            _header(64, 32), (b"zTXt", b"a\0\0" + zeros), (b"zTXt", b"b\0\0" + zeros), pixels, end
        ),
        "a profile of 64 MB": _png(_header(64, 32), (b"iCCP", b"a\0\0" + zeros), pixels, end),
        "a chunk of 4 GB": _png(_header(64, 32)) + b"\xff\xff\xff\xf0IDAT",
        "depth 3": _png(_header(64, 32, 3), pixels, end),
        "WebP of 16,384 x 16,384": webp + b"\xff\x3f\0\xff\x3f\0" + bytes(8),
        "BMP of 2^31 rows": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 1 << 30,
                                                -(1 << 30), 1, 1, 0, 0, 0, 0, 0, 0),
        "GIF of 65,535 x 65,535": b"GIF89a" + b"\xff" * 4 + b"\0\0\0," + bytes(4) + b"\xff" * 4,
        "JPEG of 65,500 x 65,500": b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xdc\xff\xdc\1\1\x11\0\xff\xda",
        "TIFF whose pages are a ring": struct.pack("<2sHIHI", b"II", 42, 8, 0, 8),
    }  # fmt: skip
    for name, content in bombs.items():
        soft = name.startswith(("a text", "a profile", "13,000"))
        expect = Expect.EITHER if soft else Expect.REFUSED
        yield from _at(rng, attack, name, _write(content), expect)
    exif = Image.Exif()
    exif[274], exif[270] = 60_000, "\x1b[31m<script>"
    for name, content in {
        "orientation 60,000": _saved("PNG", exif=exif.tobytes()),
        "Exif that is none": _saved("JPEG", exif=b"Exif\0\0" + b"\xff" * 99),
    }.items():
        yield from _at(rng, attack, name, _write(content), Expect.EITHER)


# What is no file


def _files(rng: random.Random, attack: Attack) -> Iterator[Try]:
    kinds: dict[str, Change] = {
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a socket": _socket,
        "/dev/zero": functools.partial(as_link, target="/dev/zero"),
        "/dev/tty": functools.partial(as_link, target="/dev/tty"),
        "/proc/self/mem": functools.partial(as_link, target="/proc/self/mem"),
        "a link to itself": functools.partial(as_link, target="scene-03.png"),
        "a link to nothing": functools.partial(as_link, target="nothing.png"),
        "a link to its folder": functools.partial(as_link, target="."),
        "40 GB of holes": _hole,
        "without rights": _hidden,
        "gone": lambda path: None,
    }
    for name, put in kinds.items():
        expect = Expect.EITHER if name in {"gone", "without rights"} else Expect.REFUSED
        if name in {"a folder", "a link to its folder"}:
            expect = Expect.EITHER  # a folder of pictures, which has none
        yield from _at(rng, attack, name, put, expect)
    for name in ("images", "labels", "classes.json", "images/train", "labels/train"):
        for target in ("/dev/zero", "/proc/self", ".", ".."):
            change = functools.partial(_moved, name=name, target=target)
            yield attack(rng.choice(COMMANDS), f"{name} leads to {target}", change)
    for command in COMMANDS:
        yield attack(command, "labels are a pipe", lambda data: _pipe(data / "labels"))


def _pipe(path: Path) -> None:
    path.rename(path.with_name("old"))
    os.mkfifo(path)


def _moved(data: Path, name: str, target: str) -> None:
    (data / name).rename(data / "old")
    (data / name).symlink_to(target)


def _hole(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(path, 40 << 30)


def _hidden(path: Path) -> None:
    path.write_bytes(_saved("PNG"))
    path.chmod(0)


def _socket(path: Path) -> None:
    place = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(place)


def _names(rng: random.Random, attack: Attack) -> Iterator[Try]:
    """Names that steer what shows them, or what is made of them."""
    names = [
        "\x1b[31mred\x1b[0m\x1b]0;title\x07",
        "two\nlines\rover",
        "\u202egnp.exe",
        "<script>alert(1)</script>".replace("/", ""),
        "x" * 240,
        "..",
        "...",
        "-rf",
        "--out=..",
        "a b",
        "%s%n{0.__class__}",
        "$(touch executed)",
        "..\\..\\victim",
        "con",
        "caf\u00e9",
        "cafe\u0301",
        os.fsdecode(b"\xff\xfe"),
        "\ufeff",
        " ",
        "a.png.png",
        "key.with.dots",
    ]
    for name in names:
        for command in chosen(COMMANDS, rng, 2):
            yield attack(
                command, f"a pair named {name!r}"[:90], functools.partial(_pair, name=name)
            )
        change = functools.partial(_pair, name=name, content=b"no picture")
        yield attack(rng.choice(COMMANDS), f"a broken pair named {name!r}"[:90], change)


def _pair(data: Path, name: str, content: bytes | None = None) -> None:
    for place in PLACES:
        path = data / place
        if content is not None:
            path.write_bytes(content)
        path.rename(path.with_name(f"{name}.png"))
