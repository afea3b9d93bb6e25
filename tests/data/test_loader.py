"""What a position shows depends on the seed and the position alone."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ecgan.data import datasets
from ecgan.data.loader import (
    TripleDataset,
    batches,
    ordered_batches,
    to_device,
    to_images,
)
from ecgan.data.transforms import canny_edges
from ecgan.demo import toy
from ecgan.errors import UserError
from ecgan.labels import LabelSpace, from_json
from tests.helpers import folder_items


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Eight training scenes of 32x64, with instance and edge maps beside them."""
    folder = tmp_path_factory.mktemp("loader") / "toy"
    toy.write_toy(folder, 10, seed=0, height=32, width=64)
    for path in sorted(folder.glob("labels/*/*.png")):
        label = np.asarray(Image.open(path))
        for name, pixels in (("instances", label.astype(np.uint16) + 40_000), ("edges", label)):
            target = folder / name / path.relative_to(folder / "labels")
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
    return folder


def _dataset(root, **changes):
    items = folder_items.index("folder", root, "train", instances=True, edges_folder=True)
    options = {"height": 32, "width": 32, "resize_to": (32, 64), "flip": True, "boundary": True}
    return TripleDataset(items, toy.SPACE, "folder", **(options | changes))


def _first(found, count):
    """The first ``count`` batches; the loader is closed."""
    result = list(islice(found, count))
    found.close()
    return result


def _joined(found):
    """Everything in a row of batches, image by image."""
    keys = [key for batch in found for key in batch.keys]
    return keys, [torch.cat([getattr(b, name) for b in found]) for name in found[0]._fields[1:]]


def _assert_same(a, b):
    (keys_a, tensors_a), (keys_b, tensors_b) = _joined(a), _joined(b)
    assert keys_a == keys_b
    for x, y in zip(tensors_a, tensors_b, strict=True):
        assert torch.equal(x, y)


def test_a_batch_holds_every_part_as_bytes(root):
    [batch] = _first(batches(_dataset(root), 0, 4), 1)
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.labels.shape == (4, 32, 32)
    assert batch.edges.shape == batch.boundary.shape == (4, 1, 32, 32)
    assert batch.positions.tolist() == [0, 1, 2, 3]
    assert {t.dtype for t in batch[2:]} == {torch.uint8}
    assert set(batch.edges.unique().tolist()) == {0, 255}
    assert set(batch.boundary.unique().tolist()) == {0, 1}
    for image, edge in zip(batch.images, batch.edges, strict=True):
        found = canny_edges(image.permute(1, 2, 0).contiguous().numpy())
        mirrored = canny_edges(image.flip(2).permute(1, 2, 0).contiguous().numpy())[:, ::-1]
        assert any(np.array_equal(edge[0].numpy(), e) for e in (found, mirrored))


def test_every_epoch_shows_every_item_once_in_another_order(root):
    dataset = _dataset(root)
    epochs = [[dataset.load(8 * epoch + i).key for i in range(8)] for epoch in range(3)]
    assert all(sorted(epoch) == list(dataset.keys) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = _dataset(root, seed=1)
    assert [other.load(i).key for i in range(8)] != epochs[0]


def test_an_item_is_cut_and_mirrored_anew_in_every_epoch(root):
    dataset = _dataset(root)
    key = dataset.keys[0]
    positions = [p for p in range(80) if dataset.index(p) == 0]
    views = [dataset.load(p) for p in positions]
    assert len(views) == 10
    assert {view.key for view in views} == {key}
    assert len({view.image.tobytes() for view in views}) > 5


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world", [1, 2])
def test_processes_and_ranks_change_nothing(root, workers, world):
    """Batches of 6 from 8 items: steps reach over the end of an epoch."""
    expected = _first(batches(_dataset(root), 0, 6), 4)
    ranks = [
        _first(batches(_dataset(root), 0, 6, rank=r, world=world, workers=workers), 4)
        for r in range(world)
    ]
    _assert_same([batch for step in zip(*ranks, strict=True) for batch in step], expected)


@pytest.mark.parametrize("start", [3, 12, 17])
def test_resuming_anywhere_goes_on_with_what_would_have_come(root, start):
    unbroken = _first(batches(_dataset(root), 0, 1), start + 6)
    resumed = _first(batches(_dataset(root), start, 2), 3)
    _assert_same(resumed, unbroken[start:])


def test_keeping_samples_in_memory_changes_nothing(root):
    kept, read = _dataset(root), _dataset(root)
    kept.keep_in_memory()
    for position in [*range(20), *range(20)]:
        a, b = kept.load(position), read.load(position)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.boundary, b.boundary)


@pytest.mark.parametrize("is_small", [True, False])
def test_memory_keeps_small_sets_only(root, tmp_path, monkeypatch, is_small):
    monkeypatch.setattr("ecgan.data.loader.CACHE_BYTES", 8 * 32 * 64 * 6 - (not is_small))
    copy = shutil.copytree(root, tmp_path / "copy")
    dataset = _dataset(copy)
    dataset.keep_in_memory()
    dataset.load(0)
    shutil.rmtree(copy)
    with nullcontext() if is_small else pytest.raises(UserError, match="no such file"):
        dataset.load(0)


def test_ordered_batches_are_whole_pictures_by_key(root):
    dataset = _dataset(root)
    found = list(ordered_batches(dataset, 3))
    assert [len(batch.keys) for batch in found] == [3, 3, 2]
    assert [key for batch in found for key in batch.keys] == list(dataset.keys)
    label = np.asarray(Image.open(dataset.items[0].label))
    np.testing.assert_array_equal(found[0].labels[0], label[:, 1::2])  # 64 columns to 32
    plain = _dataset(root, train=False)
    _assert_same(found, list(ordered_batches(plain, 8)))
    assert plain.load(2).key == plain.keys[2]
    assert [len(b.keys) for b in ordered_batches(dataset, 3, limit=4)] == [3, 1]


def test_edges_of_a_folder_and_no_edges(root):
    [batch] = _first(batches(_dataset(root, edges="folder"), 0, 2), 1)
    assert torch.equal(batch.edges[:, 0], batch.labels)  # the fixture's edge maps are the labels
    [batch] = _first(batches(_dataset(root, edges="none", boundary=False), 0, 2), 1)
    assert batch.edges is None
    assert batch.boundary is None


def test_layouts_without_photos(root):
    items = datasets.index_labels("folder", root / "labels" / "train")
    dataset = TripleDataset(items, toy.SPACE, "folder", height=32, width=64)
    [batch] = list(ordered_batches(dataset, 8))
    assert batch.labels.shape == (8, 32, 64)
    assert batch.images is None
    assert batch.edges is None


def test_more_than_255_classes_come_as_int32(tmp_path):
    classes = [{"id": i, "name": f"class {i}", "color": [0, 0, 0]} for i in range(300)]
    space: LabelSpace = from_json({"classes": classes, "ignore": 65535}, "test")
    label = np.full((32, 32), 299, np.uint16)
    label[:4] = 65535
    Image.fromarray(label).save(tmp_path / "a.png")
    items = [datasets.Item("a", tmp_path / "a.png")]
    dataset = TripleDataset(items, space, "folder", height=32, width=32)
    [batch] = list(ordered_batches(dataset, 1))
    assert batch.labels.dtype == torch.int32
    assert batch.labels.unique().tolist() == [299, 65535]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_photo_is_named_without_a_traceback(root, tmp_path, workers):
    dataset = _dataset(root)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(dataset.items[0].image.read_bytes()[:400])
    items = [replace(item, image=broken) for item in dataset.items]
    dataset = TripleDataset(items, toy.SPACE, "folder", height=32, width=64)
    with pytest.raises(UserError, match=r"broken\.jpg") as raised:
        next(batches(dataset, 0, 2, workers=workers))
    assert "Traceback" not in str(raised.value)


def test_refusals(root):
    with pytest.raises(UserError, match=r"train\.batch \(6\) must divide by .* ranks \(4\)"):
        batches(_dataset(root), 0, 6, world=4)
    with pytest.raises(UserError, match="empty"):
        TripleDataset([], toy.SPACE, "folder", height=32, width=32)


def test_bytes_become_floats_from_minus_one_to_one(root):
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(to_images(pixels), torch.tensor([-1.0, -0.6, 1.0]))
    [batch] = _first(batches(_dataset(root, boundary=False), 0, 2), 1)
    moved = to_device(batch, "meta")
    assert moved.keys == batch.keys
    assert moved.boundary is None
    assert {t.device.type for t in moved if isinstance(t, torch.Tensor)} == {"meta"}


def test_classes_json_of_the_toy_set_is_its_class_list(root):
    text = (root / "classes.json").read_text(encoding="utf-8")
    assert from_json(json.loads(text), "classes.json") == toy.SPACE


@pytest.mark.slow
@pytest.mark.parametrize("end", ["raise RuntimeError('stop')", "os.kill(os.getpid(), 9)"])
def test_loader_processes_survive_sigterm_and_end_with_their_parent(root, end):
    """SIGTERM to the whole group must not cost the trainer its loader before its checkpoint."""
    script = f"""
import multiprocessing, os, signal
from pathlib import Path
from ecgan.data.datasets import DataFolder
from ecgan.demo import toy
from ecgan.data.loader import TripleDataset, batches
items = DataFolder("folder", Path({str(root)!r})).index("train")
dataset = TripleDataset(items, toy.SPACE, "folder", height=32, width=64)
found = batches(dataset, 0, 2, workers=2)
next(found)
workers = multiprocessing.active_children()
for worker in workers:
    os.kill(worker.pid, signal.SIGTERM)
print(*[worker.pid for worker in workers], flush=True)
for _ in range(40):
    next(found)
print("alive", flush=True)
{end}
"""
    command = [sys.executable, "-c", script]
    # Not the pipe's end but the process's: the loaders hold the pipe, too.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.wait(timeout=60) != 0
        pids, alive = process.stdout.read().splitlines()
    assert alive == "alive"
    deadline = time.monotonic() + 20  # a loader looks for its parent every 5 s
    while any(_is_running(pid) for pid in pids.split()):
        assert time.monotonic() < deadline, "a loader process is left"
        time.sleep(0.1)


def _is_running(pid):
    """Whether a process is there and not a zombie that nobody collects, as in bare containers."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
