"""Finding, reading and checking the files of a data set."""

import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan import labels
from ecgan.data import datasets, decode
from ecgan.data.datasets import Item, check_labels, index, index_labels, items_for
from ecgan.data.sample import Sample
from ecgan.errors import UserError
from ecgan.labels import clean_key
from tests.helpers import trees
from tests.helpers.trees import photo, save, stripes

SPACE = labels.from_json(trees.CLASSES, "classes.json")
FOLDER = "folder"


def keys(items):
    return [item.key for item in items]


def label_item(path):
    return Item("a", path)


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)


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
    assert clean_key("night/rain.01/straße") == "night-rain_01-stra_e"


def test_keys_that_collide_after_cleaning_name_both_files(tmp_path):
    for name in ("a.b", "a_b"):
        save(tmp_path / f"images/{name}.png", photo(0))
        save(tmp_path / f"labels/{name}.png", stripes([0]))
    text = message(index, FOLDER, tmp_path, None)
    assert f"{tmp_path}/labels/a.b.png and {tmp_path}/labels/a_b.png share the key 'a_b'" in text
    assert f"{tmp_path}/images/a.b.png and {tmp_path}/images/a_b.png share the key 'a_b'" in text
    assert "share the key 'a_b'; rename" in message(index_labels, FOLDER, tmp_path / "labels")


# Layouts


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
    assert datasets.splits("cityscapes", tmp_path) == ["train", "val"]


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
    assert "label 151: the recipe has 1-150, and 0 for unlabelled" in text
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
    assert datasets.recognise(tmp_path) == "coco_stuff"


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
    assert datasets.splits(FOLDER, tmp_path) == ["train", "val", "test"]
    assert all(keys(items_for(FOLDER, tmp_path, s)) == ["a"] for s in ("train", "val", "test"))


# Splits


def test_a_fraction_of_the_training_split_is_the_same_every_time(tmp_path):
    root = trees.write_folder(tmp_path, num=20)

    def keys(split, fraction):
        return [i.key for i in datasets.items_for("folder", root, split, fraction=fraction)]

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
    assert "no label maps below it; expected files *.bmp, *.png" in message(
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
    assert "no folder of label maps: expected labels/ or masks/ below" in text
    assert "no folder of photos: expected images/ below" in text
    assert "there are only pictures/" in text


def test_a_missing_split_is_named_with_those_there(tmp_path):
    text = message(items_for, FOLDER, trees.write_folder(tmp_path), "test")
    assert "expected labels/test/ or labels/testing/ or masks/test/" in text
    assert "below labels/ are only train/, val/" in text


def test_another_layout_is_recognised(tmp_path):
    text = message(items_for, "ade20k", trees.write_cityscapes(tmp_path), "train")
    assert "this looks like data.dataset: cityscapes" in text


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_empty_folders(tmp_path, kind):
    root = trees.write_folder(tmp_path)
    for path in (root / kind / "train").iterdir():
        path.unlink()
    assert f"{kind}/train: no {'photos' if kind == 'images' else 'label maps'} below it" in message(
        items_for, FOLDER, root, "train"
    )


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
    text = message(items_for, FOLDER, root, "train")
    assert "1 label map in a format that changes ids (first: labels/train/0.jpg)" in text


def test_an_edge_folder_is_needed_where_edges_come_from_it(tmp_path):
    text = message(items_for, FOLDER, trees.write_folder(tmp_path), "train", edges_folder=True)
    assert "no folder of edge maps: expected edges/train/" in text


# Photos of every mode


def test_photos_of_every_mode_become_rgb(tmp_path):
    rgb = photo(0)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        path = save(tmp_path / f"{mode}.png", rgb, mode)
        expected = np.asarray(Image.open(path).convert("RGBA"))[..., :3]
        assert (decode.read_photo(path) == expected).all(), mode
        assert decode.probe_photo(path) == (32, 64)
    for mode in ("L", "CMYK"):
        path = save(tmp_path / f"{mode}.jpg", rgb, mode)
        assert decode.read_photo(path).shape == (32, 64, 3)
        assert decode.probe_photo(path) == (32, 64)


def test_alpha_is_dropped(tmp_path):
    rgba = np.dstack([photo(0), np.zeros((32, 64), np.uint8)])
    assert (decode.read_photo(save(tmp_path / "a.png", rgba)) == photo(0)).all()


def test_a_palette_with_transparency_is_no_warning(tmp_path):
    image = Image.fromarray(photo(0)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode.read_photo(tmp_path / "a.png").shape == (32, 64, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_photos_are_scaled(tmp_path, name):
    path = save(tmp_path / name, np.array([[0, 257, 65535 // 2, 65535]], np.uint16))
    assert decode.read_photo(path)[0].tolist() == [[0] * 3, [1] * 3, [127] * 3, [255] * 3]
    assert decode.read_grey(path)[0].tolist() == [0, 1, 127, 255]


def test_the_orientation_tag_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(tmp_path / "a.jpg", photo(0), exif=exif)
    assert decode.read_photo(path).shape == (32, 64, 3)


def test_floating_point_photos_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    for read in (decode.read_photo, decode.probe_photo, decode.read_grey):
        assert "a.tif: pixels of mode F; convert the picture to RGB" in message(read, path)


# Files that cannot be read


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path):
    path.write_text("not a picture")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (empty, "empty file (0 bytes); get it again or remove the pair"),
        (truncate, "truncated or damaged ("),
        (text, "not an image; replace the file or remove the pair"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, damage, expected):
    path = save(tmp_path / f"a{suffix}", photo(0, 200, 200))
    damage(path)
    reads = [decode.read_photo, decode.probe_photo]
    reads += [decode.read_raw, decode.read_hashed] if suffix == ".png" else []
    for read in reads:
        said = message(read, path)
        assert said.startswith(f"{path}: "), said
        assert expected in said


def test_a_missing_file_is_named(tmp_path):
    for read in (decode.read_photo, decode.read_hashed):
        assert message(read, tmp_path / "a.png") == f"{tmp_path}/a.png: no such file"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [10, 1500], ids=["error", "warning"])
def test_a_huge_image_is_refused_with_its_size(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", photo(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 1500:  # between the limit and twice the limit Pillow warns
        assert decode.read_photo(path).shape == (32, 64, 3)
        return
    assert message(decode.read_photo, path) == (
        f"{path}: 2,048 pixels, too large to be read safely; scale the pair down first"
    )


# Label maps of every mode


def colored(values):
    palette = SPACE.palette
    return palette[stripes(values)]


def in_palette(values, colors, path):
    image = Image.fromarray(stripes(values))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_label_maps_of_every_mode_mean_the_same(tmp_path):
    expected = stripes([0, 1, 2, 255])
    files = [
        save(tmp_path / "l.png", expected),
        save(tmp_path / "la.png", np.dstack([expected, expected])),
        save(tmp_path / "16.png", expected.astype(np.uint16)),
        save(tmp_path / "32.tif", expected.astype(np.int32)),
        save(tmp_path / "l.bmp", expected),
        save(tmp_path / "rgb.png", colored([0, 1, 2, 255])),
        save(tmp_path / "rgba.png", np.dstack([colored([0, 1, 2, 255]), expected])),
        in_palette([0, 1, 2, 255], np.zeros((256, 3)), tmp_path / "p.png"),
        in_palette([9, 7, 5, 0], [(0, 0, 0)] * 5 + [(0, 0, 142), (9, 9, 9), (70, 130, 180),
                   (9, 9, 9), (128, 64, 128)], tmp_path / "adaptive.png"),
    ]  # fmt: skip
    for path in files:
        label = datasets.read_label(label_item(path), SPACE, FOLDER)
        assert label.dtype == np.uint8, path
        assert (label == expected).all(), path


def test_one_bit_label_maps_are_ids_0_and_1(tmp_path):
    path = save(tmp_path / "a.png", stripes([0, 255]), "1")
    label = datasets.read_label(label_item(path), SPACE, FOLDER)
    assert label.tolist() == stripes([0, 1]).tolist()


def test_more_than_255_classes_are_read_from_16_bits(tmp_path):
    space = labels.from_json([f"c{i}" for i in range(300)], "x")
    item = label_item(save(tmp_path / "a.png", stripes([0, 299, 65535], dtype=np.uint16)))
    label = datasets.read_label(item, space, FOLDER)
    assert label.dtype == np.uint16
    assert np.unique(label).tolist() == [0, 299, 65535]


def test_the_users_value_for_unlabelled_becomes_ours(tmp_path):
    space = labels.from_json({"classes": ["a", "b"], "ignore": 7}, "x")
    label = datasets.read_label(
        label_item(save(tmp_path / "a.png", stripes([0, 1, 7]))), space, FOLDER
    )
    assert np.unique(label).tolist() == [0, 1, 255]


def test_black_is_a_class_if_the_list_says_so_and_unknown_without_ignore(tmp_path):
    classes = [{"name": "void", "color": [0, 0, 0]}, {"name": "a", "color": [9, 9, 9]}]
    item = label_item(save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8)))
    space = labels.from_json({"classes": classes, "ignore": 255}, "x")
    assert np.unique(datasets.read_label(item, space, FOLDER)).tolist() == [0]
    space = labels.from_json({"classes": classes[1:], "ignore": None}, "x")
    assert "colour (0, 0, 0) is not in the class list" in message(
        datasets.read_label, item, space, FOLDER
    )


def test_a_colour_of_two_classes_is_refused(tmp_path):
    classes = [{"name": "road", "color": [9, 9, 9]}, {"name": "path", "color": [9, 9, 9]}]
    space = labels.from_json(classes, "x")
    item = label_item(save(tmp_path / "a.png", np.full((4, 4, 3), 9, np.uint8)))
    assert "colour (9, 9, 9) stands for road and path in the class list" in message(
        datasets.read_label, item, space, FOLDER
    )


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (stripes([0, 3]), "label 3: the recipe has 0-2 and 255"),
        (stripes([0, 40_000], dtype=np.uint16), "label 40000: the recipe has 0-2 and 255"),
        (np.full((4, 4, 3), 77, np.uint8), "colour (77, 77, 77) is not in the class list"),
    ],
)
def test_values_that_the_class_list_lacks_are_refused_when_read(tmp_path, array, expected):
    path = save(tmp_path / "a.png", array)
    said = message(datasets.read_label, label_item(path), SPACE, FOLDER)
    assert said == f"{path}:\n  {expected}"


@pytest.mark.parametrize("value", [-1, 70_000])
def test_values_of_32_bits_out_of_range(tmp_path, value):
    item = label_item(save(tmp_path / "a.tif", stripes([0, value], dtype=np.int32)))
    assert f"label {value}: the recipe" in message(datasets.read_label, item, SPACE, FOLDER)


def test_label_maps_of_no_known_kind_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    assert "pixels of mode F; a label map has one channel" in message(decode.read_raw, path)


# The check before every run


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
    assert f"label 34 found in 3 files (first: {first}), the recipe has 0-2 and 255" in said
    assert f"label 40 found in 1 file (first: {root}/labels/train/3.png), the recipe" in said


def test_a_single_unknown_id_may_be_the_one_for_unlabelled(tmp_path):
    said = message(
        check_labels, folder_items(trees.write_folder(tmp_path, values=(0, 11))), SPACE, FOLDER
    )
    assert said.endswith(
        "0-2 and 255; if it marks unlabelled pixels, it is the class list's ignore"
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
    assert said.endswith(f"label 255 found in 1 file (first: {path}), the recipe has 0-34")


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
    assert error.value.title == "6 label maps were checked; not usable as they are"
    assert [re.sub(r"\(first: .*?\)", "(…)", f).replace(str(root), "") for f in faults[:3]] == [
        "label 9 found in 1 file (…), the recipe has 0-2 and 255; if it marks unlabelled pixels, "
        "it is the class list's ignore",
        "colour (77, 77, 77) is not in the class list; found in 1 file (…)",
        "1 label map of another size than what belongs to it (…)",
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
    with pytest.raises(UserError) as error:
        check_labels(folder_items(root), SPACE, FOLDER)
    assert len(error.value.faults) == 21
    assert error.value.faults[-1] == "and 12 more"


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
    assert "give the number 0 two colours of the class list" in said
    assert said.endswith("save such masks as RGB")


def test_the_check_gives_the_same_for_any_number_of_threads(tmp_path):
    items = folder_items(trees.write_folder(tmp_path, num=8))
    counts = [check_labels(items, SPACE, FOLDER, workers=n).counts.tolist() for n in (1, 4)]
    assert all(a == b for a, b in pairwise(counts))


def test_camvid_is_read(camvid):
    space = labels.load_label_space(camvid / "classes.json")
    counts = check_labels(items_for(FOLDER, camvid, "val"), space, FOLDER).totals
    assert counts.num_items == 101
    assert counts.pixels.sum() + counts.unlabelled == 101 * 360 * 480


# The triple


def test_parts_of_a_sample_must_have_one_size():
    label = stripes([0], 256, 512)
    said = message(Sample, "layout-00017", label, photo(0, 512, 1024), label)
    assert said == (
        "layout-00017: label (256, 512), image (512, 1024) and edge (256, 512) differ in size"
    )
