"""Label checks from run to run: files that are read again, entries that are kept, results."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecgan import labels
from ecgan.data import label_cache
from ecgan.data.checks import check_labels
from ecgan.data.datasets import Item
from ecgan.data.files import images, label_maps
from ecgan.data.files.label_maps import histogram, read_raw
from ecgan.data.label_cache import NAME, LabelCache
from ecgan.errors import UserError
from ecgan.runtime.storage import Folder, open_store
from tests.helpers import trees
from tests.helpers.trees import in_palette, photo, save, stripes

SPACE = labels.from_json(trees.CLASSES, "classes.json")
FOLDER = "folder"
LONG_AGO = 1_000_000_000  # seconds since 1970


@dataclasses.dataclass
class Run:
    """A run folder, and checks that use and save its cache."""

    folder: Path

    def check(self, items, space=SPACE, dataset=FOLDER, **options):
        cache = LabelCache(Folder(self.folder))
        found = check_labels(items, space, dataset, cache=cache, **options)
        cache.save()
        return found

    def reads(self, items, *args, **options):
        """Whether a check of garbled files reads any of them."""
        try:
            self.check(items, *args, **options)
        except UserError as error:
            assert "not an image" in str(error)  # noqa: PT017
            return True
        return False


@pytest.fixture
def decoded(monkeypatch):
    """Files whose pixels were read as label or instance maps."""
    found = []
    whole = label_maps.read_hashed

    def read(file):
        found.append(file)
        return whole(file)

    monkeypatch.setattr(label_maps, "read_hashed", read)
    return found


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


def settle(*paths, seconds=LONG_AGO):
    for path in paths:
        os.utime(path, (seconds, seconds))


def garble(*paths):
    """Other bytes, which no one can read, under the same size and time of change.

    Of a label map this is seen all the same, since it is known by its content.
    """
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


# Results


def assert_true(found, items):
    """Against NumPy and hashlib, item by item."""
    for row, item in enumerate(items):
        label = np.asarray(Image.open(item.label))
        expected = [(label == c).sum() for c in range(SPACE.num_classes)]
        assert found.counts[row].tolist() == expected
        assert found.unlabelled[row] == (label == 255).sum()
        digest = hashlib.sha256(item.label.read_bytes())
        assert bytes(found.digests[row]) == digest.digest()


def test_each_label_map_has_its_counts_and_digest_first_and_later(tmp_path, run, monkeypatch):
    items = label_files(tmp_path)
    assert_true(run.check(items), items)
    monkeypatch.setattr(label_maps, "read_hashed", None)  # from here on none is decoded
    found = run.check(items)
    assert_true(found, items)
    assert found.counts.shape == (10, 3)
    assert found.instance_digests is None


def test_totals_are_sums_over_the_label_maps(tmp_path, run):
    found = run.check(label_files(tmp_path))
    totals = found.totals
    assert totals.pixels.tolist() == [sum(row[c] for row in found.counts) for c in range(3)]
    assert totals.unlabelled == found.unlabelled.sum()
    assert totals.pixels.sum() + totals.unlabelled == 10 * 8 * 12
    assert totals.num_items == 10


def test_known_and_new_label_maps_stay_in_order(tmp_path, run):
    items = label_files(tmp_path, num=40)
    run.check(items[1::3])
    assert_true(run.check(items), items)


def test_more_than_255_classes(tmp_path, run):
    space = labels.from_json([f"c{i}" for i in range(300)], "x")
    label = np.array([[0, 299, 299, 65535]], np.uint16)
    item = Item("a", save(tmp_path / "a.png", label))
    settle(item.label)
    for _ in range(2):
        found = run.check([item], space)
        assert np.flatnonzero(found.counts[0]).tolist() == [0, 299]
        assert found.counts[0, 299] == 2
        assert found.unlabelled.tolist() == [1]


def test_instance_maps_have_digests_too(tmp_path, run):
    item = whole_item(tmp_path)
    alone = label_files(tmp_path / "more", num=1)[0]
    for _ in range(2):
        found = run.check([alone, item])
        expected = hashlib.sha256(item.instances.read_bytes()).digest()
        assert [bytes(row) for row in found.instance_digests] == [bytes(32), expected]


def test_entries_come_back_as_they_were(tmp_path, run):
    """Digests that end in zeros, photos of 16 bits, palettes and transparent pixels among them."""
    item = whole_item(tmp_path)
    deep = save(tmp_path / "deep.png", np.full((32, 64), 4000, np.uint16))
    contents = [
        label_cache.FileContent(
            bytes(31) + b"\1",
            histogram(read_raw(item.label)),
            images.probe_photo(deep),
            b"\2" * 31 + b"\0",
            (32, 64),
            (1, 2),
        ),
        label_cache.FileContent(
            b"\1" * 31 + b"\0",
            histogram(
                read_raw(in_palette([3, 1], [(i, 0, 9) for i in range(4)], tmp_path / "p.png"))
            ),
        ),
    ]
    cache = LabelCache(Folder(run.folder))
    for key, content in zip("kl", contents, strict=True):
        cache.add(key, content)
    cache.save()
    again = LabelCache(Folder(run.folder))
    assert [again.find(key) for key in "kl"] == contents
    assert again.find(None) is None


def test_no_items(run):
    found = run.check([])
    assert found.counts.shape == (0, 3)
    assert found.totals.pixels.tolist() == [0, 0, 0]


# Files that are read again


def test_unchanged_files_are_not_decoded_again(tmp_path, run, decoded):
    items = [*label_files(tmp_path), whole_item(tmp_path)]
    before = run.check(items)
    decoded.clear()
    garble(items[-1].image, items[-1].instances, items[-1].edge)  # known by size and time
    after = run.check(items)
    assert decoded == []
    for name in ("counts", "unlabelled", "digests", "instance_digests"):
        assert (getattr(before, name) == getattr(after, name)).all()


@pytest.mark.parametrize("kind", ["image", "instances", "edge"])
@pytest.mark.parametrize("change", ["size", "time", "path"])
def test_a_change_of_any_file_of_an_item_is_seen(tmp_path, run, kind, change):
    item = whole_item(tmp_path)
    run.check([item])
    path = getattr(item, kind)
    garble(path)
    assert not run.reads([item])
    match change:
        case "size":
            path.write_bytes(b"\1" * (path.stat().st_size + 1))
            settle(path)
        case "time":
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        case "path":
            moved = path.rename(path.with_name("moved.png"))
            item = dataclasses.replace(item, **{kind: moved})
    assert run.reads([item])


def test_a_corrected_label_map_of_the_same_size_and_time_is_seen(tmp_path, run):
    items = label_files(tmp_path, num=2)
    run.check(items)
    garble(items[1].label)
    assert run.reads(items)


def test_a_label_map_is_known_wherever_it_lies(tmp_path, run, decoded):
    items = label_files(tmp_path, num=2)
    run.check(items)
    decoded.clear()
    moved = [Item(i.key, i.label.rename(tmp_path / f"moved-{i.key}.png")) for i in items]
    assert_true(run.check(moved), moved)
    assert decoded == []


def test_another_class_list_needs_no_other_reading(tmp_path, run, decoded):
    """Entries hold what is in the files; what it means is said by the class list."""
    items = label_files(tmp_path, num=2, values=(0, 1))
    run.check(items)
    decoded.clear()
    space = labels.from_json({"classes": [{"id": 1, "name": "a"}, {"id": 0, "name": "b"}]}, "x")
    assert (run.check(items, space).counts == run.check(items).counts[:, :2]).all()
    space = labels.from_json({"classes": [{"id": 1, "name": "a"}], "ignore": 0}, "x")
    counts = run.check(items, space)
    assert (counts.counts[:, 0] == run.check(items).counts[:, 1]).all()
    assert decoded == []


@pytest.mark.parametrize("module", ["checks.__version__", "checks.PIL.__version__"])
def test_another_version_of_what_reads_reads_again(tmp_path, run, monkeypatch, decoded, module):
    items = label_files(tmp_path, num=1)
    run.check(items)
    decoded.clear()
    monkeypatch.setattr(f"ecgan.data.{module}", "0.0")
    run.check(items)
    assert len(decoded) == 1


def test_photos_are_not_taken_as_checked_where_only_labels_were(tmp_path, run):
    item = whole_item(tmp_path)
    garble(item.image)
    for _ in range(2):
        run.check([item], check_images=False)
        assert run.reads([item])


def test_a_file_is_known_by_its_whole_path(tmp_path, run, monkeypatch):
    """Two instance maps of one relative path, size and time of change beside equal label maps."""
    digests = []
    for name, value in (("a", 0), ("b", 1)):
        save(tmp_path / name / "label.png", stripes([0]))
        path = save(tmp_path / name / "x.bmp", np.full((32, 64), value, np.uint8))
        settle(path)
        monkeypatch.chdir(path.parent)
        found = run.check([Item("x", Path("label.png"), instances=Path("x.bmp"))])
        digests.append(found.instance_digests.tobytes())
    assert digests[0] != digests[1]


def test_a_file_that_is_gone_is_missed(tmp_path, run):
    items = label_files(tmp_path, num=2)
    run.check(items)
    items[1].label.unlink()
    with pytest.raises(UserError, match=r"01\.png: no such file"):
        run.check(items)


def test_a_file_just_written_is_not_trusted(tmp_path, run):
    """It may change once more within the tick of the file system's clock."""
    item = whole_item(tmp_path)
    item.image.touch()
    run.check([item])
    garble(item.image)
    assert run.reads([item])


def test_a_file_is_trusted_two_seconds_after_its_change(tmp_path):
    path = save(tmp_path / "a.png", stripes([0]))
    settle(path)

    def key(seconds):
        return label_cache.key(b"", [("image", path)], b"", int((LONG_AGO + seconds) * 1e9))

    assert key(-5) is None
    assert key(1.999) is None
    assert key(2) is not None
    assert key(2) == key(3)


def test_one_file_in_two_roles_has_two_keys(tmp_path):
    path = save(tmp_path / "a.png", stripes([0]))
    settle(path)
    keys = {label_cache.key(b"", [(kind, path)], b"", 2 * 10**18) for kind in ("image", "edge")}
    assert len(keys - {None}) == 2


# Entries that are kept


def test_after_faults_the_entries_before_are_kept(tmp_path, run, decoded):
    items = label_files(tmp_path)
    run.check(items)
    bad = items[5].label
    save(bad, np.full((8, 8), 7, np.uint8))
    settle(bad)
    for _ in range(2):
        with pytest.raises(UserError, match=r"label 7 found in 1 file"):
            run.check(items)
    decoded.clear()
    save(bad, np.full((8, 8), 1, np.uint8))
    settle(bad, seconds=LONG_AGO + 1)
    assert run.check(items).counts[5].tolist() == [0, 64, 0]
    assert decoded == [bad]


@pytest.mark.parametrize("kind", ["size", "photo"])
def test_no_kind_of_fault_is_kept(tmp_path, run, kind):
    item = whole_item(tmp_path)
    if kind == "size":
        save(item.label, stripes([0, 1], 16, 64))
        settle(item.label)
    else:
        garble(item.image)
    for _ in range(2):
        with pytest.raises(UserError):
            run.check([item])


def test_masks_by_palette_contradict_each_other_across_checks(tmp_path, run):
    road, sky, car = (c.color for c in SPACE.classes)
    items = []
    for name, colors in (("a", [road, car]), ("b", [car, sky])):
        image = Image.fromarray(stripes([0, 1])).convert("P")
        image.putpalette([v for color in colors for v in color])
        image.save(tmp_path / f"{name}.png")
        items.append(Item(name, tmp_path / f"{name}.png"))
        settle(items[-1].label)
    for _ in range(2):
        with pytest.raises(UserError, match="can be read in two ways: number 1"):
            run.check(items)


def test_files_that_a_check_did_not_use_are_forgotten(tmp_path, run):
    items = label_files(tmp_path)
    run.check(items)
    size = (run.folder / NAME).stat().st_size
    (tmp_path / "more").mkdir()
    run.check(label_files(tmp_path / "more", num=2, values=(0, 1)))
    assert (run.folder / NAME).stat().st_size < size


def test_an_object_store_keeps_them_too(tmp_path, decoded):
    items = label_files(tmp_path)
    store = open_store("memory://label-cache")
    for _ in range(2):
        cache = LabelCache(store)
        assert_true(check_labels(items, SPACE, FOLDER, cache=cache), items)
        cache.save()
    decoded.clear()
    check_labels(items, SPACE, FOLDER, cache=LabelCache(store))
    assert decoded == []


# Damage


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def make_garbage(path):
    path.write_bytes(b"no cache " * 1000)


def make_empty(path):
    path.write_bytes(b"")


def make_foreign(path):
    path.write_text('{"version": 1, "something": {}}')


def make_array(path):
    path.write_text("[1, 2]")


def make_deep(path):
    path.write_text("[" * 100_000)


def make_uneven(path):
    document = json.loads(path.read_text())
    for row in document["entries"].values():
        row[2][4] = row[2][4][1:]
    path.write_text(json.dumps(document))


def make_scalars(path):
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "entries": dict.fromkeys(document["entries"], 7)}))


def make_endless(path):
    path.write_text(path.read_text().replace("32", "1e400", 1))


def make_huge(path):
    document = json.loads(path.read_text())
    for row in document["entries"].values():
        row[2][4] = [10**30] * len(row[2][4])
    path.write_text(json.dumps(document))


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        cut_short, make_garbage, make_empty, make_foreign, make_array, make_deep, make_scalars,
        make_uneven, make_folder, make_endless, make_huge,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_an_empty_one(tmp_path, run, damage):
    items = label_files(tmp_path)
    run.check(items)
    damage(run.folder / NAME)
    for _ in range(2):
        assert_true(run.check(items), items)


def test_a_folder_that_cannot_be_written_does_without(tmp_path, run):
    run.folder.write_bytes(b"")  # a file in its place
    items = label_files(tmp_path)
    for _ in range(2):
        assert_true(run.check(items), items)


# Several at once


@pytest.mark.slow
def test_processes_at_once(tmp_path, run):
    items = label_files(tmp_path / "labels", num=64)
    code = """
import sys
from pathlib import Path
from ecgan import labels
from ecgan.data import checks, datasets, label_cache
from ecgan.runtime.storage import Folder
from tests.helpers import trees

items = datasets.index_labels("folder", Path(sys.argv[1]))
space = labels.from_json(trees.CLASSES, "classes.json")
sys.stdin.readline()  # until all of them are here
for first in range(0, 64, 2):
    cache = label_cache.LabelCache(Folder(Path(sys.argv[2])))
    check = checks.check_labels(items[: first + 2], space, "folder", cache=cache)
    cache.save()
print(check.digests.tobytes().hex(), check.counts.sum(), end="")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "labels"), str(run.folder)]
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
    expected = run.check(items)
    text = f"{expected.digests.tobytes().hex()} {expected.counts.sum()}"
    assert ended == [(text, "")] * 3


# The bar


def test_a_bar_is_shown_where_it_is_wanted(tmp_path, run, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    items = label_files(tmp_path)
    run.check(items)
    assert capsys.readouterr().err == ""
    run.check(items, progress=True)
    assert "10/10" in capsys.readouterr().err


def test_a_pipe_is_no_label_map(run, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="a pipe, a device or a socket, not a file"):
        run.check([Item("a", tmp_path / "a.png")])
    with pytest.raises(UserError, match="not a file"):
        images.sha256(tmp_path / "a.png")
