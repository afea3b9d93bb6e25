"""Pasted objects are made into the layouts' own photos, whose other pixels stay."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from ecgan.data.packed.sample_sets import SampleDataset
from ecgan.data.transforms import canny_edges
from ecgan.errors import UsageError
from ecgan.generation import run as generate
from ecgan.generation.layout_augmentation import blended, feathered
from ecgan.generation.request import Request
from ecgan.shards.manifest import StyleSource, read_manifest
from tests.helpers.errors import message
from tests.helpers.streets import CAR, NAMES, PERSON, SIZE, street
from tests.helpers.tiny import make_generator


def write_street(root, split, key, boxes):
    label = street(*boxes).label
    photo = np.random.default_rng(len(boxes)).integers(0, 256, (*SIZE, 3), np.uint8)
    for kind, pixels in (("images", photo), ("labels", label)):
        path = root / kind / split / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Streets with their photos, and a generator that says it learnt from them."""
    root = tmp_path_factory.mktemp("onto")
    cars = [(CAR, 50, 10, 10, 16), (CAR, 40, 60, 8, 12), (PERSON, 45, 40, 12, 5)]
    for number in range(3):
        write_street(root / "real", "train", f"s{number}", cars[: number + 1])
    write_street(root / "real", "val", "v0", [*cars, (CAR, 60, 70, 8, 12)])
    (root / "real" / "classes.json").write_text(json.dumps({"classes": list(NAMES), "ignore": 255}))
    make_generator(
        root / "run" / "generator.safetensors",
        data={
            "height": SIZE[0], "width": SIZE[1], "root": str(root / "real"),
            "classes": str(root / "real" / "classes.json"),
        },
    )  # fmt: skip
    return root


@pytest.fixture
def request_of(world, tmp_path):
    base = {
        "generator": world / "run" / "generator.safetensors", "out": tmp_path / "out",
        "labels": world / "real" / "labels" / "train", "changes": ("paste",), "onto": "photos",
        "n_variants": 3, "image_format": "png", "device": "cpu", "quiet": True,
    }  # fmt: skip
    return lambda **changes: Request.of(**base | changes)


def picture(world, kind, key):
    return np.array(Image.open(world / "real" / kind / "train" / f"{key}.png"))


@pytest.mark.slow
def test_only_what_was_pasted_is_generated(world, request_of, tmp_path):
    outcome = generate.run(request_of())
    dataset = SampleDataset(str(tmp_path / "out"))
    assert 0 < len(dataset) == outcome.num_samples <= 9
    for index in range(len(dataset)):
        raw = dataset.raw(index)
        sample, source = dataset.decoded(index, raw), str(raw.record["source"])
        photo, label = (picture(world, kind, source) for kind in ("images", "labels"))
        changed = sample.label != label
        assert changed.any()
        assert {*np.unique(sample.label[changed])} <= {CAR, PERSON}
        near = cv2.dilate(
            (changed | (label == CAR) | (label == PERSON)).astype(np.uint8), np.ones((3, 3))
        )
        assert (sample.image[near == 0] == photo[near == 0]).all()
        core = cv2.erode(changed.astype(np.uint8), np.ones((3, 3))) > 0
        assert (sample.image[core] != photo[core]).any(axis=1).mean() > 0.9
        assert (sample.edge == canny_edges(sample.image)).all()
        assert str(raw.record["variation"]).startswith("paste ")
        assert str(raw.record["variation"]).endswith("; into its own photo")
        assert raw.record["digital_source_type"] == "compositeWithTrainedAlgorithmicMedia"
        assert b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia" in raw.image
    about = read_manifest(tmp_path / "out")
    assert (about.onto, about.style_source) == ("photos", StyleSource.OWN_PHOTOS)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**These images hold pixels of photos** (3 of the generator's training data)" in card
    assert "All images are photos with synthetic objects (IPTC" in card


@pytest.mark.slow
def test_the_same_command_again_makes_nothing_and_another_photo_is_refused(world, request_of):
    generate.run(request_of())
    assert generate.run(request_of()).made == 0
    path = world / "real" / "images" / "train" / "s0.png"
    before = path.read_bytes()
    try:
        Image.fromarray(255 - picture(world, "images", "s0")).save(path)
        assert "--onto" in message(lambda: generate.run(request_of()))
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_objects_have_the_style_of_the_photo(world, request_of, tmp_path):
    generate.run(request_of())
    generate.run(request_of(out=tmp_path / "again", seed=0))
    one, other = (SampleDataset(str(tmp_path / name)) for name in ("out", "again"))
    assert one.raw(0).image == other.raw(0).image
    generate.run(request_of(out=tmp_path / "free", onto=None, n_styles=1))
    drawn = SampleDataset(str(tmp_path / "free"))
    own = one.decoded(0, one.raw(0))
    free = next(drawn.decoded(i, raw) for i in range(12) if (raw := drawn.raw(i)).key == own.key)
    changed = (own.label != picture(world, "labels", own.source)).astype(np.uint8)
    core = cv2.erode(changed, np.ones((3, 3))) > 0  # without the seam
    assert (free.label == own.label).all()
    assert (free.image[core] != own.image[core]).any()


def test_layouts_without_a_photo_in_the_training_data_are_refused(world, request_of):
    text = message(lambda: generate.run(request_of(labels=world / "real" / "labels" / "val")))
    assert "1 label map of 1" in text
    assert "not of the pairs that the generator learnt from" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changes": ("flip", "paste")}, "give --vary paste alone"),
        ({"changes": (), "n_variants": None}, "give --vary paste alone"),
        ({"n_styles": 2}, "--n-styles 2: with --onto photos the style is the photo's own"),
        ({"style_seed": 1}, "--style-seed: with --onto"),
        ({"spread": "target", "targets": ("car=0.5",)}, "not with --balance"),
        ({"overrides": ("sampling.layout_fit=crop",)}, "sampling.layout_fit=stretch"),
    ],
)
def test_options_that_do_not_go_together_are_refused(request_of, options, said):
    with pytest.raises(UsageError) as error:
        generate.run(request_of(**options))
    assert said in str(error.value)


def test_the_training_data_may_lie_elsewhere(world, request_of, tmp_path):
    moved = shutil.copytree(world / "real", tmp_path / "moved")
    outcome = generate.run(request_of(labels=moved / "labels" / "train", root=moved))
    assert outcome.num_samples > 0


def test_where_nothing_can_be_pasted_the_photo_is_no_sample(world, request_of, tmp_path):
    empty = tmp_path / "labels"
    empty.mkdir()
    (empty / "s0.png").write_bytes((world / "real" / "labels" / "train" / "s0.png").read_bytes())
    outcome = generate.run(request_of(labels=empty))  # its only layout: no other gives an object
    assert outcome.num_samples == 0
    assert "found no place for an object" in outcome.failed[0]


def test_numbers_are_spread_over_variants_alone(request_of, tmp_path):
    generate.run(request_of(num=4, n_variants=2))
    dataset = SampleDataset(str(tmp_path / "out"))
    keys = [dataset.raw(index).key for index in range(len(dataset))]
    assert keys
    assert all("-v" in key for key in keys)


def test_the_seam_is_soft_over_a_pixel_and_the_rest_untouched():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    alpha = feathered(mask)
    assert alpha[4, 4, 0] == 1
    assert 0.5 <= alpha[3, 3, 0] < 1
    assert 0 < alpha[2, 4, 0] < 0.5
    far = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) == 0
    assert (alpha[far] == 0).all()
    under, over = (np.full((9, 9, 3), value, np.uint8) for value in (10, 200))
    made = blended(under, over, alpha)
    assert (made[far] == 10).all()
    assert (made[4, 4] == 200).all()
