"""Finished data sets verified, converted and read by torch."""

import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ecgan.data import SampleDataset
from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import run as generate
from ecgan.generation.request import Request
from ecgan.runtime.storage import open_store
from ecgan.shards import codecs, formats, readers
from ecgan.shards.convert import convert
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import Encoded, Record
from ecgan.shards.verify import verify
from tests.helpers.data_sets import FORMATS, run_cli
from tests.helpers.tiny import SIZE

# Verify, convert, read


@pytest.fixture(scope="module")
def three(world, tmp_path_factory):
    """The same data set in each format."""
    folder = tmp_path_factory.mktemp("three")
    for data_format in FORMATS:
        generate.run(
            Request.of(
                world / "run" / "generator.safetensors", folder / data_format,
                labels=world / "real/labels/train", n_styles=2, samples_per_shard=5,
                data_format=data_format, device="cpu", quiet=True,
            )
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_a_converted_data_set_holds_the_same_bytes(three, tmp_path, source, target):
    count = convert(three / source, tmp_path / "out", target, quiet=True)
    assert count == 12
    found = verify(tmp_path / "out", quiet=True)
    assert (found.faults, found.samples) == ([], 12)
    before, after = (list(dataset.read_raw(p)) for p in (three / source, tmp_path / "out"))
    assert before == after
    ours, theirs = (read_manifest(p).shards for p in (three / target, tmp_path / "out"))
    assert ours == theirs
    assert not (tmp_path / "out/.ecgan/convert.json").exists()


@pytest.mark.parametrize("folder", ["data", "images/train", "edges/train", ".ecgan/records"])
def test_a_conversion_that_was_interrupted_before_its_first_file_starts_over(
    three, tmp_path, folder
):
    (tmp_path / "out" / folder).mkdir(parents=True)
    (tmp_path / "out/.ecgan").mkdir(exist_ok=True)
    (tmp_path / "out/.ecgan/convert.json").write_text("{}")
    assert convert(three / "parquet", tmp_path / "out", "webdataset", quiet=True) == 12


def test_conversion_can_cut_anew_and_starts_over(three, tmp_path):
    (tmp_path / "out/.ecgan").mkdir(parents=True)
    (tmp_path / "out/.ecgan/convert.json").write_text("{}")
    (tmp_path / "out/data").mkdir()
    (tmp_path / "out/data/train-000009.tar").write_bytes(b"of an interrupted conversion")
    convert(three / "parquet", tmp_path / "out", "webdataset", samples_per_shard=7, quiet=True)
    assert [s.samples for s in read_manifest(tmp_path / "out").shards] == [7, 5]
    assert verify(tmp_path / "out", quiet=True).faults == []
    with pytest.raises(UserError, match="not empty; give another folder"):
        convert(three / "parquet", tmp_path / "out", "folder", quiet=True)
    with pytest.raises(UserError, match="not a finished data set of this version"):
        convert(three, tmp_path / "other", "folder", quiet=True)


def flip_a_byte(out):
    path = out / "data/train-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def rewrite(out, change):
    """A shard with another content, its size and sum in the manifest as if it were right."""
    samples = []
    for raw in readers.read_raw(open_store(out), "data/train-000000.tar"):
        record = Record.from_json(raw.record)
        samples.append(change(Encoded(record, raw.image, raw.label, raw.edge)))
    written = formats.write_shard(
        open_store(out), "data/train-000000.tar", samples,
        data_format="webdataset", image_format="jpg", num_classes=5,
    )  # fmt: skip
    about = json.loads((out / "manifest.json").read_text())
    about["shards"][0] = written.entry().model_dump()
    (out / "manifest.json").write_text(json.dumps(about))


def palette_label(encoded):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(SIZE, np.uint8)).convert("P").save(buffer, "PNG")
    return encoded._replace(label=buffer.getvalue())


def strange_id(encoded):
    return encoded._replace(label=codecs.encode_map(np.full(SIZE, 7, np.uint8)))


def small_image(encoded):
    return encoded._replace(image=codecs.encode_image(np.zeros((8, 8, 3), np.uint8), "jpg", 95))


def no_image(encoded):
    return encoded._replace(image=b"words")


def same_key(encoded):
    """Two keys in turn: those of neighbours would make one sample of two."""
    return encoded._replace(record=replace(encoded.record, key=f"x{encoded.record.seed % 2}"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip_a_byte, r"train-000001.tar: other bytes than were written \(sha256 differs\)"),
        (lambda out: (out / "data/train-000002.tar").unlink(), "train-000002.tar: not there"),
        (
            lambda out: (out / "data/train-000002.tar").write_bytes(b"short"),
            r"train-000002.tar: 5 bytes, the manifest says \d+",
        ),
        (
            lambda out: (out / "data/train-000007.tar").write_bytes(b""),
            "train-000007.tar: not in the manifest",
        ),
        (
            lambda out: (out / "id2label.json").write_text('{"0": "cow"}'),
            "id2label.json: not there, or other names",
        ),
        (lambda out: rewrite(out, palette_label), "label of mode P, expected L"),
        (lambda out: rewrite(out, strange_id), "label ids 7 are not in the class list"),
        (lambda out: rewrite(out, small_image), "image is of 8 x 8, expected 64 x 32"),
        (lambda out: rewrite(out, no_image), r"image \(5 bytes\) is no picture"),
        (lambda out: rewrite(out, same_key), r"sample x\d: its key occurs twice"),
    ],
)
def test_verify_names_what_is_wrong(three, tmp_path, harm, message):
    out = shutil.copytree(three / "webdataset", tmp_path / "out")
    result = run_cli("data", "verify", out, "-q")
    assert result.exit_code == 0, result.output
    assert "12 samples in 3 shards, no faults" in result.output
    harm(out)
    result = run_cli("data", "verify", out, "-q")
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output


def test_verify_and_convert_are_commands(three, tmp_path):
    words = ["data", "convert", three / "webdataset", tmp_path / "out", "--format", "parquet", "-q"]
    assert "12 samples in" in run_cli(*words).output
    told = json.loads(run_cli("data", "verify", tmp_path / "out", "--json", "-q").output)
    assert told == {"shards": 3, "samples": 12, "faults": [], "more": 0}
    assert run_cli("data", "verify", tmp_path, "-q").exit_code == 1


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_pytorch_dataset_gives_any_sample_of_any_format(three, data_format):
    data = SampleDataset(three / data_format)
    expected = list(dataset.read(three / data_format))
    assert len(data) == 12
    for index in (7, 0, -1, 4, 5):
        sample, own = data[index], expected[index]
        assert sample.key == own.key
        np.testing.assert_array_equal(sample.label.numpy(), own.label)
        np.testing.assert_allclose(
            sample.image.permute(1, 2, 0).numpy() * 255, own.image, atol=1e-4
        )
        np.testing.assert_allclose(sample.edge.numpy() * 255, own.edge, atol=1e-4)
    with pytest.raises(IndexError):
        data[12]


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_loader_processes_read_every_sample_once(three, data_format):
    data = SampleDataset(three / data_format)
    assert data[3].key  # a file is open in this process, too
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True, num_workers=2)
    batches = list(loader)
    assert sorted(key for batch in batches for key in batch.key) == [
        sample.key for sample in dataset.read(three / data_format)
    ]
    assert batches[0].image.shape == (5, 3, *SIZE)
    assert batches[0].label.dtype == torch.int64


def test_a_plain_folder_and_other_peoples_tars_are_datasets_too(world, three, tmp_path):
    for name in ("images", "labels"):
        shutil.copytree(world / "real" / name / "val", tmp_path / "plain" / name)
    plain = SampleDataset(tmp_path / "plain")
    assert len(plain) == 2
    assert plain[0].edge.sum() == 0
    shutil.copytree(three / "webdataset" / "data", tmp_path / "theirs")
    assert len(SampleDataset(tmp_path / "theirs")) == 12
    with pytest.raises(UserError, match="no samples here"):
        SampleDataset(tmp_path / "plain" / "images")
