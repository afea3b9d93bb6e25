"""Class lists: the three of the paper, and those that users write."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import Cityscapes

from ecgan import labels
from ecgan.errors import UserError
from ecgan.labels import LabelClass, LabelSpace, clean_key, from_json, load_label_space

BUILTIN = ["cityscapes", "ade20k", "coco_stuff"]


def road_and_sky(**changes):
    classes = [{"id": 0, "name": "road"}, {"id": 1, "name": "sky", "color": [1, 2, 3]}]
    return {"classes": classes, "ignore": 255, **changes}


@pytest.mark.parametrize(
    ("dataset", "num_classes", "num_conditions"),
    [("cityscapes", 35, 36), ("ade20k", 150, 152), ("coco_stuff", 182, 184)],
)
def test_the_papers_class_lists_have_the_papers_sizes(dataset, num_classes, num_conditions):
    space = labels.builtin(dataset)
    assert space.num_classes == num_classes == len(set(space.names))
    assert space.num_conditions(boundary=True) == num_conditions


def test_cityscapes_agrees_with_torchvision():
    space = labels.builtin("cityscapes")
    assert space.evaluation is not None
    published = {c.id: (c.name, c.color, c.train_id) for c in Cityscapes.classes if c.id >= 0}
    ours = {
        c.id: (c.name, c.color, space.evaluation[c.id]) for c in space.classes if c.id in published
    }
    assert ours == published
    assert space.names[34] == "license plate"


def test_cityscapes_is_scored_in_19_classes():
    space = labels.builtin("cityscapes")
    assert space.names_for_evaluation[0] == "road"
    assert space.names_for_evaluation[18] == "bicycle"
    assert space.num_evaluation_classes == 19
    raw = np.array([[0, 7, 8, 33, 34, 255]], np.uint8)
    assert space.to_evaluation(raw).tolist() == [[255, 0, 1, 18, 255, 255]]


def test_some_ids_of_ade20k_and_coco_stuff_as_their_authors_publish_them():
    ade, coco = labels.builtin("ade20k").names, labels.builtin("coco_stuff").names
    assert [ade[i] for i in (0, 2, 12, 20, 136, 149)] == [
        "wall",
        "sky",
        "person",
        "car",
        "traffic light",
        "flag",
    ]
    assert [coco[i] for i in (0, 2, 90, 91, 148, 156, 181)] == [
        "person",
        "car",
        "hair brush",
        "banner",
        "road",
        "sky-other",
        "wood",
    ]


def test_there_is_no_fourth_builtin_list():
    with pytest.raises(ValueError, match="camvid"):
        labels.builtin("camvid")


@pytest.mark.parametrize("dataset", BUILTIN)
def test_builtin_lists_survive_json(dataset):
    space = labels.builtin(dataset)
    assert from_json(json.loads(json.dumps(space.to_json())), "x") == space


@given(st.integers(1, 400), st.sampled_from([None, 500, 65535]))
def test_class_lists_survive_json(num_classes, ignore):
    classes = (LabelClass(i, f"c{i}", labels.default_color(i)) for i in range(num_classes))
    space = LabelSpace(tuple(classes), ignore)
    assert from_json(json.loads(json.dumps(space.to_json())), "x") == space


def test_a_bare_list_of_names_is_a_class_list():
    space = from_json(["road", "sky"], "x")
    assert space.names == ("road", "sky")
    assert space.ignore == 255


def test_default_colors_differ_and_are_not_black():
    colors = {labels.default_color(i) for i in range(400)}
    assert len(colors) == 400
    assert (0, 0, 0) not in colors


def test_more_than_255_classes_are_ignored_as_65535():
    space = from_json([f"c{i}" for i in range(256)], "x")
    assert space.ignore_index == 65535
    assert space.palette.shape == (65536, 3)


def test_the_palette_has_the_classes_colours_and_black():
    palette = from_json(road_and_sky(), "x").palette
    assert palette[1].tolist() == [1, 2, 3]
    assert palette[255].tolist() == [0, 0, 0]


REFUSED = {
    "a number of two classes": (
        road_and_sky(classes=[{"ids": [0, 7], "name": "a"}, {"id": 7, "name": "b"}]),
        "id 7 occurs 2 times",
    ),
    "id and ids": (
        road_and_sky(classes=[{"id": 0, "ids": [0, 7], "name": "a"}]),
        "classes[0]: has id and ids; give one of them",
    ),
    "no ids": (
        road_and_sky(classes=[{"ids": [], "name": "a"}]),
        "classes[0].ids: expected numbers from 0 to 65535, got []",
    ),
    "an id of more than 16 bits": (
        road_and_sky(classes=[{"id": 65536, "name": "a"}]),
        "classes[0].id: expected a number from 0 to 65535, got 65536",
    ),
    "numbers of files that mean no class": (
        road_and_sky(file_ids={"7": 2}),
        'file_ids: expected {"7": 0, ...}, numbers of the label files and ids from 0 to 1',
    ),
    "numbers of files twice": (
        {"classes": [{"id": 7, "name": "a"}], "file_ids": {"7": 0}},
        "file_ids: needs classes with the ids 0 to N-1",
    ),
    "has_color is no truth value": (
        road_and_sky(classes=[{"name": "a", "has_color": "no"}]),
        "classes[0].has_color: expected true or false, got 'no'",
    ),
    "one of several ignored numbers is a class": (
        road_and_sky(ignore=[255, 1]),
        "ignore: 1 is also the id of a class",
    ),
    "evaluation is no list": (road_and_sky(evaluation="x"), "evaluation: expected an id for each"),
    "a duplicate id": (
        road_and_sky(classes=[{"id": 0, "name": "a"}, {"id": 0, "name": "b"}]),
        "id 0 occurs 2 times",
    ),
    "a duplicate name": (road_and_sky(classes=["road", "road"]), "name 'road' occurs 2 times"),
    "no class": (road_and_sky(classes=[]), "the list is empty"),
    "no name": (road_and_sky(classes=[{"id": 0}]), "classes[0].name: expected a name, got None"),
    "no object": (road_and_sky(classes=[3]), "classes[0]: expected a name or an object, got 3"),
    "a negative id": (
        road_and_sky(classes=[{"id": -1, "name": "a"}]),
        "classes[0].id: expected a number from 0 to 65535, got -1",
    ),
    "a wrong colour": (
        road_and_sky(classes=[{"name": "a", "color": [0, 0, 256]}]),
        "classes[0].color: expected three numbers from 0 to 255",
    ),
    "ignore is a class": (road_and_sky(ignore=1), "1 is also the id of a class"),
    "ignore is no number": (road_and_sky(ignore="void"), "ignore: expected a number from 0"),
    "too few evaluation ids": (road_and_sky(evaluation=[0]), "has 1 ids for 2 classes"),
    "an evaluation id without a name": (
        road_and_sky(evaluation=[0, 3], evaluation_names=["road"]),
        "evaluation: 3 without a name in evaluation_names (1 names)",
    ),
    "no list": ({"names": []}, 'expected {"classes": ['),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED)
def test_faulty_class_lists_are_refused(value, message):
    with pytest.raises(UserError) as error:
        from_json(value, "classes.json")
    assert "classes.json" in str(error.value)
    assert message in str(error.value)


def test_all_faults_of_a_class_list_come_at_once():
    with pytest.raises(UserError) as error:
        from_json({"classes": [{"id": 3, "name": ""}, {"id": 3, "name": "a"}], "ignore": 3}, "x")
    assert len(error.value.faults) == 3


def test_a_missing_class_list_says_where_it_belongs(tmp_path):
    with pytest.raises(UserError, match=r"classes\.json: no such file; write the class list there"):
        load_label_space(tmp_path / "classes.json")


def test_a_class_list_that_is_not_json(tmp_path):
    (tmp_path / "classes.json").write_text("classes: [road]")
    with pytest.raises(UserError, match="not a class list"):
        load_label_space(tmp_path / "classes.json")


# Keys


@given(st.text(max_size=30))
def test_a_cleaned_key_has_letters_digits_underscore_and_dash_only(name):
    assert re.fullmatch(r"[A-Za-z0-9_-]+", clean_key(name))


@given(st.text(max_size=30))
def test_cleaning_twice_changes_nothing(name):
    assert clean_key(clean_key(name)) == clean_key(name)


@given(st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True))
def test_a_clean_key_stays_as_it_is(name):
    assert clean_key(name) == name


def test_folders_become_dashes_and_the_rest_underscores():
    assert clean_key("night/rain.01/straße") == "night-rain_01-stra_e-70afe221"
