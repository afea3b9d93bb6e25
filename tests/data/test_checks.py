"""Label check before every run: counts, and all faults at once."""

import re
from itertools import pairwise

import numpy as np
import pytest

from ecgan import labels
from ecgan.data.checks import check_labels
from ecgan.errors import UserError
from tests.helpers import trees
from tests.helpers.errors import message
from tests.helpers.folder_items import items_for
from tests.helpers.trees import empty, in_palette, photo, save, stripes, truncate

SPACE = labels.from_json(trees.CLASSES, "classes.json")
FOLDER = "folder"


def folder_items(root, **options):
    return items_for(FOLDER, root, "train", **options)


def test_the_check_counts_pixels(tmp_path):
    items = folder_items(trees.write_folder(tmp_path))
    counts = check_labels(items, SPACE, FOLDER).totals
    assert counts.pixels.tolist() == [4 * 512] * 3
    assert counts.unlabelled == 4 * 512
    assert counts.num_items == 4


def test_the_check_names_ids_with_their_number_of_files(tmp_path):
    root = trees.write_folder(tmp_path, values=(0, 34))
    save(root / "labels/train/3.png", stripes([0, 40]))
    said = message(check_labels, folder_items(root), SPACE, FOLDER)
    first = root / "labels/train/0.png"
    assert f"label 34 found in 3 files (first: {first}), the class list has 0-2 and 255" in said
    assert f"label 40 found in 1 file (first: {root}/labels/train/3.png), the class list" in said


def test_a_single_unknown_id_may_be_the_one_for_unlabelled(tmp_path):
    said = message(
        check_labels, folder_items(trees.write_folder(tmp_path, values=(0, 11))), SPACE, FOLDER
    )
    assert said.endswith(
        "0-2 and 255; if it marks unlabelled pixels, set it as ignore of the class list"
    )


def test_cityscapes_says_0_to_34(tmp_path):
    root = trees.write_cityscapes(tmp_path)
    path = next((root / "gtFine/train/aachen").glob("*labelIds.png"))
    save(path, stripes([7, 255]))
    said = message(
        check_labels,
        items_for("cityscapes", root, "train"),
        labels.builtin("cityscapes"),
        "cityscapes",
    )
    assert said.endswith(f"label 255 found in 1 file (first: {path}), the class list has 0-34")


def test_the_check_reports_everything_at_once(tmp_path):
    root = trees.write_folder(tmp_path, num=6)
    save(root / "labels/train/0.png", stripes([0, 9]))
    save(root / "labels/train/1.png", stripes([0], 16, 64))
    truncate(save(root / "labels/train/2.png", photo(0)))
    empty(root / "images/train/3.jpg")
    truncate(root / "images/train/4.jpg")
    save(root / "labels/train/5.png", np.full((32, 64, 3), 77, np.uint8))
    with pytest.raises(UserError) as error:
        check_labels(folder_items(root), SPACE, FOLDER)
    faults = error.value.faults
    assert error.value.title == "label check of 6 items failed"
    assert [re.sub(r"\(first: .*?\)", "(…)", f).replace(str(root), "") for f in faults[:3]] == [
        "label 9 found in 1 file (…), the class list has 0-2 and 255; if it marks unlabelled "
        "pixels, set it as ignore of the class list",
        "1 label map of RGB colours (…) beside 4 label maps of numbers (…); save all in one form",
        "1 label map not of the size of the photo or of other maps (…); export them at the size of "
        "the photos, or scale them with nearest neighbour",
    ]
    assert "labels/train/1.png: label 64 x 16, photo 64 x 32" in faults[2]
    assert [f.split(": ")[0].removeprefix(str(root)) for f in faults[3:]] == [
        "/labels/train/2.png",
        "/images/train/3.jpg",
        "/images/train/4.jpg",
    ]


def test_many_faults_are_cut_short(tmp_path):
    root = trees.write_folder(tmp_path, num=32)
    for path in (root / "images/train").iterdir():
        empty(path)
    for value, path in enumerate((root / "labels/train").iterdir(), 100):
        save(path, stripes([0, value]))
    with pytest.raises(UserError) as error:
        check_labels(folder_items(root), SPACE, FOLDER)
    assert len(error.value.faults) == 21
    assert error.value.faults[-1] == "and 13 more"


def test_files_with_one_fault_are_one_line(tmp_path):
    root = trees.write_folder(tmp_path, num=3)
    for path in (root / "images/train").iterdir():
        empty(path)
    said = message(check_labels, folder_items(root), SPACE, FOLDER)
    assert said.endswith(
        f"3 files (first: {root}/images/train/0.jpg): empty file (0 bytes); "
        "replace the file or remove the pair"
    )


def test_photos_are_left_alone_where_only_labels_are_used(tmp_path):
    root = trees.write_folder(tmp_path)
    empty(root / "images/train/0.jpg")
    check_labels(folder_items(root), SPACE, FOLDER, check_images=False)


def test_instance_and_edge_maps_must_have_the_labels_size(tmp_path):
    root = trees.write_folder(tmp_path, num=1, splits=("train", "val"))
    save(root / "instances/train/0.png", stripes([0], 16, 64))
    save(root / "edges/train/0.png", stripes([0], 32, 32))
    items = folder_items(root, instances=True, edges_folder=True)
    said = message(check_labels, items, SPACE, FOLDER)
    assert "0.png: label 64 x 32, instance map 64 x 16, edge map 32 x 32" in said


def test_palettes_that_contradict_each_other_are_colour_masks(tmp_path):
    """Saved with a palette of their own, their indices would be ids by chance."""
    road, sky, car = (c.color for c in SPACE.classes)
    root = trees.write_folder(tmp_path, num=2)
    in_palette([0, 1], [road, car], root / "labels/train/0.png")
    in_palette([0, 1], [car, sky], root / "labels/train/1.png")
    said = message(check_labels, folder_items(root), SPACE, FOLDER)
    assert "number 0, palette colour (128, 64, 128), is" not in said  # road by both
    assert "number 1, palette colour (0, 0, 142), is sky by number, car by colour" in said
    assert said.endswith("say which is right with data.label_encoding: index or color")


def test_the_check_gives_the_same_for_any_number_of_threads(tmp_path):
    items = folder_items(trees.write_folder(tmp_path, num=8))
    counts = [check_labels(items, SPACE, FOLDER, workers=n).counts.tolist() for n in (1, 4)]
    assert all(a == b for a, b in pairwise(counts))


def test_camvid_is_read(camvid):
    space = labels.load_label_space(camvid / "classes.json")
    counts = check_labels(items_for(FOLDER, camvid, "val"), space, FOLDER).totals
    assert counts.num_items == 101
    assert counts.pixels.sum() + counts.unlabelled == 101 * 360 * 480
