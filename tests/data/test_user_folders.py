"""Folders of real users: read as people see them, or refused with the reason."""

import re
import shutil
import unicodedata
from functools import partial

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ecgan.data import datasets
from ecgan.data.checks import check_labels
from ecgan.data.datasets import DataFolder
from ecgan.data.decode import Encoding
from ecgan.data.files.layout import Options
from ecgan.data.files.photo_sets import Reading
from ecgan.data.survey import survey_dataset
from ecgan.errors import UserError
from ecgan.recipe import label_space, parse_recipe
from ecgan_cli.main import cli
from tests.helpers.user_folders import (
    COLORS,
    HEIGHT,
    NAMES,
    VOC,
    WIDTH,
    as_ids,
    colored,
    draw,
    ids,
    in_colors,
    in_palette,
    photo_of,
    turned,
    write_classes,
)


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


# Folders, splits and names

LAYOUTS = {
    "ours": ("images", "labels"),
    "voc": ("JPEGImages", "SegmentationClass"),
    "mmsegmentation": ("img_dir/train", "ann_dir/train"),
    "annotations": ("images", "annotations"),
    "annotations/training": ("images/training", "annotations/training"),
    "imgs, masks": ("imgs", "masks"),
    "image, mask": ("image", "mask"),
    "capitals": ("Images", "Labels"),
    "split outside": ("train/images", "train/masks"),
    "split outside, capitals": ("Train/Images", "Train/GT"),
    "img, gt": ("img", "gt"),
    "ultralytics": ("images/train", "masks/train"),
    "coco years": ("images/train2017", "annotations/train2017"),
    "one word": ("train_images", "train_masks"),
    "camel case": ("trainImages", "trainLabels"),
    "segnet": ("train", "trainannot"),
    "kitti": ("training/image_2", "training/semantic"),
    "bdd": ("images/10k/train", "labels/sem_seg/masks/train"),
    "supervisely": ("street/img", "street/masks_machine"),
    "isic": ("Task1_Training_Input", "Task1_Training_GroundTruth"),
    "splits on one side": ("images/train", "labels"),
}
SUFFIXES = {
    "mask": ("", "_mask"),
    "label": ("", "_label"),
    "P": ("", "_P"),
    "trainIds": ("", "_labelTrainIds"),
    "cityscapes": ("_leftImg8bit", "_gtFine_labelIds"),
    "name of the photo": ("", ".jpg"),
    "deepglobe": ("_sat", "_mask"),
}


@pytest.mark.parametrize("folders", LAYOUTS.values(), ids=LAYOUTS)
def test_usual_layouts_are_read_as_they_come(tmp_path, folders):
    labels, photos, _ = read(draw(tmp_path, folders=folders))
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize(
    "folders", [("valid/images", "valid/labels"), ("images/dev", "labels/dev")]
)
def test_a_split_of_another_name_alone(tmp_path, folders):
    labels, photos, _ = read(draw(tmp_path, folders=folders), "val")
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize("suffixes", SUFFIXES.values(), ids=SUFFIXES)
def test_the_common_suffix_of_label_maps_is_found(tmp_path, suffixes):
    labels, photos, _ = read(draw(tmp_path, suffixes=suffixes))
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize("suffixes", [("", "_mask"), ("_sat", "_mask"), ("", "-seg")])
def test_photos_and_label_maps_of_one_folder_are_told_by_a_suffix(tmp_path, suffixes):
    labels, photos, _ = read(draw(tmp_path, folders=("", ""), suffixes=suffixes))
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


def test_photos_and_label_maps_of_one_name_are_told_by_their_format(tmp_path):
    def shoot(path, pixels):
        Image.fromarray(pixels).save(f"{path}.jpg", quality=95)

    labels, photos, _ = read(draw(tmp_path, folders=("", ""), shoot=shoot))
    assert_as_drawn(labels, photos)


def test_variants_beside_the_label_maps_are_left_out(tmp_path):
    for suffix, save in (("_labelIds", as_ids), ("_color", in_colors(COLORS))):
        draw(tmp_path, save, suffixes=("", f"_gtFine{suffix}"))
    draw(tmp_path, folders=("images", "labels/visualization"))
    labels, photos, _ = read(tmp_path)
    assert_as_drawn(labels, photos)


def test_prefixes_and_other_cases_of_names(tmp_path):
    root = draw(tmp_path)
    for path in (root / "images").iterdir():
        path.rename(path.with_name(f"IMG_{path.stem}.PNG"))
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"lbl_{path.name}"))
    labels, photos, _ = read(root)
    assert_as_drawn(labels, photos)


def test_lists_of_voc_are_the_splits(tmp_path):
    root = draw(tmp_path, folders=("JPEGImages", "SegmentationClass"), num=8)
    draw(tmp_path, folders=("more", "SegmentationObject"), num=8)
    draw(tmp_path, folders=("JPEGImages", "more"), first=20, num=3)  # photos without a label map
    shutil.rmtree(root / "more")
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("000\n001\n002\n003\n004\n")
    (lists / "val.txt").write_text("005\n006\n")
    folder = DataFolder("folder", root)
    assert folder.splits() == ["train", "val"]
    assert [i.key for i in folder.items_for("val")] == ["005", "006"]
    assert len(folder.items_for("train")) == 5
    notes = " ".join(folder.find("train", ["label", "image"]).notes)
    assert "4 photos in no list of a split: not read." in notes
    (lists / "val.txt").write_text("005\n006\nabc\n")
    assert "1 name in the lists of splits without a label map (first: abc)" in refusal(root)
    (lists / "val.txt").write_text("004\n005\n")
    assert "1 name in the lists of two splits" in refusal(root)


@pytest.mark.parametrize("sub", ["Train", "TRAINING", "train2017", "trainset"])
def test_photos_of_the_test_split_are_not_trained_on(tmp_path, sub):
    draw(tmp_path, folders=(f"images/{sub}", f"labels/{sub}"))
    test = sub.lower().replace("training", "testing").replace("train", "test")
    draw(tmp_path, folders=(f"images/{test}", f"labels/{test}"), first=20)
    labels, photos, _ = read(tmp_path)
    assert {int(key) for key in labels} == {*range(6)}
    assert_as_drawn(labels, photos)


def test_label_maps_without_splits_get_those_of_their_photos(tmp_path):
    draw(tmp_path, folders=("images/train", "labels"))
    draw(tmp_path, folders=("images/val", "labels"), first=20)
    folder = DataFolder("folder", tmp_path)
    assert folder.splits() == ["train", "val"]
    assert [i.key for i in folder.items_for("val")] == [f"{i:03}" for i in range(20, 26)]


def test_file_names_alone_pair_nothing_where_they_occur_twice(tmp_path):
    for photos, maps in (("a", "c"), ("b", "d")):
        draw(tmp_path, folders=(f"images/{photos}", f"labels/{maps}"))
    assert "12 label maps have no photo of the same name" in refusal(tmp_path)


def test_folders_that_look_like_splits_are_asked_about(tmp_path):
    for i, name in enumerate(("fold_1", "holdout")):
        draw(tmp_path, folders=(f"images/{name}", f"labels/{name}"), first=10 * i)
    assert "fold_1/ and holdout/ look like splits under names that are not known" in refusal(
        tmp_path
    )
    items = DataFolder("folder", tmp_path).items_for("fold_1", train_split="fold_1")
    assert {i.key for i in items} < {f"{i:03}" for i in range(6)}


def test_folders_beside_the_splits_are_named(tmp_path):
    draw(tmp_path, folders=("images/train", "labels/train"))
    draw(tmp_path, folders=("images/extra", "labels/extra"), first=20)
    assert "6 label maps in extra/ are of no split, and not read" in " ".join(
        survey_dataset(tmp_path).notes
    )


def test_two_folders_of_label_maps_are_asked_about(tmp_path):
    draw(tmp_path)
    draw(tmp_path, folders=("images", "masks"))
    said = refusal(tmp_path)
    assert "label maps may be those of labels/ (6 files) and masks/ (6 files); say which" in said
    labels, photos, _ = read(tmp_path, options=Options(labels="masks"))
    assert_as_drawn(labels, photos)


def test_the_users_own_folders_and_suffix(tmp_path):
    draw(tmp_path, folders=("a", "b"), suffixes=("", "zz"))
    draw(tmp_path, folders=("a", "b"), suffixes=("", "yy"))
    labels, photos, _ = read(tmp_path, options=Options("a", str(tmp_path / "b"), "zz"))
    assert len(labels) == 6
    assert_as_drawn(labels, photos)
    said = CliRunner().invoke(
        cli, ["data", "inspect", str(tmp_path), "--images=a", "--labels=b", "--label-suffix=zz"]
    )
    assert said.exit_code == 0, said.output
    assert "label_suffix: zz" in said.output


def test_names_of_other_scripts_are_paired_by_what_they_are(tmp_path):
    root = draw(tmp_path)
    for kind, letter in (("images", "晴"), ("labels", "雨")):
        for path in (root / kind).iterdir():
            path.rename(path.with_name(f"{letter}{path.name}"))
    assert "6 label maps have no photo of the same name (first: labels/雨000.png)" in refusal(root)
    for path in (root / "images").iterdir():
        path.rename(path.with_name(path.name.replace("晴", "雨")))
    labels, photos, _ = read(root)
    assert_as_drawn(labels, photos)


def test_keys_of_other_scripts_stay_apart():
    keys = {datasets.clean_key(name) for name in ("晴000", "雨000", "का", "कि", "_000")}
    assert len(keys) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def test_names_of_one_look_are_one_name(tmp_path):
    root = draw(tmp_path)
    for form, kind in (("NFD", "images"), ("NFC", "labels")):
        for path in (root / kind).iterdir():
            path.rename(path.with_name(unicodedata.normalize(form, f"Caffè {path.name}")))
    labels, photos, _ = read(root)
    assert_as_drawn(labels, photos)


def test_files_of_systems_are_not_seen(tmp_path):
    root = draw(tmp_path)
    for path in (root / "images/._000.png", root / "__MACOSX/images/x.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (root / "images/again").symlink_to(root / "images")  # a circle
    assert len(read(root)[0]) == 6


@pytest.mark.parametrize(
    ("kind", "suffix", "expected"),
    [
        ("images", ".heic", "files *.heic are not read: save photos as JPEG or PNG"),
        ("labels", ".npy", "`ecgan data import` converts polygons and other annotations"),
        ("labels", ".json", "`ecgan data import` converts polygons and other annotations"),
    ],
)
def test_files_of_other_formats_are_named_with_the_way_out(tmp_path, kind, suffix, expected):
    root = draw(tmp_path)
    for path in (root / kind).iterdir():
        path.rename(path.with_suffix(suffix))
    assert expected in refusal(root)


# What the pixels of label maps are


def test_colours_that_nobody_gave_mean_nothing(tmp_path):
    said = refusal(draw(tmp_path, in_colors(VOC)))
    assert "6 label maps of RGB colours" in said
    assert 'the class list gives no colour; add "color" to each class' in said
    assert "(128, 128, 0)" in said


@pytest.mark.parametrize("ignore", [255, None])
def test_a_foreground_of_255_is_not_unlabelled(tmp_path, ignore):
    classes = {"classes": ["background", "crack"], "ignore": ignore}
    root = draw(tmp_path, lambda p, m, i: as_ids(p, m * 255, i), classes=classes, num_classes=2)
    ids_given = '{"classes": [{"id": 0, "name": "background"}, {"id": 255, "name": "crack"}]'
    assert ids_given in refusal(root)
    classes = [{"id": 0, "name": "background"}, {"id": 255, "name": "crack"}]
    write_classes(root, {"classes": classes, "ignore": None})
    assert_as_drawn(read(root)[0], num_classes=2)


def test_0_and_255_are_what_they_are_when_told(tmp_path):
    classes = ["background", "crack"]
    root = draw(tmp_path, lambda p, m, i: as_ids(p, m * 255, i), classes=classes, num_classes=2)
    labels, _, notes = read(root, reading=Reading(Encoding.INDEX))
    assert {*np.unique(labels["000"]).tolist()} == {0, 255}
    assert "No pixel in 6 label maps: crack" in notes


@pytest.mark.parametrize("in_rgb", [False, True])
def test_0_and_255_without_a_list_are_proposed_as_two_classes(tmp_path, in_rgb):
    def save(path, label, seed):
        label = np.repeat(label[..., None], 3, 2) if in_rgb else label
        as_ids(path, label * 255, seed)

    root = draw(tmp_path, save, classes=None, num_classes=2)
    said = CliRunner().invoke(
        cli, ["data", "inspect", str(root), "--write-classes", str(root / "classes.json")]
    )
    assert "hold 0 and 255 only: proposed as two classes; if 255 is unlabelled" in said.output
    assert_as_drawn(read(root)[0], num_classes=2)


def test_ids_as_greys_are_ids(tmp_path):
    root = draw(tmp_path, lambda p, m, i: as_ids(p, np.dstack([m] * 3), i))
    labels, photos, notes = read(root)
    assert_as_drawn(labels, photos)
    assert "RGB files with r = g = b: read as ids" in notes


def test_numbers_with_gaps_are_proposed_and_given_ids(tmp_path):
    def save(path, label, seed):
        as_ids(path, label.astype(np.uint16) * 1000 + 7, seed)

    root = draw(tmp_path, save, classes=None)
    options = ["--write-classes", str(root / "classes.json")]
    said = CliRunner().invoke(cli, ["data", "inspect", str(root), *options])
    assert "the class list maps them to ids (7 -> 0, 1007 -> 1, 2007 -> 2, 3007 -> 3" in said.output
    assert_as_drawn(read(root)[0])
    write_classes(root, {"classes": NAMES})
    assert '{"id": 7, "name": "background"}, {"id": 1007, "name": "cat"}' in refusal(root)


def test_jpeg_under_another_name_is_no_label_map(tmp_path):
    def save(path, label, _):
        with open(f"{path}.png", "wb") as file:  # noqa: PTH123
            Image.fromarray(label).save(file, "JPEG", quality=90)

    said = refusal(draw(tmp_path, save))
    assert said.count("a JPEG file, whatever its name: the format changes ids") == 1
    assert "6 files (first: " in said


def test_a_palette_that_says_otherwise_than_the_numbers_is_asked_about(tmp_path):
    root = draw(tmp_path, in_palette(COLORS, lambda _: np.array([2, 0, 1, 3])), classes=colored())
    said = refusal(root)
    assert "number 0, palette colour (60, 200, 60), is background by number, dog by colour" in said
    assert "data.label_encoding: index or color" in said
    assert_as_drawn(read(root, reading=Reading(Encoding.COLOR))[0])
    by_number = read(root, reading=Reading(Encoding.INDEX))[0]
    assert (by_number["000"] == np.array([1, 2, 0, 3])[ids(0)]).all()


@pytest.mark.parametrize("classes", [NAMES, colored()], ids=["names", "colours"])
def test_a_palette_that_an_optimiser_moved_in_one_file_is_found(tmp_path, classes):
    def order(seed):
        return np.array([0, 2, 1, 3]) if seed == 3 else np.arange(4)

    root = draw(tmp_path, in_palette(COLORS, order), classes=classes)
    said = refusal(root)
    assert "003.png" in said or "number 1, palette colour (60, 200, 60), is cat by number" in said
    write_classes(root, {"classes": colored()})
    assert_as_drawn(read(root, reading=Reading(Encoding.COLOR))[0])


def test_palettes_that_say_the_same_are_no_question(tmp_path):
    labels, photos, _ = read(draw(tmp_path, in_palette(COLORS), classes=colored()))
    assert_as_drawn(labels, photos)


def test_ids_that_were_scaled_with_a_filter_are_warned_of(tmp_path):
    def save(path, label, _):
        label = np.asarray(Image.fromarray(label).resize((96, 72), Image.Resampling.BILINEAR))
        Image.fromarray(label).save(f"{path}.png")

    def shoot(path, pixels):
        Image.fromarray(pixels).resize((96, 72)).save(f"{path}.png")

    names = [f"c{i}" for i in range(12)]
    root = draw(tmp_path, save, shoot=shoot, classes=names, num_classes=12)
    assert "% of the pixels along borders have an id between those beside them" in read(root)[2]
    notes = read(draw(tmp_path / "clean", classes=names, num_classes=12))[2]
    assert "along borders" not in notes


def test_soft_colours_are_one_line_and_read_by_the_nearest_when_told(tmp_path):
    def save(path, label, _):
        image = Image.fromarray(COLORS[label]).resize((96, 72), Image.Resampling.BICUBIC)
        image.save(f"{path}.png")

    def shoot(path, pixels):
        Image.fromarray(pixels).resize((96, 72)).save(f"{path}.png")

    root = draw(tmp_path, save, shoot=shoot, classes=colored())
    said = refusal(root)
    assert re.search(r"\d+ colours that the class list lacks, \d+\.\d % of all pixels", said)
    assert "anti-aliased" in said
    assert said.count("not in the class list") == 0
    labels, _, notes = read(root, reading=Reading(Encoding.NEAREST))
    assert re.search(r"\d+\.\d\d % of all label pixels have another colour", notes)
    expected = np.asarray(Image.fromarray(ids(0)).resize((96, 72), Image.Resampling.NEAREST))
    assert (labels["000"] == expected).mean() > 0.97


def test_unlabelled_may_be_0(tmp_path):
    classes = [{"id": i, "name": name} for i, name in enumerate(NAMES) if i]
    root = draw(tmp_path, classes={"classes": classes, "ignore": 0})
    labels, _, notes = read(root)
    for key, label in labels.items():
        drawn = ids(int(key))
        assert (label == np.where(drawn == 0, 255, drawn.astype(int) - 1)).all()
    assert "% of all pixels are unlabelled; if they are a class" in notes


def test_the_list_of_another_tool_gives_black_its_class(tmp_path):
    table = np.array([(0, 0, 0), (128, 64, 128), (250, 50, 83), (20, 200, 20)], np.uint8)
    root = draw(tmp_path, in_colors(table), classes=None)
    rows = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(NAMES, table.tolist(), strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(rows))
    assert_as_drawn(read(root)[0])


# Photos


@pytest.mark.parametrize(
    ("orientation", "size"), [(3, (HEIGHT, WIDTH)), (6, (64, 64)), (6, (HEIGHT, WIDTH))]
)
def test_photos_of_phones_stand_upright_beside_their_labels(tmp_path, orientation, size):
    root = draw(tmp_path, shoot=turned(orientation), size=size)
    labels, photos, notes = read(root)
    assert_as_drawn(labels, photos, size=size)
    assert f"6 photos with an EXIF orientation (first: {root}/images/" in notes
    if size[0] == size[1] or orientation == 3:  # sizes cannot tell
        assert "if labels were drawn on the stored pixels, set data.orientation: stored" in notes
        assert re.search(
            r"edges are [2-9]\.\d times .* when photos are turned, 1\.\d times as stored",
            " ".join(survey_dataset(root).notes),
        )
        stored = read(root, reading=Reading(orientation="stored"))[1]
        assert np.abs(stored["000"].astype(int) - photos["000"]).mean() > 20


def test_labels_that_fit_the_stored_pixels_only_are_told_by_their_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6

    def shoot(path, pixels):
        Image.fromarray(pixels).save(f"{path}.jpg", quality=95, exif=exif)

    labels, photos, notes = read(draw(tmp_path, shoot=shoot))
    assert_as_drawn(labels, photos)
    assert "label maps fit the stored pixels, so none is turned" in notes
    draw(tmp_path, shoot=turned(6), first=20)
    said = refusal(tmp_path)
    assert "some label maps fit the upright photo" in said
    assert "set data.orientation to apply or stored" in said


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("in_color", [False, True])
def test_photos_of_more_than_8_bits_are_scaled_by_the_range_of_all(tmp_path, bits, in_color):
    def shoot(path, pixels):
        pixels = pixels if in_color else pixels[..., 0]
        deep = pixels.astype(np.uint16) << (bits - 8)
        cv2.imwrite(f"{path}.png", deep[..., ::-1] if in_color else deep)

    _, photos, notes = read(draw(tmp_path, shoot=shoot))
    white = {10: 1023, 12: 4095, 16: 65535}[bits]
    assert f"6 photos of 16 bits, values {20 << (bits - 8)} to " not in notes  # as measured
    assert f": scaled from 0 to {white}." in notes
    channel = photo_of(ids(0), 0)[..., 0].astype(int)
    assert np.abs(photos["000"][..., 0] - channel).max() <= 1


def test_photos_of_two_ranges_are_refused_until_told(tmp_path):
    def shoot(path, pixels):
        shift = 4 if int(path.name) % 2 else 8
        cv2.imwrite(f"{path}.png", pixels[..., 0].astype(np.uint16) << shift)

    root = draw(tmp_path, shoot=shoot)
    assert "3 end below 8192 and would be nearly black, others do not" in refusal(root)
    _, photos, notes = read(root, reading=Reading(levels=(0, 65535)))
    assert "scaled from 0 to 65535" in notes
    assert photos["001"].max() < 20


@pytest.mark.parametrize(("scale", "white"), [(255, 1), (1, None)])
def test_photos_of_floats(tmp_path, scale, white):
    def shoot(path, pixels):
        Image.fromarray((pixels[..., 0] / scale).astype(np.float32)).save(f"{path}.tif")

    root = draw(tmp_path, shoot=shoot)
    if white is None:
        assert "floats above 1 have no known white; set data.photo_levels" in refusal(root)
        photos = read(root, reading=Reading(levels=(0, 255)))[1]
    else:
        photos = read(root)[1]
    channel = photo_of(ids(0), 0)[..., 0].astype(int)
    assert np.abs(photos["000"][..., 0] - channel).max() <= 1


# Held-out photos


@pytest.mark.parametrize("quality", [None, 70])
def test_frames_of_a_film_on_both_sides_are_counted(tmp_path, quality):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for i in range(40):
        label = ids(i // 4)
        as_ids(tmp_path / f"labels/{i:03}", label, 0)
        pixels = Image.fromarray(photo_of(label, 0))
        if quality is None:
            pixels.save(tmp_path / f"images/{i:03}.png")
        else:
            pixels.save(tmp_path / f"images/{i:03}.jpg", quality=quality + i % 4)
    write_classes(tmp_path, {"classes": NAMES})
    found = survey_dataset(tmp_path)
    counted = "4 are byte-equal and 0 near-equal" if quality is None else "0 are byte-equal and 4"
    assert f"Of 4 held-out photos, {counted}" in " ".join(found.notes)
    folder = partial(DataFolder, "folder", tmp_path)
    held_out = [i.key for i in folder(val_by="sequence").items_for("val")]
    assert held_out == ["036", "037", "038", "039"]
    assert len(folder(val_by="sequence").items_for("train")) == 36
    held_out = [i.key for i in folder(val_by=("00",)).items_for("val")]
    assert held_out == [f"{i:03}" for i in range(10)]
    with pytest.raises(UserError, match="no key begins with x"):
        folder(val_by=("x",)).items_for("val")


def test_equal_photos_are_found_where_both_splits_use_the_same_names(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path, folders=(f"images/{split}", f"labels/{split}"), first=0)
    for kind in ("images", "labels"):
        for number in range(6):  # the same pairs under each other's names
            shutil.copy(
                tmp_path / kind / f"train/{number:03}.png",
                tmp_path / kind / f"val/{(number + 1) % 6:03}.png",
            )
    assert "Of 6 held-out photos, 6 are byte-equal" in " ".join(survey_dataset(tmp_path).notes)


def test_other_photos_are_not_near_equal(tmp_path):
    for num_classes in (2, 4):
        root = draw(tmp_path / str(num_classes), num=40, num_classes=num_classes)
        assert "near-equal" not in " ".join(survey_dataset(root).notes)


def test_whole_sequences_are_held_out():
    keys = [f"{name}_{i}" for name in ("a", "b", "c") for i in range(1, 12)]
    held_out = datasets.held_out_keys([*keys, "d_1", "d_2", "d_3"], "sequence")
    assert held_out == {"d_1", "d_2", "d_3"}
