"""Shards of other programs: what is read of them, and what is refused with a remedy."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ecgan.data import SampleDataset
from ecgan.data.packed import sample_sets
from ecgan.errors import UserError
from tests.helpers.user_folders import png_of_bits


def png(value, size=(6, 4), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO, LABEL = png((10, 20, 30), mode="RGB"), png(1)


def write_parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "x.parquet")
    return folder


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.parent


def test_plain_binary_columns_are_read(tmp_path):
    place = write_parquet(tmp_path, image=[PHOTO, PHOTO], label=[LABEL, png(2)])
    data = SampleDataset(place)
    assert [int(data[index].label[0, 0]) for index in range(2)] == [1, 2]
    assert [data[index].key for index in range(2)] == ["x-0", "x-1"]
    assert [s.key for s in sample_sets.read(place)] == ["x-0", "x-1"]
    assert (data.sample(0).image == np.array([10, 20, 30])).all()


def test_columns_as_others_name_them(tmp_path):
    place = write_parquet(tmp_path, pixel_values=[PHOTO, PHOTO], annotation=[LABEL, png(2)])
    assert [int(SampleDataset(place)[index].label[0, 0]) for index in range(2)] == [1, 2]
    assert [int(s.label[0, 0]) for s in sample_sets.read(place)] == [1, 2]


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("label", [LABEL, None], "row 1, column label: null; fill it in, or remove the row"),
        ("image", [{"bytes": PHOTO}, None], "row 1, column image: null"),
        ("image", [{"bytes": PHOTO}, {"bytes": None}], "row 1, column image: null"),
        ("image", ["a.png", "b.png"], "row 0, column image: text; expected the bytes"),
        ("label", [1, 2], "row 0, column label: a number"),
        ("label", [[1], [2]], "row 0, column label: a list"),
        (
            "image",
            [{"bytes": None, "path": "a.png"}] * 2,
            "row 0, column image: only the path",
        ),
    ],
)
def test_what_is_no_picture_is_named_by_file_column_and_row(tmp_path, column, values, fault):
    columns = {"image": [PHOTO, PHOTO], "label": [LABEL, LABEL]} | {column: values}
    place = write_parquet(tmp_path, **columns)
    with pytest.raises(UserError, match=rf"x\.parquet: {fault}"):
        list(sample_sets.read(place))
    data = SampleDataset(place)
    with pytest.raises(UserError, match=rf"x\.parquet: {fault}"):
        [data[0], data[1]]


def test_columns_of_others_may_have_our_names(tmp_path):
    place = write_parquet(
        tmp_path, image=[PHOTO], label=[LABEL], key=[7], source=[b"web"], style=["flat"]
    )
    sample = SampleDataset(place).sample(0)
    assert (sample.key, sample.source, sample.style) == ("7", "7", 0)


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


STRIPES = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 6, axis=1)  # (4, 6): ids 0 to 3
PALETTE = Image.fromarray(STRIPES, "P")
PALETTE.putpalette([c for i in range(256) for c in (i, 255 - i, 9)])


@pytest.mark.parametrize(
    ("label", "fault"),
    [
        (encoded(STRIPES, "JPEG"), "its label: a JPEG file, whatever its name: the format changes"),
        (encoded(STRIPES, "TIFF", compression="jpeg"), "its label: a JPEG-compressed TIFF file"),
        (
            encoded(STRIPES, "TIFF", save_all=True, append_images=[Image.fromarray(STRIPES)]),
            "its label: 2 pages or frames; save the one that is meant",
        ),
        (
            encoded(PALETTE, transparency=bytes([0, 128, 255, 255])),
            r"its label: half-transparent pixels \(6\)",
        ),
        (encoded(PALETTE, transparency=0), "its label has transparent pixels; save it without"),
        (
            encoded(STRIPES.astype(np.int32) - 1, "TIFF"),
            "its label holds numbers from -1 to 2; class ids are those from 0",
        ),
        (encoded(STRIPES.astype(np.float32), "TIFF"), "its label: pixels of mode F; a label map"),
    ],
)
def test_label_maps_of_samples_are_refused_where_those_of_training_are(tmp_path, label, fault):
    place = write_parquet(tmp_path, image=[PHOTO], label=[label])
    for read in (lambda: [*sample_sets.read(place)], lambda: SampleDataset(place)[0]):
        with pytest.raises(UserError, match=f"sample x-0: {fault}"):
            read()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (encoded(STRIPES > 1), STRIPES > 1),
        (encoded(PALETTE, bits=2), STRIPES),
        (encoded(STRIPES.astype(np.uint16) * 300), STRIPES.astype(np.uint16) * 300),
        (encoded(STRIPES, "WEBP", lossless=True), None),
    ],
)
def test_label_maps_of_samples_have_the_ids_of_their_files(tmp_path, label, expected):
    place = write_parquet(tmp_path, image=[PHOTO], label=[label])
    if expected is None:  # WebP knows colours only
        with pytest.raises(UserError, match="its label must be greyscale, this one has mode RGB"):
            next(sample_sets.read(place))
        return
    (sample,) = sample_sets.read(place)
    assert (sample.label == expected).all()
    assert sample.label.dtype in (np.uint8, np.uint16)


def test_ids_of_two_bits_are_not_spread_over_the_greys(tmp_path):
    photo = encoded(np.zeros((1, 4, 3), np.uint8))
    place = write_parquet(tmp_path, image=[photo], label=[png_of_bits(STRIPES.T[:1], 2)])
    (sample,) = sample_sets.read(place)
    assert sample.label.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("orientation", [3, 6])
def test_images_of_samples_stand_upright_unless_the_label_map_does_not(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    upright = np.rot90(stored, 2 if orientation == 3 else 3)
    photo = encoded(stored, "PNG", exif=exif)
    labels = [np.zeros(upright.shape[:2], np.uint8), np.zeros(stored.shape[:2], np.uint8)]
    place = write_parquet(tmp_path, image=[photo] * 2, label=[encoded(label) for label in labels])
    fitting, other = sample_sets.read(place)
    assert (fitting.image == upright).all()
    assert (other.image == (upright if orientation == 3 else stored)).all()


def test_deep_images_of_samples_are_scaled(tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2570
    place = write_parquet(tmp_path, image=[encoded(deep)], label=[LABEL])
    (sample,) = sample_sets.read(place)
    assert (sample.image == np.arange(24).reshape(4, 6, 1) * 10).all()


@pytest.mark.parametrize("field", ["seg.png", "label.png", "mask.png"])
def test_keys_and_fields_of_tars_are_those_of_webdataset(tmp_path, field):
    members = {f"{folder}/1.{end}": data for folder in "ab" for end, data in
               (("JPG", PHOTO), (field, LABEL))}  # fmt: skip
    place = write_tar(tmp_path / "x.tar", members | {"a/._1.jpg": b"finder"})
    data = SampleDataset(place)
    assert [data[index].key for index in range(len(data))] == ["a/1", "b/1"]
    assert [s.key for s in sample_sets.read(place)] == ["a/1", "b/1"]


def member(name, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/hostname"
    return info


@pytest.mark.parametrize(
    ("info", "fault"),
    [
        (member("1.seg.png", tarfile.SYMTYPE), "1.seg.png is a link"),
        (member("1.seg.png", tarfile.LNKTYPE), "1.seg.png is a link"),
        (member("1.seg.png", tarfile.FIFOTYPE), "1.seg.png is a link or device"),
        (member("../1.seg.png"), r"\.\./1\.seg\.png leads out"),
        (member("/tmp/1.seg.png"), "/tmp/1.seg.png leads out"),
    ],
)
def test_tars_hold_ordinary_files_only(tmp_path, info, fault):
    place = write_tar(tmp_path / "x.tar", {"1.jpg": PHOTO, info: b""})
    with pytest.raises(UserError, match=rf"x\.tar: {fault}"):
        SampleDataset(place)
    with pytest.raises(UserError, match=rf"x\.tar: {fault}"):
        list(sample_sets.read(place))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused_with_a_remedy(tmp_path, mode):
    place = write_tar(tmp_path / "x.tar", {"1.jpg": PHOTO, "1.seg.png": LABEL}, mode)
    with pytest.raises(UserError, match=r"x\.tar: a compressed tar.*; unpack it"):
        SampleDataset(place)


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        ("JPEGImages/1", "SegmentationClass/1"),
        ("train/images/1", "train/masks/1"),
        ("images/train/1", "masks/train/1_mask"),
    ],
)
def test_plain_folders_are_read_in_the_layouts_of_training(tmp_path, photo, label):
    for name, data in ((photo, PHOTO), (label, LABEL)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    data = SampleDataset(tmp_path)
    assert [data[index].key for index in range(len(data))] == ["1"]
    assert [s.key for s in sample_sets.read(tmp_path)] == ["1"]
