"""The check of label files from run to run: what is read again, what is kept, what it returns."""

import dataclasses
import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecgan import labels
from ecgan.data import datasets, decode, label_cache
from ecgan.data.datasets import Item, check_labels
from ecgan.errors import UserError
from tests.helpers import trees
from tests.helpers.trees import photo, save, stripes

SPACE = labels.from_json(trees.CLASSES, "classes.json")
FOLDER = "folder"
LONG_AGO = 1_000_000_000  # seconds since 1970


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch):
    """The database of each test is its own, and not there yet."""
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checked-1.sqlite"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """A few files make several blocks and tasks."""
    monkeypatch.setattr(datasets, "_BLOCK", 4)
    monkeypatch.setattr(datasets, "_TASK", 3)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if r.name == label_cache.__name__]


def settle(*paths, seconds=LONG_AGO):
    for path in paths:
        os.utime(path, (seconds, seconds))


def garble(*paths):
    """Other bytes, which no one can read, under the same size and time of change."""
    for path in paths:
        stat = path.stat()
        path.write_bytes(b"\1" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def label_files(folder, num=10, values=(0, 1, 2, 255)):
    """Items whose label maps differ, written long ago."""
    items = []
    for i in range(num):
        label = np.random.default_rng(i).choice(values, (8, 12)).astype(np.uint8)
        items.append(Item(f"{i:02d}", save(folder / f"{i:02d}.png", label)))
    settle(*(item.label for item in items))
    return items


def whole_item(root):
    item = Item(
        "a",
        label=save(root / "label.png", stripes([0, 1])),
        image=save(root / "image.png", photo(0)),
        instances=save(root / "instances.png", stripes([3, 4, 300], dtype=np.uint16)),
        edge=save(root / "edge.png", stripes([0, 255])),
    )
    settle(item.label, item.image, item.instances, item.edge)
    return item


def check(items, space=SPACE, dataset=FOLDER, **options):
    return check_labels(items, space, dataset, **options)


def is_read(items, *args, **options):
    """Whether a check of garbled files reads any of them."""
    try:
        check(items, *args, **options)
    except UserError as error:
        assert "not an image" in str(error)  # noqa: PT017
        return True
    return False


# What it returns


def assert_true(found, items):
    """Against NumPy and hashlib, item by item."""
    for row, item in enumerate(items):
        label = np.asarray(Image.open(item.label))
        expected = [(label == c).sum() for c in range(SPACE.num_classes)]
        assert found.counts[row].tolist() == expected
        assert found.unlabelled[row] == (label == 255).sum()
        digest = hashlib.sha256(item.label.read_bytes())
        assert bytes(found.digests[row]) == digest.digest()


def test_each_layout_has_its_counts_and_digest_first_and_later(tmp_path, monkeypatch):
    items = label_files(tmp_path)
    assert_true(check(items), items)
    monkeypatch.setattr(decode, "read_hashed", None)  # from here on nothing can be read
    found = check(items)
    assert_true(found, items)
    assert found.counts.shape == (10, 3)
    assert found.instance_digests is None


def test_totals_are_sums_over_the_layouts(tmp_path):
    found = check(label_files(tmp_path))
    totals = found.totals
    assert totals.pixels.tolist() == [sum(row[c] for row in found.counts) for c in range(3)]
    assert totals.unlabelled == found.unlabelled.sum()
    assert totals.pixels.sum() + totals.unlabelled == 10 * 8 * 12
    assert totals.num_items == 10


def test_known_and_new_layouts_stay_in_order(tmp_path):
    items = label_files(tmp_path)
    check(items[1::3])
    assert_true(check(items), items)


def test_more_than_255_classes(tmp_path):
    space = labels.from_json([f"c{i}" for i in range(300)], "x")
    label = np.array([[0, 299, 299, 65535]], np.uint16)
    item = Item("a", save(tmp_path / "a.png", label))
    settle(item.label)
    for _ in range(2):
        found = check([item], space)
        assert np.flatnonzero(found.counts[0]).tolist() == [0, 299]
        assert found.counts[0, 299] == 2
        assert found.unlabelled.tolist() == [1]


def test_instance_maps_have_digests_too(tmp_path):
    item = whole_item(tmp_path)
    alone = label_files(tmp_path / "more", num=1)[0]
    for _ in range(2):
        found = check([alone, item])
        expected = hashlib.sha256(item.instances.read_bytes()).digest()
        assert [bytes(row) for row in found.instance_digests] == [bytes(32), expected]


def test_no_items(tmp_path):
    found = check([])
    assert found.counts.shape == (0, 3)
    assert found.totals.pixels.tolist() == [0, 0, 0]


# What is read again


def test_unchanged_files_are_not_read_again(tmp_path):
    items = label_files(tmp_path)
    before = check(items)
    garble(*(item.label for item in items))
    after = check(items)
    for name in ("counts", "unlabelled", "digests"):
        assert (getattr(before, name) == getattr(after, name)).all()


@pytest.mark.parametrize("kind", ["label", "image", "instances", "edge"])
@pytest.mark.parametrize("change", ["size", "time", "path"])
def test_a_change_of_any_file_of_an_item_is_seen(tmp_path, kind, change):
    item = whole_item(tmp_path)
    check([item])
    path = getattr(item, kind)
    garble(path)
    assert not is_read([item])
    match change:
        case "size":
            path.write_bytes(b"\1" * (path.stat().st_size + 1))
            settle(path)
        case "time":
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        case "path":
            moved = path.rename(path.with_name("moved.png"))
            item = dataclasses.replace(item, **{kind: moved})
    assert is_read([item])


@pytest.mark.parametrize(
    ("document", "dataset"),
    [
        ({"classes": trees.CLASSES["classes"], "ignore": 254}, FOLDER),
        ({"classes": trees.CLASSES["classes"][:2], "ignore": 255}, FOLDER),
        ({"classes": [{"name": c} for c in "abc"], "ignore": 255}, FOLDER),  # other colours
        (trees.CLASSES, "ade20k"),
    ],
)
def test_another_class_list_or_layout_reads_again(tmp_path, document, dataset):
    items = label_files(tmp_path, num=1, values=(0, 1))
    check(items)
    garble(items[0].label)
    assert not is_read(items)
    assert is_read(items, labels.from_json(document, "x"), dataset)


@pytest.mark.parametrize("module", ["datasets.__version__", "datasets.PIL.__version__"])
def test_another_version_of_what_reads_reads_again(tmp_path, monkeypatch, module):
    items = label_files(tmp_path, num=1)
    check(items)
    garble(items[0].label)
    monkeypatch.setattr(f"ecgan.data.{module}", "0.0")
    assert is_read(items)


def test_photos_are_not_taken_as_checked_where_only_labels_were(tmp_path):
    item = whole_item(tmp_path)
    garble(item.image)
    for _ in range(2):
        check([item], check_images=False)
        assert is_read([item])


def test_a_file_is_known_by_its_whole_path(tmp_path, monkeypatch):
    """Two files of one relative path, size and time of change."""
    digests = []
    for name, value in (("a", 0), ("b", 1)):
        path = save(tmp_path / name / "x.bmp", np.full((8, 8), value, np.uint8))
        settle(path)
        monkeypatch.chdir(path.parent)
        digests.append(check([Item("x", Path("x.bmp"))]).digests.tobytes())
    assert digests[0] != digests[1]
    garble(path)
    assert not is_read([Item("x", path)])


def test_a_file_that_is_gone_is_missed(tmp_path):
    items = label_files(tmp_path, num=2)
    check(items)
    items[1].label.unlink()
    with pytest.raises(UserError, match=r"01\.png: no such file"):
        check(items)


# What is kept


def test_faults_are_read_anew_and_what_had_none_is_kept(tmp_path):
    items = label_files(tmp_path)
    bad = items[5].label
    good = bad.with_suffix(".bmp")
    items[5] = Item("05", good)
    save(good, np.full((8, 8), 7, np.uint8))
    settle(good)
    for _ in range(2):
        with pytest.raises(UserError, match=r"label 7 found in 1 file"):
            check(items)
    garble(*(item.label for item in items if item.label != good))
    save(good, np.full((8, 8), 1, np.uint8))  # without compression: of the same size
    settle(good)
    assert check(items).counts[5].tolist() == [0, 64, 0]


@pytest.mark.parametrize("kind", ["size", "photo"])
def test_no_kind_of_fault_is_kept(tmp_path, kind):
    item = whole_item(tmp_path)
    if kind == "size":
        save(item.label, stripes([0, 1], 16, 64))
        settle(item.label)
    else:
        garble(item.image)
    for _ in range(2):
        with pytest.raises(UserError):
            check([item])


def test_a_file_just_written_is_not_trusted(tmp_path):
    """It may change once more within the tick of the file system's clock."""
    items = label_files(tmp_path, num=2)
    items[0].label.touch()
    check(items)
    garble(items[1].label)
    assert not is_read(items)
    garble(items[0].label)
    assert is_read(items)


def test_a_file_is_trusted_two_seconds_after_its_change(tmp_path):
    path = save(tmp_path / "a.png", stripes([0]))
    settle(path)

    def key(seconds):
        return label_cache.key([("label", path)], b"", int((LONG_AGO + seconds) * 1e9))

    assert key(-5) is None
    assert key(1.999) is None
    assert key(2) is not None
    assert key(2) == key(3)


def test_one_file_in_two_roles_has_two_keys(tmp_path):
    path = save(tmp_path / "a.png", stripes([0]))
    settle(path)
    keys = {label_cache.key([(kind, path)], b"", 2 * 10**18) for kind in ("instances", "edge")}
    assert len(keys - {None}) == 2


def test_masks_by_palette_contradict_each_other_across_checks(tmp_path):
    road, sky, car = (c.color for c in SPACE.classes)
    items = []
    for name, colors in (("a", [road, car]), ("b", [car, sky])):
        image = Image.fromarray(stripes([0, 1])).convert("P")
        image.putpalette([v for color in colors for v in color])
        image.save(tmp_path / f"{name}.png")
        items.append(Item(name, tmp_path / f"{name}.png"))
        settle(items[-1].label)
        check(items[-1:])
    with pytest.raises(UserError, match="give the number 0 two colours of the class list"):
        check(items)


def test_an_interrupted_check_keeps_what_it_read(tmp_path, monkeypatch):
    items = label_files(tmp_path)
    read = decode.read_hashed

    def until_the_last(path):
        if path == items[-1].label:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "read_hashed", until_the_last)
        with pytest.raises(KeyboardInterrupt):
            check(items)
    garble(*(item.label for item in items[:8]))
    assert [bytes(digest) for digest in check(items).digests[8:]] == [
        hashlib.sha256(item.label.read_bytes()).digest() for item in items[8:]
    ]


def test_the_oldest_make_room(tmp_path, database, monkeypatch):
    monkeypatch.setattr(label_cache, "MAX_ENTRIES", 6)
    items = label_files(tmp_path)
    check(items)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM found").fetchone() == (6,)
    connection.close()
    garble(*(item.label for item in items))
    assert not is_read(items[4:])
    assert is_read(items[3:4])


# Where it is kept


def test_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("ECGAN_CACHE", "/own")
    assert label_cache.cache_folder() == Path("/own")
    monkeypatch.setenv("ECGAN_CACHE", "")
    assert label_cache.cache_folder() == Path("/xdg/ecgan")
    for value in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert label_cache.cache_folder() == Path("/home/a/.cache/ecgan")


def test_without_a_home_the_files_are_read(tmp_path, monkeypatch, warnings):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ECGAN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    label_cache._warn_once.cache_clear()
    items = label_files(tmp_path)
    for _ in range(2):
        assert_true(check(items), items)
    assert len(warnings()) == 1


def test_a_store_without_a_database_is_empty():
    with label_cache.Store(None) as store:
        store.add({b"a" * 16: [1]})
        assert store.find([b"a" * 16, None]) == [None, None]


def test_a_store_gives_back_what_was_added(database):
    with label_cache.Store(database) as store:
        store.add({b"a" * 16: [1, "x"], b"b" * 16: [2]})
        assert store.find([b"b" * 16, None, b"c" * 16, b"a" * 16]) == [[2], None, None, [1, "x"]]


# When something is wrong with it


def make_garbage(database):
    database.write_bytes(b"no database " * 1000)


def make_short(database):
    os.truncate(database, 5000)


def make_other(database):
    database.unlink()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE found (something TEXT)")
    connection.close()


def make_folder(database):
    database.unlink()
    database.mkdir()


@pytest.mark.parametrize("damage", [make_garbage, make_short, make_other, make_folder])
def test_a_damaged_database_costs_one_line(tmp_path, database, warnings, damage):
    items = label_files(tmp_path)
    check(items)
    assert not warnings()
    damage(database)
    for _ in range(2):
        assert_true(check(items), items)
    (line,) = warnings()
    assert line.startswith(f"{database}: ")
    assert ("delete this file" in line) == (damage in {make_garbage, make_short})


def test_an_entry_that_rotted_is_not_believed(tmp_path, database):
    items = label_files(tmp_path)
    check(items)
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT item, finding FROM found").fetchall()
        for i, (key, finding) in enumerate(rows):
            rotten = [finding[:-1], finding.replace(b",", b";", 1), None, 7, finding[:2], b"", "é"]
            if rotten[i % 7] is not None:
                connection.execute(
                    "UPDATE found SET finding = ? WHERE item = ?", (rotten[i % 7], key)
                )
            else:  # under another's key
                connection.execute("DELETE FROM found WHERE item = ?", (key,))
                connection.execute("INSERT INTO found VALUES (?, ?)", (key, rows[0][1]))
    connection.close()
    assert_true(check(items), items)


def test_a_locked_database_is_not_waited_for(tmp_path, database, monkeypatch, warnings):
    monkeypatch.setattr(label_cache, "BUSY_SECONDS", 0.05)
    items = label_files(tmp_path)
    check(items[:3])
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    for _ in range(2):
        assert_true(check(items), items)
    assert time.monotonic() - start < 5  # sqlite3's own patience, for each of the six blocks
    other.close()
    assert [line.split(": ")[1].split(";")[0] for line in warnings()] == ["database is locked"]


def test_while_another_writes_the_database_is_read(tmp_path, database, monkeypatch, warnings):
    monkeypatch.setattr(label_cache, "BUSY_SECONDS", 0.05)
    items = label_files(tmp_path)
    check(items[::2])
    garble(*(item.label for item in items[::2]))
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    check(items)
    other.close()
    assert len(warnings()) == 1


def test_after_a_write_that_failed_no_other_is_waited_for(database, monkeypatch):
    monkeypatch.setattr(label_cache, "BUSY_SECONDS", 0.05)
    keys = [bytes([i]) * 16 for i in range(3)]
    with label_cache.Store(database) as store:
        store.add({keys[0]: [0]})
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        store.add({keys[1]: [1]})
        other.close()
        store.add({keys[2]: [2]})
        assert store.find(keys) == [[0], None, None]


def test_a_database_that_cannot_be_written_is_read(tmp_path, database, monkeypatch, warnings):
    items = label_files(tmp_path)
    check(items[::2])
    garble(*(item.label for item in items[::2]))
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options),
    )
    check(items)
    (line,) = warnings()
    assert "attempt to write a readonly database" in line


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_cannot_be_written(tmp_path, database, warnings, exists):
    items = label_files(tmp_path)
    database.parent.mkdir()
    if exists:
        check(items[:5])
        database.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        if os.access(database.parent, os.W_OK):
            pytest.skip("this user may write anywhere")
        assert_true(check(items), items)
    finally:
        database.parent.chmod(0o755)
    assert len(warnings()) == 1


def test_a_file_where_the_folder_should_be(tmp_path, database, warnings):
    database.parent.write_bytes(b"")
    items = label_files(tmp_path)
    assert_true(check(items), items)
    assert len(warnings()) == 1


# Several at once


def test_threads_with_a_store_each(database, warnings):
    def fill(first):
        with label_cache.Store(database) as store:
            for i in range(first, first + 40):
                store.add({i.to_bytes(16, "big"): [i]})
                assert store.find([i.to_bytes(16, "big")]) == [[i]]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(0, 100, 20)))  # they overlap
    assert not warnings()
    with label_cache.Store(database) as store:
        keys = [i.to_bytes(16, "big") for i in range(120)]
        assert store.find(keys) == [[i] for i in range(120)]


@pytest.mark.slow
def test_processes_at_once(tmp_path, database):
    items = label_files(tmp_path / "labels", num=64)
    code = """
import sys
from pathlib import Path
from ecgan import labels
from ecgan.data import datasets
from tests import trees

datasets._BLOCK = 2
items = datasets.index_labels("folder", Path(sys.argv[1]))
space = labels.from_json(trees.CLASSES, "classes.json")
sys.stdin.readline()  # until all of them are here
check = datasets.check_labels(items, space, "folder")
print(check.digests.tobytes().hex(), check.counts.sum(), end="")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "labels")]
    started = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in started]
    expected = check(items)
    text = f"{expected.digests.tobytes().hex()} {expected.counts.sum()}"
    assert ended == [(text, "")] * 3
    garble(*(item.label for item in items))
    assert not is_read(items)


# The bar


def test_a_bar_is_shown_where_it_is_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    items = label_files(tmp_path)
    check(items)
    assert capsys.readouterr().err == ""
    check(items, progress=True)
    assert "10/10" in capsys.readouterr().err
