"""Data sets made by several workers, in object stores, and where the time went."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ecgan.data import SampleDataset
from ecgan.data.datasets import Item
from ecgan.data.packed import sample_sets as dataset
from ecgan.generation import planner
from ecgan.generation import run as generate
from ecgan.generation.plan import Stage, whole_rows
from ecgan.generation.request import Request
from ecgan.generation.worker import ShardWorker
from ecgan.runtime.storage import open_store
from ecgan.runtime.timing import STAGES, StageSeconds
from ecgan.shards.verify import verify
from tests import kills

# Workers
from tests.helpers.data_sets import FORMATS, contents, run_cli
from tests.runtime.test_storage import BUCKET


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_on_ray_give_the_bytes_of_one_in_this_process(request_of, tmp_path):
    generate.run(request_of())
    outcome = generate.run(request_of(out=tmp_path / "ray", workers=2))
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
def test_a_stalled_worker_is_noticed_and_replaced(request_of, world, tmp_path):
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
        request_of(labels=labels, n_styles=kills.STYLES, samples_per_shard=kills.PER_SHARD,
                 out=tmp_path / "calm")
    )  # fmt: skip
    assert outcome.num_samples == kills.LAYOUTS * kills.STYLES
    assert contents(tmp_path / "calm") == contents(tmp_path / "out")


@pytest.mark.slow
def test_a_data_set_in_s3_is_made_by_two_workers_resumed_and_verified(
    world,
    request_of,
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
    generate.run(request_of())
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


@pytest.mark.slow
def test_a_data_set_in_memory_has_the_bytes_of_one_in_a_folder(request_of, tmp_path):
    url = f"memory://{tmp_path.name}/set"
    for data_format in FORMATS:
        generate.run(request_of(data_format=data_format, out=tmp_path / data_format))
        generate.run(request_of(data_format=data_format, out=f"{url}-{data_format}"))
        store = open_store(f"{url}-{data_format}")
        local = open_store(tmp_path / data_format)
        assert store.read("manifest.json") == local.read("manifest.json")
        assert verify(f"{url}-{data_format}", quiet=True).faults == []


def test_where_the_time_went_is_counted(request_of):
    prepared = planner.plan(request_of())
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
