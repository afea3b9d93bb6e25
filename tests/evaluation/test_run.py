"""Evaluation from samples on the disk to report.json: agreement with theory, formats, refusals."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint
from ecgan.errors import UserError
from ecgan.evaluation.report.document import load
from ecgan.generation import run as generate
from ecgan.metrics.segmentation import AGREEMENTS
from ecgan.runtime.files import sha256
from ecgan.runtime.storage import open_store
from ecgan.shards import formats
from ecgan.shards.files import names
from ecgan.shards.manifest import photo_digest
from tests.helpers.errors import message
from tests.helpers.evaluation import (
    encoded_photos,
    evaluated,
    other_samples,
    recipe_of,
    request_of,
    shards_of,
    write_samples,
)
from tests.helpers.segmenters import save_segmenter
from tests.helpers.tiny import NAMES, SIZE, make_generator, write_pairs


def test_real_photos_as_samples_score_as_themselves(world, tmp_path):
    document, out = evaluated(request_of(world, tmp_path / "out"))
    for name in AGREEMENTS:
        metric = document["metrics"][name]
        assert metric["value"] == metric["real"]
        assert metric["n"] == 3
    distance = document["metrics"]["fd_efficientnet_lite0"]
    assert distance["value"] == pytest.approx(0, abs=1e-6 * distance["real"])
    assert distance["low"] == 0  # its interval does not reach below
    assert distance["real"] > 1  # other photos
    for one in document["per_class"].values():
        assert one["iou"] == one["real"]
        assert one["share"] == pytest.approx(one["real_share"])
    assert set(document["skipped"]) == {
        "precision_efficientnet_lite0",  # too few photos
        "recall_efficientnet_lite0",
    }
    assert document == load(out).to_json()
    assert document["protocol"]["split"] == "val"
    page = (out / "report.html").read_text()
    assert page.count('alt="real photo of view-') >= 3


@pytest.mark.parametrize("data_format", ["webdataset", "parquet"])
@pytest.mark.slow
def test_format_changes_nothing(world, tmp_path, data_format):
    samples = write_samples(world, tmp_path / "shards", data_format)
    document, _ = evaluated(request_of(world, tmp_path / "a", samples=(samples,)))
    plain, _ = evaluated(request_of(world, tmp_path / "b"))
    assert document["metrics"].pop("edge_recall")["value"] == 0  # a folder has no edge maps
    assert document["metrics"] == plain["metrics"]
    assert document["per_class"] == plain["per_class"]


@pytest.mark.slow
def test_sets_side_by_side_have_the_numbers_of_each_alone(world, tmp_path):
    shards_of_train = write_samples(world, tmp_path / "train", "webdataset", "train")
    both, out = evaluated(
        request_of(world, tmp_path / "both", samples=(world / "samples", shards_of_train))
    )
    alone, _ = evaluated(request_of(world, tmp_path / "alone", samples=(shards_of_train,)))
    assert [one["samples"] for one in both["compared"]] == [str(shards_of_train)]
    assert both["compared"][0]["metrics"] == alone["metrics"]
    assert 'id="set-2"' in (out / "report.html").read_text()


@pytest.mark.slow
def test_samples_of_train_layouts_are_marked(world, tmp_path):
    samples = write_samples(world, tmp_path / "train", "webdataset", "train")
    recipe = recipe_of(world, evaluate={"judge_training": {"images": 8, "channels": 8}})
    document, _ = evaluated(
        request_of(world, tmp_path / "out", samples=(samples,), recipe=recipe, judge="train")
    )
    assert any("4 of 4 layouts" in mark and "judge's own" in mark for mark in document["warnings"])
    assert any("no layout of these samples is in the reference" in n for n in document["notes"])
    assert "all photos of split val" in document["protocol"]["real"]
    assert "trained by ecgan, 8 images seen" in document["protocol"]["judge"]


@pytest.mark.slow
def test_real_score_is_that_of_the_same_layouts(world, tmp_path):
    samples = tmp_path / "one"
    for folder in ("images", "labels"):
        (samples / folder).mkdir(parents=True)
        shutil.copy(world / "samples" / folder / "view-01.png", samples / folder)
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    for name in AGREEMENTS:
        metric = document["metrics"][name]
        assert metric["value"] == pytest.approx(metric["real"], rel=1e-6)
        assert document["metrics"][name]["low"] is None  # one layout has no interval
    assert "at least 2 images" in document["skipped"]["fd_efficientnet_lite0"]


def test_num_images_takes_the_first(world, tmp_path):
    recipe = recipe_of(world, evaluate={"num_images": 2, "features": []})
    document, _ = evaluated(request_of(world, tmp_path / "out", recipe=recipe))
    assert document["metrics"]["miou"]["n"] == 2
    assert "fd_efficientnet_lite0" not in document["metrics"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i, m: (i[:16], m[:16]), "view-01 is 16 x 64 with a label of 16 x 64"),
        (lambda i, m: (i, m[:, :32]), "view-01 is 32 x 64 with a label of 32 x 32"),
        (lambda i, m: (i, m * 0 + 77), "view-01 has the label 77, the class list has 0-4 and 255"),
    ],
)
def test_samples_that_do_not_fit_are_named(world, tmp_path, change, sentence):
    samples = other_samples(world, tmp_path / "samples", change)
    with pytest.raises(UserError, match=re.escape(sentence)):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


def test_sets_of_two_sizes_are_refused(world, tmp_path):
    small = tmp_path / "small"
    for folder in ("images", "labels"):
        (small / folder).mkdir(parents=True)
        with Image.open(world / "samples" / folder / "view-00.png") as image:
            image.crop((0, 0, 32, 32)).save(small / folder / "a.png")
    both = (world / "samples", small)
    with pytest.raises(UserError, match="sets of different size"):
        evaluated(request_of(world, tmp_path / "out", samples=both))


@pytest.mark.slow
def test_labels_without_a_scored_pixel_are_refused(world, tmp_path):
    samples = tmp_path / "samples"
    shutil.copytree(world / "samples", samples)
    for path in (samples / "labels").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)
    with pytest.raises(UserError, match="no pixel of its labels has a class"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


def test_damaged_shard_is_named(world, tmp_path):
    samples = write_samples(world, tmp_path / "shards", "webdataset")
    (tar,) = (samples / "data").glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-000000\.tar"):
        evaluated(request_of(world, tmp_path / "out", samples=(samples,)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": ("nowhere",)}, "--samples nowhere: no such folder"),
        ({"recipe": None}, "has no manifest.json of ecgan"),
        ({"reference": "nowhere"}, "nowhere: no such folder; give the real data set"),
        ({"split": "hidden"}, "hidden"),
        ({"judge": "no/judge"}, "no/judge"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_requests_are_refused(world, tmp_path, changes, sentence):
    from pathlib import Path

    paths = {k: Path(v) for k, v in changes.items() if k == "reference"}
    paths |= {k: tuple(map(Path, v)) for k, v in changes.items() if k == "samples"}
    with pytest.raises(UserError, match=re.escape(sentence)):
        evaluated(request_of(world, tmp_path / "out", **changes | paths))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_take_the_report_is_refused_first(world, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.txt").write_text("mine")
    for out, sentence in (
        ("file", "a file; give a folder"),
        ("file/below", "cannot write"),
        ("foreign", "not empty, and not a report of ecgan"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluated(request_of(world, tmp_path / out))
    for place in ("file", "file/below"):  # before a judge is trained
        request = request_of(world, tmp_path / "out", save_statistics=tmp_path / place)
        with pytest.raises(UserError, match=r"(--save-npz .*a file; give a folder)|(cannot write)"):
            evaluated(request)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_missing_inception_weights_are_named(world, tmp_path):
    recipe = recipe_of(world, evaluate={"features": ["inception"]})
    document, _ = evaluated(request_of(world, tmp_path / "out", recipe=recipe))
    assert "evaluate.inception_weights is not set" in document["skipped"]["fid"]
    recipe = recipe_of(
        world, evaluate={"features": ["inception"], "inception_weights": str(tmp_path / "no.pth")}
    )
    with pytest.raises(UserError, match=r"no\.pth: no such file"):
        evaluated(request_of(world, tmp_path / "out", recipe=recipe))


@pytest.mark.slow
def test_samples_in_an_object_store(world, tmp_path):
    place = "memory://evaluate/samples"
    formats.write_shard(
        open_store(place),
        names.shard_name("webdataset", "train", 0),
        encoded_photos(world, "val"),
        data_format="webdataset",
        image_format="png",
        num_classes=len(NAMES),
    )
    document, _ = evaluated(request_of(world, tmp_path / "a", samples=(place,)))
    plain, _ = evaluated(request_of(world, tmp_path / "b"))
    assert document["samples"] == place
    for name in ("miou", "fd_efficientnet_lite0"):
        assert document["metrics"][name] == plain["metrics"][name]


@pytest.mark.slow
def test_splits_that_share_names_are_told_apart_by_their_label_maps(tmp_path):
    """scene-00 of train is not the photo of scene-00 of val."""
    root = tmp_path / "real"
    write_pairs(root, num_train=4, num_val=3)
    keys = {path.stem for path in (root / "labels" / "train").glob("*.png")}
    assert {path.stem for path in (root / "labels" / "val").glob("*.png")} < keys
    save_segmenter(tmp_path / "judge", seed=0)
    data = {
        "height": SIZE[0], "width": SIZE[1], "root": str(root),
        "classes": str(root / "classes.json"),
    }  # fmt: skip
    make_generator(tmp_path / "run" / checkpoint.GENERATOR, data=data)
    found = {}
    for split in ("train", "val"):
        generate.run(
            generate.Request.of(
                tmp_path / "run" / checkpoint.GENERATOR, tmp_path / split,
                labels=root / "labels" / split, device="cpu", quiet=True,
            )
        )  # fmt: skip
        request = request_of(
            tmp_path, tmp_path / f"{split}-out", samples=(tmp_path / split,),
            recipe=recipe_of(tmp_path), judge=str(tmp_path / "judge"),
        )  # fmt: skip
        found[split], _ = evaluated(request)
    assert "photos of the samples' own layouts" in found["val"]["protocol"]["real"]
    assert "all photos of split val" in found["train"]["protocol"]["real"]
    assert any("no layout of these samples" in note for note in found["train"]["notes"])


@pytest.mark.slow
def test_a_generator_that_learnt_from_the_reference_without_label_maps_is_refused(world, tmp_path):
    photos = sorted((world / "real" / "images" / "val").iterdir())
    saw = [photo_digest(sha256(photo)) for photo in photos[:2]]
    samples = shards_of(world, tmp_path / "shards", unlabelled=saw)
    text = message(lambda: evaluated(request_of(world, tmp_path / "out", samples=(samples,))))
    assert "learnt from 2 photos of the split val without their label maps" in text
    assert not (tmp_path / "out" / "report.json").exists()
    others = shards_of(world, tmp_path / "others", unlabelled=["0" * 16])
    evaluated(request_of(world, tmp_path / "out", samples=(others,)))


@pytest.mark.slow
def test_images_that_hold_photos_are_warned_of(world, tmp_path):
    samples = shards_of(world, tmp_path / "shards", onto="photos")
    document, _ = evaluated(request_of(world, tmp_path / "out", samples=(samples,)))
    assert any("hold pixels of the photos" in warning for warning in document["warnings"])
