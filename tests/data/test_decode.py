"""Decoding of photos and label maps in every mode that people store them in."""

import warnings

import numpy as np
import pytest
from PIL import Image

from ecgan import labels
from ecgan.data import datasets, decode
from ecgan.data.datasets import Item
from tests.helpers import trees
from tests.helpers.errors import message
from tests.helpers.trees import empty, in_palette, photo, save, stripes, truncate

SPACE = labels.from_json(trees.CLASSES, "classes.json")
FOLDER = "folder"


def label_item(path):
    return Item("a", path)


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


def text(path):
    path.write_text("not a picture")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (empty, "empty file (0 bytes); replace the file or remove the pair"),
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
        (stripes([0, 3]), "label 3: the class list has 0-2 and 255"),
        (stripes([0, 40_000], dtype=np.uint16), "label 40000: the class list has 0-2 and 255"),
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
    assert f"label {value}: the class list" in message(datasets.read_label, item, SPACE, FOLDER)


def test_label_maps_of_no_known_kind_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((2, 2), np.float32))
    assert "pixels of mode F; a label map has one channel" in message(decode.read_raw, path)
