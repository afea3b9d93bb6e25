"""Pairing, splits and directory structures."""

import numpy as np
import pytest

from ecgan import labels
from ecgan.data import datasets
from ecgan.data.datasets import DataFolder, Item, Subset, index_labels
from tests.helpers import folder_items, trees
from tests.helpers.errors import message
from tests.helpers.folder_items import index, items_for
from tests.helpers.trees import photo, save, stripes

FOLDER = "folder"


def keys(items):
    return [item.key for item in items]


def label_item(path):
    return Item("a", path)


# Keys


def test_keys_that_collide_after_cleaning_name_both_files(tmp_path):
    for name in ("a.b", "a_b"):
        save(tmp_path / f"images/{name}.png", photo(0))
        save(tmp_path / f"labels/{name}.png", stripes([0]))
    text = message(index, FOLDER, tmp_path, None)
    assert f"{tmp_path}/labels/a.b.png and {tmp_path}/labels/a_b.png share the key 'a_b'" in text
    assert f"{tmp_path}/images/a.b.png and {tmp_path}/images/a_b.png share the key 'a_b'" in text
    assert "share the key 'a_b'; rename" in message(index_labels, FOLDER, tmp_path / "labels")


# Directory structures


def test_cityscapes_is_paired_over_city_folders(tmp_path):
    items = index("cityscapes", trees.write_cityscapes(tmp_path), "train", instances=True)
    assert keys(items) == [
        "aachen_000000_000019",
        "aachen_000001_000019",
        "weimar_000000_000019",
        "weimar_000001_000019",
    ]
    names = [
        "aachen_000000_000019_leftImg8bit.png",
        "aachen_000000_000019_gtFine_labelIds.png",
        "aachen_000000_000019_gtFine_instanceIds.png",
    ]
    first = items[0]
    assert [p.name for p in (first.image, first.label, first.instances)] == names
    assert folder_items.splits("cityscapes", tmp_path) == ["train", "val"]


def test_cityscapes_instance_ids_above_32767_stay_apart(tmp_path):
    item = index("cityscapes", trees.write_cityscapes(tmp_path), "val", instances=True)[0]
    ids = datasets.read_instances(item)
    assert np.unique(ids).tolist() == [0, 7, 26000, 33001]
    label = datasets.read_label(item, labels.builtin("cityscapes"), "cityscapes")
    assert np.unique(label).tolist() == [0, 7, 26, 33]
    assert label.dtype == np.uint8


def test_instance_ids_of_32_bits_and_in_colours(tmp_path):
    deep = save(tmp_path / "deep.tif", stripes([0, 70_000], dtype=np.int32))
    color = save(tmp_path / "color.png", np.array([[[1, 0, 0], [0, 1, 0]]], np.uint8))
    read = [datasets.read_instances(Item("a", deep, instances=p)) for p in (deep, color)]
    assert np.unique(read[0]).tolist() == [0, 70_000]
    assert read[1][0, 0] != read[1][0, 1]


@pytest.mark.parametrize("inner", [True, False], ids=["parent", "itself"])
def test_ade20k_labels_are_shifted_and_0_is_unlabelled(tmp_path, inner):
    root = trees.write_ade20k(tmp_path)
    root = root if inner else root / "ADEChallengeData2016"
    items = index("ade20k", root, "train")
    assert keys(items) == ["ADE_train_00000001", "ADE_train_00000002"]
    label = datasets.read_label(items[0], labels.builtin("ade20k"), "ade20k")
    assert np.unique(label).tolist() == [0, 149, 255]
    assert label[0, 0] == 255
    assert [datasets.read_image(item).shape for item in items] == [(32, 64, 3)] * 2  # L and CMYK
    assert keys(items_for("ade20k", root, "val")) == ["ADE_val_00000001", "ADE_val_00000002"]


def test_ade20k_ids_above_150_are_refused_in_its_own_numbers(tmp_path):
    item = label_item(save(tmp_path / "a.png", stripes([1, 151, 255])))
    text = message(datasets.read_label, item, labels.builtin("ade20k"), "ade20k")
    assert "label 151: the class list has 1-150, and 0 for unlabelled" in text
    assert "label 255" in text


def test_coco_stuff_keeps_255_as_unlabelled(tmp_path):
    root = trees.write_coco_stuff(tmp_path)
    items = index("coco_stuff", root, "train", instances=True)
    assert keys(items) == ["000000000001", "000000000002"]
    save(root / "stuffthingmaps/train2017/000000000001_labelTrainIds.png", stripes([0]))
    assert index("coco_stuff", root, "train", instances=True) == items  # another tool's variant
    label = datasets.read_label(items[0], labels.builtin("coco_stuff"), "coco_stuff")
    assert np.unique(label).tolist() == [0, 181, 255]
    assert np.unique(datasets.read_instances(items[0])).tolist() == [0, 1, 181, 255]


@pytest.mark.parametrize(
    ("photos", "maps"),
    [
        ("train2017", "stuffthingmaps/train2017"),
        ("images/train2017", "annotations/train2017"),
        ("train_img", "train_label"),
    ],
)
def test_other_places_of_coco_stuff(tmp_path, photos, maps):
    save(tmp_path / photos / "1.jpg", photo(0))
    save(tmp_path / maps / "1.png", stripes([3]))
    assert keys(index("coco_stuff", tmp_path, "train")) == ["1"]
    # A user's own folders may be called as the others
    known = maps.startswith("stuffthingmaps")
    assert datasets.recognise(tmp_path) == ("coco_stuff" if known else "folder")


def test_a_folder_is_paired_at_any_depth_and_by_name_not_order(tmp_path):
    for i, name in enumerate(["day/a", "day/c", "night/rain/b", "z"]):
        suffix = (".JPG", ".webp", ".bmp", ".tif")[i]
        save(tmp_path / "images" / f"{name}{suffix}", photo(i))
    for name in ["z", "day/c", "night/rain/b", "day/a"]:
        save(tmp_path / "masks" / f"{name}.png", stripes([0]))
        save(tmp_path / "instances" / f"{name}.png", stripes([0]))
        save(tmp_path / "edges" / f"{name}.png", stripes([0, 255]))
    items = index(FOLDER, tmp_path, None, instances=True, edges_folder=True)
    assert keys(items) == ["day-a", "day-c", "night-rain-b", "z"]
    for item in items:
        assert len({p.stem for p in (item.image, item.label, item.instances, item.edge)}) == 1
    assert np.unique(datasets.read_edge(items[0])).tolist() == [0, 255]


def test_hidden_files_are_not_seen_and_links_are_followed(tmp_path):
    root = trees.write_folder(tmp_path / "a", splits=("train",), num=1)
    (root / "images/train/.0.jpg").write_bytes(b"")
    (tmp_path / "b").mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "b" / kind).mkdir()
        (tmp_path / "b" / kind / "day").symlink_to(root / kind / "train")
    assert keys(index(FOLDER, tmp_path / "b", None)) == ["day-0"]


def test_synonyms_of_split_folders(tmp_path):
    for name in ("training", "valid", "testing"):
        save(tmp_path / f"images/{name}/a.png", photo(0))
        save(tmp_path / f"labels/{name}/a.png", stripes([0]))
    assert folder_items.splits(FOLDER, tmp_path) == ["train", "val", "test"]
    assert all(keys(items_for(FOLDER, tmp_path, s)) == ["a"] for s in ("train", "val", "test"))


# Splits


def test_a_fraction_of_the_training_split_is_the_same_every_time(tmp_path):
    root = trees.write_folder(tmp_path, num=20)

    def keys(split, fraction):
        return [
            i.key for i in folder_items.items_for("folder", root, split, subset=Subset(fraction))
        ]

    whole, half, tenth = (keys("train", f) for f in (1.0, 0.5, 0.1))
    assert (len(whole), len(half), len(tenth)) == (20, 10, 2)
    assert set(tenth) < set(half) < set(whole)
    assert half == sorted(half) == keys("train", 0.5)
    assert half != whole[:10]
    assert len(keys("train", 1e-9)) == 1
    assert len(keys("val", 0.1)) == 20


@pytest.mark.parametrize("divided", [True, False], ids=["train", "nothing"])
def test_without_a_split_val_a_tenth_is_held_out(tmp_path, divided):
    folder = "train" if divided else ""
    for i in range(60):
        save(tmp_path / "images" / folder / f"{i}.png", photo(0, 2, 2))
        save(tmp_path / "labels" / folder / f"{i}.png", stripes([0], 2, 2))
    train, val = (keys(items_for(FOLDER, tmp_path, s)) for s in ("train", "val"))
    assert sorted(train + val) == sorted(map(str, range(60)))
    assert 2 <= len(val) <= 12
    # Files that come later do not move the others.
    save(tmp_path / "images" / folder / "new.png", photo(0, 2, 2))
    save(tmp_path / "labels" / folder / "new.png", stripes([0], 2, 2))
    assert set(keys(items_for(FOLDER, tmp_path, "val"))) - {"new"} == set(val)


def test_a_tenth_is_at_least_one_and_one_pair_serves_for_both(tmp_path):
    root = trees.write_folder(tmp_path, splits=("train",), num=2)
    assert len(items_for(FOLDER, root, "train")) == len(items_for(FOLDER, root, "val")) == 1
    for path in (root / "images/train/1.jpg", root / "labels/train/1.png"):
        path.unlink()
    assert keys(items_for(FOLDER, root, "train")) == keys(items_for(FOLDER, root, "val")) == ["0"]


def test_a_split_val_is_used_and_train_stays_whole(tmp_path):
    root = trees.write_folder(tmp_path)
    assert keys(items_for(FOLDER, root, "train")) == ["0", "1", "2", "3"]
    assert all("/val/" in str(item.label) for item in items_for(FOLDER, root, "val"))


def test_a_split_of_the_users_own_name(tmp_path):
    root = trees.write_folder(tmp_path, splits=("fold1",), num=10)
    train, val = (keys(items_for(FOLDER, root, s, train_split="fold1")) for s in ("fold1", "val"))
    assert sorted(train + val) == sorted(map(str, range(10)))


def test_a_test_split_is_never_divided(tmp_path):
    root = trees.write_folder(tmp_path, splits=("train", "test"), num=10)
    assert len(items_for(FOLDER, root, "test")) == 10


def test_items_without_photos(tmp_path):
    root = trees.write_folder(tmp_path, num=1)
    (root / "images/train/0.jpg").unlink()
    assert items_for(FOLDER, root, "train", need_images=False)[0].image is None


# Label maps alone


def test_label_maps_alone_at_any_depth(tmp_path):
    save(tmp_path / "x/1.png", stripes([0]))
    save(tmp_path / "2.png", stripes([0]))
    save(tmp_path / "photo.jpg", photo(0))
    assert keys(index_labels(FOLDER, tmp_path)) == ["2", "x-1"]


def test_of_a_whole_data_set_only_the_labels_are_taken(tmp_path):
    root = trees.write_folder(tmp_path, num=1)
    save(root / "images/train/1.png", photo(0))
    assert keys(index_labels(FOLDER, root)) == ["train-0", "val-0"]


def test_of_cityscapes_only_label_ids_are_taken(tmp_path):
    root = trees.write_cityscapes(tmp_path, splits=("val",), num=1)
    assert keys(index_labels("cityscapes", root)) == [
        "aachen_000000_000019",
        "weimar_000000_000019",
    ]


def test_instance_maps_alone_have_the_keys_of_their_label_maps(tmp_path):
    root = trees.write_cityscapes(tmp_path, splits=("val",), num=1)
    maps = index_labels("cityscapes", root / "gtFine/val", kind="instances")
    assert keys(maps) == keys(index_labels("cityscapes", root / "gtFine/val"))
    assert all(item.label.stem.endswith("_instanceIds") for item in maps)


def test_a_label_folder_without_a_file(tmp_path):
    assert "no label maps below it; expected files *.bmp, *.gif, *.png" in message(
        index_labels, FOLDER, tmp_path
    )
    save(tmp_path / "a.jpg", photo(0))
    assert "1 label map in a format that changes ids (first: a.jpg); save label maps as PNG" in (
        message(index_labels, FOLDER, tmp_path)
    )


# Refusals of the index


def test_a_missing_folder_is_named_with_the_nearest(tmp_path):
    trees.write_folder(tmp_path / "camvid")
    text = message(items_for, FOLDER, tmp_path / "camvd", "train")
    assert text == (
        f"{tmp_path}/camvd: no such folder (did you mean {tmp_path}/camvid?); "
        "give the data set's folder"
    )
    assert "not a folder" in message(items_for, FOLDER, tmp_path / "camvid/classes.json", "train")


def test_missing_folders_are_all_named_with_what_is_there(tmp_path):
    (tmp_path / "pictures").mkdir()
    text = message(items_for, FOLDER, tmp_path, "train")
    for noun in ("label maps", "photos"):
        assert f"no {noun}: expected photos and label maps in folders such as images/" in text
    assert "there are only pictures/" in text


def test_a_missing_split_is_named_with_those_there(tmp_path):
    text = message(items_for, FOLDER, trees.write_folder(tmp_path), "test")
    assert "no label maps of split test: expected" in text
    assert "there are only images/, labels/, with splits train, val" in text


def test_another_layout_is_recognised(tmp_path):
    text = message(items_for, "ade20k", trees.write_cityscapes(tmp_path), "train")
    assert "this looks like data.dataset: cityscapes" in text


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_empty_folders(tmp_path, kind):
    root = trees.write_folder(tmp_path)
    for path in (root / kind / "train").iterdir():
        path.unlink()
    noun = "photos" if kind == "images" else "label maps"
    assert f"no {noun} of split train: expected" in message(items_for, FOLDER, root, "train")


def test_unpaired_files_are_counted_both_ways(tmp_path):
    root = trees.write_folder(tmp_path)
    save(root / "images/train/x.jpg", photo(0))
    save(root / "images/train/y.jpg", photo(0))
    save(root / "labels/train/z.png", stripes([0]))
    text = message(items_for, FOLDER, root, "train")
    assert "2 photos have no label map of the same name (first: images/train/x.jpg)" in text
    assert "1 label map has no photo of the same name (first: labels/train/z.png); add" in text


def test_missing_instance_maps_are_a_fault_only_where_they_are_wanted(tmp_path):
    root = trees.write_cityscapes(tmp_path)
    next((root / "gtFine/train/aachen").glob("*instanceIds.png")).unlink()
    assert len(items_for("cityscapes", root, "train")) == 4
    text = message(items_for, "cityscapes", root, "train", instances=True)
    assert "1 label map has no instance map of the same name (first: gtFine/train/aachen" in text


def test_label_maps_in_jpeg_are_refused(tmp_path):
    root = trees.write_folder(tmp_path)
    save(root / "labels/train/0.jpg", stripes([0]))
    found = DataFolder(FOLDER, root).find("train", ["label", "image"])
    assert (found.faults, found.notes) == ([], ["1 JPEG file beside the label maps: not read."])
    (root / "labels/train/0.png").unlink()
    text = message(items_for, FOLDER, root, "train")
    assert "1 label map in a format that changes ids (first: labels/train/0.jpg)" in text


def test_an_edge_folder_is_needed_where_edges_come_from_it(tmp_path):
    text = message(items_for, FOLDER, trees.write_folder(tmp_path), "train", edges_folder=True)
    assert "no edge maps of split train" in text
