"""What an evaluation marks, keeps between calls, and computes with several workers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.evaluation import measure
from ecgan.evaluation.report.document import load
from ecgan.evaluation.report.tables import table
from ecgan.generation import run as generate
from ecgan.metrics.segmentation import AGREEMENTS
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.segmentation.loading import load_segmenter
from ecgan.shards import formats
from ecgan.shards.files import names
from tests.helpers import folder_items
from tests.helpers.evaluation import (
    encoded_photos,
    evaluated,
    recipe_of,
    request_of,
    shards_of,
)
from tests.helpers.tiny import NAMES, SIZE, make_generator


@pytest.mark.slow
def test_the_generators_own_label_generator_is_refused_or_marked(world, tmp_path):
    space = labels.load_label_space(world / "real" / "classes.json")
    judge = load_segmenter(world / "judge", space, evaluation=True)
    samples = shards_of(world, tmp_path / "s", label_generator={"hash": judge.hash, "data": ""})
    with pytest.raises(UserError, match="it would find what it taught"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    assert not (tmp_path / "out").exists()
    document, out = evaluated(
        request_of(world, tmp_path / "out", samples=(samples,), force_judge=True)
    )
    mark, edges = document["warnings"]
    assert "edge maps" in edges  # those of the helper are black
    assert "label generator" in mark
    assert mark[1:] in (out / "report.html").read_text()
    assert mark in table(load(out))


@pytest.mark.slow
def test_layouts_that_the_generator_saw_are_marked(world, tmp_path):
    samples = shards_of(world, tmp_path / "s", seen_layouts=2)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    assert any("trained on 2 of these 3 layouts" in mark for mark in document["warnings"])


@pytest.mark.slow
def test_photos_that_the_generator_was_trained_on_are_marked(world, tmp_path):
    samples = shards_of(world, tmp_path / "s", seen_layouts=2)
    request = request_of(world, tmp_path / "out", samples=(samples,), split="train")
    marks = evaluated(request)[0]["warnings"]
    assert any("split train are those that the generator was trained on" in mark for mark in marks)


@pytest.mark.slow
def test_a_judge_that_saw_the_layouts_is_marked(world, tmp_path):
    recipe = recipe_of(world, evaluate={"judge_training": {"images": 8, "channels": 8}})
    train = tmp_path / "train"
    for folder in ("images", "labels"):
        shutil.copytree(world / "real" / folder / "train", train / folder)
    request = request_of(world, tmp_path / "out", samples=(train,), recipe=recipe, judge="train")
    document, _ = evaluated(request)
    assert any("4 of 4 layouts" in mark for mark in document["warnings"])
    assert "on the reference's split train, seed 1" in document["protocol"]["judge"]
    document, _ = evaluated(request_of(world, tmp_path / "b", recipe=recipe, judge="train"))
    assert document["warnings"] == []


@pytest.mark.slow
def test_what_was_looked_at_is_not_looked_at_again(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    first, _ = evaluated(request_of(world, tmp_path / "a"))
    seen = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "looks").glob("*.npz")}
    assert len(seen) == 3  # samples, reference, train photos

    def refuse(*_):
        raise AssertionError("looked again")

    monkeypatch.setattr(measure.MeasureWorker, "measure", refuse)
    again, _ = evaluated(request_of(world, tmp_path / "b"))
    assert again == first
    assert seen == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "looks").glob("*.npz")}
    # Other pixels, another judge: looked at again
    other = tmp_path / "other"
    shutil.copytree(world / "samples", other)
    path = other / "images" / "view-00.png"
    with Image.open(path) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    with pytest.raises(UserError, match="looked again"):
        evaluated(request_of(world, tmp_path / "c", samples=(other,)))


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    first, _ = evaluated(request_of(world, tmp_path / "a"))
    one, other, third = (tmp_path / "cache" / "looks").glob("*.npz")
    one.write_bytes(one.read_bytes()[:100])
    other.write_bytes(b"")
    np.savez(third, matrix=np.zeros(3))
    for path in (one, other, third):
        with pytest.raises(UserError, match=r"\.npz: damaged .*remove it"):
            measure.read_measurements(path)
    again, _ = evaluated(request_of(world, tmp_path / "b"))
    assert again == first
    for path in (one, other, third):
        assert measure.read_measurements(path)


@pytest.mark.slow
def test_parts_add_up(world, tmp_path, monkeypatch):
    whole, _ = evaluated(request_of(world, tmp_path / "a"))
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "CHUNK", 2)
    parts, _ = evaluated(request_of(world, tmp_path / "b"))
    for name in AGREEMENTS:
        one, other = parts["metrics"][name], whole["metrics"][name]
        assert one.pop("protocol", "") == other.pop("protocol", "")
        assert one == pytest.approx(other, rel=1e-6)
    assert parts["confusion"] == whole["confusion"]
    name = "fd_efficientnet_lite0"
    assert parts["metrics"][name]["real"] == pytest.approx(whole["metrics"][name]["real"], rel=1e-6)


@pytest.mark.slow
def test_workers_find_what_one_finds(world, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CHUNK", 2)
    alone, _ = evaluated(request_of(world, tmp_path / "a"))
    monkeypatch.setenv("ECGAN_CACHE", str(tmp_path / "cache"))
    request = request_of(world, tmp_path / "b", workers=2)
    together, _ = evaluated(request)
    for name, metric in alone["metrics"].items():
        other = together["metrics"][name]
        assert metric.pop("protocol", "") == other.pop("protocol", "")
        assert other == pytest.approx(metric, rel=1e-5), name
    assert together["confusion"] == alone["confusion"]


def test_statistics_are_kept_as_pytorch_fid_reads_them(world, tmp_path):
    evaluated(request_of(world, tmp_path / "out", save_statistics=tmp_path / "npz"))
    assert {path.name for path in (tmp_path / "npz").iterdir()} == {
        "samples-efficientnet_lite0.npz",
        "reference-val-efficientnet_lite0.npz",
    }
    with np.load(tmp_path / "npz" / "samples-efficientnet_lite0.npz") as file:
        assert file["mu"].shape == (1280,)
        assert file["sigma"].shape == (1280, 1280)


def test_given_statistics_need_inception(world, tmp_path):
    request = request_of(world, tmp_path / "out", reference_statistics=tmp_path / "a.npz")
    with pytest.raises(UserError, match="statistics of Inception, which is not measured"):
        evaluated(request)


@pytest.mark.slow
def test_two_styles_of_a_layout_are_compared_with_each_other_and_with_their_edges(world, tmp_path):
    samples = tmp_path / "styles"
    for style in range(2):
        write = formats.write_shard(
            open_store(samples),
            names.shard_name("webdataset", "train", style),
            (
                one._replace(record=replace(one.record, key=f"{one.record.key}{style}"))
                for one in encoded_photos(world, "val")
            ),
            data_format="webdataset",
            image_format="png",
            num_classes=len(NAMES),
        )
        assert write.samples == 3
    shutil.rmtree(samples / HIDDEN)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    diversity = document["metrics"]["diversity_efficientnet_lite0"]
    assert diversity["value"] == pytest.approx(0, abs=1e-6)  # the same photo twice
    assert diversity["real"] > 0.01
    assert diversity["n"] == 3
    # The edge maps are nearly black, so there is no edge to be found right
    assert "edge_precision" not in document["metrics"]
    assert document["metrics"]["edge_recall"]["value"] == 0


def test_photos_are_looked_at_again_when_their_classes_change(world):
    space = labels.load_label_space(world / "real" / "classes.json")
    recoloured = replace(space.classes[0], color=(1, 2, 3))
    prints = []
    for own in (space, space, replace(space, classes=(recoloured, *space.classes[1:]))):
        items = folder_items.index("folder", world / "real", "val")
        height, width = SIZE
        dataset = TripleDataset(items, own, "folder", height=height, width=width, edges="none")
        prints.append(measure.Photos(dataset, range(3)).fingerprint(0, 3))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.slow
def test_a_varied_layout_is_no_style_of_the_one_that_it_was(world, tmp_path):
    root = world / "real"
    make = {
        "data": {"root": str(root), "height": SIZE[0], "width": SIZE[1],
                 "classes": str(root / "classes.json")},
    }  # fmt: skip
    make_generator(tmp_path / "run" / checkpoint.GENERATOR, **make)
    found = {}
    for name, options in {
        "styles": {"n_styles": 2},
        "varied": {"changes": ("flip",), "n_variants": 1, "n_styles": 1},
    }.items():
        generate.run(
            generate.Request.of(
                tmp_path / "run" / checkpoint.GENERATOR, tmp_path / name,
                labels=root / "labels" / "val", device="cpu", quiet=True, **options,
            )
        )  # fmt: skip
        document, _ = evaluated(
            request_of(world, tmp_path / f"{name}-out", samples=(tmp_path / name,))
        )
        found[name] = document["metrics"].get("diversity_efficientnet_lite0")
    assert found["styles"]["n"] == 3
    assert found["varied"] is None
    path = tmp_path / "styles" / "manifest.json"
    kept = {"kept_fraction": 0.25, "thresholds": {"tolerance": 1.25, "min_kept": 0.5}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"filter": kept}))
    document, _ = evaluated(
        request_of(world, tmp_path / "filtered", samples=(tmp_path / "styles",))
    )
    assert any("left out 75.0% of the labelled pixels" in note for note in document["notes"])


@pytest.mark.slow
def test_statistics_of_sets_of_one_name_do_not_replace_each_other(world, tmp_path):
    for folder in "ab":
        shutil.copytree(world / "samples", tmp_path / folder / "x")
    request = request_of(
        world, tmp_path / "out", samples=(tmp_path / "a" / "x", tmp_path / "b" / "x"),
        save_statistics=tmp_path / "npz",
    )  # fmt: skip
    evaluated(request)
    assert {path.name for path in (tmp_path / "npz").iterdir()} == {
        "0-x-efficientnet_lite0.npz",
        "1-x-efficientnet_lite0.npz",
        "reference-val-efficientnet_lite0.npz",
    }
