"""Folders that people brought and that went wrong, by name: one test for each.

Each is read as a person sees it in the tool that wrote it, or refused with the reason. The kinds
that they belong to have more tests, in test_user_folders.py and test_exports.py.
"""

import io
import re
import unicodedata

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from ecgan.data.datasets import DataFolder
from ecgan.data.decode import Encoding
from ecgan.data.files.photo_sets import Reading
from ecgan.data.packed import sample_sets
from ecgan.data.survey import survey_dataset
from ecgan.errors import UserError
from ecgan.evaluation import run as evaluate
from ecgan.recipe import parse_recipe
from ecgan_cli.main import cli
from tests.helpers.errors import message
from tests.helpers.reading import assert_as_drawn, read, refusal
from tests.helpers.segmenters import save_segmenter
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
    tiff_of_bands,
    turned,
    write_classes,
)

BINARY = ["background", "crack"]


def write_proposed_classes(root):
    """What inspect says while it writes its proposal of a class list beside the data."""
    options = ["--write-classes", str(root / "classes.json")]
    result = CliRunner().invoke(cli, ["data", "inspect", str(root), *options])
    assert result.exit_code == 0, result.output
    return result.output


def as_0_and_255(path, label, seed):
    as_ids(path, label * 255, seed)


def enlarged(resampling, table=None):
    """Label maps, of ids or colours, and photos that were scaled once they were drawn."""

    def save(path, label, _):
        image = Image.fromarray(label if table is None else table[label])
        image.resize((96, 72), resampling).save(f"{path}.png")

    def shoot(path, pixels):
        Image.fromarray(pixels).resize((96, 72)).save(f"{path}.png")

    return {"save": save, "shoot": shoot}


# What the pixels of label maps are


def test_voc_colours_names_only(tmp_path):
    """Colours that nobody gave mean nothing."""
    said = refusal(draw(tmp_path, in_colors(VOC)))
    assert "6 label maps of RGB colours" in said
    assert 'the class list gives no colour; add "color" to each class' in said
    assert "(128, 128, 0)" in said


@pytest.mark.parametrize("ignore", [255, None])
def test_binary_255(tmp_path, ignore):
    """A foreground of 255 is not unlabelled; and 0 and 255 are what they are when told."""
    classes = {"classes": BINARY, "ignore": ignore}
    root = draw(tmp_path, as_0_and_255, classes=classes, num_classes=2)
    ids_given = '{"classes": [{"id": 0, "name": "background"}, {"id": 255, "name": "crack"}]'
    assert ids_given in refusal(root)
    if ignore is not None:
        labels, _, notes = read(root, reading=Reading(Encoding.INDEX))
        assert {*np.unique(labels["000"]).tolist()} == {0, 255}
        assert "No pixel in 6 label maps: crack" in notes
    classes = [{"id": 0, "name": "background"}, {"id": 255, "name": "crack"}]
    write_classes(root, {"classes": classes, "ignore": None})
    assert_as_drawn(read(root)[0], num_classes=2)


@pytest.mark.parametrize(
    "channels", [pytest.param(1, id="binary_255_no_list"), pytest.param(3, id="binary_rgb")]
)
def test_binary_without_a_class_list(tmp_path, channels):
    """Two classes are proposed, and what to write if 255 is unlabelled."""

    def save(path, label, seed):
        as_ids(path, np.dstack([label * 255] * channels).squeeze(), seed)

    root = draw(tmp_path, save, classes=None, num_classes=2)
    said = write_proposed_classes(root)
    assert "hold 0 and 255 only: proposed as two classes; if 255 is unlabelled" in said
    labels, photos, _ = read(root)
    assert_as_drawn(labels, photos, num_classes=2)


def test_grey_rgb_ids(tmp_path):
    root = draw(tmp_path, lambda p, m, i: as_ids(p, np.dstack([m] * 3), i))
    labels, photos, notes = read(root)
    assert_as_drawn(labels, photos)
    assert "RGB files with r = g = b: read as ids" in notes


def test_ids_1000(tmp_path):
    """Numbers with gaps are proposed as a map to ids; a list of names does not fit them."""

    def save(path, label, seed):
        as_ids(path, label.astype(np.uint16) * 1000 + 7, seed)

    root = draw(tmp_path, save, classes=None)
    said = write_proposed_classes(root)
    assert "the class list maps them to ids (7 -> 0, 1007 -> 1, 2007 -> 2, 3007 -> 3" in said
    assert_as_drawn(read(root)[0])
    write_classes(root, {"classes": NAMES})
    assert '{"id": 7, "name": "background"}, {"id": 1007, "name": "cat"}' in refusal(root)


def test_jpeg_named_png(tmp_path):
    def save(path, label, _):
        with open(f"{path}.png", "wb") as file:  # noqa: PTH123
            Image.fromarray(label).save(file, "JPEG", quality=90)

    said = refusal(draw(tmp_path, save))
    assert said.count("a JPEG file, whatever its name: the format changes ids") == 1
    assert "6 files (first: " in said


def test_palette_permuted(tmp_path):
    """A palette that says otherwise than the numbers: both readings are named, either is taken."""
    root = draw(tmp_path, in_palette(COLORS, lambda _: np.array([2, 0, 1, 3])), classes=colored())
    said = refusal(root)
    assert "number 0, palette colour (60, 200, 60), is background by number, dog by colour" in said
    assert "data.label_encoding: index or color" in said
    assert_as_drawn(read(root, reading=Reading(Encoding.COLOR))[0])
    by_number = read(root, reading=Reading(Encoding.INDEX))[0]
    assert (by_number["000"] == np.array([1, 2, 0, 3])[ids(0)]).all()


def test_bilinear_ids(tmp_path):
    """Ids that were scaled with a filter are warned of, others are not."""
    names = [f"c{i}" for i in range(12)]
    scaled = enlarged(Image.Resampling.BILINEAR)
    root = draw(tmp_path, **scaled, classes=names, num_classes=12)
    assert "% of the pixels along borders have an id between those beside them" in read(root)[2]
    notes = read(draw(tmp_path / "clean", classes=names, num_classes=12))[2]
    assert "along borders" not in notes


def test_soft_colours(tmp_path):
    """Anti-aliased colours are one line, and read as the nearest class's when told."""
    root = draw(tmp_path, **enlarged(Image.Resampling.BICUBIC, COLORS), classes=colored())
    said = refusal(root)
    assert re.search(r"\d+ colours that the class list lacks, \d+\.\d % of all pixels", said)
    assert "anti-aliased" in said
    assert said.count("not in the class list") == 0
    labels, _, notes = read(root, reading=Reading(Encoding.NEAREST))
    assert re.search(r"\d+\.\d\d % of all label pixels have another colour", notes)
    expected = np.asarray(Image.fromarray(ids(0)).resize((96, 72), Image.Resampling.NEAREST))
    assert (labels["000"] == expected).mean() > 0.97


def test_zero_unlabelled(tmp_path):
    classes = [{"id": i, "name": name} for i, name in enumerate(NAMES) if i]
    root = draw(tmp_path, classes={"classes": classes, "ignore": 0})
    labels, _, notes = read(root)
    for key, label in labels.items():
        drawn = ids(int(key))
        assert (label == np.where(drawn == 0, 255, drawn.astype(int) - 1)).all()
    assert "% of all pixels are unlabelled; if they are a class" in notes


def test_labelmap_txt(tmp_path):
    """The list of another tool gives black its class."""
    table = np.array([(0, 0, 0), (128, 64, 128), (250, 50, 83), (20, 200, 20)], np.uint8)
    root = draw(tmp_path, in_colors(table), classes=None)
    rows = [f"{n}:{','.join(map(str, c))}::" for n, c in zip(NAMES, table.tolist(), strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(rows))
    labels, photos, _ = read(root)
    assert_as_drawn(labels, photos)
    space = survey_dataset(root).space
    assert space is not None
    assert space.names == (*NAMES,)


# Photos


@pytest.mark.parametrize(
    ("orientation", "size"),
    [
        pytest.param(3, (HEIGHT, WIDTH), id="exif_180"),
        pytest.param(6, (64, 64), id="exif_square"),
        pytest.param(6, (HEIGHT, WIDTH), id="exif_sizes"),
    ],
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


@pytest.mark.parametrize("bits", [10, pytest.param(12, id="twelve_bits"), 16])
@pytest.mark.parametrize("in_color", [False, True])
def test_photos_of_more_than_8_bits_are_scaled_by_the_range_of_all(tmp_path, bits, in_color):
    lows, highs = [], []

    def shoot(path, pixels):
        pixels = pixels if in_color else pixels[..., 0]
        deep = pixels.astype(np.uint16) << (bits - 8)
        lows.append(deep.min())
        highs.append(deep.max())
        cv2.imwrite(f"{path}.png", deep[..., ::-1] if in_color else deep)

    labels, photos, notes = read(draw(tmp_path, shoot=shoot))
    assert_as_drawn(labels)
    white = {10: 1023, 12: 4095, 16: 65535}[bits]
    assert f"6 photos of 16 bits, values {min(lows)} to {max(highs)} (first: " in notes
    assert f": scaled from 0 to {white}." in notes
    channel = photo_of(ids(0), 0)[..., 0].astype(int)
    assert np.abs(photos["000"][..., 0] - channel).max() <= 1


@pytest.mark.parametrize("num", [4, 5])
def test_bands(tmp_path, num):
    """Near infrared beside the colours: named, with the way out."""

    def shoot(path, pixels):
        bands = np.dstack([pixels, pixels])[..., :num]
        path.with_suffix(".tif").write_bytes(tiff_of_bands(bands))

    said = refusal(draw(tmp_path, shoot=shoot))
    assert said.count("\n") == 1
    assert f"6 files (first: {tmp_path}/images/00" in said
    assert f"): {num} bands; save the three that are red, green and blue" in said


# Names and splits


def test_capital_splits(tmp_path):
    draw(tmp_path, folders=("images/Train", "labels/Train"))
    draw(tmp_path, folders=("images/Test", "labels/Test"), first=20)
    labels, photos, _ = read(tmp_path)
    assert {int(key) for key in labels} == {*range(6)}
    assert_as_drawn(labels, photos)
    folder = DataFolder("folder", tmp_path)
    assert folder.splits() == ["train", "test"]
    assert {int(item.key) for item in folder.items_for("test")} == {*range(20, 26)}


def test_cjk_names(tmp_path):
    """Names of other scripts are paired by what they are."""
    root = draw(tmp_path)
    for kind, letter in (("images", "晴"), ("labels", "雨")):
        for path in (root / kind).iterdir():
            path.rename(path.with_name(f"{letter}{path.name}"))
    said = refusal(root)
    assert "6 label maps have no photo of the same name (first: labels/雨000.png)" in said
    assert "6 photos have no label map of the same name (first: images/晴000.png)" in said
    for path in (root / "images").iterdir():
        path.rename(path.with_name(path.name.replace("晴", "雨")))
    labels, photos, _ = read(root)
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


def test_nfd_names(tmp_path):
    """Names of one look are one name."""
    root = draw(tmp_path)
    for form, kind in (("NFD", "images"), ("NFC", "labels")):
        for path in (root / kind).iterdir():
            path.rename(path.with_name(unicodedata.normalize(form, f"Caffè {path.name}")))
    labels, photos, _ = read(root)
    assert len(labels) == 6
    assert_as_drawn(labels, photos)


@pytest.mark.parametrize("quality", [pytest.param(None, id="equal_frames"), 70])
def test_frames_of_a_film_on_both_sides_are_counted(tmp_path, quality):
    """Byte-equal or near-equal photos across the held-out tenth, and what to divide by instead."""
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
    notes = " ".join(survey_dataset(tmp_path).notes)
    counted = "4 are byte-equal and 0 near-equal" if quality is None else "0 are byte-equal and 4"
    assert f"Of 4 held-out photos, {counted}" in notes
    assert "divide by sequence: data.val_by: sequence" in notes

    def keys(split, val_by):
        folder = DataFolder("folder", tmp_path, val_by=val_by)
        return [item.key for item in folder.items_for(split)]

    assert keys("val", "sequence") == ["036", "037", "038", "039"]
    assert len(keys("train", "sequence")) == 36
    assert keys("val", ("00",)) == [f"{i:03}" for i in range(10)]
    with pytest.raises(UserError, match="no key begins with x"):
        keys("val", ("x",))


@pytest.mark.slow
def test_rare_classes(tmp_path):
    """24 pairs, each with a class of its own, judged by what sees road alone.

    The means of samples and of photos are over the classes that both have, and lie in their
    interval: of 26 classes 5 are among the held-out photos.
    """
    samples, real, judge = (tmp_path / name for name in ("samples", "real", "judge"))
    for i in range(24):
        label = np.zeros((32, 64), np.uint8)
        label[15:] = 1
        label[10:15, 10:30] = 2 + i
        for root, split in ((samples, ""), (real, "val" if i < 3 else "train")):
            for folder, pixels in (("images", photo_of(label, i)), ("labels", label)):
                path = root / folder / split / f"{i:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    names = [f"class {i}" for i in range(26)]
    write_classes(real, {"classes": names, "ignore": None})
    save_segmenter(judge, names)
    weights = load_file(judge / "model.safetensors")
    weights["decode_head.classifier.bias"][1] += 1000
    save_file(weights, judge / "model.safetensors", {"format": "pt"})
    recipe = {"data": {"root": str(real), "height": 32, "width": 64}, "evaluate": {"features": []}}
    request = evaluate.Request(
        samples=(samples,),
        out=tmp_path / "out",
        recipe=parse_recipe(recipe, "test"),
        judge=str(judge),
        device="cpu",
        quiet=True,
    )
    miou = evaluate.run(request)[0].to_json()["metrics"]["miou"]
    of_road = 17 / 32
    assert "mean over 5 of 26 classes, those labelled in both" in miou["protocol"]
    assert miou["value"] == pytest.approx(of_road / 5)
    assert miou["real"] == pytest.approx(of_road / 5)
    assert miou["low"] <= miou["value"] <= miou["high"]


# Parquet


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(root, wrap, labels):
    """Photos and label maps in the columns that Hugging Face has."""
    photos = [wrap(encoded(photo_of(ids(i), i))) for i in range(len(labels))]
    columns = {"image": photos, "label": [wrap(label) for label in labels]}
    pq.write_table(pa.table(columns), root / "x.parquet")
    return root


def test_parquet_bytes(tmp_path):
    """Plain binary columns train, and are read as samples."""
    root = write_parquet(tmp_path, bytes, [encoded(ids(i)) for i in range(6)])
    write_proposed_classes(root)
    labels, photos, _ = read(root)
    assert sorted(labels) == [f"x-{i}" for i in range(6)]
    assert_as_drawn(labels, photos)
    samples = {sample.key: sample.label for sample in sample_sets.read(root)}
    assert_as_drawn(samples)
    assert len(samples) == 6


def test_parquet_null(tmp_path):
    """Column, row and remedy."""

    def wrap(data):
        return None if data is None else {"bytes": data, "path": None}

    labels = [*(encoded(ids(i)) for i in range(5)), None]
    root = write_parquet(tmp_path, wrap, labels)
    write_classes(root, {"classes": NAMES})
    fault = "row 5, column label"
    said = refusal(root)
    assert f"x.parquet: {fault}: null; fill it in, or remove the row" in said
    assert f"{fault}: null; fill it in" in message(lambda: [*sample_sets.read(root)])


# Folders of other tools

LAYOUTS = {
    "voc": ("JPEGImages", "SegmentationClass"),
    "mmseg": ("img_dir/train", "ann_dir/train"),
    "annotations": ("images", "annotations"),
    "annotations_training": ("images/training", "annotations/training"),
    "imgs_masks": ("imgs", "masks"),
    "image_mask": ("image", "mask"),
    "capital": ("Images", "Labels"),
    "split_outside": ("train/images", "train/masks"),
    "split_outside_labels": ("train/images", "train/labels"),
    "split_outside_valid": ("valid/images", "valid/labels"),
    "valid": ("images/valid", "labels/valid"),
    "img_gt": ("img", "gt"),
    "ultralytics": ("images/train", "masks/train"),
    "suffix_mask": ("images", "masks", "_mask"),
    "suffix_label": ("images", "labels", "_label"),
    "flat": ("", "", "_mask"),
    "camvid_fastai": ("images", "labels", "_P"),
    "label_train_ids": ("images", "labels", "_labelTrainIds"),
}


@pytest.mark.parametrize("name", LAYOUTS, ids="layout_{}".format)
def test_the_layout_is_read_as_it_comes(tmp_path, name):
    photos_in, labels_in, *suffix = LAYOUTS[name]
    root = draw(
        tmp_path,
        classes=None,
        folders=(photos_in, labels_in),
        suffixes=("", *(suffix or [""])),
    )
    said = write_proposed_classes(root)
    assert "6 pairs  (6 photos, 6 label maps)" in said
    assert ("Label maps end in" in said) == bool(suffix)
    split = {"valid": "val", "split_outside_valid": "val"}.get(name)
    divided = any(part.startswith("train") for part in photos_in.split("/"))
    expected = split or ("train" if divided else None)
    assert DataFolder("folder", root).splits() == ([expected] if expected else [])
    labels, photos, _ = read(root, split or "train")
    assert sorted(labels) == [f"{i:03}" for i in range(6)]
    assert_as_drawn(labels, photos)
