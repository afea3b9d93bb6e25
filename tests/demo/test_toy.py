"""Toy streets: deterministic, coherent, rich inside each class, written whole or not at all."""

import itertools

import numpy as np
import pytest
from PIL import Image

from ecgan.data import checks, datasets
from ecgan.data.transforms import canny_edges
from ecgan.demo import street, toy
from ecgan.errors import UserError
from tests.helpers import folder_items


@pytest.fixture(scope="module")
def scenes():
    return [toy.draw_scene((0, index)) for index in range(16)]


def test_a_seed_is_a_scene():
    for first, second in zip(toy.draw_scene(5), toy.draw_scene(5), strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(toy.draw_scene(5)[1], toy.draw_scene(6)[1])
    assert not np.array_equal(toy.draw_scene((0, 5))[1], toy.draw_scene((1, 5))[1])


def test_the_same_scene_at_twice_the_size():
    _, small = toy.draw_scene(7, 64, 128)
    image, large = toy.draw_scene(7, 128, 256)
    assert image.shape == (128, 256, 3)
    assert (large[::2, ::2] == small).mean() > 0.93


def test_classes_lie_where_a_street_has_them(scenes):
    mean_row = {
        c.name: np.mean(
            [np.nonzero(label == c.id)[0].mean() for _, label in scenes if (label == c.id).any()]
        )
        for c in toy.SPACE.classes
    }
    assert mean_row["sky"] < mean_row["building"] < mean_row["car"] < mean_row["road"]
    assert mean_row["tree"] < mean_row["grass"]
    assert mean_row["sky"] < mean_row["sign"] < mean_row["pavement"]


def test_all_classes_occur_and_small_ones_are_rare(scenes):
    labels = np.stack([label for _, label in scenes])
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert shares.sum() == pytest.approx(1)
    assert set(np.nonzero(shares)[0]) == {*range(toy.SPACE.num_classes), 255}
    for small in (street.POLE, street.SIGN, street.PERSON):
        assert 0.0005 < shares[small] < 0.02
    assert shares[255] < 0.05  # the bonnet
    assert min(shares[street.ROAD], shares[street.BUILDING]) > 0.15


@pytest.mark.parametrize(
    ("name", "least"), [("BUILDING", 0.08), ("CAR", 0.1), ("ROAD", 0.04), ("TREE", 0.08)]
)
def test_there_is_structure_that_the_label_does_not_show(scenes, name, least):
    """Windows, glass, lane markings, leaves: edges more than two pixels inside a class."""
    edges, pixels = 0, 0
    for image, label in scenes:
        inside = label == getattr(street, name)
        for axis, step in itertools.product((0, 1), (-2, -1, 1, 2)):
            inside &= np.roll(label, step, axis) == label
        edges += ((canny_edges(image) > 0) & inside).sum()
        pixels += inside.sum()
    assert edges / pixels > least


def test_light_and_weather_differ_between_scenes(scenes):
    skies = np.array([image[label == street.SKY].mean(axis=0) for image, label in scenes])
    assert skies.std(axis=0).min() > 20
    assert skies.max() - skies.min() > 100


@pytest.mark.slow
def test_the_data_set_is_read_as_a_folder(tmp_path):
    out = tmp_path / "new" / "toy"
    toy.write_toy(out, 11, seed=3, height=32, width=64)
    for split, count in (("train", 9), ("val", 1), ("test", 1)):
        items = folder_items.index("folder", out, split, instances=False, edges_folder=False)
        assert len(items) == count
        checks.check_labels(items, toy.SPACE, "folder")
    item = folder_items.index("folder", out, "val", instances=False, edges_folder=False)[0]
    image, label = toy.draw_scene((3, 8), 32, 64)
    np.testing.assert_array_equal(datasets.read_label(item, toy.SPACE, "folder"), label)
    assert np.abs(datasets.read_image(item).astype(int) - image).mean() < 3
    with Image.open(item.label) as png:
        assert png.mode == "L"
    assert [p.name for p in out.parent.iterdir()] == ["toy"]


def test_two_runs_write_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        toy.write_toy(tmp_path / name, 2, seed=0, height=32, width=64)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*g"))
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_empty_folder_is_filled_and_another_refused(tmp_path):
    out = tmp_path / "toy"
    out.mkdir()
    toy.write_toy(out, 1, seed=0, height=32, width=64)
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match="toy is not empty"):
        toy.write_toy(out, 1, seed=0, height=32, width=64)
    assert sorted(out.rglob("*")) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="file is not empty"):
        toy.write_toy(file, 1, seed=0)
    with pytest.raises(UserError, match="--num 0"):
        toy.write_toy(tmp_path / "none", 0, seed=0)


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    real = toy.draw_scene

    def full_disk(seed, height, width):
        if seed == (0, 2):
            raise OSError(28, "No space left on device")
        return real(seed, height, width)

    monkeypatch.setattr(toy, "draw_scene", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        toy.write_toy(tmp_path / "toy", 4, seed=0, height=32, width=64)
    assert list(tmp_path.iterdir()) == []
