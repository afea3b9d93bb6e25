"""Layouts are mirrored and cut plausibly; the same seed does the same; classes that are things."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgan import labels
from ecgan.data.transforms import resize_nearest
from ecgan.errors import UserError
from ecgan.generation.layout_augmentation import Scene, thing_classes
from ecgan.labels import from_json
from tests.helpers.streets import (
    BICYCLE,
    BUILDING,
    BUS,
    CAR,
    NAMES,
    PAVEMENT,
    PERSON,
    POLE,
    ROAD,
    SIZE,
    SPACE,
    THINGS,
    UNLABELLED,
    street,
    varied,
)


@st.composite
def scenes(draw, dtype, *, instances, key):
    """Streets with a few things, some of them cut, hidden or merged; some pixels unlabelled."""
    box = st.tuples(
        st.sampled_from([CAR, PERSON, BICYCLE, BUS, POLE, BUILDING]),
        st.integers(24, 63),
        st.integers(0, 90),
        st.integers(3, 24),
        st.integers(2, 24),
    )
    ground = draw(st.sampled_from([ROAD, PAVEMENT]))
    size = draw(st.sampled_from([SIZE, SIZE, (48, 80)]))
    chosen = [b for b in draw(st.lists(box, max_size=6)) if b[1] < size[0]]
    scene = street(*chosen, ground=ground, key=key, size=size, instances=instances, dtype=dtype)
    scene.label[:, : draw(st.integers(0, 8))] = UNLABELLED if dtype == np.uint8 else 65535
    return scene


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    instances = draw(st.booleans())
    scene = draw(scenes(dtype, instances=instances, key="scene"))
    num = draw(st.integers(0, 3))
    donors = [draw(scenes(dtype, instances=draw(st.booleans()), key=f"d{i}")) for i in range(num)]
    changes = draw(st.lists(st.sampled_from(["flip", "crop", "paste"]), max_size=3, unique=True))
    return scene, donors, changes, draw(st.integers(0, 2**52))


@pytest.mark.slow
@given(cases())
def test_a_variant_has_the_form_of_its_layout_and_no_other_numbers(case):
    scene, donors, changes, seed = case
    names = NAMES if scene.label.dtype == np.uint8 else [*NAMES, *(f"c{i}" for i in range(247))]
    space = from_json(list(names), "test")
    before = [part.copy() for s in (scene, *donors) for part in s[1:] if part is not None]
    result = varied(scene, donors, changes, seed, space=space)

    assert result.label.shape == scene.label.shape
    assert result.label.dtype == scene.label.dtype
    there = {*np.unique(scene.label).tolist()}
    come = {kind for donor in donors for kind in np.unique(donor.label).tolist()} & THINGS
    assert {*np.unique(result.label).tolist()} <= there | come
    assert result.done.isascii()
    assert len(result.done) <= 200
    unchanged = np.array_equal(result.label, scene.label)
    if scene.instances is None:
        assert result.instances is None
    else:
        assert result.instances.shape == scene.instances.shape
        assert result.instances.dtype == np.int32
        unchanged &= np.array_equal(result.instances, scene.instances)
    assert (result.done == "") == unchanged
    again = varied(scene, donors, changes, seed, space=space)
    np.testing.assert_array_equal(result.label, again.label)
    assert result.done == again.done
    after = [part for s in (scene, *donors) for part in s[1:] if part is not None]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_another_seed_gives_another_variant():
    scene = street((CAR, 40, 20, 12, 16))
    results = {varied(scene, changes=["crop"], seed=seed).done for seed in range(20)}
    assert len(results) == 20


@pytest.mark.parametrize("seed", range(5))
def test_flip_alone_always_mirrors(seed):
    scene = street((CAR, 40, 20, 12, 16), instances=True)
    result = varied(scene, changes=["flip"], seed=seed)
    np.testing.assert_array_equal(result.label, scene.label[:, ::-1])
    np.testing.assert_array_equal(result.instances, scene.instances[:, ::-1])
    assert result.done == "flip"


def test_flip_beside_another_change_mirrors_every_other_variant():
    scene = street((CAR, 40, 20, 12, 16))
    done = [varied(scene, changes=["flip", "crop"], seed=seed).done for seed in range(200)]
    assert 75 <= sum(d.startswith("flip; crop") for d in done) <= 125
    assert all("crop" in d for d in done)


def test_what_no_other_change_can_be_made_to_is_mirrored():
    scene = street((CAR, 40, 20, 12, 16))
    for seed in range(10):
        result = varied(scene, [], ["paste", "flip"], seed)
        assert result.done == "flip"
        np.testing.assert_array_equal(result.label, scene.label[:, ::-1])


def test_a_symmetric_layout_cannot_be_mirrored():
    result = varied(street(), changes=["flip"])
    assert result.done == ""


@given(st.integers(0, 2**32), st.booleans())
def test_crop_is_one_window_of_label_and_instances_at_the_old_size(seed, flip):
    scene = street((CAR, 40, 20, 12, 16), (PERSON, 50, 70, 20, 6), instances=True)
    result = varied(scene, changes=["flip", "crop"] if flip else ["crop"], seed=seed)
    top, left, height, width = map(int, re.findall(r"\d+", result.done))
    share = height / SIZE[0]
    assert 0.59 <= share <= 1
    assert width / SIZE[1] == pytest.approx(share, abs=1 / SIZE[0])
    for cut, whole in ((result.label, scene.label), (result.instances, scene.instances)):
        start = whole[:, ::-1] if result.done.startswith("flip") else whole
        window = start[top : top + height, left : left + width]
        np.testing.assert_array_equal(cut, resize_nearest(window, SIZE))


def test_windows_lie_everywhere():
    scene = street((CAR, 40, 20, 12, 16))
    found = [
        [int(n) for n in re.findall(r"\d+", varied(scene, changes=["crop"], seed=s).done)]
        for s in range(300)
    ]
    tops, lefts, heights, _ = np.array(found).T
    assert tops.min() <= 2
    assert (tops + heights).max() == SIZE[0]
    assert lefts.min() <= 2
    assert heights.min() < 0.65 * SIZE[0]
    assert heights.max() > 0.95 * SIZE[0]


def test_crop_prefers_windows_of_two_classes_that_are_labelled():
    label = np.full(SIZE, UNLABELLED, np.uint8)
    label[:, 48:] = ROAD
    label[24:34, 84:] = CAR
    for seed in range(100):
        cut = varied(Scene("a", label, None), changes=["crop"], seed=seed).label
        assert (cut == UNLABELLED).mean() <= 0.51
        assert (cut == CAR).any()


def test_things_of_the_papers_data_sets():
    cityscapes = labels.builtin("cityscapes")
    assert {
        *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train"),
        *("motorcycle", "bicycle"),
    } <= {cityscapes.names[i] for i in thing_classes(cityscapes)}
    coco = labels.builtin("coco_stuff")
    never = {*(11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)}  # of the 91 first, without instances
    assert {*range(91)} - never <= thing_classes(coco)
    ade = labels.builtin("ade20k")
    assert {"person", "chair", "animal", "bottle"} <= {ade.names[i] for i in thing_classes(ade)}


@pytest.mark.parametrize("dataset", ["cityscapes", "ade20k", "coco_stuff"])
def test_background_is_no_thing(dataset):
    space = labels.builtin(dataset)
    names = {space.names[i] for i in thing_classes(space)}
    assert not names & {
        *("building", "tree", "pole", "fence", "wall", "sky", "road", "vegetation", "sidewalk"),
        *("house", "column", "plant", "grass", "ceiling-other", "wall-brick", "traffic sign"),
    }


@pytest.mark.parametrize(
    "name", ["Car", "CAR", "car, auto", "auto; car", "Traffic-Light", "traffic_light", "TV_monitor"]
)
def test_a_thing_is_known_by_any_of_its_spellings(name):
    assert thing_classes(from_json(["road", name], "test")) == {1}


def test_the_user_names_things():
    assert thing_classes(SPACE, ["Pole", "bus"]) == {POLE, BUS}


def test_an_unknown_thing_is_refused_with_names_like_it():
    with pytest.raises(UserError) as error:
        thing_classes(SPACE, ["car", "buss", "Bicycles", "xyz"])
    message = str(error.value)
    assert message.startswith("sampling.things: ")
    assert ", ".join(NAMES) in message
    assert "'buss' (did you mean bus?)" in message
    assert "'Bicycles' (did you mean bicycle?)" in message
    assert error.value.faults[2] == "'xyz'"
    assert len(error.value.faults) == 3


def test_a_class_list_without_things_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"--set sampling\.things=\[car,person\]") as error:
        thing_classes(from_json(["road", "Himmel"], "test"))
    assert "road, Himmel" in str(error.value)
