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
