"""Where the time goes: spans, stages, and the table of ``--profile`` in both commands."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ecgan.generation import planner
from ecgan.generation.request import Request
from ecgan.generation.worker import ShardWorker
from ecgan.recipe import load_recipe
from ecgan.runtime.timing import STAGES, StageTimer, span, span_seconds, table
from ecgan.sampling.sampler import GeneratedPair
from ecgan.segmentation.label_filter import Judgement
from ecgan_cli.main import cli
from tests.helpers.tiny import make_generator, write_pairs
from tests.training.test_run import LIGHT


def test_spans_of_one_name_are_summed_and_those_of_others_left_out():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            with span("sleep"):
                time.sleep(0.02)
        with torch.profiler.record_function("not ours"), span("add"):
            torch.ones(3) + 1
    seconds = span_seconds(profiler.events())
    assert list(seconds) == ["sleep", "add"]
    assert 0.04 <= seconds["sleep"] < 1
    assert 0 < seconds["add"] < 0.02


def event(name, start, end, kernels=(), device="CPU"):
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start),
        kernels=[SimpleNamespace(name=name, duration=duration) for name, duration in kernels],
    )


def test_on_a_gpu_a_span_takes_as_long_as_the_kernels_launched_in_it():
    events = [
        event("ecgan: load", 0, 1000),
        event("ecgan: backward", 1000, 1100, kernels=[("ecgan: backward", 9000)]),
        event("ecgan: backward", 5000, 14000, device="CUDA"),
        event("aten::mm", 1010, 1020, kernels=[("gemm", 4000)]),  # of whichever thread
        event("aten::mm", 1030, 1040, kernels=[("gemm", 2000), ("fill", 500)]),
        event("aten::add", 2000, 2001, kernels=[("add", 100)]),  # in no span
    ]
    assert span_seconds(events) == {"load": 0.001, "backward": 0.0065}


def test_a_table_has_a_row_for_each_part():
    text = table("4 steps", "step", 4, {"load": 1.0, "G forward": 0.5, "other": 0.5}, 2.0)
    assert [line.split() for line in text.splitlines()] == [
        ["4", "steps"],
        ["ms/step", "share"],
        ["load", "250.00", "50.0%"],
        ["G", "forward", "125.00", "25.0%"],
        ["other", "125.00", "25.0%"],
        ["elapsed", "500.00"],
    ]


def test_a_stage_that_fails_is_counted_too():
    own = StageTimer()
    with pytest.raises(ValueError, match="broken"), own.measured("judge"):
        raise ValueError("broken")
    assert own.seconds["judge"] > 0
    assert tuple(own.seconds) == STAGES


@pytest.fixture
def augment(tmp_path):
    """Call ``augment`` on three layouts with two styles each."""
    path = make_generator(tmp_path / "run" / "generator.safetensors")
    for i in range(3):
        label = np.kron(np.random.default_rng(i).integers(0, 3, (4, 8)), np.ones((8, 8)))
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / "labels" / f"{i}.png")
    words = ["augment", "--checkpoint", path, "--labels", tmp_path / "labels", "--n-styles", 2]
    words += ["--device", "cpu", "-q", "--out", tmp_path / "out"]

    def call(*more):
        result = CliRunner().invoke(cli, [str(word) for word in (*words, *more)])
        assert result.exit_code == 0, result.output
        return result.output

    return call


@pytest.mark.slow
def test_a_profile_of_samples_names_the_bottleneck_and_keeps_nothing(augment, tmp_path):
    before = set(tmp_path.rglob("*"))
    text = augment("--profile", 5)
    assert text.startswith("5 samples on cpu, one worker with ")
    rows = {name: float(re.search(rf"\n  {name} +([\d.]+) +[\d.]+%", text)[1]) for name in STAGES}
    assert rows["judge"] == 0
    assert all(rows[name] > 0 for name in STAGES if name != "judge")
    elapsed = float(re.search(r"\n  elapsed +([\d.]+)\n", text)[1])
    assert sum(rows[name] for name in ("read", "generate")) < elapsed * 1.01
    rate = float(re.search(r", ([\d.]+) samples/s\n", text)[1])
    assert rate == pytest.approx(1000 / elapsed, rel=0.02)
    assert re.search(r"\nbottleneck: \w+ \(\d+% [^\n]+\)\n$", text)
    assert set(tmp_path.rglob("*")) == before


def test_a_profile_takes_no_more_samples_than_there_are(augment):
    assert augment("--profile", 50).startswith("6 samples on cpu, ")


@pytest.mark.slow
def test_the_bottleneck_is_named_after_every_call(augment):
    assert re.search(r"MB/s, bottleneck: \w+ \(\d+% .*\)\)\n", augment())
    assert "bottleneck: " not in augment(), "nothing was made"


def test_the_time_of_retries_is_counted(tmp_path, monkeypatch):
    path = make_generator(tmp_path / "g.safetensors")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "a.png")
    request = Request.of(
        path, tmp_path / "out", labels=tmp_path, n_styles=2, device="cpu", quiet=True
    )
    prepared = planner.plan(request)
    settings = replace(prepared.settings, on_inconsistent="retry", retries=3)
    maker = ShardWorker(settings)
    maker.filter = SimpleNamespace(
        judge_batch=lambda images, labels, _: [
            Judgement(label, 0.0, 0.0, is_consistent=False, kept_pixels=0, labelled_pixels=1)
            for label in labels
        ]
    )
    made = GeneratedPair(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8))

    def result():
        time.sleep(0.02)
        return [[made] * 2]

    maker.sampler.start = lambda layouts, z, _: SimpleNamespace(result=result)
    samples = next(maker._passes(prepared.wanted.stage.job(0)))
    assert [sample.retries for sample in samples] == [3, 3]
    assert 0.08 <= maker.timer.seconds["generate"] < 1


@pytest.mark.slow
def test_every_part_of_a_training_step_has_a_span(tmp_path, monkeypatch):
    write_pairs(tmp_path / "toy", num_train=6, num_val=2, height=64, width=128)
    monkeypatch.chdir(tmp_path)
    overrides = [word for text in LIGHT for word in ("--set", text)]
    words = ["train", "--recipe", "demo", "--data", str(tmp_path / "toy"), *overrides]
    result = CliRunner().invoke(cli, [*words, "--profile", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("2 steps of ")
    spans = dict(re.findall(r"^  (\S.*?)  +([0-9.]+) +[0-9.]+%$", result.output, re.MULTILINE))
    of_terms = set(load_recipe("demo", LIGHT).parts().terms) - {"adversarial", "feature_matching"}
    assert set(spans) == of_terms | {
        "load", "copy", "G forward", "D forward", "D backward", "adversarial, matching",
        "G backward", "optimizers", "averaging", "norms", "other",
    }  # fmt: skip
    each = float(re.search(r"elapsed +([0-9.]+)", result.output)[1])
    assert sum(map(float, spans.values())) == pytest.approx(each, rel=0.02)
    slowest = max(spans, key=lambda name: float(spans[name]))
    assert re.search(rf"\nbottleneck: {slowest} \(\d+% of a step\)\n", result.output)
    assert re.search(
        r"\ntime: about .* s for the \d+ steps of the training, as measured\n$", result.output
    )
    assert not (tmp_path / "runs").exists()
