"""The data-set engine end to end: workers, extension, filter, balance, variation, readers."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ecgan.data import SampleDataset
from ecgan.data.datasets import Item
from ecgan.errors import UserError
from ecgan.generation import planner
from ecgan.generation import run as generate
from ecgan.generation.plan import Stage, whole_rows
from ecgan.generation.request import Request
from ecgan.generation.worker import ShardWorker
from ecgan.runtime.storage import open_store
from ecgan.runtime.timing import STAGES, StageSeconds
from ecgan.segmentation import calibration
from ecgan.shards import codecs, dataset, formats, readers
from ecgan.shards.convert import convert
from ecgan.shards.manifest import WORDING, read_manifest
from ecgan.shards.records import Encoded, Record, decoded
from ecgan.shards.verify import verify
from ecgan_cli.main import cli
from tests import kills
from tests.generation.test_run import contents
from tests.helpers import trees
from tests.helpers.tiny import NAMES, SIZE, make_generator, write_pairs
from tests.runtime.test_storage import BUCKET

FORMATS = ["webdataset", "parquet", "folder"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Real pairs, and a generator of their classes with random weights."""
    root = tmp_path_factory.mktemp("engine")
    write_pairs(root / "real", num_train=6, num_val=2)
    make_generator(
        root / "run" / "generator.safetensors",
        data={
            "height": SIZE[0], "width": SIZE[1], "root": str(root / "real"),
            "classes": str(root / "real" / "classes.json"),
        },
        sampling={"filter_training": {"images": 8, "channels": 8}, "filter_tolerance": 1.0},
    )  # fmt: skip
    return root


@pytest.fixture
def request_(world, tmp_path):
    base = {
        "generator": world / "run" / "generator.safetensors",
        "out": tmp_path / "out",
        "labels": world / "real" / "labels" / "train",
        "n_styles": 3,
        "samples_per_shard": 4,
        "device": "cpu",
        "quiet": True,
    }
    return lambda **changes: Request.of(**base | changes)


def run_cli(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def files_of_samples(out):
    """The bytes of every sample of a WebDataset, by member name."""
    found = {}
    for path in sorted((out / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def records(out):
    return [raw.record for raw in dataset.read_raw(out)]


# Workers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_on_ray_give_the_bytes_of_one_in_this_process(request_, tmp_path):
    generate.run(request_())
    outcome = generate.run(request_(out=tmp_path / "ray", workers=2))
    assert (outcome.made, outcome.failed) == (18, ())
    assert contents(tmp_path / "ray") == contents(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_an_interrupted_driver_which_says_how_to_go_on(world, tmp_path, how):
    labels, out = kills.write_layouts(tmp_path / "labels"), tmp_path / "out"
    words = kills.command(world / "run/generator.safetensors", labels, out, "ray")
    driver = kills.start(words)
    while kills.commits(out) < 2 and driver.poll() is None:
        time.sleep(0.01)
    workers = kills.workers_of(driver.pid)
    driver.send_signal(how)
    said = driver.communicate(timeout=100)[1]
    assert driver.returncode == 130, said
    assert "Interrupted; finished shards are kept, the same command resumes" in said
    assert len(workers) == 2
    end = time.monotonic() + 20
    while any(pid in kills.processes() for pid in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(pid in kills.processes() for pid in workers)
    assert generate.run(
        Request.of(
            world / "run/generator.safetensors", out, labels=labels, n_styles=kills.STYLES,
            samples_per_shard=kills.PER_SHARD, device="cpu", quiet=True,
        )
    ).failed == ()  # fmt: skip
    assert verify(out, quiet=True).faults == []


def test_donors_are_of_the_fold_that_the_judge_has_not_seen():
    items = [Item(f"{i:02d}", None) for i in range(40)]
    rows = whole_rows(np.ones((40, 2), np.int64))
    folds = (np.arange(40) % 2).astype(np.int8)
    stage = Stage(items, rows, 0, 1000, folds, paste=True)
    groups = stage.job(0).groups
    assert all(not group.donors for group in groups if not group.variant)
    varied = [group for group in groups if group.variant]
    assert min(len(group.donors) for group in varied) >= 4
    for group in varied:
        assert {int(item.key) % 2 for item in group.donors} == {int(group.source) % 2}
        assert group.source not in {item.key for item in group.donors}


@pytest.mark.slow
def test_one_worker_never_imports_ray(world, tmp_path):
    code = (
        "import sys; from ecgan_cli.main import cli; cli(sys.argv[1:], standalone_mode=False); "
        "print('ray' in sys.modules)"
    )
    words = ["augment", "--run", world / "run", "--labels", world / "real/labels/val", "-q"]
    words += ["--out", tmp_path / "out", "--workers", 1, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stalled_worker_is_noticed_and_replaced(request_, world, tmp_path):
    """A real stop: the process is there and does nothing."""
    labels = kills.write_layouts(tmp_path / "labels")
    words = kills.command(world / "run/generator.safetensors", labels, tmp_path / "out", "ray")
    driver = kills.start([*words, "--workers", "1", "--shard-timeout", "4"])
    while kills.commits(tmp_path / "out") < 2 and driver.poll() is None:
        time.sleep(0.01)
    (worker,) = kills.workers_of(driver.pid)
    os.kill(worker, signal.SIGSTOP)
    said = driver.communicate(timeout=200)[1]
    assert driver.returncode == 0, said
    assert re.search(r"took more than 4 s.*goes to another worker", said), said
    outcome = generate.run(
        request_(labels=labels, n_styles=kills.STYLES, samples_per_shard=kills.PER_SHARD,
                 out=tmp_path / "calm")
    )  # fmt: skip
    assert outcome.num_samples == kills.LAYOUTS * kills.STYLES
    assert contents(tmp_path / "calm") == contents(tmp_path / "out")


@pytest.mark.slow
def test_a_data_set_in_s3_is_made_by_two_workers_resumed_and_verified(
    world,
    request_,
    tmp_path,
    s3,
    monkeypatch,
):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/{tmp_path.name}/set"
    words = ["augment", "--run", world / "run", "--labels", world / "real/labels/train", "-q"]
    words += ["--n-styles", 3, "--samples-per-shard", 4, "--out", url, "--workers", 2]
    result = run_cli(*words, "--device", "cpu")
    assert result.exit_code == 0, result.output
    generate.run(request_())
    store = open_store(url)
    local = open_store(tmp_path / "out")
    for name in ("manifest.json", "README.md", "preview.png", "index.json"):
        assert store.read(name) == local.read(name), name
    for name in local.sizes("data"):
        assert store.read(f"data/{name}") == local.read(f"data/{name}")
    assert verify(url, quiet=True).faults == []

    store.remove(["data/train-000001.tar", "manifest.json"])
    result = run_cli(*words, "--device", "cpu")
    assert "(4 made now" in result.output
    assert verify(url, quiet=True).faults == []
    assert [s.key for s in dataset.read(url)] == [s.key for s in dataset.read(tmp_path / "out")]
    assert len(SampleDataset(url)) == 18


def test_a_data_set_in_memory_has_the_bytes_of_one_in_a_folder(request_, tmp_path):
    url = f"memory://{tmp_path.name}/set"
    for data_format in FORMATS:
        generate.run(request_(data_format=data_format, out=tmp_path / data_format))
        generate.run(request_(data_format=data_format, out=f"{url}-{data_format}"))
        store = open_store(f"{url}-{data_format}")
        local = open_store(tmp_path / data_format)
        assert store.read("manifest.json") == local.read("manifest.json")
        assert verify(f"{url}-{data_format}", quiet=True).faults == []


def test_where_the_time_went_is_counted(request_):
    prepared = planner.plan(request_())
    made = ShardWorker(prepared.settings)(prepared.wanted.stage.job(0))
    assert tuple(made.seconds) == STAGES
    assert made.seconds["judge"] == 0
    assert all(made.seconds[name] > 0 for name in STAGES if name != "judge")
    assert 0 < made.seconds["generate"] < made.elapsed
    spent = StageSeconds()
    assert spent.bottleneck() == ""
    spent.add(made.seconds, made.elapsed, made.shard.samples)
    assert re.fullmatch(r"\w+ \(\d+% .*\)", spent.bottleneck())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"generate": 8, "encode": 3, "write": 1}, "generate (80% of the workers' time)"),
        ({"generate": 1, "encode": 18, "write": 1}, "encode (90% busy)"),
        ({"read": 5, "generate": 3, "encode": 2, "write": 7}, "read (50% of the workers' time)"),
        ({"generate": 1, "encode": 2, "write": 9}, "write (90% busy)"),
    ],
)
def test_the_bottleneck_is_the_stage_that_the_others_wait_for(seconds, expected):
    spent = StageSeconds(encoders=2)
    spent.seconds.update(seconds)
    spent.elapsed = 10
    assert spent.bottleneck() == expected


# Extension


@pytest.mark.parametrize("data_format", FORMATS)
def test_an_extended_data_set_keeps_its_shards_and_gets_styles_and_layouts(
    request_, world, tmp_path, data_format
):
    labels = tmp_path / "labels"
    labels.mkdir()
    paths = sorted((world / "real/labels/train").glob("*.png"))
    for path in paths[:3]:
        (labels / path.name).write_bytes(path.read_bytes())
    first = request_(labels=labels, n_styles=2, data_format=data_format)
    generate.run(first)
    before = contents(tmp_path / "out")
    for path in paths[3:5]:
        (labels / path.name).write_bytes(path.read_bytes())
    wider = request_(labels=labels, n_styles=3, data_format=data_format)
    with pytest.raises(UserError, match=r"differ in labels .*styles of a layout .*--extend to add"):
        generate.run(wider)
    assert contents(tmp_path / "out") == before

    extended = replace(wider, output=replace(wider.output, extend=True))
    outcome = generate.run(extended)
    assert (outcome.num_samples, outcome.made) == (15, 9)
    after = contents(tmp_path / "out")
    kept = {n: s for n, s in before.items() if "train-00" in n or ".ecgan/shards" in n}
    assert kept
    assert {n: after[n] for n in kept} == kept, "earlier shards stay as they are"
    keys = [s.key for s in dataset.read(tmp_path / "out")]
    assert len(set(keys)) == 15
    whole = generate.run(request_(labels=labels, n_styles=3, out=tmp_path / "at-once"))
    assert whole.num_samples == 15
    assert sorted(keys) == sorted(s.key for s in dataset.read(tmp_path / "at-once"))
    assert verify(tmp_path / "out", quiet=True).faults == []
    assert read_manifest(tmp_path / "out").layouts == 5

    assert generate.run(wider).made == 0  # the same again resumes, and has nothing to do
    with pytest.raises(UserError, match="has all of that already; ask for more"):
        generate.run(replace(first, output=replace(first.output, extend=True)))


def test_an_interrupted_extension_goes_on(request_, tmp_path):
    generate.run(request_())
    more = request_(n_styles=5, extend=True)
    generate.run(more)
    undisturbed = contents(tmp_path / "out")
    for number in (1, 6):  # one of each stage
        (tmp_path / f"out/.ecgan/shards/{number:06d}.json").unlink()
    (tmp_path / "out/manifest.json").unlink()
    assert generate.run(request_(n_styles=5)).made == 8
    assert contents(tmp_path / "out") == undisturbed


def test_changed_labels_and_other_settings_do_not_extend(request_, world, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (world / "real/labels/train").glob("*.png"):
        (labels / path.name).write_bytes(path.read_bytes())
    generate.run(request_(labels=labels))
    with pytest.raises(UserError, match=r"differ in --seed \(0, now 4\)"):
        generate.run(request_(labels=labels, n_styles=4, extend=True, seed=4))
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(labels / "scene-01.png")
    with pytest.raises(UserError, match=r"1 label maps have changed .*first: scene-01"):
        generate.run(request_(labels=labels, n_styles=4, extend=True))
    (labels / "scene-01.png").unlink()
    with pytest.raises(UserError, match=r"1 layouts of .* are missing \(first: scene-01\)"):
        generate.run(request_(labels=labels, n_styles=4, extend=True))


def test_overwriting_removes_what_is_ours_and_nothing_else(request_, tmp_path):
    generate.run(request_(data_format="folder"))
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/images/train/mine.jpg").write_bytes(b"mine")
    generate.run(request_(seed=1, overwrite=True))
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"notes.txt", "mine.jpg", "train-000000.tar"} <= left
    assert not any(name.endswith("-s000.jpg") for name in left)
    assert verify(tmp_path / "out", quiet=True).faults == []


# Verification of committed shards


def test_a_changed_byte_is_noticed_with_verify(request_, tmp_path):
    generate.run(request_())
    undisturbed = contents(tmp_path / "out")
    path = tmp_path / "out/data/train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert generate.run(request_()).made == 0  # sizes alone do not tell
    assert generate.run(request_(verify=True)).made == 4
    assert contents(tmp_path / "out") == undisturbed


def test_a_record_of_another_plan_does_not_count(request_, tmp_path):
    """What an orphan of an earlier driver may commit after the data set was begun anew."""
    generate.run(request_())
    undisturbed = contents(tmp_path / "out")
    path = tmp_path / "out/.ecgan/shards/000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": "0" * 16}))
    assert generate.run(request_()).made == 4
    assert contents(tmp_path / "out") == undisturbed


# The label filter


def test_the_filter_makes_unlabelled_what_the_segmenter_does_not_recognise(
    request_, world, tmp_path
):
    generate.run(request_())
    outcome = generate.run(request_(out=tmp_path / "filtered", label_filter="train"))
    assert outcome.filtered.startswith("filter: ")
    plain, filtered = (list(dataset.read(tmp_path / n)) for n in ("out", "filtered"))
    found = records(tmp_path / "filtered")
    removed = 0
    for before, after, record in zip(plain, filtered, found, strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        changed = before.label != after.label
        assert (after.label[changed] == 255).all(), "pixels are taken away, never relabelled"
        labelled = (before.label != 255).sum()
        assert record["kept_fraction"] == pytest.approx(1 - changed.sum() / labelled)
        assert 0 <= record["consistency"] <= 1
        assert sum(record["class_pixels"]) == (after.label != 255).sum()
        removed += changed.sum()
    assert removed > 0
    about = read_manifest(tmp_path / "filtered")
    assert about.filter.independent == "yes"
    assert about.filter.kept_fraction == pytest.approx(np.mean([r["kept_fraction"] for r in found]))
    assert about.filter.inconsistent == sum(r["kept_fraction"] < 0.5 for r in found)
    card = (tmp_path / "filtered/README.md").read_text()
    assert "no sample was judged by a network that was trained on its layout's photo" in card
    assert verify(tmp_path / "filtered", quiet=True).faults == []


def test_dropped_samples_shorten_shards_and_are_counted(request_, tmp_path):
    first = request_(label_filter="train", samples_per_shard=18)
    generate.run(first)
    kept = sorted(r["kept_fraction"] for r in records(tmp_path / "out"))
    limit = f"sampling.filter_min_kept={(kept[8] + kept[9]) / 2}"
    outcome = generate.run(
        request_(
            out=tmp_path / "dropped", label_filter="train", on_inconsistent="drop",
            samples_per_shard=18, overrides=(limit,),
        )
    )  # fmt: skip
    assert outcome.num_samples == 9
    about = read_manifest(tmp_path / "dropped")
    assert (about.samples, about.filter.dropped) == (9, 9)
    assert min(r["kept_fraction"] for r in records(tmp_path / "dropped")) == kept[9]
    assert verify(tmp_path / "dropped", quiet=True).faults == []
    result = generate.run(
        request_(
            out=tmp_path / "none", label_filter="train", on_inconsistent="drop",
            overrides=("sampling.filter_min_kept=1.0", "sampling.filter_tolerance=0.01"),
        )
    )  # fmt: skip
    assert len(result.failed) == 5
    assert "left none of the 4 samples of shard 0" in result.failed[0]


def test_retries_take_the_next_seeds_and_keep_the_best(request_, tmp_path):
    overrides = ("sampling.filter_min_kept=1.0", "sampling.filter_retries=2")
    generate.run(request_(label_filter="train"))
    generate.run(
        request_(
            out=tmp_path / "retried", label_filter="train", on_inconsistent="retry",
            overrides=overrides,
        )
    )  # fmt: skip
    once, retried = records(tmp_path / "out"), records(tmp_path / "retried")
    assert [r["key"] for r in once] == [r["key"] for r in retried]
    added = [b["seed"] - a["seed"] for a, b in zip(once, retried, strict=True)]
    assert set(added) <= {0, 1, 2}
    assert max(added) > 0
    for a, b in zip(once, retried, strict=True):
        assert b["kept_fraction"] >= a["kept_fraction"]
        assert (a["seed"] == b["seed"]) == (a["kept_fraction"] == b["kept_fraction"])
    assert read_manifest(tmp_path / "retried").filter.retried == 36


# Balance


def test_balance_changes_how_often_layouts_occur_and_the_dry_run_shows_it(
    request_, world, tmp_path
):
    even = generate.describe(request_())
    assert "  road " in even
    request = request_(spread="target", targets=("car=0.35",))
    text = generate.describe(request)
    (line,) = [line for line in text.splitlines() if line.split()[0] == "car"]
    before, after = (float(word.rstrip("%")) for word in line.split()[1:])
    assert abs(after - 35) < abs(before - 35)
    assert not (tmp_path / "out").exists()
    outcome = generate.run(request)
    assert outcome.num_samples == 18
    pixels = np.array(read_manifest(tmp_path / "out").class_pixels)
    assert pixels[NAMES.index("car")] / pixels.sum() * 100 == pytest.approx(after, abs=0.01)

    generate.run(request_(out=tmp_path / "hard", spread="hardness"))
    counts = {}
    for sample in dataset.read(tmp_path / "hard"):
        counts[sample.source] = counts.get(sample.source, 0) + 1
    assert sum(counts.values()) == 18
    assert len(set(counts.values())) > 1
    assert read_manifest(tmp_path / "hard").balance == "hardness"


# Variation


def test_varied_layouts_stand_beside_the_layouts_themselves(request_, world, tmp_path):
    generate.run(request_(changes=("flip",), n_styles=2))
    found = {s.key: s for s in dataset.read(tmp_path / "out")}
    assert len(found) == 24
    told = {r["key"]: r for r in records(tmp_path / "out")}
    for i in range(6):
        own, varied = found[f"scene-{i:02d}-s000"], found[f"scene-{i:02d}-v1-s000"]
        np.testing.assert_array_equal(varied.label, own.label[:, ::-1])
        assert told[varied.key]["variation"] == "flip"
        assert told[varied.key]["source"] == f"scene-{i:02d}"
        assert told[own.key]["variation"] == ""
    assert read_manifest(tmp_path / "out").varied_layouts == 6
    assert "varied before (flip)" in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
def test_all_variations_give_the_same_bytes_from_two_processes(request_, tmp_path):
    changes = {"changes": ("flip", "crop", "paste"), "n_variants": 2}
    generate.run(request_(**changes))
    generate.run(request_(out=tmp_path / "two", workers=2, **changes))
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    told = [r["variation"] for r in records(tmp_path / "out")]
    assert len({text for text in told if "crop" in text}) > 5
    assert verify(tmp_path / "out", quiet=True).faults == []


def test_a_layout_with_the_name_of_a_varied_one_is_refused(request_, tmp_path):
    for name in ("a", "a-v1"):
        trees.save(tmp_path / "labels" / f"{name}.png", trees.stripes([0, 1]))
    with pytest.raises(UserError, match="a-v1 would be the name of a varied form"):
        planner.plan(request_(labels=tmp_path / "labels", changes=("flip",)))


# Provenance


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_images_and_records_say_that_they_are_synthetic(request_, world, tmp_path, image_format):
    labels = world / "real/labels/val"
    options = {"labels": labels, "n_styles": 1, "image_format": image_format}
    generate.run(request_(overrides=("sampling.license=cc-by-4.0",), **options))
    generate.run(request_(out=tmp_path / "bare", provenance=False, **options))
    marked, bare = (next(dataset.read_raw(tmp_path / name)) for name in ("out", "bare"))
    assert b"trainedAlgorithmicMedia" in marked.image
    assert b"cc-by-4.0" in marked.image
    assert marked.record["digital_source_type"] == "trainedAlgorithmicMedia"
    assert b"trainedAlgorithmicMedia" not in bare.image
    assert bare.record["digital_source_type"] == ""
    about = read_manifest(tmp_path / "out")
    assert about.provenance.checkpoint.sha256 == about.fingerprint.checkpoint
    assert about.license == "cc-by-4.0"
    assert read_manifest(tmp_path / "bare").provenance is None
    front, text = ((tmp_path / n / "README.md").read_text() for n in ("out", "bare"))
    assert "license: cc-by-4.0" in front
    assert "checkpoint `" in front
    assert "checkpoint" not in text
    a, b = (decoded(raw, "") for raw in (marked, bare))
    np.testing.assert_array_equal(a.image, b.image)


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
            "id2label.json: other names",
        ),
        (lambda out: rewrite(out, palette_label), "label of mode P, expected L"),
        (lambda out: rewrite(out, strange_id), "label ids 7 are not in the class list"),
        (lambda out: rewrite(out, small_image), "image of mode RGB, 8 x 8"),
        (lambda out: rewrite(out, no_image), "image: its 5 bytes are no picture"),
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


# Data sets of earlier versions


def as_schema_2(out):
    """Rewrite a data set's documents as the version before wrote them, by another release."""

    def fingerprint(value):
        versions = {f"version of {k}": v for k, v in value.pop("versions").items()}
        old = {WORDING.get(key, key): own for key, own in value.items()}
        old["--style-images or --styles"] = old.pop("--style-images")
        return old | versions | {"version of ecgan": "0.0.9", "threads": 1, "recipe": "of old"}

    path = out / ".ecgan/plan.json"
    book = json.loads(path.read_text())
    for stage in book["stages"]:
        stage["fingerprint"] = fingerprint(stage["fingerprint"])
    path.write_text(json.dumps(book | {"schema": 2}))
    path = out / "manifest.json"
    about = json.loads(path.read_text())
    about["fingerprint"] = fingerprint(about["fingerprint"])
    path.write_text(json.dumps(about | {"schema": 2, "style_source": "seed 0"}))


def test_a_data_set_of_an_earlier_version_is_read_resumed_and_extended(request_, tmp_path):
    generate.run(request_())
    out = tmp_path / "out"
    as_schema_2(out)
    about = read_manifest(out)
    assert about.fingerprint.checkpoint == about.provenance.checkpoint.sha256
    assert about.styles == "seed 0"
    assert about.is_complete
    assert verify(out, quiet=True).faults == []
    assert generate.run(request_()).made == 0
    with pytest.raises(UserError, match=r"differ in --seed \(0, now 1\)\. Use"):
        generate.run(request_(seed=1))
    before = (out / "data/train-000001.tar").read_bytes()
    (out / ".ecgan/shards/000001.json").unlink()
    assert generate.run(request_()).made == 4
    named = (out / "data/train-000001.tar").read_bytes().count(b'CreatorTool="ecgan 0.0.9"')
    assert named == 4, "finished by the version that began it"
    assert len((out / "data/train-000001.tar").read_bytes()) == len(before)
    assert read_manifest(out).versions["ecgan"] == "0.0.9"
    assert generate.run(request_(n_styles=4, extend=True)).made == 6
    assert json.loads((out / ".ecgan/plan.json").read_text())["schema"] == 3
    assert verify(out, quiet=True).faults == []


# Dry runs


@pytest.mark.parametrize(
    "changes",
    [
        {"label_filter": "train"},
        {"spread": "hardness"},
        {"style_images": True},
        {"label_filter": "train", "on_inconsistent": "drop", "changes": ("flip",)},
    ],
)
def test_a_dry_run_writes_and_trains_nothing(request_, world, tmp_path, monkeypatch, changes):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=lambda *_: ["segmenters"])
    if "style_images" in changes:
        trees.save(tmp_path / "photos/a.jpg", trees.photo(0))
        changes = {"style_images": tmp_path / "photos"}
    monkeypatch.setattr(calibration, "train_segmenter", None)
    before = [*map(contents, (tmp_path, world))]
    text = generate.describe(request_(generator=run / "generator.safetensors", **changes))
    assert "samples of" in text
    assert [*map(contents, (tmp_path, world))] == before
    hardness = "not known before the filter is trained" in text
    assert hardness == (changes.get("spread") == "hardness")


def test_a_dry_run_over_a_filtered_data_set_compares_what_it_knows(request_, world, tmp_path):
    changes = {"label_filter": "train", "spread": "hardness"}
    generate.run(request_(**changes))
    before = contents(tmp_path)
    assert "18 samples" in generate.describe(request_(**changes))
    with pytest.raises(UserError, match="--seed"):
        generate.describe(request_(**changes, seed=1))
    assert contents(tmp_path) == before
