"""What headers of tars, Parquet and Arrow files say is not believed."""

import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import random
import struct
import tarfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ecgan.errors import UserError
from ecgan.runtime.storage import open_store
from ecgan.shards import readers
from ecgan.shards.files import tables, tars
from tests.helpers.shards import write_arrow


def header(name="a.jpg", size=3, kind=tarfile.REGTYPE):
    """A tar's header that says whatever it likes."""
    info = tarfile.TarInfo(name)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    digits = b"\x80" if size >= 0 else b"\xff"
    block[124:136] = digits + (size % (1 << 88)).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*texts):
    own = b"".join(f"{len(text) + 3 + (len(text) > 6)} {text}\n".encode() for text in texts)
    return header("x", len(own), tarfile.XHDTYPE) + own.ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (header(size=1 << 60) + b"abc", "a damaged tar: unexpected end of data"),
        (header(size=-1024) + b"abc".ljust(512), "a damaged tar"),
        (header(size=-512, kind=tarfile.DIRTYPE) * 2, "a damaged tar"),
        (header("x", 1 << 40, tarfile.XHDTYPE), "a damaged tar: a header of"),
        (header("x", -512, tarfile.GNUTYPE_LONGNAME), "a damaged tar: a header of"),
        (pax("a=b") * 3000 + header(), "a damaged tar"),
        (pax("size=99999999999999999999999") + header() + b"abc".ljust(512), "a damaged tar"),
        (pax("GNU.sparse.map=1,x") + header() + b"abc".ljust(512), "a damaged tar|a sparse file"),
        (pax("GNU.sparse.major=1", "GNU.sparse.minor=0") + header() + b"9" * 512, "a damaged tar"),
        (header("a.jpg", 3, tarfile.FIFOTYPE), "a link or device"),
        (header("../a.jpg") + b"abc".ljust(512), "leads out of the folder"),
    ],
)
def test_a_tar_that_lies_is_refused(tmp_path, content, fault):
    (tmp_path / "a.tar").write_bytes(content + b"\0" * 1024)
    with pytest.raises(UserError, match=fault):
        [*readers.read_raw(open_store(tmp_path), "a.tar")]
    with pytest.raises(UserError, match=fault):
        readers.OpenShard(open_store(tmp_path), "a.tar")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_named_as_such(tmp_path, pack):
    (tmp_path / "a.tar").write_bytes(pack(header() + bytes(1024)))
    with pytest.raises(UserError, match="a compressed tar, which cannot be read at random"):
        [*readers.read_raw(open_store(tmp_path), "a.tar")]


def test_rows_may_be_read_again(tmp_path, monkeypatch):
    """The bound is one of a reading, not of all of them."""
    pq.write_table(pa.Table.from_pylist([{"image": bytes(600)}] * 3), tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "_SMALL", 1)
    monkeypatch.setattr(tables, "_GROWTH", 3)
    table = tables.Table(tmp_path / "a.parquet", "a.parquet")
    for _ in range(5):
        assert len([*table.rows(["image"])]) == 3


def test_a_table_that_is_not_there_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        tables.Table(tmp_path / "a.parquet", "a.parquet")


def test_members_that_are_passed_over_and_fields_in_any_case(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in (".hidden", "a/.b.jpg", "a/c.JPG"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    with (tmp_path / "a.tar").open("rb") as file:
        members = [*tars.list_members(file, "a.tar")]
    assert [member.name for member in members] == ["a/c.JPG"]
    assert tars.field(members[0].name) == "jpg"
    assert tars.stem(members[0].name) == "a/c"


def test_a_sparse_file_is_refused_by_its_kind(tmp_path):
    content = pax("GNU.sparse.map=0,1", "GNU.sparse.size=1") + header() + b"abc".ljust(512)
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(UserError, match="a sparse file"):
        [*tars.list_members(file, "a.tar")]


def test_a_member_has_a_largest_size(tmp_path):
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header(size=tars.MAX_MEMBER + 1))
        file.truncate(tars.MAX_MEMBER + 4096)
    with pytest.raises(UserError, match=r"a.jpg has 256 MB, more than 256; no picture"):
        [*readers.read_raw(open_store(tmp_path), "a.tar")]


def parquet(path, rows, **options):
    pq.write_table(pa.table(rows), path, **options)
    return path


def test_more_rows_than_bytes_are_no_samples(tmp_path):
    rows = {"image": [b"x"] * 300_000, "label": [b"x"] * 300_000}
    path = parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(UserError, match=r"300000 rows in \d+ bytes; no file of pictures"):
        readers.OpenShard(open_store(tmp_path), "a.parquet")
    with pytest.raises(UserError, match="300000 rows"):
        readers.Columns(path)


def test_pages_that_would_grow_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SMALL", 1 << 20)
    rows = {"image": [b"\0" * (4 << 20)], "label": [b"x"]}
    parquet(tmp_path / "a.parquet", rows, compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"\d+ bytes of the column image would become \d+"):
        [*readers.read_raw(open_store(tmp_path), "a.parquet")]


def test_rows_that_repeat_one_picture_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SMALL", 1 << 20)
    monkeypatch.setattr(tables, "_GROWTH", 10)
    rows = {"image": [b"x", bytes(range(256)) * 400], "label": [b"x", b"y"]}
    table = pa.table(
        {n: pa.array(v).dictionary_encode().take(pa.array([1] * 500)) for n, v in rows.items()}
    )
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    with pytest.raises(UserError, match="a damaged Parquet file: more than 1 MB in its rows"):
        [*readers.read_raw(open_store(tmp_path), "a.parquet")]


def test_a_dictionary_of_one_large_picture_is_read_row_by_row(tmp_path):
    picture = bytes(range(256)) * 4000
    count = 100_000
    rows = {"image": [b"x", picture], "label": [b"x", b"y"]}
    table = pa.table(
        {n: pa.array(v).dictionary_encode().take(pa.array([1] * count)) for n, v in rows.items()}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 3 << 20
    shard = readers.OpenShard(open_store(tmp_path), "a.parquet")
    assert shard.raw(20).image == picture
    assert readers.Columns(path, kept_bytes=1 << 20).value(40, "image") == picture


def _read_in_a_fork(shard, place, into):
    into.put(shard.raw(place).image)


def test_a_forked_process_reads_with_a_file_of_its_own(tmp_path):
    """Of one that was open before the fork, both would move the position."""
    pictures = [bytes([number]) * 40_000 for number in range(40)]
    table = pa.table({"image": pictures, "label": [b"y"] * 40})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    shard = readers.OpenShard(open_store(tmp_path), "a.parquet")
    assert shard.raw(3).image == pictures[3]
    links = Path("/proc/self/fd").iterdir()
    opened = [int(link.name) for link in links if os.path.realpath(link).endswith("a.parquet")]
    before = [os.lseek(fd, 0, os.SEEK_CUR) for fd in opened]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_a_fork, args=(shard, 35, queue))
    child.start()
    assert queue.get() == pictures[35]
    child.join()
    assert len(before) == 1
    assert [os.lseek(fd, 0, os.SEEK_CUR) for fd in opened] == before


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ("text", "column image: text"),
        (7, "column image: a number"),
        (None, "column image: null"),
        ({"bytes": None, "path": "a.jpg"}, "only the path 'a.jpg'"),
        ({"path": 5}, "only the path 5"),
        ([b"x"], "column image: a list"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path, image, fault):
    pq.write_table(pa.Table.from_pylist([{"image": image, "label": b"x"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=fault):
        [*readers.read_raw(open_store(tmp_path), "a.parquet")]


def test_tars_with_long_headers_of_others_are_read(tmp_path):
    """webdataset writes times with fractions, which take an extended header."""
    name = "a" * 150 + "/b"
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for ending in ("jpg", "seg.png"):
            info = tarfile.TarInfo(f"{name}.{ending}")
            info.mtime, info.size = 1.5, 3
            tar.addfile(info, io.BytesIO(b"abc"))
    (raw,) = readers.read_raw(open_store(tmp_path), "a.tar")
    assert (raw.key, raw.image, raw.label) == (name, b"abc", b"abc")


def test_a_member_that_its_file_no_longer_holds_is_named(tmp_path):
    """A tar that somebody cuts short after its members were listed."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1000
            tar.addfile(info, io.BytesIO(name[:1].encode() * 1000))
    with (tmp_path / "a.tar").open("r+b") as file:
        whole, cut = tars.list_members(file, "a.tar")
        file.truncate(cut.offset + cut.size - 1)
        assert tars.read_member(file, whole, "a.tar") == b"a" * 1000
        with pytest.raises(UserError, match=r"^a.tar: b.jpg: the tar ends within it; copy it"):
            tars.read_member(file, cut, "a.tar")


# Arrow files


ROWS = {"image": [b"one", b"two", b"three", b"four"], "label": [b"1", b"2", b"3", b"4"]}


def values(path, column="image"):
    table = tables.open_table(path, str(path))
    return [table.row(number, [column])[column] for number in range(int(table.starts[-1]))]


@pytest.mark.parametrize("is_mapped", [True, False])
def test_batches_are_row_groups(tmp_path, is_mapped):
    path = write_arrow(tmp_path / "a.arrow", ROWS)
    with path.open("rb") as file:
        table = tables.open_table(path if is_mapped else file, str(path))
        assert [*table.starts] == [0, 3, 4]
        assert table.names == ["image", "label"]
        assert [*table.rows(["label", "image"])] == [
            {"image": image, "label": label} for image, label in zip(*ROWS.values(), strict=True)
        ]
        assert table.column("label") == ROWS["label"]
    assert values(path) == ROWS["image"]


def test_every_byte_of_an_arrow_file_may_be_wrong(tmp_path):
    """Each fault is a sentence, or other values: never a crash, and never much memory."""
    path = write_arrow(tmp_path / "a.arrow", ROWS | {"key": ["a", "b", "c", "d"]})
    whole = path.read_bytes()
    draws = random.Random(0)
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= draws.randrange(1, 256)
        path.write_bytes(changed)
        for column in ("image", "key"):
            found = []
            with suppress(UserError):
                table = tables.open_table(path, str(path))
                found = values(path, column) if column in table.names else []
            assert sum(len(value) for value in found if value is not None) <= len(whole)


def test_an_arrow_file_that_is_cut_off_is_refused(tmp_path):
    path = write_arrow(tmp_path / "a.arrow", ROWS)
    whole = path.read_bytes()
    for size in (0, 3, 8, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.arrow: a damaged Arrow file: "):
            values(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"ARROW1\0\0" + b"\0" * 64, "no Arrow stream"),
        (b"PAR1" * 20, "no Arrow stream"),
        (struct.pack("<Ii", 0xFFFFFFFF, 1 << 30) + b"x" * 64, "a description of 1073741824 bytes"),
        (struct.pack("<Ii", 0xFFFFFFFF, -8) + b"x" * 64, "a description of -8 bytes"),
        (struct.pack("<IiI", 0xFFFFFFFF, 64, 1 << 31) + b"x" * 64, "damaged Arrow file"),
    ],
)
def test_lengths_are_compared_with_the_file_first(tmp_path, content, fault):
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(UserError, match=fault):
        values(tmp_path / "a.arrow")


def test_a_batch_of_rows_without_bytes_is_refused(tmp_path):
    table = pa.table({"image": pa.nulls(10_000_000), "label": pa.nulls(10_000_000)})
    path = write_arrow(tmp_path / "a.arrow", table, rows_of_batch=10_000_000)
    with pytest.raises(UserError, match=r"10000000 rows in \d+ bytes; no file of pictures"):
        values(path)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_batches_are_refused_before_they_grow(tmp_path, codec):
    rows = {"image": [b"\0" * 4_000_000], "label": [b"x"]}
    path = write_arrow(tmp_path / "a.arrow", rows, compression=codec)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="compressed batches; save it anew"):
        values(path)


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (pa.array([b"x"] * 4).dictionary_encode(), "dictionaries or other messages"),
        (pa.array([b"x" * 50] * 4, pa.binary_view()), "the column image is of type binary_view"),
        (
            pa.RunEndEncodedArray.from_arrays(pa.array([4], pa.int32()), pa.array([b"x"])),
            "the column image is of type run_end_encoded",
        ),
    ],
)
def test_types_that_repeat_bytes_are_refused(tmp_path, image, fault):
    path = write_arrow(tmp_path / "a.arrow", pa.table({"image": image}), rows_of_batch=4)
    with pytest.raises(UserError, match=fault):
        values(path)


def test_a_pipe_of_that_name_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.arrow")
    with pytest.raises(UserError, match=r"a\.arrow: a pipe, a device or a socket"):
        tables.open_table(tmp_path / "a.arrow", str(tmp_path / "a.arrow"))
