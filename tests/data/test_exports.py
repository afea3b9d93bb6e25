"""Folders as annotation tools export them, and lists of splits: read, or refused with a reason."""

import shutil
import struct
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from ecgan.class_files import list_of_labels
from ecgan.data import datasets
from ecgan.data.datasets import DataFolder
from ecgan.data.files import images, label_maps, names
from ecgan.data.files.photo_sets import Reading
from ecgan.data.survey import survey_dataset
from ecgan.errors import UserError
from tests.helpers.errors import message
from tests.helpers.reading import assert_as_drawn, read, refusal
from tests.helpers.user_folders import (
    COLORS,
    as_ids,
    as_png,
    colored,
    draw,
    ids,
    in_colors,
    in_palette,
    photo_of,
    turned,
)

VOC_FOLDERS = ("JPEGImages", "SegmentationClass")


def as_jpeg(path, pixels):
    Image.fromarray(pixels).save(f"{path}.jpg", quality=95)


def notes_of(root):
    return " ".join(survey_dataset(root).notes)


# Lists of splits


def voc(root, lines, *, folder="ImageSets/Segmentation", encoding="utf-8", name="{:03}"):
    """Eight pairs with lists of five and three; each line from the number of its photo."""
    draw(root, folders=VOC_FOLDERS, num=8)
    for kind in VOC_FOLDERS:
        for index in range(8):
            (root / kind / f"{index:03}.png").rename(root / kind / f"{name.format(index)}.png")
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", range(5)), ("val", range(5, 8))):
        text = "".join(f"{lines.format(name.format(n), n)}\n" for n in numbers)
        (root / folder / f"{split}.txt").write_bytes(text.encode(encoding))
    return root


LISTS = {
    "names with blanks": {"lines": "{0}", "name": "my photo {:03}"},
    "decomposed letters": {"lines": "{0}", "name": "Caffe\u0300 {:03}"},
    "utf-16": {"lines": "{0}", "encoding": "utf-16"},
    "byte-order mark, windows": {"lines": "{0}\r", "encoding": "utf-8-sig"},
    "with endings": {"lines": "{0}.jpg"},
    "pairs of paths": {"lines": "/JPEGImages/{0}.jpg /SegmentationClass/{0}.png"},
    "a word behind the name": {"lines": "{0} 1"},
    "of the detection task": {"lines": "{0}", "folder": "ImageSets/Main"},
    "beside the folders": {"lines": "{0}", "folder": "."},
}


@pytest.mark.parametrize("how", LISTS.values(), ids=LISTS)
def test_lists_of_splits_as_tools_write_them(tmp_path, how):
    root = voc(tmp_path, **how)
    if "Caffe" in how.get("name", ""):  # as another system unpacks them
        for path in (root / "JPEGImages").iterdir():
            path.rename(path.with_name(unicodedata.normalize("NFC", path.name)))
    labels, photos, _ = read(root, "val")
    assert len(labels) == 3
    assert_as_drawn(labels, photos)
    assert len(DataFolder("folder", root).items_for("train")) == 5


def test_names_in_two_folders_are_told_apart_by_their_lists(tmp_path):
    for camera in ("left", "right"):
        draw(tmp_path, folders=[f"{folder}/{camera}" for folder in VOC_FOLDERS], num=3)
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, camera in (("train", "left"), ("val", "right")):
        (lists / f"{split}.txt").write_text("".join(f"{camera}/{n:03}\n" for n in range(3)))
    keys = [item.key for item in DataFolder("folder", tmp_path).items_for("val")]
    assert keys == ["right-000", "right-001", "right-002"]


def test_lists_that_fit_no_label_map_are_said(tmp_path):
    root = voc(tmp_path, "another {1}")
    assert "The lists of splits (train, val) have no name of a label map (first: another 0)" in (
        notes_of(root)
    )


# Exports


def test_a_folder_for_each_pair_as_labelme_writes_them(tmp_path):
    """img.png, label.png and label_viz.png in 000_json/: the picture for people was the label."""
    draw(tmp_path / "flat", in_palette(COLORS), classes=None)
    for index in range(6):
        folder = tmp_path / f"data/{index:03}_json"
        folder.mkdir(parents=True)
        shutil.move(tmp_path / f"flat/images/{index:03}.png", folder / "img.png")
        shutil.move(tmp_path / f"flat/labels/{index:03}.png", folder / "label.png")
        shutil.copy(folder / "img.png", folder / "label_viz.png")
    (tmp_path / "data/classes.txt").write_text("background\ncat\ndog\nperson\n")
    labels, photos, _ = read(tmp_path / "data")
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


def test_of_several_maps_beside_a_photo_the_ids_are_read(tmp_path):
    for suffix, save in (("_color", in_colors(COLORS)), ("_labelIds", as_ids), ("_viz", as_ids)):
        draw(tmp_path, save, folders=("", ""), suffixes=("", suffix), shoot=as_jpeg)
    labels, photos, _ = read(tmp_path)
    assert_as_drawn(labels, photos)
    survey = survey_dataset(tmp_path)
    assert [note for note in survey.notes if "_labelIds" in note] == [
        "Label maps end in _labelIds."
    ]


@pytest.mark.parametrize("suffix", [".png", ".npy"])
@pytest.mark.parametrize("folders", [("images", "labels"), ("", "")])
def test_the_brush_export_of_label_studio_is_named(tmp_path, folders, suffix):
    root = draw(tmp_path, folders=folders, shoot=as_jpeg, num=2)
    for path in [*root.rglob("*.png")]:
        for name in ("cat", "traffic light"):
            number = int(path.stem)
            other = f"task-{number}-annotation-{number + 7}-by-1-tag-{name}-0{suffix}"
            shutil.copy(path, path.with_name(other))
        path.unlink()
    said = refusal(root)
    assert said.count("\n") == 1
    assert "4 files of Label Studio's brush export (first: " in said
    assert "export the project as JSON and convert that with `ecgan data import`" in said
    if suffix == ".png":  # label maps alone, to augment
        alone = message(datasets.index_labels, "folder", root / folders[1])
        assert "4 files of Label Studio's brush export (first: " in alone


def test_folders_with_names_of_cityscapes_alone_are_not_its_data_set(tmp_path):
    """Its folders with other file names are read as a folder, and what it is is said."""
    folders = ("leftImg8bit/train/a", "gtFine/train/a")
    for suffix in ("", "_gtFine_labelIds"):
        root = draw(tmp_path / f"x{suffix}", folders=folders, suffixes=("", suffix))
        assert survey_dataset(root).dataset == "folder"
        labels, photos, _ = read(root)
        assert len(labels) == 6
        assert_as_drawn(labels, photos)
    (fault,) = DataFolder("cityscapes", root).find("train", ["label", "image"]).faults
    assert fault.startswith("leftImg8bit/train: no photos below it; expected files *_leftImg8bit{")
    assert "there are 6 others (first: leftImg8bit/train/a/000.png); rename what is meant" in fault
    assert "data.dataset: folder" in fault


def test_of_cityscapes_maps_the_ids_are_read_and_the_others_said(tmp_path):
    folders = ("leftImg8bit/train/a", "gtFine/train/a")
    photo = "_leftImg8bit"
    for suffix, save in (("_color", in_colors(COLORS)), ("_labelIds", as_ids)):
        draw(tmp_path, save, folders=folders, suffixes=(photo, f"_gtFine{suffix}"), classes=None)
    found = survey_dataset(tmp_path)
    assert (found.dataset, found.num_pairs) == ("cityscapes", 6)
    assert not found.all_faults
    assert found.notes[0] == (
        "Label maps end in _gtFine_labelIds; files that end in _gtFine_color are not read."
    )
    for item in DataFolder("cityscapes", tmp_path).items_for("train"):
        assert item.label.name.endswith("_labelIds.png")


def test_classes_beside_objects_are_said(tmp_path):
    draw(tmp_path, folders=VOC_FOLDERS)
    draw(tmp_path, folders=("JPEGImages", "SegmentationObject"))
    assert "SegmentationObject/ holds instance maps, no classes." in notes_of(tmp_path)


def test_photos_of_a_split_without_label_maps_are_said(tmp_path):
    draw(tmp_path, folders=("images/train", "labels/train"))
    draw(tmp_path, folders=("images/test", "other"), first=20, num=3)
    shutil.rmtree(tmp_path / "other")
    assert "3 photos of split test without a label map: not read." in notes_of(tmp_path)


@pytest.mark.parametrize("folders", [("v1.2/labels", "v2.0/labels"), ("masks/cat", "masks/dog")])
def test_several_label_maps_of_one_photo_are_asked_about(tmp_path, folders):
    for folder in folders:
        draw(tmp_path, folders=("images", folder))
    said = refusal(tmp_path)
    first = " and ".join(f"{folder}/000.png" for folder in folders)
    assert f"12 label maps for 6 photos (first: {first} for images/000.png)" in said
    assert "name the folder that is meant with data.labels" in said


def test_files_of_one_name_are_one_line(tmp_path):
    folder = tmp_path / "the key"  # a name in the message is no part of its words
    draw(folder)
    draw(folder, folders=("images", "other"), shoot=as_jpeg)
    shutil.rmtree(folder / "other")
    assert refusal(folder).count("\n") == 1
    assert f"6 files have the name of another (first: {folder}/images/000." in refusal(folder)
    assert "remove one, or, if it is the label map of the other, put" in refusal(folder)


# Files


def test_jpeg_inside_a_tiff_is_no_label_map(tmp_path):
    """Ids beside those of the drawing, all of them known: nothing else would notice."""

    def save(path, label, _):
        Image.fromarray(label).save(f"{path}.tif", compression="jpeg")

    draw(tmp_path, save, classes=[f"c{n}" for n in range(20)])
    assert "6 files (first: " in refusal(tmp_path)
    assert "a JPEG-compressed TIFF file, whatever its name: the format changes ids" in (
        refusal(tmp_path)
    )


def test_files_with_one_fault_are_one_line_whatever_the_numbers(tmp_path):
    def save(path, label, _):
        image = Image.fromarray(label, "P")
        image.putpalette(COLORS.ravel().tolist())
        image.save(f"{path}.png", transparency=bytes([0, 255, 128, 255]))

    draw(tmp_path, save)
    (fault,) = survey_dataset(tmp_path).all_faults
    assert fault.startswith("6 files (first: ")
    assert "; save the label map without alpha" in fault


def floats(path, pixels, dtype=np.float32):
    """A TIFF of floats in RGB, uncompressed: OpenCV 4 writes the logarithm of light otherwise."""
    plain = (cv2.IMWRITE_TIFF_COMPRESSION, 1)
    cv2.imwrite(f"{path}.tif", np.ascontiguousarray(pixels[..., ::-1]).astype(dtype), plain)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_colour_photos_of_floats_from_0_to_1_are_scaled(tmp_path, dtype):
    root = draw(tmp_path, shoot=lambda path, pixels: floats(path, pixels / 255, dtype))
    _, photos, notes = read(root)
    assert "6 photos of floats, values 0" in notes
    assert "scaled from 0 to 1" in notes
    assert np.abs(photos["000"].astype(int) - photo_of(ids(0), 0)).max() <= 1


def test_colour_photos_of_other_floats_need_levels(tmp_path):
    root = draw(tmp_path, shoot=lambda path, pixels: floats(path, pixels * 3.0))
    assert "floats above 1 have no known white; set data.photo_levels" in refusal(root)
    photos = read(root, reading=Reading(levels=(0, 765)))[1]
    assert np.abs(photos["000"].astype(int) - photo_of(ids(0), 0)).max() <= 1


def test_grey_and_colour_floats_have_one_range(tmp_path):
    def shoot(path, pixels):
        if int(path.name) % 2:
            floats(path, pixels / 255)
        else:
            Image.fromarray((pixels[..., 0] / 127.5).astype(np.float32)).save(f"{path}.tif")

    assert "floats above 1 have no known white" in refusal(draw(tmp_path, shoot=shoot))


def tagged(tmp_path, changes, pixels=None):
    """A TIFF of floats in RGB, with other values of some tags."""
    floats(tmp_path / "a", np.zeros((2, 3, 3)) if pixels is None else pixels)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, start)
    for at in range(start + 2, start + 2 + 12 * number, 12):
        tag, kind = struct.unpack_from("<HH", content, at)
        if tag in changes:
            struct.pack_into("<H" if kind == 3 else "<I", content, at + 8, changes[tag])
    if "next" in changes:
        struct.pack_into("<I", content, start + 2 + 12 * number, changes["next"])
    (tmp_path / "a.tif").write_bytes(content)
    return tmp_path / "a.tif"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({256: 60_000, 257: 60_000}, "3,600,000,000 pixels, too large to be read safely"),
        ({"next": 8}, "2 or more pages or frames; save the one that is meant"),
        ({256: 40_000, 257: 1000}, "a TIFF of 3 channels of 32 bits, floating-point numbers, is"),
        ({277: 9}, "9 bands; save the three that are red, green and blue"),
    ],
)
def test_floats_that_lie_are_refused(tmp_path, changes, fault):
    with pytest.raises(UserError, match=fault):
        images.probe_photo(tagged(tmp_path, changes))


def written_tiff(pixels, orientation, order="<"):
    """A TIFF of colours of 16 bits or floats, with an orientation: OpenCV and Pillow write none."""
    bits, kind = 8 * pixels.itemsize, {"u": 1, "f": 3}[pixels.dtype.kind]
    height, width, _ = pixels.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: 2, 273: 0, 274: orientation, 277: 3,
        278: height, 279: pixels.nbytes, 284: 1, 339: kind,
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = start + 12
    fields = b"".join(
        struct.pack(f"{order}HHII", tag, 3, 3, start + 6 * (tag == 339))
        if tag in {258, 339}
        else struct.pack(f"{order}HHI", tag, 3 if tag == 274 else 4, 1)
        + (struct.pack(f"{order}HH", value, 0) if tag == 274 else struct.pack(f"{order}I", value))
        for tag, value in tags.items()
    )
    head = struct.pack(f"{order}2sHIH", {"<": b"II", ">": b"MM"}[order], 42, 8, len(tags))
    ends = struct.pack(f"{order}3H", *[bits] * 3) + struct.pack(f"{order}3H", *[kind] * 3)
    stored = pixels.astype(pixels.dtype.newbyteorder(order))
    return head + fields + bytes(4) + ends + stored.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.float32, 1)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_colours_of_a_tiff_turn_once(tmp_path, orientation, dtype, white, order):
    pixels = (np.random.default_rng(0).random((4, 6, 3)) * white).astype(dtype)
    (tmp_path / "a.tif").write_bytes(written_tiff(pixels, orientation, order))
    upright = images.turned_upright(pixels, orientation)
    assert images.probe_photo(tmp_path / "a.tif").upright == upright.shape[:2]
    found = images.read_photo(tmp_path / "a.tif", levels=(0, white))
    assert np.abs(found / 255 - upright / white).max() < 0.01
    found = images.read_photo(tmp_path / "a.tif", upright=False, levels=(0, white))
    assert np.abs(found / 255 - pixels / white).max() < 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_of_8_bits_turn_once_and_only_where_asked(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    for name, stored in (("a.tif", pixels), ("b.tif", pixels[..., 0])):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
    about = images.probe_photo(tmp_path / "a.tif")
    upright = images.turned_upright(pixels, orientation)
    assert (about.stored, about.upright) == ((4, 6), upright.shape[:2])
    np.testing.assert_array_equal(images.read_photo(tmp_path / "a.tif"), upright)
    stored = images.read_photo(tmp_path / "a.tif", upright=False)
    np.testing.assert_array_equal(stored, pixels)
    label = label_maps.read_raw(tmp_path / "b.tif")
    np.testing.assert_array_equal(label.values, upright[..., 0])
    np.testing.assert_array_equal(images.read_grey(tmp_path / "b.tif"), upright[..., 0])


def test_floats_in_colour_are_no_label_map(tmp_path):
    pixels = np.random.default_rng(0).random((4, 6, 3))
    floats(tmp_path / "a", pixels)
    path = tmp_path / "a.tif"
    with pytest.raises(UserError, match="save ids as whole numbers of 8 or 16 bits"):
        label_maps.read_raw(path)
    assert images.probe_photo(path).stored == (4, 6)
    with pytest.raises(UserError, match=r"set data\.photo_levels"):
        images.read_photo(path)
    with pytest.raises(UserError, match=r"set data\.photo_levels"):
        images.read_grey(path)
    upright = images.read_photo(path, levels=(0, 1))
    assert np.abs(upright / 255 - pixels).max() < 0.01


def test_label_maps_of_floats_are_named(tmp_path):
    draw(tmp_path, lambda path, label, _: Image.fromarray(np.float32(label)).save(f"{path}.tif"))
    assert "save ids as whole numbers of 8 or 16 bits" in refusal(tmp_path)


def test_pointers_of_git_lfs_are_named(tmp_path):
    draw(tmp_path, shoot=as_png)
    for path in (tmp_path / "images").iterdir():
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    assert "a pointer of Git LFS, not the file; fetch it with git lfs pull" in refusal(tmp_path)


def grey_tiff(numbers, bits, *, zero_is_white):
    """A TIFF of ids of some bits, which states whether 0 is white."""
    height, width = numbers.shape
    rows = np.unpackbits(numbers.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)
    data = np.packbits(rows[:, :, 16 - bits :].reshape(height, -1), axis=1).tobytes()
    if bits == 16:
        data = numbers.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not zero_is_white), 273: 0}
    tags |= {277: 1, 278: height, 279: len(data)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + fields + bytes(4) + data


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_numbers_that_a_tiff_states_to_be_shown_inverted_are_refused(tmp_path, bits):
    numbers = np.array([[0, 1, 2, 3]])
    path = tmp_path / "a.tif"
    path.write_bytes(grey_tiff(numbers, bits, zero_is_white=False))
    np.testing.assert_array_equal(label_maps.read_raw(path).values, numbers)
    path.write_bytes(grey_tiff(numbers, bits, zero_is_white=True))
    with pytest.raises(UserError) as caught:
        label_maps.read_raw(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: a TIFF that states that 0 is white")
    largest = 2**bits - 1
    for number in (0, 1, 2, 3):
        assert f"{number} or {largest - number}" in text
    assert "save the label map as PNG, or as a TIFF whose 0 is black" in text


@pytest.mark.parametrize("zero_is_white", [False, True])
def test_masks_of_1_bit_are_read_as_they_are_shown(tmp_path, zero_is_white):
    def save(path, label, _):
        numbers = (label == 1) ^ zero_is_white
        path.with_suffix(".tif").write_bytes(
            grey_tiff(numbers.astype(int), 1, zero_is_white=zero_is_white)
        )

    root = draw(tmp_path, save, classes=["ground", "thing"])
    labels, _, notes = read(root)
    np.testing.assert_array_equal(labels["000"], ids(0) == 1)
    said = (
        "6 label maps of 1 bit (first: " in notes and "read as shown, so that white is 1" in notes
    )
    assert said == zero_is_white


# Class lists and colours


@pytest.mark.parametrize("folders", ["set", "export/set"])
def test_the_class_list_of_a_folder_in_a_folder_counts(tmp_path, folders):
    draw(tmp_path / folders, classes=list("abcd"))
    survey = survey_dataset(tmp_path)
    assert survey.space is not None
    assert survey.space.names == tuple("abcd")
    assert f"The class list is {folders}/classes.json." in survey.notes
    assert_as_drawn(read(tmp_path)[0])


def test_two_sets_of_one_folder_must_agree(tmp_path):
    draw(tmp_path / "farm")
    draw(tmp_path / "town", classes=["road", "sky", "car", "tree"], first=20)
    assert "two class lists that differ, farm/classes.json and town/classes.json" in (
        refusal(tmp_path)
    )


def test_lists_beside_the_folder_of_label_maps_are_not_searched_for(tmp_path):
    draw(tmp_path / "maps", folders=("photos", "."), classes=None)
    draw(tmp_path / "another")
    assert list_of_labels(tmp_path / "maps") is None


def test_exchanged_channels_are_recognised(tmp_path):
    table = np.array([[90, 90, 90], [200, 60, 10], [60, 200, 20], [30, 60, 200]], np.uint8)
    draw(tmp_path, in_colors(table[:, ::-1].copy()), classes=colored(table))
    assert "with red and blue exchanged they are colours of the class list" in refusal(tmp_path)
    draw(tmp_path, in_colors(table + 1), classes=colored(table))
    assert "red and blue exchanged" not in refusal(tmp_path)


def test_labels_on_stored_pixels_are_seen_where_sizes_cannot_tell(tmp_path):
    def save(path, label, _):
        as_ids(path, np.rot90(label, 2), 0)

    draw(tmp_path, save, shoot=turned(3))
    assert "labels were drawn on the stored pixels: set data.orientation: stored." in (
        notes_of(tmp_path)
    )
    draw(tmp_path, shoot=turned(3))
    assert "drawn on the stored pixels: set" not in notes_of(tmp_path)


def test_negative_numbers_get_a_remedy_that_works(tmp_path):
    def save(path, label, _):
        numbers = np.where(label == 3, -1, label.astype(np.int32))
        Image.fromarray(numbers).save(f"{path}.tif")

    draw(tmp_path, save)
    assert "label -1 found in 6 files" in refusal(tmp_path)
    assert "if it marks unlabelled pixels, save them as 255" in refusal(tmp_path)


@pytest.mark.parametrize("name", [" ", "_", "-.-", "\ufeff"])
def test_names_of_nothing_but_separators_are_names(tmp_path, name):
    draw(tmp_path)
    labels = next(path for path in tmp_path.rglob("*.png") if "label" in str(path.parent))
    photo = next(path for path in tmp_path.rglob(labels.name) if path != labels)
    for path in (labels, photo):
        path.rename(path.with_name(f"{name}.png"))
    assert len(DataFolder("folder", tmp_path).items_for("train")) == 5
    place = names.place_of((name,))
    assert (place.kind, place.split) == (None, None)
