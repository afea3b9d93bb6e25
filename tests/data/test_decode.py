"""Decoding of photos and label maps in every mode that people store them in."""

import warnings

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ecgan import labels
from ecgan.data import datasets
from ecgan.data.datasets import Item
from ecgan.data.files import images, label_maps
from tests.helpers import trees
from tests.helpers.errors import message
from tests.helpers.trees import empty, in_palette, photo, save, stripes, truncate
from tests.helpers.user_folders import png_of_bits, tiff_of_bands

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
        assert (images.read_photo(path) == expected).all(), mode
        assert images.probe_photo(path).stored == (32, 64)
    for mode in ("L", "CMYK"):
        path = save(tmp_path / f"{mode}.jpg", rgb, mode)
        assert images.read_photo(path).shape == (32, 64, 3)
        assert images.probe_photo(path).stored == (32, 64)


def test_alpha_is_dropped(tmp_path):
    rgba = np.dstack([photo(0), np.zeros((32, 64), np.uint8)])
    assert (images.read_photo(save(tmp_path / "a.png", rgba)) == photo(0)).all()


def test_a_palette_with_transparency_is_no_warning(tmp_path):
    image = Image.fromarray(photo(0)).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read_photo(tmp_path / "a.png").shape == (32, 64, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_photos_are_scaled(tmp_path, name):
    path = save(tmp_path / name, np.array([[0, 257, 65535 // 2, 65535]], np.uint16))
    assert images.read_photo(path)[0].tolist() == [[0] * 3, [1] * 3, [127] * 3, [255] * 3]
    assert images.read_grey(path)[0].tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_the_orientation_tag_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", photo(0), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert (images.read_photo(path) == expected).all()
    assert (images.read_photo(path, upright=False) == photo(0)).all()
    found = images.probe_photo(path)
    assert (found.orientation, found.stored, found.upright) == (
        (orientation, (32, 64), expected.shape[:2])
    )
    deep = save(tmp_path / "deep.tif", photo(0)[..., 0].astype(np.uint16) * 257)
    with Image.open(deep) as image:
        image.save(deep, exif=exif)
    assert (images.read_photo(deep)[..., 0] == expected[..., 0]).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colour_photos_of_16_bits_keep_them(tmp_path, suffix):
    """Pillow would keep the upper byte: 12 bits would be nearly black."""
    values = np.arange(2 * 3 * 3, dtype=np.uint16).reshape(2, 3, 3) * 200
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), values[..., ::-1])
    found = images.probe_photo(path)
    assert (found.depth, found.low, found.high) == (images.Depth.WORDS, 0, 3400)
    read = images.read_photo(path, levels=(0, 3400))
    assert (read == np.rint(values / 3400 * 255)).all()


def test_floating_point_photos_need_levels(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 0.5], [0.75, 1]], np.float32))
    assert images.probe_photo(path).depth == images.Depth.FLOATS
    assert "values from 0 to 1; set data.photo_levels" in message(images.read_photo, path)
    assert images.read_photo(path, levels=(0, 1))[..., 0].tolist() == [[0, 128], [191, 255]]


def test_several_pages_or_frames_are_refused_with_their_number(tmp_path):
    pages = [Image.fromarray(photo(i)) for i in range(3)]
    for name in ("a.tif", "a.png", "a.gif", "a.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        for read in (images.read_photo, label_maps.read_raw):
            assert ": 3 pages or frames; save the one" in message(read, tmp_path / name)


def test_smaller_copies_in_a_tiff_are_no_pages(tmp_path):
    small = Image.fromarray(photo(0)).resize((8, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(photo(0)).save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert (images.read_photo(tmp_path / "a.tif") == photo(0)).all()


# Files that cannot be read


def text(path):
    path.write_text("not a picture")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (empty, "empty file (0 bytes); replace the file or remove the pair"),
        (truncate, "truncated or damaged ("),
        (text, "not an image of a known format; replace the file or remove the pair"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, damage, expected):
    path = save(tmp_path / f"a{suffix}", photo(0, 200, 200))
    damage(path)
    reads = [images.read_photo, images.probe_photo]
    reads += [label_maps.read_raw, label_maps.read_hashed] if suffix == ".png" else []
    for read in reads:
        said = message(read, path)
        assert said.startswith(f"{path}: "), said
        assert expected in said


def test_a_missing_file_is_named(tmp_path):
    for read in (images.read_photo, label_maps.read_hashed):
        assert message(read, tmp_path / "a.png") == f"{tmp_path}/a.png: no such file"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [10, 1500], ids=["error", "warning"])
def test_a_huge_image_is_refused_with_its_size(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", photo(0))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 1500:  # between the limit and twice the limit Pillow warns
        assert images.read_photo(path).shape == (32, 64, 3)
        return
    assert message(images.read_photo, path) == (
        f"{path}: 2,048 pixels, too large to be read safely; scale the pair down first"
    )


# Label maps of every mode


def colored(values):
    palette = SPACE.palette
    return palette[stripes(values)]


def test_label_maps_of_every_mode_mean_the_same(tmp_path):
    expected = stripes([0, 1, 2, 255])
    opaque = np.full_like(expected, 255)
    files = [
        save(tmp_path / "l.png", expected),
        save(tmp_path / "la.png", np.dstack([expected, opaque])),
        save(tmp_path / "16.png", expected.astype(np.uint16)),
        save(tmp_path / "32.tif", expected.astype(np.int32)),
        save(tmp_path / "l.bmp", expected),
        save(tmp_path / "rgb.png", colored([0, 1, 2, 255])),
        save(tmp_path / "rgba.png", np.dstack([colored([0, 1, 2, 255]), opaque])),
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
    assert "pixels of mode F; a label map has one channel" in message(label_maps.read_raw, path)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_numbers_of_few_bits_are_read_by_the_depth_of_the_file(tmp_path, bits):
    """Pillow spreads them over 0 to 255."""
    numbers = np.arange(2**bits, dtype=np.uint8)[None]
    path = tmp_path / "a.png"
    path.write_bytes(png_of_bits(numbers, bits))
    assert label_maps.read_raw(path).values.tolist() == numbers.tolist()


def test_transparent_pixels_are_unlabelled_and_half_transparent_ones_a_fault(tmp_path):
    alpha = stripes([255, 0])
    path = save(tmp_path / "a.png", np.dstack([colored([0, 1]), alpha]))
    label = datasets.read_label(label_item(path), SPACE, FOLDER)
    assert np.unique(label[alpha == 0]).tolist() == [255]
    assert label[alpha == 255].tolist() == stripes([0, 1])[alpha == 255].tolist()
    path = save(tmp_path / "b.png", np.dstack([stripes([0, 1]), stripes([255, 0])]))
    assert np.unique(datasets.read_label(label_item(path), SPACE, FOLDER)).tolist() == [0, 255]
    path = save(tmp_path / "c.png", np.dstack([colored([0, 1]), stripes([255, 128])]))
    assert ": half-transparent pixels (1024);" in message(label_maps.read_raw, path)


@pytest.mark.parametrize("name", ["a.webp", "a.jpg"])
def test_lossy_files_are_no_label_maps_whatever_their_name(tmp_path, name):
    path = save(tmp_path / name, stripes([0, 1, 2])).rename(tmp_path / "a.png")
    assert "the format changes ids" in message(label_maps.read_raw, path)


def test_webp_without_loss_is_a_label_map(tmp_path):
    path = save(tmp_path / "a.webp", colored([0, 1, 2]), lossless=True)
    label = datasets.read_label(label_item(path), SPACE, FOLDER)
    assert (label == stripes([0, 1, 2])).all()


def test_bands_of_a_tiff_are_counted(tmp_path):
    """Four bands of which Pillow makes RGB and drops one; five that it cannot read."""
    for bands in (4, 5):
        path = tmp_path / f"{bands}.tif"
        path.write_bytes(tiff_of_bands(np.arange(4 * bands, dtype=np.uint8).reshape(2, 2, bands)))
        for read in (images.read_photo, images.probe_photo, label_maps.read_raw):
            assert f": {bands} bands; save the three that are" in message(read, path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_photos_of_numbers_that_are_none(tmp_path, odd):
    values = np.linspace(0, 9, 32 * 64, dtype=np.float32).reshape(32, 64)
    values[:4] = odd
    values[4:8] = -odd
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = images.probe_photo(tmp_path / "a.tif")
    assert np.isfinite([found.low, found.high]).all()
    Image.fromarray(np.full((32, 64), odd, np.float32)).save(tmp_path / "b.tif")
    assert np.isfinite(images.probe_photo(tmp_path / "b.tif").low)
    assert "set data.photo_levels" in message(images.read_photo, tmp_path / "a.tif")
    assert images.read_photo(tmp_path / "a.tif", levels=(0, 9)).shape == (32, 64, 3)
