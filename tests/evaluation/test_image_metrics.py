"""Styles and texture of a set, from its files to the report; marks of what training looked at."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ecgan.evaluation import image_metrics
from ecgan.evaluation.report.document import Metric
from ecgan.metrics.segmentation import edge_agreement
from ecgan.metrics.styles import LEAST_PIXELS
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.shards import codecs, formats
from ecgan.shards.files import names
from tests import naive
from tests.helpers.evaluation import encoded_photos, evaluated, recipe_of, request_of, shards_of
from tests.helpers.tiny import NAMES, write_pairs


@pytest.fixture
def divided(world, tmp_path):
    """The world with photos of a third split, and another whose label maps are no label maps."""
    shutil.copytree(world, tmp_path / "divided")
    root = tmp_path / "divided" / "real"
    write_pairs(tmp_path / "more", num_train=6)
    for folder in ("images", "labels"):
        shutil.copytree(tmp_path / "more" / folder / "train", root / folder / "test")
    return tmp_path / "divided"


def write_styles(world, out, changes):
    """A shard for each style: the photos of val, their pixels changed."""
    for style, change in enumerate(changes):
        made = []
        for one in encoded_photos(world, "val"):
            with Image.open(
                world / "real" / "images" / "val" / f"{one.record.source}.png"
            ) as photo:
                image = codecs.encode_image(change(np.asarray(photo)), "png", 95)
            record = replace(one.record, key=f"{one.record.key}{style}")
            made.append(one._replace(record=record, image=image))
        name = names.shard_name("webdataset", "train", style)
        formats.write_shard(
            open_store(out), name, iter(made),
            data_format="webdataset", image_format="png", num_classes=len(NAMES),
        )  # fmt: skip
    shutil.rmtree(out / HIDDEN)
    return out


CHANGES = (lambda x: x, lambda x: x[..., ::-1], lambda x: x // 2)


def plain(world, split, change=lambda x: x):
    """Photos of a split as ``naive.style_spread`` takes them."""
    for path in sorted((world / "real" / "images" / split).iterdir()):
        with (
            Image.open(path) as photo,
            Image.open(path.parents[2] / "labels" / split / path.name) as y,
        ):
            pixels = change(np.asarray(photo)) / 127.5 - 1
            yield pixels.reshape(-1, 3).tolist(), np.asarray(y).reshape(-1).tolist()


@pytest.mark.slow
def test_style_spread_is_its_definition_over_photos_of_all_splits(divided, tmp_path):
    samples = write_styles(divided, tmp_path / "styles", CHANGES)
    recipe = recipe_of(divided, evaluate={"features": []})
    request = request_of(divided, tmp_path / "out", samples=(samples,), recipe=recipe, split="val")
    document, _ = evaluated(request)
    found = document["metrics"]["style_spread"]
    layouts = [*zip(*(plain(divided, "val", change) for change in CHANGES), strict=True)]
    photos = [one for split in ("train", "val", "test") for one in plain(divided, split)]
    overall, ratios = naive.style_spread(layouts, photos, len(NAMES), LEAST_PIXELS)
    assert found["value"] == pytest.approx(overall, rel=1e-5)  # of images in float32
    assert found["low"] < overall < found["high"]
    assert found["n"] == 9
    assert 0 < found["real"] < 2
    scores = [one["style_spread"] for one in document["per_class"].values()]
    known = [(own, true) for own, true in zip(scores, ratios, strict=True) if own is not None]
    assert len(known) > 1
    assert [own for own, _ in known] == pytest.approx([true for _, true in known], rel=1e-5)
    assert document["protocol"]["photos_of_style_spread"] == "4 of train, 3 of val, 6 of test"
    assert "vgg16_hed in evaluate.features" in document["skipped"]["style_spread_deep"]
    # A split that cannot be read is not needed
    next((divided / "real" / "labels" / "test").iterdir()).unlink()
    again, _ = evaluated(request)
    assert again["protocol"]["photos_of_style_spread"] == "4 of train, 3 of val"


@pytest.mark.slow
def test_vgg16_gives_distances_and_the_spread_of_its_features(divided, tmp_path, hed_file):
    samples = write_styles(divided, tmp_path / "styles", (CHANGES[0], CHANGES[0], CHANGES[0]))
    recipe = recipe_of(divided, evaluate={"features": ["vgg16_hed"]})
    data = recipe.data.model_copy(update={"hed_weights": str(hed_file)})
    recipe = recipe.model_copy(update={"data": data})
    request = request_of(divided, tmp_path / "out", samples=(samples,), recipe=recipe)
    document, out = evaluated(request)  # against test, the split that is there
    metrics = document["metrics"]
    for name in ("style_spread", "style_spread_deep"):
        assert metrics[name]["value"] == pytest.approx(0, abs=1e-6)  # the same photo three times
        assert 0.1 < metrics[name]["real"] < 2
    for name in ("fd_vgg16_hed", "kd_vgg16_hed", "precision_vgg16_hed", "recall_vgg16_hed"):
        assert metrics[name]["value"] is not None
    assert metrics["fd_vgg16_hed"]["value"] > 0
    assert "style_spread_deep" not in document["skipped"]
    page = (out / "report.html").read_text()
    assert page.count("Style spread, VGG16 of HED") == 1
    assert "Diversity (real: other layouts)" in page


@pytest.mark.slow
def test_one_style_has_no_spread_and_reads_no_further_split(divided, tmp_path):
    samples = shards_of(divided, tmp_path / "shards")
    recipe = recipe_of(divided, evaluate={"features": []})
    (divided / "real" / "labels" / "test").rename(divided / "real" / "labels" / "unknown")
    request = request_of(divided, tmp_path / "out", samples=(samples,), recipe=recipe, split="val")
    document, _ = evaluated(request)
    assert not {"style_spread", "style_spread_deep"} & {*document["metrics"], *document["skipped"]}
    assert {one["style_spread"] for one in document["per_class"].values()} == {None}
    assert document["metrics"]["top_octave"]["value"] == pytest.approx(1)  # of the photos
    assert document["metrics"]["top_octave"]["real"] is None  # train photos were not read


@pytest.mark.slow
def test_top_octave_tells_blur_and_noise_from_photos(world, tmp_path):
    def noise(x):
        return np.clip(x + np.random.default_rng(0).normal(0, 40, x.shape), 0, 255).astype(np.uint8)

    def blur(x):
        small = Image.fromarray(x).resize((16, 8), Image.Resampling.BOX)
        return np.asarray(small.resize(x.shape[1::-1], Image.Resampling.BICUBIC))

    found = {}
    for change in (noise, blur):
        samples = write_styles(world, tmp_path / change.__name__, (change,))
        out = tmp_path / f"{change.__name__}-out"
        found[change.__name__] = evaluated(request_of(world, out, samples=(samples,)))[0]["metrics"]
    assert found["noise"]["top_octave"]["value"] > 1.5
    assert found["blur"]["top_octave"]["value"] < 0.2
    assert 0.5 < found["blur"]["top_octave"]["real"] < 2


@pytest.mark.slow
def test_distances_on_features_that_training_looked_at_are_marked(world, tmp_path):
    recipe = recipe_of(world).model_dump(mode="json")
    assert image_metrics.trained_against(recipe) == ["vgg19"]
    recipe["losses"] |= {"perceptual_network": "efficientnet_lite0"}
    samples = shards_of(world, tmp_path / "shards", recipe=recipe)
    document, out = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    marks = {name: one.get("trained_against") for name, one in document["metrics"].items()}
    assert marks["fd_efficientnet_lite0"] == "efficientnet_lite0"
    assert marks["miou"] is marks["top_octave"] is None
    (note,) = [note for note in document["notes"] if "†" in note]
    assert "trained against features of efficientnet_lite0" in note
    assert "FD, EfficientNet-Lite0 †" in (out / "report.html").read_text()


@pytest.mark.parametrize("brightest", [127, 128])
def test_black_edge_maps_are_warned_of(brightest):
    """At 128 a pixel is an edge; one map with one is enough."""
    edge = np.zeros((8, 8), np.uint8)
    edge[3, 3] = brightest
    counts = [edge_agreement(x, np.eye(8, dtype=np.uint8)) for x in (edge * 0, edge)]
    found = image_metrics.edge_warnings(SimpleNamespace(edges=counts))
    assert len(found) == (brightest == 127)
    assert all("none of its 2 edge maps" in line and "losses.edge_slope" in line for line in found)
    assert image_metrics.edge_warnings(SimpleNamespace(edges=[])) == []


def test_what_training_looked_at_is_read_from_the_recipe():
    def found(losses, **model):
        return image_metrics.trained_against({"losses": losses, "model": model})

    lite, vgg = "efficientnet_lite0", "vgg16_hed"
    assert found({"perceptual": 5, "perceptual_network": vgg}) == [vgg]
    assert found({"perceptual": 0, "perceptual_network": vgg}) == []
    assert found({"perceptual": 5, "perceptual_network": "none"}) == []
    both = {"perceptual": 5, "perceptual_network": vgg}
    assert found(both, segmentation_discriminator="features") == [vgg, lite]
    assert found({}, segmentation_discriminator="features") == [lite]
    assert found({}, segmentation_discriminator="off") == []


def test_families_are_told_apart():
    names = ("miou", "fd_efficientnet_lite0", "recall_vgg16_hed", "fid", "style_spread_deep")
    metrics = dict.fromkeys(names, Metric.of(1, 1, 1))

    def marked(networks, judge=None):
        found, notes = image_metrics.marked(metrics, networks, judge)
        return {n: m.trained_against for n, m in found.items() if m.trained_against}, len(notes)

    assert marked([]) == ({}, 0)
    assert marked(["vgg19"]) == ({"recall_vgg16_hed": "vgg19"}, 1)
    assert marked(["efficientnet_lite0"], "efficientnet_lite1") == (
        {"miou": "efficientnet_lite0", "fd_efficientnet_lite0": "efficientnet_lite0"},
        1,
    )
    assert marked(["vgg19"], "efficientnet_lite1")[1] == 1
