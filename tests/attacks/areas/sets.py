"""Data sets of samples that a stranger wrote: documents, lists, shards, links, addresses."""

import bz2
import functools
import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.attacks.harness import Expect, Try, chosen
from tests.attacks.mutations import (
    NUMBERS,
    PATHS,
    TEXTS,
    TYPES,
    as_folder,
    as_link,
    as_pipe,
    mutated,
    nested,
)
from tests.attacks.world import World

KIND = "data sets"
FORMATS = ("webdataset", "parquet", "folder")
VICTIM = "../../victim/victim.txt"  # from the data set, work/set
Change = Callable[[Path], object]


def tries(rng: random.Random, world: World) -> Iterator[Try]:
    """Every command that reads data sets, on mutated ones."""
    attack = functools.partial(_attack, world)
    yield from _whole(attack)
    yield from _documents(rng, attack)
    yield from _names(attack)
    yield from _tars(rng, attack)
    yield from _samples(rng, attack)
    yield from _tables(rng, attack)
    yield from _places(attack)
    yield from _options(world)


def _attack(
    world: World,
    form: str,
    command: str,
    name: str,
    change: Change,
    expect: Expect = Expect.EITHER,
    extra: Sequence[object] = (),
) -> Try:
    """A command on a copy of a finished data set that ``change`` has altered."""
    source, generator, data = world.samples(form), world.generator, world.data
    segmenter = world.segmenter if command == "evaluate" else None

    def prepare(folder: Path) -> list[object]:
        own = world.copy(source, folder / "work/set")
        change(own)
        augment = ["augment", "--checkpoint", generator, "--labels", data / "labels/train"]
        augment += ["--n-styles", 1, "--samples-per-shard", 5, "--format", form, "--out", own]
        augment += ["--device", "cpu", "-q"]
        words = {
            "verify": ["data", "verify", own, "-q"],
            "convert": ["data", "convert", own, "out", "--format", "folder", "-q"],
            "to tars": ["data", "convert", own, "out", "--format", "webdataset", "-q"],
            "evaluate": [
                *("evaluate", "--samples", own, "--reference", data, "--split", "train"),
                *("--judge", segmenter, "--out", "out", "--device", "cpu", "-q"),
            ],
            "resume": augment,
            "resume, verified": [*augment, "--verify"],
            "overwrite": [*augment, "--overwrite"],
            "extend": [*augment, "--n-styles", 2, "--extend"],
        }
        return [*words[command], *extra]

    writes = (
        ("out", "set")
        if command.split(",", maxsplit=1)[0] in {"resume", "overwrite", "extend"}
        else ("out",)
    )
    return Try(KIND, f"{command}, {form}: {name}", prepare, expect, writes=writes)


def _same(_: Path) -> None:
    """A data set as it is."""


def _whole(attack: Callable[..., Try]) -> Iterator[Try]:
    for form in FORMATS:
        for command in ("verify", "convert", "resume", "overwrite"):
            yield attack(form, command, "as it is", _same, Expect.TAKEN)
    yield attack("webdataset", "evaluate", "as it is", _same, Expect.TAKEN)


# Documents


def _write(name: str, text: str | bytes) -> Change:
    def change(root: Path) -> None:
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (root / name).write_bytes(content)

    return change


def _mutate(name: str, seed: int) -> tuple[Change, str]:
    """A change of one value, and the seed that says which."""

    def change(root: Path) -> None:
        path = root / name
        lines = path.read_text().splitlines()
        document = json.loads(lines[0] if name.endswith(".jsonl") else path.read_text())
        _, other = mutated(document, random.Random(seed))
        text = json.dumps(other)
        path.write_text("\n".join([text, *lines[1:]]) if name.endswith(".jsonl") else text)

    return change, f"{name}, value {seed}"


_DOCUMENTS = {
    "manifest.json": (FORMATS, ("verify", "convert", "evaluate", "to tars")),
    ".ecgan/plan.json": (FORMATS, ("resume", "extend", "overwrite")),
    ".ecgan/stages/000.json": (FORMATS, ("resume", "extend")),
    ".ecgan/shards/000000.json": (FORMATS, ("resume", "resume, verified")),
    ".ecgan/label-check.json": (("webdataset",), ("resume",)),
    "id2label.json": (FORMATS, ("verify",)),
    ".ecgan/records/train-000000.jsonl": (
        ("folder",),
        ("verify", "to tars", "resume", "overwrite"),
    ),
}
_NO_DOCUMENTS = {
    "empty": "",
    "nothing but null": "null",
    "a list": "[]",
    "a text": '"text"',
    "torn": '{"schema": 3, "sta',
    "nested": nested(100_000),
    "nested objects": nested(100_000, dict),
    "no text": b"\xff\xfe\x00",
    "a million digits": "1" * 1_000_000,
}


def _documents(rng: random.Random, attack: Callable[..., Try]) -> Iterator[Try]:
    for name, (forms, commands) in _DOCUMENTS.items():
        for what, text in _NO_DOCUMENTS.items():
            form, command = rng.choice(forms), rng.choice(commands)
            refused = command in {"verify", "convert", "to tars"}
            expect = Expect.REFUSED if refused else Expect.EITHER
            yield attack(form, command, f"{name} is {what}", _write(name, text), expect)
        for _ in range(24 if name == "manifest.json" else 10):
            change, what = _mutate(name, rng.randrange(1 << 30))
            yield attack(rng.choice(forms), rng.choice(commands), what, change)


# Names that would become paths


def _set(name: str, *path: object, value: object) -> Change:
    def change(root: Path) -> None:
        file = root / name
        lines = file.read_text().splitlines()
        is_list = name.endswith(".jsonl")
        document = json.loads(lines[0] if is_list else file.read_text())
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        text = json.dumps(document)
        file.write_text("\n".join([text, *lines[1:]]) + "\n" if is_list else text)

    return change


def _names(attack: Callable[..., Try]) -> Iterator[Try]:
    refused, listing = Expect.REFUSED, ".ecgan/records/train-000000.jsonl"
    for path in (VICTIM, *PATHS):
        change = _set("manifest.json", "split", value=path)
        yield attack("webdataset", "to tars", f"split = {path!r}", change, refused)
        change = _set("manifest.json", "shards", 0, "name", value=path)
        yield attack("webdataset", "convert", f"shard = {path!r}", change, refused)
        change = _set(listing, "file_name", value=path)
        yield attack("folder", "overwrite", f"file_name = {path!r}", change, refused)
        yield attack("folder", "to tars", f"file_name = {path!r}", change, refused)
        change = _set(listing, "key", value=path)
        yield attack("folder", "to tars", f"key = {path!r}", change, refused)
        change = _set(".ecgan/shards/000000.json", "name", value=path)
        yield attack("webdataset", "resume, verified", f"commit record = {path!r}", change)
    for name in ("abc.json", "-1.json", "1.json", "000000000000000000001.json"):
        yield attack("folder", "resume", f"commit {name}", _write(f".ecgan/shards/{name}", "{}"))
    for name in ("000000.tar", "train-000000.tar", "trainer.tar"):
        yield attack("webdataset", "overwrite", f"a file {name}", _write(f"data/{name}", b"mine"))


# Shards


def _tar(members: dict[str, bytes], **fields: object) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _png(size: tuple[int, int] = (64, 32), mode: str = "L", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, kind)
    return stream.getvalue()


def _repacked(change: Callable[[dict[str, bytes]], object]) -> Change:
    """The first tar with other members."""

    def apply(root: Path) -> None:
        path = root / "data/train-000000.tar"
        with tarfile.open(path) as tar:
            files = ((info.name, tar.extractfile(info)) for info in tar)
            members = {name: file.read() for name, file in files if file is not None}
        changed = change(members)
        path.write_bytes(_tar(members if changed is None else changed))

    return apply


def _first(members: dict[str, bytes], ending: str) -> str:
    return next(name for name in members if name.endswith(ending))


def _tars(rng: random.Random, attack: Callable[..., Try]) -> Iterator[Try]:
    refused, tar = Expect.REFUSED, "data/train-000000.tar"
    zeros = bytes(64 << 20)
    contents: dict[str, Change] = {
        "empty": _write(tar, b""),
        "zeros": _write(tar, bytes(4096)),
        "gzip": _write(tar, gzip.compress(_tar({"a.jpg": zeros}), 1)),
        "bzip2": _write(tar, bz2.compress(_tar({"a.jpg": zeros[: 1 << 20]}))),
        "xz": _write(tar, lzma.compress(_tar({"a.jpg": zeros[: 8 << 20]}), preset=0)),
        "40 GB of holes": lambda root: os.truncate(root / tar, 40 << 30),
        "a member of 3 GB": lambda root: _large_member(root / tar),
        "a size below 0": lambda root: _negative(root / tar),
        "endless names": _write(tar, _long_names(3000)),
        "a link": _write(tar, _tar({"a.jpg": b""}, type=tarfile.SYMTYPE, linkname=f"../{VICTIM}")),
        "a pipe in it": _write(tar, _tar({"a.jpg": b""}, type=tarfile.FIFOTYPE)),
        "a sparse file": _write(tar, _tar({"a.jpg": b"x" * 512}, pax_headers={
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1" * 15,
        })),
        "a member of ../": _repacked(lambda m: {f"../{name}": data for name, data in m.items()}),
        "control characters": _repacked(lambda m: {f"\x1b[31m\u202e{n}": d for n, d in m.items()}),
        "a link to the victim": lambda root: as_link(root / tar, f"../{VICTIM}"),
        "a pipe": lambda root: as_pipe(root / tar),
        "a folder": lambda root: as_folder(root / tar),
        "a link to itself": lambda root: as_link(root / tar, "train-000000.tar"),
    }  # fmt: skip
    # Nothing to read; all samples whole in front of the holes; keys are those of the records
    harmless = {
        ("zeros", "evaluate"), ("40 GB of holes", "convert"), ("control characters", "convert"),
    }  # fmt: skip
    for name, change in contents.items():
        for command in chosen(("verify", "convert", "evaluate"), rng, 2):
            expect = Expect.EITHER if (name, command) in harmless else refused
            yield attack("webdataset", command, f"the tar is {name}", change, expect)


def _samples(rng: random.Random, attack: Callable[..., Try]) -> Iterator[Try]:
    refused = Expect.REFUSED
    pictures = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n",
        "a PDF": b"%PDF-1.4\n",
        "13,000 x 13,000": _png((13_000, 13_000)),
        "a palette": _png(mode="P"),
        "16 bits": _png(mode="I;16"),
        "a GIF": _png(mode="P", kind="GIF"),
        "nothing": b"",
    }
    for name, data in pictures.items():
        for ending in ("jpg", ".seg.png", ".edge.png"):
            yield attack(
                "webdataset", "verify", f"{ending} is {name}",
                _repacked(lambda m, e=ending, d=data: m.update({_first(m, e): d})), refused,
            )  # fmt: skip
    for value in (*TYPES, *NUMBERS, *TEXTS[:6]):
        record = json.dumps(value)
        yield attack(
            "webdataset", rng.choice(("verify", "convert")), f"record is {record[:40]}",
            _repacked(lambda m, r=record: m.update({_first(m, "json"): r.encode()})), refused,
        )  # fmt: skip


def _tables(rng: random.Random, attack: Callable[..., Try]) -> Iterator[Try]:
    refused = Expect.REFUSED
    columns: dict[str, list[object]] = {
        "image": [
            None,
            "text",
            7,
            {"bytes": None, "path": VICTIM},
            {"bytes": "text", "path": 5},
            b"",
        ],
        "label": [None, "text", {"bytes": b"", "path": None}],
        "edge": [None, 7, {"bytes": None, "path": "/etc/passwd"}],
        "key": [None, 7, "../../../victim/x", "\x1b[31m", "a b", ""],
        "class_pixels": [None, "text", [-1], [2**62] * 5, [0.5]],
        "seed": [None, "text", -1, 2**63 - 1],
        "consistency": [None, "text", float("nan"), float("inf")],
    }
    for column, values in columns.items():
        for value in values:
            expect = Expect.EITHER if column in {"seed", "consistency", "key"} else refused
            yield attack(
                "parquet", rng.choice(("verify", "convert")), f"column {column} = {value!r}"[:80],
                functools.partial(_column, name=column, value=value), expect,
            )  # fmt: skip
    for command in ("verify", "convert", "evaluate"):
        name = "data/train-00000.parquet"
        yield attack("parquet", command, "a dictionary bomb", _dictionary_bomb, refused)
        torn = functools.partial(_truncated, name=name)
        yield attack("parquet", command, "torn", torn, refused)
        yield attack("parquet", command, "no Parquet", _write(name, b"PAR1" * 100), refused)
    for number in range(8):
        yield attack(
            "parquet", rng.choice(("verify", "convert")), f"bytes {number} turned over",
            functools.partial(_flip, seed=rng.randrange(1 << 30)), refused,
        )  # fmt: skip


def _large_member(path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 3 << 30
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate((3 << 30) + 4096)


def _negative(path: Path) -> None:
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) * 3 + bytes(1024))


def _long_names(count: int) -> bytes:
    info = tarfile.TarInfo("x" * 200)
    whole = info.tobuf(tarfile.GNU_FORMAT)
    return whole[:1024] * count + bytes(1024)


def _truncated(root: Path, name: str) -> None:
    os.truncate(root / name, 900)


def _column(root: Path, name: str, value: object) -> None:
    """A Parquet shard with another value in every row of a column."""
    path = root / "data/train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, name: value} for row in rows]), path)


def _dictionary_bomb(root: Path) -> None:
    """A few bytes a row, each of which stands for a picture of 20 MB."""
    path = root / "data/train-00000.parquet"
    row = pq.read_table(path).slice(0, 1).to_pylist()[0]
    count = 200_000
    once = pa.array([0] * count, pa.int32())
    pictures = pa.DictionaryArray.from_arrays(once, pa.array([bytes(20 << 20)]))
    labels = pa.DictionaryArray.from_arrays(once, pa.array([row["label"]["bytes"]]))
    table = pa.table({"image": pictures, "label": labels, "edge": labels})
    pq.write_table(table, path, compression="none", dictionary_pagesize_limit=1 << 30)


def _flip(root: Path, seed: int) -> None:
    path, rng = root / "data/train-00000.parquet", random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(20):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


# Links, places and addresses


def _replaced_by_link(name: str, target: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        if path.is_dir():
            path.rename(path.with_name(f"old-{path.name}"))
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def _places(attack: Callable[..., Try]) -> Iterator[Try]:
    victim = "../../victim"
    for name in ("manifest.json", "data", ".ecgan", "images", "masks", ".ecgan/records"):
        form = "webdataset" if name == "data" else "folder"
        for command in ("verify", "to tars", "overwrite", "resume"):
            target = f"../{victim}" if "/" in name else victim
            yield attack(form, command, f"{name} is a link out", _replaced_by_link(name, target))
    for name in (".ecgan/lock", ".ecgan/lock.guard", ".ecgan/tmp", ".ecgan/label-check.json"):
        change = _replaced_by_link(name, f"../{victim}/victim.txt")
        for command in ("overwrite", "extend"):
            yield attack("webdataset", command, f"{name} is a link out", change)
    for address in (
        "memory://user:pass-of-mine@host/set?token=pass-of-mine",
        "zip://user:pass-of-mine@set",
        "nosuch://user:pass-of-mine@set",
    ):
        for words in (
            ["data", "verify", address],
            ["data", "convert", address, "out", "--format", "folder"],
            ["evaluate", "--samples", address],
        ):
            yield Try(
                KIND, f"{' '.join(words[:2])}: {address}", functools.partial(_argv, words),
                secrets=("pass-of-mine",),
            )  # fmt: skip


def _argv(words: list[object], _: Path) -> list[object]:
    return words


# Options


def _options(world: World) -> Iterator[Try]:
    generator, labels = world.generator, world.data / "labels/train"
    absurd = [
        *(["--n-styles", 10**30], ["--n-styles", 10**9, "--samples-per-shard", 1]),
        *(["--workers", 10**9], ["--shard-timeout", "nan"], ["--shard-timeout", "inf"]),
        *(["--gpus-per-worker", "nan"], ["--batch", 10**30], ["--samples-per-shard", 10**30]),
        *(["--seed", 10**30], ["--style-seed", 10**30], ["--vary", "flip", "--n-variants", 10**30]),
        *(["--balance", "target", "--target", "car=nan"], ["--set", "sampling.batch=1e30"]),
        *(["--out", "/dev/null"], ["--out", "memory://x", "--workers", 2]),
        *(["--ray-address", "x:1", "--gpus-per-worker", "1e300"], ["--out", "a\0b"]),
    ]  # fmt: skip
    for words in absurd:
        start = ["augment", "--checkpoint", generator, "--labels", labels, "--device", "cpu", "-q"]
        yield Try(KIND, f"augment {words}"[:80], functools.partial(_argv, [*start, *words]))
    samples = world.samples("webdataset")
    for words in (["--samples-per-shard", 10**30], ["--samples-per-shard", 0]):
        start = ["data", "convert", samples, "out", "--format", "folder"]
        yield Try(KIND, f"convert {words}"[:80], functools.partial(_argv, [*start, *words]))
    for out in ("/dev/null", samples):
        words = ["data", "convert", samples, out, "--format", "folder"]
        yield Try(KIND, f"convert to {out.name if isinstance(out, Path) else out}",
                  functools.partial(_argv, words))  # fmt: skip
