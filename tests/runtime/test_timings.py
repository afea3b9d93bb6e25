"""Where the time goes: sums, the table of ``--profile``, and what a device can do."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ecgan.data.datasets import Item
from ecgan.generation import planner
from ecgan.generation.worker import ShardMaker
from ecgan.runtime import timings
from ecgan.runtime.timings import STAGES, Profile, Spent, Timings, matrix_ceiling, peak_memory
from ecgan.sampling.sampler import Made, Sampler
from ecgan.segmentation.label_filter import Judgement
from ecgan_cli.main import cli
from tests.helpers.tiny import make_generator

CPU = torch.device("cpu")
PROFILE = Profile("a machine", "float32", 100e9, 4e9, 500_000_000)


def test_stages_are_summed():
    own = Timings()
    own.add({"read": 1.0, "generate": 2.0})
    own.add({"read": 0.5})
    with own.measured("encode"):
        pass
    assert (own.seconds["read"], own.seconds["generate"]) == (1.5, 2.0)
    assert own.seconds["encode"] > 0
    assert tuple(own.seconds) == STAGES


def test_a_stage_that_fails_is_counted_too():
    own = Timings()
    with pytest.raises(ValueError, match="broken"), own.measured("judge"):
        raise ValueError("broken")
    assert own.seconds["judge"] > 0


def test_the_table_says_what_was_measured():
    spent = Spent(encoders=2, workers=3)
    spent.add({"condition": 1.0, "generate": 4.0, "encode": 2.0}, 8.0, 60, PROFILE)
    spent.add({"read": 1.0, "generate": 5.0}, 12.0, 40, PROFILE._replace(peak_bytes=100_000_000))
    rows = [re.sub(" +", " ", line.strip()) for line in spent.table().splitlines()]
    assert rows == [
        "profile of 100 samples, 3 worker(s), 2 encoding threads each, a machine",
        "stage ms/sample busy",
        "read 10.00 5.0%",
        "condition 10.00 5.0%",
        "generate 90.00 45.0%",
        "copy 0.00 0.0%",
        "judge 0.00 0.0%",
        "encode 20.00 5.0%",  # of two threads
        "write 0.00 0.0%",
        "elapsed 200.00 15.00 samples/s",  # three workers at 5
        # 4e9 x 100 / (1 + 4 + 5)
        "G: 4.00 GFLOP a sample, 40.0 GFLOP/s while it runs: 40% of a large matrix product's "
        "100.0 GFLOP/s (float32)",
        "peak memory: 500 MB",
        "bottleneck: generate (45% of the workers' time)",
    ]


def test_nothing_is_said_where_nothing_was_made_or_measured():
    assert Spent().table() == ""
    spent = Spent()
    spent.add({"generate": 1.0}, 1.0, 1, None)
    assert spent.table() == ""
    assert spent.profile is None
    spent.add({"generate": 1.0}, 1.0, 0, PROFILE)
    assert "profile of 1 samples" in spent.table()


def test_the_ceiling_is_operations_by_seconds(monkeypatch):
    times = iter([0.0, 9.0, 0.0, 4.0, 1.0, 3.0, 0.0, 3.0, 0.0, 4.0, 0.0, 5.0])
    monkeypatch.setattr(timings.time, "thread_time", lambda: next(times))
    side = 1024
    assert matrix_ceiling(CPU, torch.float32) == 2 * side**3 / 2.0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_the_peak_of_memory_is_that_of_the_process():
    status = Path("/proc/self/status").read_text()
    kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert peak_memory(CPU) == pytest.approx(kilobytes * 1024, rel=0.05)


@pytest.fixture
def run(tmp_path):
    """Call ``augment`` on three layouts with two styles each."""
    path = make_generator(tmp_path / "run" / "generator.safetensors")
    for i in range(3):
        label = np.kron(np.random.default_rng(i).integers(0, 3, (4, 8)), np.ones((8, 8)))
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    words = ["augment", "--checkpoint", path, "--labels", tmp_path / "labels", "--n-styles", 2]
    words += ["--device", "cpu", "-q", "--samples-per-shard", 4]

    def call(out, *more):
        given = [*words, "--out", tmp_path / out, *more]
        result = CliRunner().invoke(cli, [str(word) for word in given])
        assert result.exit_code == 0, result.output
        return result.output

    return call


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


def test_profile_says_where_the_time_went(run, tmp_path):
    text = run("out", "--profile")
    assert number(r"profile of (\d+) samples, 1 worker\(s\)", text) == 6
    table = {name: number(rf"\n  {name} +([\d.]+) +[\d.]+%", text) for name in STAGES}
    elapsed = number(r"\n  elapsed +([\d.]+)", text)
    assert table["judge"] == 0
    assert all(table[name] > 0 for name in ("read", "condition", "generate", "encode", "write"))
    assert sum(table[name] for name in ("read", "condition", "generate", "copy")) < elapsed * 1.01
    assert number(r"elapsed +[\d.]+ +([\d.]+) samples/s", text) == pytest.approx(
        1000 / elapsed, rel=0.02
    )
    sampler = Sampler(tmp_path / "run" / "generator.safetensors", CPU)
    layouts = [
        sampler.layout(i, *sampler.read_maps(Item(i, tmp_path / f"labels/{i}.png"))) for i in "01"
    ]
    flops = sampler.flops(layouts, torch.zeros(2, 2, 256)) / 4  # the first shard: two, two styles
    assert number(r"G: ([\d.]+) GFLOP a sample", text) == pytest.approx(flops / 1e9, abs=0.006)
    rate = number(r"a sample, ([\d.]+) GFLOP/s while it runs", text)
    # both are printed with two digits behind the point
    network = table["condition"] + table["generate"]
    assert rate == pytest.approx(flops / 1e6 / network, rel=0.05, abs=0.06)
    ceiling = number(r"product's ([\d.]+) GFLOP/s \(float32\)", text)
    assert number(r"runs: (\d+)% of a large", text) == pytest.approx(100 * rate / ceiling, abs=1)
    assert number(r"peak memory: (\d+) MB", text) > 50
    assert "bottleneck: " in text.split("peak memory")[1]


def test_profile_changes_no_byte_and_is_not_kept(run, tmp_path):
    run("plain")
    assert "profile of" not in run("plain"), "nothing was made"
    assert "profile of" not in run("plain", "--profile")
    run("measured", "--profile")
    for name in ("manifest.json", "data/train-000000.tar", "data/train-000001.tar"):
        plain, measured = (tmp_path / out / name for out in ("plain", "measured"))
        assert plain.read_bytes() == measured.read_bytes()
    request = (tmp_path / "measured/.ecgan/request.json").read_text()
    assert '"profile"' not in request


def test_the_time_of_retries_is_counted(tmp_path):
    path = make_generator(tmp_path / "g.safetensors")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "a.png")
    request = planner.Request(
        path, tmp_path / "out", labels=tmp_path, n_styles=2, device="cpu", quiet=True
    )
    prepared = planner.plan(request)
    settings = replace(prepared.settings, on_inconsistent="retry", retries=3)
    maker, spent = ShardMaker(settings), Timings()
    maker.filter = SimpleNamespace(
        judge_batch=lambda images, labels, _: [
            Judgement(label, 0.0, 0.0, is_consistent=False, kept_pixels=0, labelled_pixels=1)
            for label in labels
        ]
    )
    maker.sampler.start = lambda layouts, z, _: SimpleNamespace(
        result=lambda: [[Made(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8))] * 2],
        seconds=lambda: {"generate": 1.0},
    )
    samples = next(maker._passes(prepared.wanted.stage.job(0), spent))
    assert [sample.retries for sample in samples] == [3, 3]
    assert spent.seconds["generate"] == 4.0
