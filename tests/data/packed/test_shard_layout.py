"""Pairs in shards: the same items, weights and layouts as of the files that were packed."""

import os
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from ecgan import checkpoint
from ecgan.data import SampleDataset, checks, datasets
from ecgan.data.datasets import DataFolder
from ecgan.data.label_cache import LabelCache
from ecgan.data.packed.sample_sets import read
from ecgan.errors import UserError
from ecgan.generation import run as generate
from ecgan.labels import from_json
from ecgan.recipe import load_recipe
from ecgan.runtime.storage import Folder
from ecgan.segmentation.training import file_stamps
from ecgan.shards import pictures
from ecgan.training import run as train
from ecgan_cli.main import cli
from tests.helpers.shards import to_parquet, to_saved, to_tars, write_arrow, write_state, write_tar
from tests.helpers.tiny import NAMES, make_generator, write_pairs

SPACE = from_json({"classes": list(NAMES)}, "test")
PACKED = ["tars", "label_tars", "parquet", "plain_parquet", "saved"]
TINY = (
    "data.height=32", "data.width=64", "model.width=4", "model.label_generator=off",
    "losses.perceptual_network=none", "model.segmentation_discriminator=off",
    "sampling.style_prior=normal", "train.batch=2", "train.images=4", "train.checkpoint_every=4",
    "train.preview_every=4", "train.log_every=2", "train.ema_images=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same pairs as files and in shards."""
    root = tmp_path_factory.mktemp("packed")
    write_pairs(root / "files")
    to_tars(root / "files", root / "tars")
    to_tars(root / "files", root / "label_tars", field="label.png")
    to_parquet(root / "files", root / "parquet")
    to_parquet(root / "files", root / "plain_parquet", wrap=bytes)
    to_saved(root / "files", root / "saved")
    for path in root.rglob("*"):
        os.utime(path, (1e9, 1e9))  # settled: caches may trust them
    return root


def items_of(root, split="train", **options):
    return DataFolder("folder", root).items_for(split, **options)


@pytest.mark.parametrize("name", PACKED)
def test_items_are_those_of_the_files(sets, name):
    for split in ("train", "val"):
        files, packed = items_of(sets / "files", split), items_of(sets / name, split)
        assert [item.key for item in packed] == [item.key for item in files]
        for one, other in zip(files, packed, strict=True):
            assert one.label.read_bytes() == other.label.read_bytes()
            np.testing.assert_array_equal(datasets.read_image(one), datasets.read_image(other))
        assert file_stamps(packed) == file_stamps(files)  # a judge is trained once for all of them
    assert DataFolder("folder", sets / name).splits() == ["train", "val"]


def test_pictures_are_named_by_shard_and_member_or_row(sets):
    root = sets / "tars"
    assert str(items_of(root)[5].label) == f"{root}/train/0004.tar: scene-05.seg.png"
    root = sets / "parquet"
    expected = f"{root}/data/train-00000-of-00001.parquet: row 5, column image"
    assert str(items_of(root)[5].image) == expected


@pytest.mark.parametrize("name", PACKED)
def test_a_check_is_remembered_until_the_shard_changes(sets, tmp_path, name, monkeypatch):
    items = items_of(sets / name)
    cache = LabelCache(Folder(tmp_path))
    check = checks.check_labels(items, SPACE, "folder", cache=cache)
    cache.save()
    read = []
    real = pictures.ShardFile.read_bytes
    monkeypatch.setattr(
        pictures.ShardFile, "read_bytes", lambda self: read.append(self) or real(self)
    )
    again = checks.check_labels(items, SPACE, "folder", cache=LabelCache(Folder(tmp_path)))
    assert len(read) == len(items)  # label maps, by whose content results are found
    assert (again.counts == check.counts).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tars", "parquet", "saved"])
def test_training_gives_the_same_weights(sets, tmp_path, name):
    hashes = set()
    for place in ("files", name):
        recipe = load_recipe("demo", (*TINY, f"data.root={sets / place}"))
        train.run(recipe, tmp_path / place, device="cpu", quiet=True)
        state = checkpoint.load_training(checkpoint.training_checkpoints(tmp_path / place)[-1])
        hashes.add(
            tuple(float(t.double().sum()) for n in state.networks.values() for t in n.values())
        )
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tars", "parquet", "saved"])
def test_augmenting_gives_the_same_bytes(sets, tmp_path, name):
    generator = make_generator(
        tmp_path / "run" / "generator.safetensors", data={"classes": list(NAMES)}
    )
    places = {"files": sets / "files" / "labels" / "val", "tars": sets / "tars" / "val"}
    places["saved"] = sets / "saved" / "validation"
    places["parquet"] = tmp_path / "layouts"
    places["parquet"].mkdir()
    shutil.copy(
        sets / "parquet" / "data" / "validation-00000-of-00001.parquet", tmp_path / "layouts"
    )
    shutil.copy(sets / "parquet" / "classes.json", tmp_path / "layouts")
    found = []
    for place in ("files", name):
        generate.run(
            generate.Request.of(
                generator=generator, out=tmp_path / place, labels=places[place],
                device="cpu", quiet=True,
            )
        )  # fmt: skip
        data = SampleDataset(tmp_path / place)
        found.append([data.raw(index) for index in range(len(data))])
    assert len(found[0]) == 2
    assert found[0] == found[1]


@pytest.fixture
def one_pair(sets):
    item = items_of(sets / "files")[0]
    return {"a.png": item.image.read_bytes(), "a.seg.png": item.label.read_bytes()}


def test_keys_have_the_folders_of_members(tmp_path, one_pair):
    members = {f"{folder}/{name}": data for folder in "xy" for name, data in one_pair.items()}
    write_tar(tmp_path / "0.tar", members)
    assert [item.key for item in DataFolder("folder", tmp_path).index(None)] == ["x-a", "y-a"]


@pytest.mark.parametrize(
    ("shards", "fault"),
    [
        ({"0.tar": ("a.png",)}, r"1 sample without label map \(first: .*0\.tar: a\); expected seg"),
        ({"0.tar": ("a.seg.png",)}, r"1 sample without photo \(first: .*0\.tar: a\); expected jpg"),
        (
            {"0.tar": ("a.png", "a.seg.png"), "1.tar": ("a.png", "a.seg.png")},
            r"0\.tar: a and .*1\.tar: a share the key 'a'; rename one of them",
        ),
        ({"fold1.tar": ("a.png", "a.seg.png")}, "fold1 look like a split under a name not known"),
    ],
)
def test_faults_name_shard_and_sample(tmp_path, one_pair, shards, fault):
    for name, members in shards.items():
        write_tar(tmp_path / name, {member: one_pair[member] for member in members})
    with pytest.raises(UserError, match=fault):
        items_of(tmp_path)


def test_a_tar_of_folders_is_named(tmp_path, one_pair):
    photo, label = one_pair.values()
    members = {"./images/a.png": photo, "./labels/a.png": label, "./classes.json": b"[]"}
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError) as caught:
        items_of(tmp_path)
    assert str(caught.value).count("\n") == 1
    assert "0.tar: a tar of folders (images/ and labels/), no WebDataset" in str(caught.value)
    write_tar(tmp_path / "0.tar", {f"images/{name}": data for name, data in one_pair.items()})
    assert [item.key for item in DataFolder("folder", tmp_path).index(None)] == ["images-a"]


def test_compressed_tars_and_links_are_refused(tmp_path, one_pair):
    write_tar(tmp_path / "0.tar.gz", one_pair, "w:gz")
    with pytest.raises(UserError, match=r"0\.tar\.gz: a compressed tar.*unpack it"):
        items_of(tmp_path)
    (tmp_path / "0.tar.gz").unlink()
    info = tarfile.TarInfo("b.seg.png")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
    write_tar(tmp_path / "0.tar", {**one_pair, info: b""})
    with pytest.raises(UserError, match=r"0\.tar: b\.seg\.png is a link"):
        items_of(tmp_path)


def test_a_parquet_file_without_label_lists_its_columns(tmp_path):
    pq.write_table(pa.table({"image": [b"x"], "text": [b"y"]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"no column label for the label maps; .* image, text"):
        items_of(tmp_path)


@pytest.mark.parametrize("names", [("pixel_values", "mask"), ("image", "annotation")])
def test_columns_as_others_name_them(tmp_path, one_pair, names):
    values = ([value] for value in one_pair.values())
    pq.write_table(pa.table(dict(zip(names, values, strict=True))), tmp_path / "train.parquet")
    (item,) = items_of(tmp_path)
    assert item.label.name == names[1]
    assert [item.image.read_bytes(), item.label.read_bytes()] == [*one_pair.values()]


def test_rows_without_pictures_are_faults_of_the_check(tmp_path, one_pair):
    photo, label = one_pair.values()
    table = pa.table({"image": [photo, None, photo], "label": [label, label, None]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError) as caught:
        checks.check_labels(items_of(tmp_path) + items_of(tmp_path, "val"), SPACE, "folder")
    assert "2 files (first: " in str(caught.value)
    assert "x.parquet: row 1, column image): null; fill it in, or remove" in str(caught.value)


def test_archives_beside_photos_and_label_maps_are_not_read(sets, tmp_path, one_pair):
    write_pairs(tmp_path, num_train=1, num_val=1)
    write_tar(tmp_path / "backup.tar", {"z.png": b"", "z.seg.png": b""})
    assert [item.key for item in items_of(tmp_path)] == ["scene-00"]
    (label,) = datasets.index_labels("folder", tmp_path / "labels" / "train")
    assert label.key == "scene-00"


def test_a_finished_data_set_of_ours_trains(sets, tmp_path):
    generator = make_generator(
        tmp_path / "run" / "generator.safetensors", data={"classes": list(NAMES)}
    )
    generate.run(
        generate.Request.of(
            generator=generator, out=tmp_path / "ours", labels=sets / "files" / "labels" / "val",
            device="cpu", quiet=True, data_format="parquet",
        )
    )  # fmt: skip
    result = CliRunner().invoke(cli, ["data", "inspect", str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    recipe = load_recipe("demo", (*TINY, f"data.root={tmp_path / 'ours'}"))
    job = train.check(recipe, tmp_path / "again", device=torch.device("cpu"), quiet=True)
    assert job.space.names == NAMES


# Data sets that Hugging Face's save_to_disk has written


def saved(folder, pair, *, names=("data-00000-of-00001.arrow",), **state):
    photo, label = pair.values()
    for name in names:
        write_arrow(folder / name, {"image": [photo] * 2, "label": [label] * 2})
    write_state(folder, *names, **state)
    return folder


def test_rows_of_all_splits_have_keys_of_their_own(tmp_path, one_pair):
    for split in ("train", "test"):
        saved(tmp_path / split, one_pair)
    items = DataFolder("folder", tmp_path).index(None)
    assert [item.key for item in items] == [
        f"{split}-data-00000-of-00001-{row}" for split in ("test", "train") for row in range(2)
    ]
    assert [sample.key for sample in read(tmp_path)] == [item.key for item in items]


@pytest.mark.parametrize(("said", "expected"), [(None, []), ("train", ["train"]), ("x", [])])
def test_a_single_set_is_of_the_split_that_it_says(tmp_path, one_pair, said, expected):
    saved(tmp_path, one_pair, _split=said)
    assert DataFolder("folder", tmp_path).splits() == expected


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"_data_files": [{"filename": "b.arrow"}]}, "it lists b.arrow, which is not there"),
        ({"_data_files": [{"filename": "../x/a.arrow"}]}, "a name, not a path"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "a name, not a path"),
        ({"_data_files": "a.arrow"}, "_data_files: input should be a valid list"),
        (
            {"_indices_data_files": [{"filename": "i.arrow"}]},
            "rows are chosen by a file of indices",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, one_pair, state, fault):
    saved(tmp_path / "set", one_pair, names=["a.arrow"], **state)
    saved(tmp_path / "x", one_pair, names=["a.arrow"])
    with pytest.raises(UserError, match=fault) as caught:
        items_of(tmp_path / "set")
    assert "state.json" in str(caught.value)
    assert "save the data set anew with Dataset.save_to_disk" in str(caught.value)


def test_caches_without_a_state_are_not_read(tmp_path, one_pair):
    saved(tmp_path, one_pair, names=["beans-train.arrow", "cache-12.arrow"])
    (tmp_path / "state.json").unlink()
    keys = [item.key for item in DataFolder("folder", tmp_path).index(None)]
    assert keys == [f"{tmp_path.name}-beans-train-{row}" for row in range(2)]


@pytest.mark.slow
def test_what_datasets_saves_is_read_as_it_was(sets, tmp_path):
    hub = pytest.importorskip("datasets")
    features = hub.Features(
        {"image": hub.Image(), "label": hub.Image(), "key": hub.Value("string")}
    )
    found = {}
    for split, name in (("train", "train"), ("val", "test")):
        items = items_of(sets / "files", split)
        rows = [
            {
                "image": {"bytes": item.image.read_bytes(), "path": None},
                "label": {"bytes": item.label.read_bytes(), "path": None},
                "key": item.key,
            }
            for item in items
        ]
        found[name] = hub.Dataset.from_list(rows, features=features)
    hub.DatasetDict(found).save_to_disk(tmp_path / "set", num_shards={"train": 2, "test": 1})
    for split, name in (("train", "train"), ("val", "test")):
        files, own = (
            items_of(sets / "files", split),
            DataFolder("folder", tmp_path / "set").index(name),
        )
        assert [item.key for item in own] == [item.key for item in files]
        for one, other in zip(files, own, strict=True):
            assert one.label.read_bytes() == other.label.read_bytes()
