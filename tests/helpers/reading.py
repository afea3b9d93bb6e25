"""What a training reads of a folder that was drawn, and what it refuses; inspect says the same."""

import re

import numpy as np
import pytest

from ecgan.data import datasets
from ecgan.data.checks import check_labels
from ecgan.data.datasets import DataFolder
from ecgan.data.files.layout import Options
from ecgan.data.files.photo_sets import Reading
from ecgan.data.survey import survey_dataset
from ecgan.errors import UserError
from ecgan.recipe import label_space, parse_recipe
from tests.helpers.user_folders import HEIGHT, WIDTH, ids, photo_of


def read(root, split="train", options=None, reading=None):
    """What a training reads: label maps and photos by key, and the notes of the check."""
    space = label_space(parse_recipe({"data": {"root": str(root)}}, "x").data)
    folder = DataFolder("folder", root, options or Options(), reading or Reading())
    items = [*folder.items_for(split), *(folder.items_for("val") if split == "train" else ())]
    check = check_labels(list({i.key: i for i in items}.values()), space, "folder")
    labels = {i.key: datasets.read_label(i, space, "folder") for i in check.items}
    photos = {i.key: datasets.read_image(i) for i in check.items}
    return labels, photos, " ".join([*check.notes, *check.class_notes()])


def refusal(root):
    with pytest.raises(UserError) as error:
        read(root)
    said = str(error.value)
    faults = survey_dataset(root).all_faults
    assert faults
    for fault in faults:  # inspect says the same, but for which file comes first
        assert without_files(fault).partition(": ")[2] in without_files(said)
    return said


def without_files(text):
    return re.sub(r"/\S*?\d\d\d\.\w+", "FILE", text)


def assert_as_drawn(labels, photos=None, *, size=(HEIGHT, WIDTH), num_classes=4):
    assert labels
    for key, label in labels.items():
        seed = int(re.search(r"\d+", key)[0])
        assert (label == ids(seed, num_classes, *size)).all(), key
        if photos is not None:
            expected = photo_of(ids(seed, num_classes, *size), seed)
            assert np.abs(photos[key].astype(int) - expected).mean() < 12, key
