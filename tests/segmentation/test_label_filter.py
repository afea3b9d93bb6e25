"""The label filter on images: calibration, cross-fitting, and what the segmenters judge."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan import labels
from ecgan.data.loader import TripleDataset, to_images
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace
from ecgan.recipe import parse_recipe
from ecgan.runtime.files import sha256
from ecgan.segmentation import label_filter as consistency
from ecgan.segmentation import segmenter as segmentation
from ecgan.segmentation.calibration import calibrate, halves, prepare_filter
from ecgan.segmentation.label_filter import (
    ClassLosses,
    Filter,
    Folds,
    Thresholds,
    judge,
    pixel_losses,
)
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter, Sources
from tests.helpers import folder_items, naive_data
from tests.helpers.tiny import NAMES, write_pairs

CPU = torch.device("cpu")
IGNORE = 255


def losses_of(*means):
    return ClassLosses(np.array(means, np.float64), np.ones(len(means), np.int64), 1)


def segmenter_of(class_map=(0, 1, 2, 3, 4), seed=0, **options):
    """An untrained segmenter of the tiny classes."""
    own = [f"own {i}" for i in range(len(class_map))]
    return Segmenter(
        segmentation.segformer(8, own, seed=seed),
        class_map,
        NAMES,
        normalisation=options.pop("normalisation", Normalisation()),
        provenance=Provenance("loaded", "tiny"),
        **options,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "data"
    write_pairs(folder, num_train=6, num_val=2)
    return folder


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def own_root(root, tmp_path):
    """A copy to change."""
    return shutil.copytree(root, tmp_path / "data")


def pairs(root, **options):
    space = labels.load_label_space(root / "classes.json")
    items = folder_items.items_for("folder", root, "train")
    sizes = {"height": 32, "width": 64} | options
    return TripleDataset(items, space, "folder", train=False, edges="none", **sizes)


def recipe_of(root, **sampling):
    document = {
        "data": {"root": str(root), "height": 32, "width": 64, "workers": 0},
        "sampling": {"filter_training": {"images": 8, "channels": 8}} | sampling,
    }
    return parse_recipe(document, "test")


def prepared(root, cache, name="train", layouts=None, **sampling):
    recipe = recipe_of(root, **sampling)
    space = labels.load_label_space(root / "classes.json")
    return prepare_filter(
        name,
        recipe,
        space,
        layouts=digests(root) if layouts is None else layouts,
        root=root,
        cache=cache,
        device=CPU,
        thresholds=Thresholds(),
        progress=False,
    )


def digests(root, split="train"):
    items = folder_items.items_for("folder", root, split)
    return {item.key: sha256(item.label) for item in items}


# Calibration


def test_class_losses_survive_json():
    losses = ClassLosses(np.array([0.1, np.nan, 1 / 3]), np.array([3, 0, 2**40]), 7)
    text = json.dumps(losses.to_json(), allow_nan=False)
    again = ClassLosses.from_json(json.loads(text))
    assert np.array_equal(again.mean, losses.mean, equal_nan=True)
    assert np.array_equal(again.pixels, losses.pixels)
    assert (again.mean.dtype, again.pixels.dtype, again.num_images) == (np.float64, np.int64, 7)


def test_calibration_is_the_loops(root, tmp_path):
    """Class 4 is not known to the segmenter; two of its own classes mean class 0."""
    segmenter, dataset = segmenter_of((0, 2, 1, 3, 0)), pairs(root)
    found = calibrate(segmenter, dataset, device=CPU, cache=tmp_path, progress=False)
    pixels = []
    for index in range(len(dataset)):
        sample = dataset.load_plain(index)
        image = to_images(torch.tensor(sample.image).permute(2, 0, 1))[None]
        table = segmenter.probabilities(image)[0].permute(1, 2, 0).reshape(-1, len(NAMES)).tolist()
        pixels += zip(table, sample.label.ravel().tolist(), strict=True)
    means, counts = naive_data.mean_class_losses(pixels, len(NAMES), segmenter.known.tolist())
    assert found.mean == pytest.approx(means, rel=1e-5, nan_ok=True)  # their logs are float32
    assert np.isnan(found.mean).tolist() == [False] * 4 + [True]
    assert found.pixels.tolist() == counts
    assert found.num_images == 6


def test_what_overflows_has_no_mean(root, tmp_path):
    segmenter = segmenter_of(role="filter", loaded_from="folder")
    for weights in segmenter.parameters():
        weights.mul_(1e30)
    with pytest.raises(UserError, match="filter folder: its predictions are NaN or infinite"):
        calibrate(segmenter, pairs(root), device=CPU, cache=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_class_that_never_occurs_has_no_mean(own_root, tmp_path):
    for path in (own_root / "labels" / "train").iterdir():
        label = np.array(Image.open(path))
        label[label == 1] = 0
        Image.fromarray(label).save(path)
    found = calibrate(
        segmenter_of(), pairs(own_root), device=CPU, cache=tmp_path / "cache", progress=False
    )
    assert np.isnan(found.mean).tolist() == [False, True, False, False, False]
    assert found.pixels[1] == 0


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 100_000, '{"mean": [1], "pixels": [1], "num_images": 6}',
     '{"mean": [NaN, 1, 1, 1, 1], "pixels": [1, 1, 1, 1, 1], "num_images": 6}',
     '{"mean": [1, 1, 1, 1, 1], "pixels": [1, 1, 1, 1, 1e400], "num_images": 6}',
     '{"mean": [1, 1, 1, 1, -1], "pixels": [1, 1, 1, 1, 1], "num_images": 6}'],
)  # fmt: skip
def test_a_damaged_calibration_is_measured_again(root, tmp_path, content):
    def found():
        return calibrate(segmenter_of(), pairs(root), device=CPU, cache=tmp_path, progress=False)

    first = found()
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(content)
    assert np.array_equal(found().mean, first.mean, equal_nan=True)
    assert path.read_text() == whole


def test_calibration_is_measured_once(own_root, tmp_path, two_threads):
    looks = []

    def counted(segmenter):
        segmenter.network.register_forward_hook(lambda *_: looks.append(torch.get_num_threads()))
        return segmenter

    def found(segmenter, **options):
        looks.clear()
        dataset = pairs(own_root, **options)
        cache = tmp_path / "cache"
        return calibrate(counted(segmenter), dataset, device=CPU, cache=cache, progress=False)

    first = found(segmenter_of())
    assert looks == [1] * 6  # one image, one thread: sums in one order
    assert torch.get_num_threads() == 2
    again = found(segmenter_of())
    assert looks == []
    assert np.array_equal(first.mean, again.mean)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.name.startswith("losses-")

    found(segmenter_of(seed=1))
    assert len(looks) == 6
    found(segmenter_of(normalisation=Normalisation((0.4,) * 3, (0.2,) * 3)))
    assert len(looks) == 6
    found(segmenter_of(), height=64, width=64)
    assert len(looks) == 6
    photo = min((own_root / "images" / "train").iterdir())
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo)
    found(segmenter_of())
    assert len(looks) == 6
    assert len([*(tmp_path / "cache").iterdir()]) == 5


# Halves


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from("ABCDEFGH")))
def test_halves_share_no_label_map(keyed):
    if len(set(keyed.values())) < 2:
        with pytest.raises(UserError, match=r"--filter train: .* path or name"):
            halves(keyed)
        return
    half_of = halves(keyed)
    assert half_of.keys() == keyed.keys()
    maps = [{keyed[k] for k, half in half_of.items() if half == side} for side in (0, 1)]
    assert not maps[0] & maps[1]
    assert 0 <= len(maps[0]) - len(maps[1]) <= 1
    assert half_of == halves(dict(reversed(keyed.items())))


def test_halves_mix_neighbours():
    half_of = halves({f"{i:04d}": str(i) for i in range(100)})
    first = [half_of[f"{i:04d}"] for i in range(50)]
    assert 15 <= sum(first) <= 35


def test_two_pairs_are_enough_and_one_is_not():
    assert sorted(halves({"a": "A", "b": "B"}).values()) == [0, 1]
    with pytest.raises(UserError, match="of 2 pairs there is only 1"):
        halves({"a": "A", "b": "A"})


def test_a_layout_is_judged_by_the_segmenter_that_did_not_learn_from_it():
    folds = Folds(2, by_label={"A": 0, "B": 1}, by_key={"a": 0, "b": 1})
    assert folds.fold("a", "A") == 1
    assert folds.fold("b", "B") == 0
    assert folds.fold("renamed", "A") == 1
    assert folds.fold("renamed", "B") == 0
    assert folds.fold("a", "edited") == 1
    assert folds.fold("b", "edited") == 0
    assert folds.fold("b", "A") == 1  # another data set's b: the content tells
    strangers = {folds.fold(f"stranger {i}", "C") for i in range(20)}
    assert strangers == {0, 1}
    assert Folds().fold("a", "A") == 0


# The filter


@pytest.mark.slow
def test_no_layout_is_judged_by_what_learnt_from_it(root, tmp_path):
    spec, folds = prepared(root, tmp_path)
    assert (len(spec.segmenters), spec.independent) == (2, "yes")
    learnt = [
        Sources.from_json(json.loads((folder / "segmenter.json").read_text())["sources"])
        for folder in sorted(tmp_path.glob("segformer-*"))
    ]
    assert all(source.keys for source in learnt)
    space = labels.load_label_space(root / "classes.json")
    filtering = Filter(spec, space, CPU)
    for key, digest in digests(root).items():
        for name in (key, "renamed"):
            sources = filtering.segmenters[folds.fold(name, digest)].sources
            assert key not in sources.keys
            assert digest not in sources.labels
    # Each is measured on the half that it did not see.
    everything = digests(root)
    for segmenter, losses in zip(filtering.segmenters, spec.losses, strict=True):
        others = [i for i in pairs(root).items if i.key not in segmenter.sources.keys]
        assert losses.num_images == len(others) == len(everything) - len(segmenter.sources.keys)
        own = TripleDataset(others, space, "folder", height=32, width=64, train=False, edges="none")
        again = calibrate(segmenter, own, device=CPU, cache=tmp_path / "own", progress=False)
        assert np.array_equal(again.mean, losses.mean)


@pytest.mark.slow
def test_workers_judge_as_the_driver_would(root, tmp_path):
    spec, _ = prepared(root, tmp_path)
    spec = replace(spec, thresholds=Thresholds(1.0))
    travelled = pickle.loads(pickle.dumps(spec))
    assert len(pickle.dumps(spec)) < 4000
    space = labels.load_label_space(root / "classes.json")
    filtering, dataset = Filter(travelled, space, CPU), pairs(root)
    samples = [dataset.load_plain(index) for index in range(len(dataset))]
    images = np.stack([s.image for s in samples])
    maps = np.stack([s.label for s in samples])
    for fold in (0, 1):
        segmenter = Filter(spec, space, CPU).segmenters[fold]
        together = filtering.judge_batch(images, maps, fold)
        for image, label, found in zip(images, maps, together, strict=True):
            (alone,) = filtering.judge_batch(image[None], label[None], fold)
            assert np.array_equal(alone.label, found.label)
            assert alone[1:] == found[1:]
            tensor = to_images(torch.tensor(image).permute(2, 0, 1))[None]
            table = segmenter.probabilities(tensor)
            ids = torch.from_numpy(label.astype(np.int64))[None]
            loss = pixel_losses(table, ids, IGNORE)[0].numpy()
            own = consistency.class_probabilities(table, ids, IGNORE)[0].numpy()
            expected = judge(loss, own, label, spec.losses[fold], spec.thresholds, IGNORE)
            assert np.array_equal(found.label, expected.label)
            # Sums in another order: the last bit is that of the machine
            assert found[1:] == pytest.approx(expected[1:], rel=1e-6)
    kept = [j.kept_fraction for j in filtering.judge_batch(images, maps, 0)]
    assert 0 < min(kept) < 1


def is_visible(path):
    return path.is_file() and ".ecgan" not in path.parts


@pytest.mark.slow
def test_preparing_again_finds_what_is_there(own_root, tmp_path):
    cache = tmp_path / "cache"
    spec, _ = prepared(own_root, cache)
    written = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if is_visible(p)}
    again, _ = prepared(own_root, cache)
    assert again.hash == spec.hash
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*") if is_visible(p)} == written
    longer, _ = prepared(own_root, cache, filter_training={"images": 16, "channels": 8})
    assert longer.hash != spec.hash
    assert not set(longer.segmenters) & set(spec.segmenters)


@pytest.mark.slow
def test_a_class_that_one_half_lacks_is_judged_by_neither(own_root, tmp_path):
    half_of = halves(digests(own_root))
    for key in half_of:
        path = own_root / "labels" / "train" / f"{key}.png"
        label = np.array(Image.open(path))
        label[label == 4] = 0  # cars are in one pair alone
        label[-1, -1] = 4 if key == min(half_of) else 3
        Image.fromarray(label).save(path)
    spec, _ = prepared(own_root, tmp_path / "cache")
    assert sorted(losses.pixels[4] for losses in spec.losses) == [0, 1]
    assert all(np.isnan(losses.mean[4]) for losses in spec.losses)
    assert np.isnan(spec.pooled_losses()[4])
    assert np.isfinite(spec.pooled_losses()[:4]).all()


def test_pooled_losses_weigh_pixels():
    spec = consistency.FilterSpec(
        ("a", "b"),
        (
            ClassLosses(np.array([1.0, np.nan, np.nan, 2.0]), np.array([1, 5, 0, 4]), 1),
            ClassLosses(np.array([3.0, 0.5, np.nan, 0.0]), np.array([3, 2, 0, 4]), 1),
        ),
        Thresholds(),
        "",
        "yes",
    )
    assert spec.pooled_losses() == pytest.approx([2.5, 0.5, np.nan, 1.0], nan_ok=True)


@pytest.mark.slow
def test_a_segmenter_by_path_says_whether_it_knows_the_layouts(root, tmp_path):
    layouts = digests(root)
    key, digest = next(iter(layouts.items()))
    own = {
        "unknown": Sources(),
        "no": Sources(frozenset({key, "other"}), frozenset({"0" * 64})),
        "yes": Sources(frozenset({"other"}), frozenset({"0" * 64})),
    }
    for independent, sources in own.items():
        folder = tmp_path / independent
        segmenter_of(sources=sources).save(folder)
        spec, folds = prepared(root, tmp_path / "cache", str(folder))
        assert spec.independent == independent
        assert spec.segmenters == (str(folder),)
        assert spec.losses[0].num_images == 6
        assert folds.fold(key, digest) == 0
    segmenter_of(sources=Sources(frozenset({"x"}), frozenset({digest}))).save(tmp_path / "copy")
    assert prepared(root, tmp_path / "cache", str(tmp_path / "copy"))[0].independent == "no"
    # The same weights and pairs: one file of losses for all four.
    assert len([*(tmp_path / "cache").glob("[!.]*")]) == 1


def test_a_relative_path_is_found_from_elsewhere(root, tmp_path, monkeypatch):
    segmenter_of().save(tmp_path / "here" / "segmenter")
    monkeypatch.chdir(tmp_path / "here")
    spec, _ = prepared(root, tmp_path / "cache", "segmenter")
    monkeypatch.chdir(tmp_path)
    assert len(Filter(spec, labels.load_label_space(root / "classes.json"), CPU).segmenters) == 1


@pytest.mark.slow
def test_other_weights_than_planned_are_refused(root, tmp_path):
    segmenter_of().save(tmp_path / "segmenter")
    spec, _ = prepared(root, tmp_path / "cache", str(tmp_path / "segmenter"))
    shutil.rmtree(tmp_path / "segmenter")
    segmenter_of(seed=1).save(tmp_path / "segmenter")
    space = labels.load_label_space(root / "classes.json")
    with pytest.raises(UserError, match="other weights than when the run was planned"):
        Filter(spec, space, CPU)


def test_labels_of_16_bits_are_judged(tmp_path, two_threads):
    names = [f"c{i}" for i in range(300)]
    space = LabelSpace(tuple(LabelClass(i, n, (0, 0, 0)) for i, n in enumerate(names)), 65535)
    segmenter = Segmenter(
        segmentation.segformer(8, names, seed=0),
        range(300),
        names,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "tiny"),
    )
    segmenter.save(tmp_path / "s")
    losses = (losses_of(*np.full(300, 0.01)),)
    digest = consistency.filter_hash([segmenter], losses)
    spec = consistency.FilterSpec((str(tmp_path / "s"),), losses, Thresholds(), digest, "unknown")
    label = np.full((1, 32, 64), 299, np.uint16)
    label[0, :, :32] = 65535
    image = np.zeros((1, 32, 64, 3), np.uint8)
    filtering, threads = Filter(spec, space, CPU), []
    filtering.segmenters[0].network.register_forward_hook(
        lambda *_: threads.append(torch.get_num_threads())
    )
    (found,) = filtering.judge_batch(image, label, 0)
    assert threads == [1]
    assert found.label.dtype == np.uint16
    assert (found.kept_pixels, found.labelled_pixels) == (0, 32 * 32)
    assert (found.label == 65535).all()


def test_real_pairs_must_be_there(tmp_path):
    write_pairs(tmp_path / "data", num_train=2)
    shutil.rmtree(tmp_path / "data" / "images")
    with pytest.raises(UserError, match="images"):
        prepared(tmp_path / "data", tmp_path / "cache", layouts={})
