"""Folders of real users: read as people see them, or refused with the reason."""

import itertools
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ecgan.data import datasets
from ecgan.data.datasets import DataFolder
from ecgan.data.decode import Encoding
from ecgan.data.files import names
from ecgan.data.files.layout import Options
from ecgan.data.files.photo_sets import Reading
from ecgan.data.imports.recognition import recognise
from ecgan.data.packed.shard_layout import read_shard_layout
from ecgan.data.survey import survey_dataset
from ecgan_cli.main import cli
from tests.helpers.errors import message
from tests.helpers.reading import assert_as_drawn, read, refusal
from tests.helpers.user_folders import (
    COLORS,
    NAMES,
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

# Folders, splits and names

LAYOUTS = {
    "ours": ("images", "labels"),
    "split outside, capitals": ("Train/Images", "Train/GT"),
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
    "folders", [("Validation/images", "Validation/labels"), ("images/dev", "labels/dev")]
)
def test_a_split_of_another_name_alone(tmp_path, folders):
    labels, photos, _ = read(draw(tmp_path, folders=folders), "val")
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize("suffixes", SUFFIXES.values(), ids=SUFFIXES)
def test_the_common_suffix_of_label_maps_is_found(tmp_path, suffixes):
    labels, photos, _ = read(draw(tmp_path, suffixes=suffixes))
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize("suffixes", [("_sat", "_mask"), ("", "-seg")])
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


@pytest.mark.parametrize("sub", ["TRAINING", "train2017", "trainset"])
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


@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_numbers_are_paired_whatever_their_leading_zeros(tmp_path, suffix):
    root = draw(tmp_path, num=11, suffixes=("", suffix))
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"{int(path.name[:3])}{suffix}.png"))
    labels, photos, _ = read(root)
    assert sorted(labels) == [f"{i:03}" for i in range(11)]
    assert_as_drawn(labels, photos)
    assert "paired whatever the zeros before their numbers" in " ".join(survey_dataset(root).notes)


def test_numbers_that_differ_in_their_zeros_alone_pair_nothing(tmp_path):
    root = draw(tmp_path)
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"{int(path.stem)}.png"))
    shutil.copy(root / "images/003.png", root / "images/03.png")
    assert "6 label maps have no photo of the same name (first: labels/0.png)" in refusal(root)


def test_numbers_with_other_zeros_that_are_counted_from_one_are_refused(tmp_path):
    """000 to 005 and 1 to 6: each but one would get the label map of another."""
    root = draw(tmp_path)
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"{int(path.stem) + 1}.png"))
    assert "6 label maps have no photo of the same name (first: labels/1.png)" in refusal(root)


def test_fractions_are_no_numbers_with_zeros(tmp_path):
    root = draw(tmp_path, num=1)
    (root / "images/000.png").rename(root / "images/t0.05.png")
    (root / "labels/000.png").rename(root / "labels/t0.5.png")
    assert "1 label map has no photo of the same name (first: labels/t0.5.png)" in refusal(root)


def test_keys_of_other_scripts_stay_apart():
    keys = {datasets.clean_key(name) for name in ("晴000", "雨000", "का", "कि", "_000")}
    assert len(keys) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)


def test_files_of_systems_are_not_seen(tmp_path):
    root = draw(tmp_path)
    for path in (root / "images/._000.png", root / "__MACOSX/images/x.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (root / "images/again").symlink_to(root / "images")  # a circle
    assert len(read(root)[0]) == 6


@pytest.mark.parametrize("linked", [False, True])
def test_the_whole_disk_is_no_data_set(tmp_path, linked):
    place = Path("/")
    if linked:
        place = tmp_path / "disk"
        place.symlink_to("/")
    for reads in (
        lambda: list(names.walk(place)),
        lambda: DataFolder("folder", place).splits(),
        lambda: read_shard_layout(place),
        lambda: recognise(place, None),
        lambda: names.photos_below(place, "--unlabelled"),
    ):
        text = message(reads)
        assert text.startswith(f"{place}: {'leads to /, and ' if linked else ''}holds the whole")
        assert "give the folder of the photos" in text


def test_a_walk_is_bounded(tmp_path, monkeypatch):
    root = draw(tmp_path)
    count = sum(1 for _ in root.rglob("*"))
    monkeypatch.setattr(names, "MOST_ENTRIES", count)
    assert len(read(root)[0]) == 6
    monkeypatch.setattr(names, "MOST_ENTRIES", count - 1)
    assert f"{root}: more than {count - 1:,} files and folders below it" in message(read, root)


def test_one_folder_without_end_is_bounded_too(tmp_path, monkeypatch):
    asked = []

    class Endless:
        def __init__(self, folder):
            self.entries = (
                SimpleNamespace(name=f"{n}.png", is_dir=lambda: False) for n in itertools.count()
            )

        def __enter__(self):
            return self

        def __iter__(self):
            for entry in self.entries:
                asked.append(entry.name)
                yield entry

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(names, "MOST_ENTRIES", 1000)
    monkeypatch.setattr("os.scandir", Endless)
    assert f"{tmp_path}: more than 1,000 files" in message(lambda: list(names.walk(tmp_path)))
    assert len(asked) == 1001


def test_a_walk_goes_as_that_of_the_system(tmp_path):
    root = tmp_path / "root"
    for place in ("root/b/c/d", "root/b/a", "root/a", "root/e/f", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").touch()
    (root / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "broken").symlink_to(tmp_path / "nowhere")
    assert [*names.walk(root)] == [*os.walk(root, followlinks=True)]
    for walked in (names.walk(root), os.walk(root, followlinks=True)):
        order = []
        for parent, folders, _ in walked:
            folders[:] = sorted(f for f in folders if f != "e")
            order.append(parent)
        assert [Path(p).name for p in order[1:]] == ["a", "linked", "b", "a", "c", "d"]


def test_links_lead_neither_up_nor_round_nor_into_the_kernel(tmp_path):
    for name, target in {"up": "..", "disk": "/", "own": ".", "too": ".", "proc": "/proc"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "inner").mkdir()
    assert {parent for parent, *_ in names.walk(tmp_path)} == {str(tmp_path), f"{tmp_path}/inner"}
    assert read_shard_layout(tmp_path) is None
    assert list(names.walk(tmp_path / "proc")) == []


@pytest.mark.parametrize(
    ("kind", "suffix", "expected"),
    [
        ("images", ".heic", "files *.heic are not read: save photos as JPEG or PNG"),
        ("labels", ".npy", "files *.npy are no label maps: save class ids as PNG of 8 or 16 bits"),
        ("images", ".zip", "files *.zip are not read: unpack them"),
        ("labels", ".json", "`ecgan data import` converts polygons and other annotations"),
    ],
)
def test_files_of_other_formats_are_named_with_the_way_out(tmp_path, kind, suffix, expected):
    root = draw(tmp_path)
    for path in (root / kind).iterdir():
        path.rename(path.with_suffix(suffix))
    assert expected in refusal(root)


# What the pixels of label maps are


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


# Photos


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
