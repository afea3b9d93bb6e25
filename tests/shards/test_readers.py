"""Finished data sets, opened whole and in one line by the programs that users read them with.

What each of them yields is held against our own reader, to the pixel: images, labels and edges.
"""

import ast
import io
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image

from ecgan.data.packed import sample_sets as sets
from ecgan.generation import run as generate
from tests.helpers.tiny import make_generator

FORMATS = ["webdataset", "parquet", "folder"]
NUM_SAMPLES = 15  # five layouts in three styles, in shards of 4, 4, 4 and 3

# Their readers leave tars open; what we check is what they read.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:String specifications"),
]


class Sample(NamedTuple):
    """A sample as a reader gives it, and as ours does."""

    key: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    edge: npt.NDArray[np.uint8]


def layout(number):
    """A label map of three classes, some pixels unlabelled."""
    label = np.random.default_rng(number).integers(0, 4, (4, 8), dtype=np.uint8)
    label[label == 3] = 255
    return np.kron(label, np.ones((8, 8), np.uint8))


def make_set(tmp, data_format, seed=0):
    """A finished data set of five layouts in three styles."""
    layouts = tmp / "layouts"
    layouts.mkdir(exist_ok=True)
    for number in range(5):
        Image.fromarray(layout(number)).save(layouts / f"{number}.png")
    generate.run(
        generate.Request.of(
            generator=make_generator(tmp / "run" / "generator.safetensors"),
            out=tmp / data_format,
            labels=layouts,
            n_styles=3,
            seed=seed,
            samples_per_shard=4,
            data_format=data_format,
            device="cpu",
            quiet=True,
        )
    )
    return tmp / data_format


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return {name: make_set(folder, name) for name in FORMATS}


@pytest.fixture
def huggingface(tmp_path, monkeypatch):
    """``load_dataset`` that asks no server and keeps its cache to itself."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from datasets import load_dataset

    def load(*arguments, **options):
        return load_dataset(*arguments, split="train", cache_dir=str(tmp_path / "hf"), **options)

    return load


@pytest.fixture(scope="module")
def ray_data():
    """Ray Data on two CPUs."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


def ours(path):
    """What our own reader finds; the labels are the layouts that were given."""
    samples = [Sample(s.key, s.image, s.label, s.edge) for s in sets.read(path)]
    assert [s.key for s in samples] == [f"{i}-s00{k}" for i in range(5) for k in range(3)]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample.label, layout(number // 3), sample.key)
        assert (sample.edge != sample.label).any()
    return samples


def opened(image):
    """Pixels of an image that a reader gives as bytes beside a path."""
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def from_row(row):
    """A row of Parquet, of whichever reader."""
    return Sample(row["key"], *(opened(row[name]) for name in ("image", "label", "edge")))


def assert_same(theirs, path, *, ordered=True):
    """Every sample of the data set once, and each the same to the pixel."""
    theirs, expected = list(theirs), ours(path)
    if not ordered:
        theirs.sort()
        expected.sort()
    assert [s.key for s in theirs] == [s.key for s in expected]
    for their, our in zip(theirs, expected, strict=True):
        for name in ("image", "label", "edge"):
            np.testing.assert_array_equal(
                np.asarray(getattr(their, name)), getattr(our, name), f"{our.key}, {name}"
            )


# WebDataset


def as_ids(data):
    """Keep class ids: webdataset would make a grey PNG an RGB image."""
    return np.array(Image.open(io.BytesIO(data)))


def webdataset_of(path):
    import webdataset as wds

    maps = [wds.handle_extension(name, as_ids) for name in ("seg.png", "edge.png")]
    return (
        wds.WebDataset(str(path / "data/train-{000000..000003}.tar"), shardshuffle=False)
        .decode(*maps, "rgb8")
        .to_tuple("__key__", "jpg", "seg.png", "edge.png")
    )


def test_webdataset_reads_the_tars_in_order(finished):
    path = finished["webdataset"]
    assert_same((Sample(*sample) for sample in webdataset_of(path)), path)


@pytest.mark.slow
def test_a_data_loader_with_two_workers_gets_every_sample_once(finished):
    from torch.utils.data import DataLoader

    path = finished["webdataset"]
    batches = list(DataLoader(webdataset_of(path), batch_size=4, num_workers=2))
    assert {len(keys) for keys, *_ in batches} <= {3, 4}
    theirs = [Sample(*sample) for batch in batches for sample in zip(*batch, strict=True)]
    assert_same(theirs, path, ordered=False)


def test_wids_reads_any_sample_by_its_number(finished):
    import wids

    path = finished["webdataset"]
    files = set((path / "data").iterdir())
    # In place: wids would copy shards to /tmp and never look whether they have changed.
    data = wids.ShardListDataset(str(path / "index.json"), localname=str)
    assert len(data) == NUM_SAMPLES
    last_first = [data[i] for i in reversed(range(NUM_SAMPLES))]
    fields = ("__key__", ".jpg", ".seg.png", ".edge.png")
    assert_same((Sample(*(sample[f] for f in fields)) for sample in reversed(last_first)), path)
    assert set((path / "data").iterdir()) == files


# Hugging Face's datasets

COLUMNS = {
    "webdataset": ("jpg", "seg.png", "edge.png"),
    "parquet": ("image", "label", "edge"),
    "folder": ("image", "label", "edge"),
}


def record_of(row):
    """What is known of a sample beside its pixels."""
    return row.get("json") or {k: v for k, v in row.items() if k not in COLUMNS["parquet"]}


def samples_of(rows, columns):
    return [Sample(record_of(row)["key"], *(row[c] for c in columns)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["cached", "streamed"])
@pytest.mark.parametrize("data_format", FORMATS)
def test_datasets_opens_the_folder(finished, huggingface, data_format, streaming):
    path = finished[data_format]
    rows = list(huggingface(str(path), streaming=streaming))
    columns = COLUMNS[data_format]
    assert_same(samples_of(rows, columns), path)
    modes = {tuple(row[c].mode for c in columns) for row in rows}
    assert modes == {("RGB", "L", "L")}, "a palette's colours would be taken for classes"


@pytest.mark.slow
def test_datasets_finds_the_same_records_in_every_format(finished, huggingface):
    tars, parquet, folder = (huggingface(str(finished[name])) for name in FORMATS)
    assert folder.features == parquet.features
    assert tars.features["json"] == record_of(parquet.features)
    records = [[record_of(row) for row in rows] for rows in (tars, parquet, folder)]
    assert records[0] == records[1] == records[2]
    assert len({record["key"] for record in records[0]}) == NUM_SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_datasets_tells_two_data_sets_of_one_name_apart(
    finished, huggingface, tmp_path, data_format
):
    """Its cache goes by the folder's name and the card's configs, never by the files."""
    huggingface(str(finished[data_format]))
    other = make_set(tmp_path, data_format, seed=1)
    assert other.name == finished[data_format].name
    assert_same(samples_of(huggingface(str(other)), COLUMNS[data_format]), other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data_format", "files"), [("webdataset", "data/*.tar"), ("parquet", "data/*.parquet")]
)
def test_datasets_opens_the_files_without_the_card(finished, huggingface, data_format, files):
    path = finished[data_format]
    rows = huggingface(data_format, data_files=str(path / files))
    assert_same(samples_of(rows, COLUMNS[data_format]), path)


# Ray Data


@pytest.mark.slow
def test_ray_data_reads_the_tars(finished, ray_data):
    path = finished["webdataset"]
    rows = ray_data.read_webdataset(str(path / "data")).take_all()
    fields = ("__key__", "jpg", "seg.png", "edge.png")
    assert_same((Sample(*(row[f] for f in fields)) for row in rows), path, ordered=False)


@pytest.mark.slow
def test_ray_data_reads_the_parquet_files(finished, ray_data):
    path = finished["parquet"]
    rows = ray_data.read_parquet(str(path)).take_all()  # the root: it takes *.parquet alone
    assert_same(map(from_row, rows), path, ordered=False)


# Tables


def test_pandas_reads_the_parquet_files(finished):
    import pandas as pd

    path = finished["parquet"]
    table = pd.read_parquet(path / "data")
    assert_same((from_row(row) for _, row in table.iterrows()), path)
    assert (table["class_pixels"].map(len) == 3).all()


def test_pyarrow_reads_some_columns_of_the_parquet_files(finished):
    import pyarrow.dataset

    path = finished["parquet"]
    data = pyarrow.dataset.dataset(path / "data")
    assert data.count_rows() == NUM_SAMPLES
    rows = data.to_table(columns=["label", "key"]).to_pylist()
    expected = ours(path)
    assert [row["key"] for row in rows] == [s.key for s in expected]
    for row, our in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(opened(row["label"]), our.label)


@pytest.mark.slow
def test_litdata_indexes_and_reads_the_parquet_files(finished, tmp_path, huggingface):
    import litdata
    from litdata.streaming.item_loader import ParquetLoader

    path = shutil.copytree(finished["parquet"], tmp_path / "copy")
    litdata.index_parquet_dataset(str(path / "data"))
    data = litdata.StreamingDataset(str(path / "data"), item_loader=ParquetLoader())
    assert len(data) == NUM_SAMPLES
    # It takes the files in the order in which the file system lists them.
    assert_same(map(from_row, data), path, ordered=False)

    assert (path / "data/index.json").is_file(), "its index lies among our shards"
    rows = huggingface(str(path))
    assert_same(samples_of(rows, COLUMNS["parquet"]), path)


# Programs that may not enter these tests: their rules for the files that we write beside a folder


def pairs_below(images, masks, suffix):
    """Pair by stem, in order, as mmsegmentation and Ultralytics do."""
    for image in sorted(images.glob(f"*{suffix}")):
        yield image.stem, image, masks / f"{image.stem}.png"


def assert_same_files(found, path):
    found = list(found)
    expected = ours(path)
    assert [key for key, *_ in found] == [s.key for s in expected]
    for (_, image, label), our in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(image)), our.image)
        np.testing.assert_array_equal(np.asarray(Image.open(label)), our.label)


def test_mmengine_can_read_the_config(finished):
    """mmengine 0.10: an import may make a config a lazy one, and no config has a ``__file__``."""
    path = finished["folder"]
    config = path / "mmseg_dataset.py"
    text = re.sub(r"\{\{\s*fileDirname\s*\}\}", str(path), config.read_text())
    tree = ast.parse(text)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {}
    exec(compile(tree, str(config), "exec"), names)
    data = names["dataset"]
    assert data["type"] == "BaseSegDataset"
    assert (data["ignore_index"], data["reduce_zero_label"]) == (255, False)
    assert data["metainfo"]["classes"] == ("road", "sky", "car")
    assert len(data["metainfo"]["palette"]) == 3
    images, masks = (Path(data["data_root"]) / p for p in data["data_prefix"].values())
    assert_same_files(pairs_below(images, masks, data["img_suffix"]), path)


def test_ultralytics_can_read_the_yaml_from_anywhere(finished, tmp_path, monkeypatch):
    """Ultralytics 8.4: ``path`` is resolved in the working directory; without it, the YAML's."""
    monkeypatch.chdir(tmp_path)
    path = finished["folder"]
    data = yaml.safe_load((path / "dataset.yaml").read_text())
    assert data["names"] == {0: "road", 1: "sky", 2: "car"}
    root = Path(data.get("path") or path)
    for split in ("train", "val"):
        images = root / data[split]
        masks = Path(data["masks_dir"].join(str(images.resolve()).rsplit("images", 1)))
        assert_same_files(pairs_below(images, masks, ".jpg"), path)
