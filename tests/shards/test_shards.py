"""The written data sets, re-read by the programs that users read them with."""

import contextlib
import hashlib
import io
import json
import runpy
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan.data.packed import sample_sets as sets
from ecgan.errors import UserError
from ecgan.runtime.storage import open_store
from ecgan.shards import codecs, finalize, manifest, readers, records
from ecgan.shards import formats as shards
from ecgan.shards.files import names
from ecgan.shards.records import Encoded, Record

NUM_CLASSES = 3
FORMATS = ["webdataset", "parquet", "folder"]


def make_samples(count=3, first=0, dtype=np.uint8):
    rng = np.random.default_rng(first)
    for i in range(first, first + count):
        image = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
        label = rng.integers(0, NUM_CLASSES, (8, 16)).astype(dtype)
        label[0, 0] = np.iinfo(dtype).max
        edge = rng.integers(0, 256, (8, 16), dtype=np.uint8)
        record = Record(
            key=names.sample_key(f"city_{i // 2}", i % 2),
            source=f"city_{i // 2}",
            style=i % 2,
            seed=2**53 - 1 - i,
            width=16,
            height=8,
            class_pixels=records.count_classes(label, NUM_CLASSES),
        )
        yield Encoded(
            record,
            codecs.encode_image(image, "jpg", 95),
            codecs.encode_map(label),
            codecs.encode_map(edge),
        )


def write(root, data_format, samples, number=0):
    return shards.write_shard(
        open_store(root),
        names.shard_name(data_format, "train", number),
        samples,
        data_format=data_format,
        image_format="jpg",
        num_classes=NUM_CLASSES,
    )


def write_data_set(root, data_format):
    """Two shards with what stands beside them, as ``generate`` lays them out."""
    written = [write(root, data_format, make_samples(4), 0)]
    written.append(write(root, data_format, make_samples(2, first=4), 1))
    about = {
        "schema": manifest.SCHEMA,
        "format": data_format,
        "image_format": "jpg",
        "names": ["road", "sky", "car: 2"],
        "class_pixels": [0, 0, 0],
        "label_space": "input",
        "recipe": {},
        "classes": {"classes": [{"id": 0, "name": "road"}]},
        "shards": [s.entry().model_dump() for s in written],
    }
    (root / "manifest.json").write_text(json.dumps(about))
    if data_format == "folder":
        palette = np.arange(768, dtype=np.uint8).reshape(256, 3)
        texts = finalize.folder_sidecars(manifest.read_manifest(root), palette)
        for name, text in texts.items():
            (root / name).write_text(text)
        listings = [root / names.listing_name(shard.name) for shard in written]
        (root / "metadata.jsonl").write_text("".join(path.read_text() for path in listings))
    if data_format == "webdataset":
        (root / "index.json").write_text(finalize.wids_index("toy", written))
    return written


def all_bytes(root):
    """Every file that is no temporary, with its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_same_samples_give_the_same_bytes(tmp_path, data_format):
    first = write(tmp_path / "a", data_format, make_samples())
    second = write(tmp_path / "b", data_format, make_samples())
    assert first == second
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


@pytest.mark.parametrize("data_format", FORMATS)
def test_an_error_leaves_no_shard_and_no_temporary(tmp_path, data_format):
    def failing():
        yield from make_samples()
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError):
        write(tmp_path, data_format, failing())
    assert all_bytes(tmp_path) == {}


@pytest.mark.parametrize("data_format", FORMATS)
def test_what_is_read_is_what_was_written(tmp_path, data_format):
    write_data_set(tmp_path, data_format)
    expected = [*make_samples(4), *make_samples(2, first=4)]
    read = list(sets.read(tmp_path))
    assert [s.key for s in read] == [e.record.key for e in expected]
    for sample, encoded in zip(read, expected, strict=True):
        assert (sample.source, sample.style) == (encoded.record.source, encoded.record.style)
        for array, data in [
            (sample.image, encoded.image),
            (sample.label, encoded.label),
            (sample.edge, encoded.edge),
        ]:
            np.testing.assert_array_equal(array, np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_shard_says_what_it_holds(tmp_path, data_format):
    shard = write(tmp_path, data_format, make_samples(3))
    expected = np.sum([e.record.class_pixels for e in make_samples(3)], axis=0)
    assert shard.samples == 3
    assert shard.class_pixels == tuple(expected)
    assert manifest.CommitRecord.model_validate_json(shard.model_dump_json()) == shard
    paths = [tmp_path / name for name in shards.files_of(open_store(tmp_path), shard.name)]
    assert shard.bytes == sum(p.stat().st_size for p in paths)
    assert shards.measured_size(open_store(tmp_path), shard.name) == shard.bytes
    if data_format != "folder":
        assert shard.sha256 == hashlib.sha256(paths[0].read_bytes()).hexdigest()


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_changed_or_missing_file_is_noticed(tmp_path, data_format):
    shard = write(tmp_path, data_format, make_samples(3))
    assert shards.is_intact(open_store(tmp_path), shard)
    path = tmp_path / shards.files_of(open_store(tmp_path), shard.name)[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not shards.is_intact(open_store(tmp_path), shard)
    path.unlink()
    assert not shards.is_intact(open_store(tmp_path), shard)


def test_a_tar_holds_each_sample_in_one_piece_and_no_time(tmp_path):
    write(tmp_path, "webdataset", make_samples(2))
    with tarfile.open(tmp_path / "data/train-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [
        f"city_0-s00{s}.{field}" for s in (0, 1) for field in ("edge.png", "jpg", "json", "seg.png")
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_records_have_one_schema(tmp_path):
    """``datasets`` types JSON by its first samples: an int where a float may come breaks later."""
    write(tmp_path, "webdataset", make_samples(1))
    with tarfile.open(tmp_path / "data/train-000000.tar") as tar:
        record = json.loads(tar.extractfile("city_0-s000.json").read())
    assert {k: type(v).__name__ for k, v in record.items()} == {
        "key": "str",
        "source": "str",
        "style": "int",
        "seed": "int",
        "width": "int",
        "height": "int",
        "consistency": "float",
        "kept_fraction": "float",
        "variation": "str",
        "digital_source_type": "str",
        "class_pixels": "list",
    }
    assert len(record["class_pixels"]) == NUM_CLASSES
    assert list(record) == shards.parquet_schema(NUM_CLASSES).names[3:]


def test_maps_are_greyscale_never_palette():
    label = np.zeros((8, 16), np.uint8)
    assert Image.open(io.BytesIO(codecs.encode_map(label))).mode == "L"
    wide = np.full((8, 16), 300, np.uint16)
    decoded = Image.open(io.BytesIO(codecs.encode_map(wide)))
    assert decoded.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(decoded), wide)


def test_jpeg_keeps_colours_at_full_resolution():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2, 0] = 255  # red columns one pixel wide vanish at 4:2:0
    decoded = np.asarray(
        Image.open(io.BytesIO(codecs.encode_image(image, "jpg", 95))).convert("RGB")
    )
    assert np.abs(decoded.astype(int) - image).max() < 40


@given(
    st.text("aB0_-", min_size=1, max_size=200),
    st.text("aB0_-", min_size=1, max_size=200),
    *[st.integers(0, 1200)] * 2,
)
def test_keys_of_samples_are_unique_and_fit_readers(first, second, style, other_style):
    keys = {names.sample_key(first, style), names.sample_key(second, other_style)}
    assert len(keys) == len({(first, style), (second, other_style)})
    for key in keys:
        assert set(key) <= set("aB0_-s123456789cdef")
        assert len(f"{key}.edge.png") < 100  # USTAR


def test_sixteen_bit_labels_come_back(tmp_path):
    write(tmp_path, "webdataset", make_samples(1, dtype=np.uint16))
    (sample,) = sets.read(tmp_path / "data")
    assert sample.label.dtype == np.uint16
    assert sample.label[0, 0] == 65535


# The readers of others


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the tar open
def test_webdataset_opens_the_tars(tmp_path):
    import webdataset as wds

    write_data_set(tmp_path, "webdataset")
    data_set = wds.WebDataset(
        str(tmp_path / "data/train-{000000..000001}.tar"), shardshuffle=False
    ).decode(wds.handle_extension("seg.png", lambda b: np.array(Image.open(io.BytesIO(b)))), "rgb8")
    samples = list(data_set)
    assert [s["__key__"] for s in samples] == [s.key for s in sets.read(tmp_path)]
    for ours, theirs in zip(sets.read(tmp_path), samples, strict=True):
        np.testing.assert_array_equal(theirs["seg.png"], ours.label)
        np.testing.assert_array_equal(theirs["jpg"], ours.image)
        assert theirs["json"]["source"] == ours.source


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:String specifications")
def test_wids_opens_the_index_from_the_root(tmp_path):
    import wids

    write_data_set(tmp_path, "webdataset")
    data_set = wids.ShardListDataset(str(tmp_path / "index.json"), cache_dir=str(tmp_path / "wids"))
    assert len(data_set) == 6
    sample = data_set[5]
    expected = list(sets.read(tmp_path))[5]
    assert sample["__key__"] == expected.key
    assert {".jpg", ".seg.png", ".edge.png", ".json"} <= sample.keys()


def test_parquet_has_small_row_groups_a_page_index_and_hugging_face_metadata(tmp_path):
    write(tmp_path, "parquet", make_samples(150))
    file = pq.ParquetFile(tmp_path / "data/train-00000.parquet")
    metadata = file.metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [100, 50]
    assert metadata.row_group(0).column(0).has_offset_index
    table = file.read()
    assert table["image"][0]["path"].as_py() == "city_0-s000.jpg"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["label"] == {"_type": "Image"}


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_hugging_face_datasets_loads_images(tmp_path, monkeypatch, data_format):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from datasets import load_dataset

    root = tmp_path / "out"
    root.mkdir()
    write_data_set(root, data_format)
    (root / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        f"    path: {json.dumps(finalize.card_data_files(data_format, 'train'))}\n---\n"
    )
    rows = load_dataset(str(root), split="train", cache_dir=str(tmp_path / "cache"))
    names = ("jpg", "seg.png") if data_format == "webdataset" else ("image", "label")
    assert len(rows) == 6
    for row, expected in zip(rows, sets.read(root), strict=True):
        np.testing.assert_array_equal(np.asarray(row[names[0]]), expected.image)
        np.testing.assert_array_equal(np.asarray(row[names[1]]), expected.label)
        record = row["json"] if data_format == "webdataset" else row
        assert record["source"] == expected.source
        assert len(record["class_pixels"]) == NUM_CLASSES
        assert record["consistency"] == -1.0


def test_the_folder_carries_files_for_mmsegmentation_and_ultralytics(tmp_path):
    write_data_set(tmp_path, "folder")
    dataset = runpy.run_path(str(tmp_path / "mmseg_dataset.py"))["dataset"]
    images = tmp_path / dataset["data_prefix"]["img_path"]
    masks = tmp_path / dataset["data_prefix"]["seg_map_path"]
    assert {p.stem for p in images.iterdir()} == {p.stem for p in masks.iterdir()}
    assert dataset["metainfo"]["classes"] == ("road", "sky", "car: 2")
    assert dataset["metainfo"]["palette"][1] == [3, 4, 5]
    ultralytics = yaml.safe_load((tmp_path / "dataset.yaml").read_text())
    assert ultralytics["names"] == {0: "road", 1: "sky", 2: "car: 2"}
    assert (tmp_path / ultralytics["train"].replace("images", ultralytics["masks_dir"])).is_dir()


# Plain folders and bad input


def plain_folder(root, labels="labels"):
    for folder in ("images/a", f"{labels}/a"):
        (root / folder).mkdir(parents=True)
    sample = next(make_samples(1))
    (root / "images/a/x.1.jpg").write_bytes(sample.image)
    (root / labels / "a/x.1.png").write_bytes(sample.label)


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_a_plain_folder_is_read_by_stem(tmp_path, labels):
    plain_folder(tmp_path, labels)
    (sample,) = sets.read(tmp_path)
    assert (sample.key, sample.source, sample.style) == ("a-x_1", "a-x_1", 0)
    assert sample.edge is None
    assert sample.label.shape == (8, 16)


def test_a_plain_folder_has_the_keys_of_its_split_and_none_twice(tmp_path):
    def add(split):
        for name, mode in (("images", "RGB"), ("labels", "L")):
            (tmp_path / name / split).mkdir(parents=True)
            Image.new(mode, (16, 8)).save(tmp_path / name / split / "q.png")

    add("test")
    assert [sample.key for sample in sets.read(tmp_path)] == ["q"]
    add("train")
    with pytest.raises(UserError, match=r"train/q\.png and .*test/q\.png share the key 'q'"):
        list(sets.read(tmp_path))


def test_a_photo_of_a_plain_folder_without_label_is_a_fault(tmp_path):
    plain_folder(tmp_path)
    (tmp_path / "images/a/y.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 photo has no label map.*first: images/a/y\.jpg"):
        list(sets.read(tmp_path))


def colour_mask(root):
    plain_folder(root)
    Image.new("RGB", (16, 8)).save(root / "labels/a/x.1.png")


def truncated_image(root):
    plain_folder(root)
    path = root / "images/a/x.1.jpg"
    path.write_bytes(path.read_bytes()[:100])


def not_an_image(root):
    plain_folder(root)
    (root / "images/a/x.1.jpg").write_bytes(b"words")


def empty_label(root):
    plain_folder(root)
    (root / "labels/a/x.1.png").write_bytes(b"")


def edge_of_words(root):
    write(root, "webdataset", (sample._replace(edge=b"words") for sample in make_samples()))


def coloured_edge(root):
    write(root, "webdataset", (sample._replace(edge=sample.image) for sample in make_samples()))


def no_tar(root):
    (root / "data").mkdir()
    (root / "data/train-000000.tar").write_bytes(b"words " * 400)


def flipped_parquet(root):
    """Bytes of the first column changed: the file's own lists of what it holds stay whole."""
    write(root, "parquet", make_samples())
    path = root / "data/train-00000.parquet"
    content = bytearray(path.read_bytes())
    content[60:120] = bytes(byte ^ 0xFF for byte in content[60:120])
    path.write_bytes(content)


def manifest_of(root, **changes):
    """A manifest with other values, or without those that are None."""
    write_data_set(root, "webdataset")
    about = json.loads((root / "manifest.json").read_text()) | changes
    kept = {name: value for name, value in about.items() if value is not None}
    (root / "manifest.json").write_text(json.dumps(kept))


def truncated_tar(root):
    write(root, "webdataset", make_samples())
    path = root / "data/train-000000.tar"
    path.write_bytes(path.read_bytes()[:2000])


def truncated_parquet(root):
    write(root, "parquet", make_samples())
    path = root / "data/train-00000.parquet"
    path.write_bytes(path.read_bytes()[:-10])


def missing_shard(root):
    write_data_set(root, "webdataset")
    (root / "data/train-000001.tar").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "no samples here; expected data"),
        (lambda root: root.rmdir(), "no such folder"),
        (lambda root: (root / ".ecgan").mkdir(), "is not complete"),
        (
            lambda root: (root / "manifest.json").write_text("{"),
            "manifest.json: not a JSON file: .*; make the data set again",
        ),
        (lambda root: (root / "manifest.json").write_text("{}"), "not a manifest"),
        (
            lambda root: manifest_of(root, schema=4),
            r"manifest.json: not a manifest .*: schema: .* 4, expected 1 to 3, got 4; make the",
        ),
        (
            lambda root: manifest_of(root, classes=None, label_space=None, shards=None),
            r"not a manifest .*: 3 fields do not fit; make .*\n  label_space: field required",
        ),
        (
            lambda root: manifest_of(root, recipe=None),
            "not a manifest .*: recipe: field required; make",
        ),
        (
            lambda root: manifest_of(root, shards={}),
            "not a manifest .*: shards: input should be a valid list, got {}; make",
        ),
        (
            lambda root: manifest_of(root, shards=[{"name": "data/train-000000.tar"}]),
            r"4 fields do not fit; make .*\n  shards.0.samples: field required\n  shards.0.bytes",
        ),
        (colour_mask, "a-x_1: its label must be greyscale, .* mode RGB; convert it, pixel ="),
        (coloured_edge, "city_0-s000: its edge must be greyscale, .* mode RGB"),
        (truncated_image, "sample a-x_1: its image: truncated or damaged"),
        (not_an_image, "sample a-x_1: its image: not an image"),
        (empty_label, r"sample a-x_1: its label: empty file \(0 bytes\); replace the file or"),
        (edge_of_words, r"sample city_0-s000: its edge \(5 bytes\) is no picture"),
        (truncated_tar, "a damaged tar: .*; `ecgan data verify` lists all such shards; make"),
        (no_tar, "train-000000.tar: not a tar file; `ecgan data verify` lists all such shards"),
        (
            truncated_parquet,
            "a damaged Parquet file: .*; `ecgan data verify` lists all such shards",
        ),
        (flipped_parquet, "train-00000.parquet: a damaged Parquet file: .*; `ecgan data verify`"),
        (missing_shard, "train-000001.tar: the manifest lists this shard, but it is not there"),
    ],
)
def test_damaged_data_sets_are_refused_by_name(tmp_path, spoil, message):
    spoil(tmp_path)
    if not (tmp_path / "manifest.json").exists() and (tmp_path / ".ecgan/tmp").is_dir():
        (tmp_path / ".ecgan/tmp").rmdir()
        (tmp_path / ".ecgan").rmdir()
    for read in (lambda: list(sets.read(tmp_path)), lambda: every_item(tmp_path)):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert "\n" not in caught.value.title


def every_item(place):
    data = sets.SampleDataset(place)
    return [data[index] for index in range(len(data))]


def test_an_error_of_who_reads_a_sample_is_not_taken_for_damage(tmp_path):
    write_data_set(tmp_path, "parquet")

    def read():
        with contextlib.closing(
            readers.read_raw(open_store(tmp_path), "data/train-00000.parquet")
        ) as raws:
            next(raws)
            raws.throw(OSError("the disk is full"))

    with pytest.raises(OSError, match=r"^the disk is full$"):
        read()
