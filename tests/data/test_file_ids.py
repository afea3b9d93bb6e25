"""Label files whose numbers are not the ids, and colours that nobody gave."""

import numpy as np
import pytest
from PIL import Image

from ecgan import labels
from ecgan.data import datasets, decode
from ecgan.data.datasets import Item
from ecgan.errors import UserError
from ecgan.labels import from_json


@pytest.fixture
def read(tmp_path):
    def read_values(space, values, dataset="folder"):
        """Ids of a label file of one row of numbers or of colours (r, g, b)."""
        kind = np.uint8 if np.max(values) < 256 else np.uint16
        Image.fromarray(np.array([values], kind)).save(tmp_path / "a.png")
        item = Item("a", tmp_path / "a.png")
        return datasets.read_label(item, space, dataset)[0].tolist()

    return read_values


def test_ids_from_one_become_ids_from_zero(read):
    classes = [{"id": 2, "name": "sky"}, {"id": 1, "name": "road"}]
    space = from_json({"classes": classes, "ignore": 0}, "x")
    assert read(space, [0, 1, 2]) == [255, 0, 1]
    assert decode.accepted_ids(space, "folder") == "1-2 and 0"
    with pytest.raises(UserError, match="label 3: the class list has 1-2 and 0"):
        read(space, [1, 3])


def test_several_numbers_of_a_class(read):
    classes = [{"ids": [1007, 7], "name": "road"}, {"id": 2007, "name": "sky"}]
    space = from_json(classes, "x")
    assert read(space, [7, 1007, 2007, 255]) == [0, 0, 1, 255]
    assert decode.accepted_ids(space, "folder") == "7, 1007, 2007 and 255"
    with pytest.raises(UserError, match="label 0: "):
        read(space, [0, 1007])


def test_several_numbers_of_unlabelled_pixels(read):
    space = from_json({"classes": ["road", "sky"], "ignore": [254, 255]}, "x")
    assert read(space, [0, 1, 254, 255]) == [0, 1, 255, 255]
    with pytest.raises(UserError, match="label 7: "):
        read(space, [7])


def test_own_numbers_overrule_those_of_ade20k(read):
    assert read(labels.builtin("ade20k"), [0, 1, 150], "ade20k") == [255, 0, 149]
    own = from_json({"classes": [{"id": 5, "name": "wall"}], "ignore": 0}, "x")
    assert read(own, [0, 5], "ade20k") == [255, 0]
    assert decode.accepted_ids(own, "ade20k") == "5 and 0"


def test_default_colors_mean_nothing(read):
    space = from_json(["road", "sky"], "x")
    for color in (space.classes[0].color, (0, 0, 0)):
        with pytest.raises(UserError, match="the class list gives no colours"):
            read(space, [color])


def test_given_colors_mean_their_class_and_black_is_unlabelled(read):
    space = from_json([{"name": "road", "color": [1, 2, 3]}, "sky"], "x")
    assert read(space, [(1, 2, 3), (0, 0, 0)]) == [0, 255]
    with pytest.raises(UserError, match="is not in the class list"):
        read(space, [space.classes[1].color])


def test_equal_lists_of_given_and_of_default_colors_are_read_apart(read):
    default = from_json(["road"], "x")
    given = from_json(default.identity(), "x")
    assert given == default
    for _ in range(2):  # the second time from a cache
        assert read(given, [default.classes[0].color]) == [0]
        with pytest.raises(UserError, match="gives no colours"):
            read(default, [default.classes[0].color])
