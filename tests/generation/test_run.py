"""Data sets, end to end: what lies in them, what a second call does."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan.data.datasets import Item
from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import planner
from ecgan.generation import run as generate
from ecgan.generation.plan import Plan, Stage, passes, whole_rows
from ecgan.generation.request import Request
from ecgan.generation.state import DatasetState
from ecgan.runtime.storage import open_store
from ecgan.seeds import sample_seed
from ecgan.shards import formats
from ecgan.shards.manifest import read_manifest
from tests.helpers import trees
from tests.helpers.data_sets import FORMATS, contents, run_cli
from tests.helpers.tiny import SIZE, make_generator

# The plan


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(1, 7), st.integers(1, 7))
def test_a_plan_holds_every_sample_once_in_full_shards(counts, per_shard, batch):
    if not any(counts):
        counts[0] = 1
    items = [Item(str(i), None) for i in range(len(counts))]
    stage = Stage(items, whole_rows(np.array(counts)[:, None]), 5, per_shard)
    jobs = [stage.job(n) for n in stage.numbers]
    tasks = [
        [(group.key, group.first + k) for group in job.groups for k in range(group.count)]
        for job in jobs
    ]
    assert [task for own in tasks for task in own] == [
        (str(i), k) for i, n in enumerate(counts) for k in range(n)
    ]
    assert [len(own) for own in tasks] == [stage.samples_in(n) for n in stage.numbers]
    assert [job.samples for job in jobs] == [len(own) for own in tasks]
    assert {len(own) for own in tasks[:-1]} <= {per_shard}
    for job in jobs:
        made = list(passes(job.groups, batch))
        assert [group for part in made for group in part] == list(job.groups)
        for part in made:
            assert len({group.count for group in part}) == 1  # a block of layouts x styles
            assert len(part) == 1 or sum(group.count for group in part) <= batch


@pytest.mark.parametrize(
    ("num", "expected"), [(3, [1, 1, 1]), (5, [1] * 5), (8, [2, 2, 2, 1, 1]), (10, [2] * 5)]
)
def test_a_number_of_samples_is_spread_over_the_layouts(request_, num, expected):
    stage = planner.plan(request_(n_styles=None, num=num)).wanted.stage
    assert stage.rows.counts.tolist() == expected
    keys = [stage.key(row) for row in range(len(stage.rows))]
    assert keys == ["a-0", "a-2", "a-4", "b-1", "b-3"][: len(expected)]


# What is written


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_data_set_holds_layouts_styles_and_everything_beside_them(made, layouts, data_format):
    out = made(data_format)
    samples = list(dataset.read(out))
    assert [(s.source, s.style) for s in samples] == [
        (key, k) for key in ("a-0", "a-2", "a-4", "b-1", "b-3") for k in range(3)
    ]
    for sample in samples:
        label = np.asarray(Image.open(layouts / f"{sample.source.replace('-', '/')}.png"))
        np.testing.assert_array_equal(sample.label, label)
        assert sample.image.shape == (*SIZE, 3)
        assert sample.edge.shape == SIZE
    first, second = samples[:2]
    assert np.abs(first.image.astype(int) - second.image).max() > 5, "styles differ"
    assert (first.edge != second.edge).any()

    about = read_manifest(out)
    for shard in about.shards:
        assert formats.is_intact(open_store(out), shard)
    assert [s.samples for s in about.shards] == [4, 4, 4, 3]
    assert about.class_pixels == tuple(
        int(sum((s.label == c).sum() for s in samples)) for c in range(3)
    )
    assert (about.edge_source, about.styles) == ("generator", "seed 0")
    assert json.loads((out / "id2label.json").read_text()) == {"0": "road", "1": "sky", "2": "car"}
    visible = {p.name for p in out.iterdir()} - {".ecgan"}
    beside = {"README.md", "id2label.json", "manifest.json", "preview.png"}
    assert (
        visible
        == beside
        | {
            "webdataset": {"data", "index.json"},
            "parquet": {"data"},
            "folder": {
                *("images", "masks", "edges", "metadata.jsonl", "dataset.yaml", "mmseg_dataset.py"),
                "dataset_meta.json",
            },
        }[data_format]
    )
    assert {p.name for p in (out / ".ecgan").iterdir()} <= {
        *(
            "plan.json",
            "request.json",
            "stages",
            "shards",
            "records",
            "log.jsonl",
            "label-check.json",
        ),
    }
    with Image.open(out / "preview.png") as preview:
        assert preview.width > 5 * SIZE[1]


def test_the_fields_of_a_tar_are_what_readers_expect(finished):
    with tarfile.open(finished / "webdataset/data/train-000000.tar") as tar:
        data = {m.name: tar.extractfile(m).read() for m in tar}
    record = json.loads(data["a-0-s001.json"])
    assert record["seed"] == sample_seed(0, "a-0", 1)
    assert (record["width"], record["height"]) == SIZE[::-1]
    assert sum(record["class_pixels"]) <= 32 * 64
    modes = {
        n: Image.open(io.BytesIO(data[f"a-0-s001.{n}"])) for n in ("jpg", "seg.png", "edge.png")
    }
    assert {n: image.mode for n, image in modes.items()} == {
        "jpg": "RGB",
        "seg.png": "L",
        "edge.png": "L",
    }
    assert len(np.unique(np.asarray(modes["edge.png"]))) > 2, "edges are not thresholded"


def test_the_card_names_its_files(finished):
    text = (finished / "webdataset/README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    sums = "".join(s.sha256 for s in read_manifest(finished / "webdataset").shards)
    digest = hashlib.sha256(sums.encode()).hexdigest()[:16]
    assert front["configs"] == [
        {
            "config_name": "default",
            "description": f"shards {digest}",
            "data_files": [{"split": "train", "path": ["data/train-*.tar"]}],
        }
    ]
    assert front["license"] == "other"
    assert front["size_categories"] == ["n<1K"]
    assert "train-{000000..000003}.tar" in text


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_hugging_face_opens_the_whole_folder(made, tmp_path, monkeypatch, data_format):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    from datasets import load_dataset

    out = made(data_format)
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    label = "seg.png" if data_format == "webdataset" else "label"
    assert len(rows) == 15
    for row, expected in zip(rows, dataset.read(out), strict=True):
        np.testing.assert_array_equal(np.asarray(row[label]), expected.label)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:String specifications")
def test_webdataset_and_wids_open_what_was_made(made, tmp_path):
    import webdataset
    import wids

    out = made("webdataset")
    pattern = str(out / "data/train-{000000..000003}.tar")
    keys = [s["__key__"] for s in webdataset.WebDataset(pattern, shardshuffle=False)]
    assert keys == [s.key for s in dataset.read(out)]
    indexed = wids.ShardListDataset(str(out / "index.json"), cache_dir=str(tmp_path / "wids"))
    assert [indexed[i]["__key__"] for i in (0, 14)] == [keys[0], keys[14]]


@pytest.mark.slow
def test_labels_can_be_written_in_evaluation_ids(tmp_path):
    trees.write_cityscapes(tmp_path / "city", splits=("val",), num=1)
    path = make_generator(
        tmp_path / "g.safetensors",
        data={"dataset": "cityscapes", "classes": None, "instances": True},
        model={"style": False},
    )
    base = {
        "generator": path,
        "labels": tmp_path / "city/gtFine/val",
        "device": "cpu",
        "quiet": True,
    }
    generate.run(Request.of(**base, out=tmp_path / "in"))
    generate.run(Request.of(**base, out=tmp_path / "evaluation", label_space="evaluation"))
    (inputs, *_), (scored, *_) = (
        list(dataset.read(tmp_path / name)) for name in ("in", "evaluation")
    )
    assert np.unique(inputs.label).tolist() == [0, 7, 26, 33]
    assert np.unique(scored.label).tolist() == [0, 13, 18, 255]  # road, car, bicycle
    np.testing.assert_array_equal(inputs.image, scored.image)
    about = read_manifest(tmp_path / "evaluation")
    assert about.names[0] == "road"
    assert len(about.class_pixels) == 19
    assert about.boundary_source == "boundaries between classes"

    generate.run(Request.of(**base, out=tmp_path / "ids", instances=tmp_path / "city/gtFine/val"))
    assert read_manifest(tmp_path / "ids").boundary_source == "instance ids"


def test_sample_takes_the_layouts_of_the_recipes_data(tmp_path):
    trees.write_folder(tmp_path / "data", num=3)
    path = make_generator(
        tmp_path / "g.safetensors",
        data={"root": str(tmp_path / "data"), "classes": str(tmp_path / "data/classes.json")},
    )
    arguments = ["sample", "--checkpoint", path, "--num", 4, "--device", "cpu", "-q"]
    result = run_cli(*arguments, "--split", "val", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [s.key for s in dataset.read(tmp_path / "out")] == [
        *("0-s000", "0-s001", "1-s000", "2-s000"),
    ]
    result = run_cli(*arguments, "--data", tmp_path / "nowhere", "--out", tmp_path / "out2")
    assert result.exit_code == 2
    assert "nowhere" in result.output


# Styles


def test_style_images_give_as_many_styles_as_there_are_photos(request_, tmp_path):
    for i in range(2):
        trees.save(tmp_path / f"photos/{i}.jpg", trees.photo(i))
    outcome = generate.run(request_(n_styles=None, style_images=tmp_path / "photos"))
    assert outcome.num_samples == 10
    assert read_manifest(tmp_path / "out").style_source == "photos"


def test_a_style_seed_gives_all_layouts_the_same_styles(request_, tmp_path):
    generate.run(request_(style_seed=3, data_format="folder"))
    lines = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    seeds = [(json.loads(line)["style"], json.loads(line)["seed"]) for line in lines]
    assert set(seeds) == {(k, sample_seed(3, "", k)) for k in range(3)}


def test_a_run_without_style_encoder_makes_one_style(request_, plain_generator, tmp_path):
    request = request_(generator=plain_generator, n_styles=1)
    assert generate.run(request).num_samples == 5
    assert read_manifest(tmp_path / "out").style_source == "none"
    for changes, message in [
        ({"n_styles": 2}, "--n-styles 2: this run has no style encoder, so one layout has one"),
        ({"n_styles": None, "num": 6}, "--num 6: this run has no style encoder"),
        ({"style_seed": 1, "n_styles": 1}, "--style-seed: this run has no style encoder"),
    ]:
        with pytest.raises(UserError, match=message):
            planner.plan(request_(generator=plain_generator, **changes))


# Twice, resumed, refused


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_same_command_again_does_nothing(request_, made, data_format):
    out = made(data_format)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.is_file()}
    outcome = generate.run(request_(data_format=data_format))
    assert outcome.made == 0
    assert outcome.bytes > 0
    assert {p: p.stat().st_mtime_ns for p in times} == times


def lose_a_record(out):
    """Killed after the rename, before the commit."""
    (out / ".ecgan/shards/000001.json").unlink()
    (out / "manifest.json").unlink()


def damage_a_shard(out):
    record = json.loads((out / ".ecgan/shards/000002.json").read_text())
    path = out / formats.files_of(open_store(out), record["name"])[-1]
    path.write_bytes(path.read_bytes()[:-1])


def lose_shards_and_leave_a_temporary(out):
    for number in (0, 3):
        record = out / f".ecgan/shards/{number:06d}.json"
        for name in formats.files_of(open_store(out), json.loads(record.read_text())["name"]):
            (out / name).unlink()
        record.unlink()
    (out / ".ecgan/tmp").mkdir()
    (out / ".ecgan/tmp/train-000000.tar.123").write_bytes(b"half")


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("harm", "missing"),
    [(lose_a_record, 4), (damage_a_shard, 4), (lose_shards_and_leave_a_temporary, 7)],
)
def test_a_resumed_data_set_has_the_bytes_of_an_undisturbed_one(
    request_, made, data_format, harm, missing
):
    out = made(data_format)
    undisturbed = contents(out)
    harm(out)
    assert generate.run(request_(data_format=data_format)).made == missing
    assert contents(out) == undisturbed


def test_the_folder_of_a_data_set_does_not_show_in_its_bytes(request_, finished, tmp_path):
    outcome = generate.run(request_(out=tmp_path / "elsewhere"))
    assert (outcome.num_samples, outcome.made, outcome.failed) == (15, 15, ())
    assert contents(tmp_path / "elsewhere") == contents(finished / "webdataset")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_styles": 2}, r"differ in styles of a layout \(3 to 3, now 2 to 2\), samples \(15"),
        ({"seed": 1}, r"differ in --seed \(0, now 1\)"),
        ({"style_seed": 1}, r"differ in --style-seed \(none, now 1\)"),
        ({"samples_per_shard": 5}, r"differ in --samples-per-shard \(4, now 5\)"),
        ({"batch": 2}, r"differ in --batch \(8, now 2\)"),
        ({"image_format": "png"}, r"differ in --image-format \(jpg, now png\)"),
        ({"data_format": "parquet"}, r"differ in --format \(webdataset, now parquet\)"),
    ],
)
def test_other_settings_are_refused_by_name(request_, tmp_path, changes, message):
    state = DatasetState(open_store(tmp_path / "out"))
    wanted = planner.plan(request_()).wanted
    state.record_stage(Plan((wanted.stage,)), wanted)
    with pytest.raises(UserError, match=message):
        generate.run(request_(**changes))


@pytest.mark.slow
def test_another_checkpoint_and_other_labels_are_refused(request_, layouts, tmp_path):
    labels = tmp_path / "labels"
    shutil.copytree(layouts, labels)
    generate.run(request_(labels=labels))
    before = contents(tmp_path / "out")
    torch.manual_seed(1)
    other = make_generator(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"differ in checkpoint \(\w{12}, now \w{12}\)"):
        generate.run(request_(labels=labels, generator=other))
    shutil.copy(labels / "a/0.png", labels / "a/2.png")
    with pytest.raises(UserError, match=r"differ in labels \(\w{12}, now \w{12}\)"):
        generate.run(request_(labels=labels))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("data_format", FORMATS)
def test_overwrite_removes_what_ecgan_wrote_and_nothing_else(request_, made, data_format):
    out = made(data_format)
    (out / "notes.txt").write_text("mine")
    (out / "data").mkdir(exist_ok=True)
    (out / "data/notes.txt").write_text("mine too")
    generate.run(request_(data_format="parquet", n_styles=1, overwrite=True))
    found = {p for p in contents(out) if not p.startswith(".ecgan")}
    assert found == {
        *("README.md", "id2label.json", "manifest.json", "preview.png"),
        *("data/train-00000.parquet", "data/train-00001.parquet"),
        *("notes.txt", "data/notes.txt"),
    }


def test_a_foreign_folder_is_refused_and_left_alone(request_, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty, and not a data set of ecgan"):
            generate.run(request_(overwrite=overwrite))
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
