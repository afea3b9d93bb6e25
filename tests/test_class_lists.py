"""Class lists: numbers of the label files, colours that nobody gave, and lists of other tools."""

import json

import pytest

from ecgan.labels import from_json

# Numbers of the label files


def test_ids_from_one_become_ids_from_zero():
    space = from_json(
        {"classes": [{"id": 2, "name": "sky"}, {"id": 1, "name": "road"}], "ignore": 0}, "x"
    )
    assert space.names == ("road", "sky")
    assert space.file_ids == ((1, 0), (2, 1))


def test_several_numbers_of_a_class():
    space = from_json(
        {"classes": [{"ids": [1007, 7], "name": "road"}, {"id": 2007, "name": "sky"}]}, "x"
    )
    assert space.file_ids == ((7, 0), (1007, 0), (2007, 1))


def test_several_numbers_of_unlabelled_pixels():
    space = from_json({"classes": ["road", "sky"], "ignore": [254, 255]}, "x")
    assert (space.ignore, space.file_ids) == (254, ((0, 0), (1, 1), (255, 255)))


def test_ids_without_gaps_need_no_numbers_of_their_own():
    space = from_json([{"ids": [1], "name": "sky"}, {"id": 0, "name": "road"}], "x")
    assert space.file_ids is None
    assert "file_ids" not in space.to_json()


@pytest.mark.parametrize(
    "document",
    [
        {"classes": [{"ids": [7, 1007], "name": "road"}, {"id": 8, "name": "sky"}], "ignore": 0},
        {"classes": ["road", "sky"], "ignore": [254, 255]},
        {"classes": [{"id": 255, "name": "sky"}]},
    ],
)
def test_numbers_of_the_files_survive_json(document):
    space = from_json(document, "x")
    assert from_json(json.loads(json.dumps(space.to_json())), "x") == space


def test_entries_give_a_list_back_as_its_user_wrote_it():
    classes = [{"ids": [7, 1007], "name": "road", "color": [1, 2, 3]}, {"id": 8, "name": "sky"}]
    assert from_json(classes, "x").entries() == classes


def test_label_maps_that_we_write_hold_ids():
    space = from_json({"classes": [{"id": 7, "name": "road"}], "ignore": 0}, "x")
    assert space.written().file_ids is None
    assert space.written().ignore == 255
    assert space.written().classes == space.classes
    assert space != space.written()


def test_a_number_that_another_class_has_is_ignored_by_no_default():
    assert from_json([{"id": 255, "name": "sky"}], "x").ignore is None


# Colours that nobody gave


def test_whether_a_color_was_given_survives_json_and_decides_no_equality():
    space = from_json([{"name": "road", "color": [1, 2, 3]}, "sky"], "x")
    document = json.loads(json.dumps(space.to_json()))
    assert [c.get("has_color") for c in document["classes"]] == [None, False]
    assert from_json(document, "x").colors_given == (True, False)
    # As version 0.1 and runs before this key wrote it
    earlier = from_json(space.identity(), "x")
    assert earlier.colors_given == (True, True)
    assert earlier == space
    assert hash(earlier) == hash(space)
    assert earlier.identity() == space.identity()
