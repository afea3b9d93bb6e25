"""Spans of a training step, and ``ecgan train --profile``."""

import re
import time

import pytest
import torch
from click.testing import CliRunner

from ecgan.recipe import load_recipe
from ecgan.runtime import profiling
from ecgan.runtime.profiling import StepProfile, measured
from ecgan.runtime.timings import Clock
from ecgan.training import estimate
from ecgan_cli.main import cli
from tests.helpers.tiny import write_pairs
from tests.training.test_run import LIGHT

CPU = torch.device("cpu")


def test_spans_are_measured_only_while_somebody_does():
    clock = Clock(CPU)
    with measured("before"):
        pass
    with profiling.measuring(clock):
        for _ in range(2):
            with measured("sleep"):
                time.sleep(0.02)
    with measured("after"):
        pass
    assert set(clock.seconds()) == {"sleep"}
    assert 0.04 <= clock.seconds()["sleep"] < 1


def test_a_failing_block_stops_the_measuring():
    clock = Clock(CPU)
    with pytest.raises(ValueError, match="x"), profiling.measuring(clock):
        raise ValueError("x")
    with measured("after"):
        pass
    assert clock.seconds() == {}


def test_table_adds_up():
    text = StepProfile(
        device="a device",
        arithmetic="float32",
        steps=4,
        batch=8,
        elapsed=2.0,
        seconds={"G forward": 0.5, "load": 1.0},
        loader=100.0,
        flops=4e9,
        ceiling=1e11,
        peak_bytes=123_000_000,
    ).table()
    lines = [line.split() for line in text.splitlines()]
    assert ["load", "250.0", "50.0%"] in lines
    assert ["G", "forward", "125.0", "25.0%"] in lines
    assert ["other", "125.0", "25.0%"] in lines
    assert "16.00 images/s" in text  # 8 images in half a second
    assert "0.5 GFLOP an image, 8.0 GFLOP/s: 8% of" in text  # 4e9 in half a second, of 1e11
    assert "peak memory: 123 MB" in text


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path / "toy", num_train=6, num_val=2, height=64, width=128)
    return tmp_path / "toy"


def test_every_part_of_a_step_has_a_span(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [word for text in LIGHT for word in ("--set", text)]
    result = CliRunner().invoke(
        cli, ["train", "--recipe", "demo", "--data", str(root), *overrides, "--profile", "2"]
    )
    assert result.exit_code == 0, result.output
    spans = dict(re.findall(r"^  (\S.*?)  +([0-9.]+) +[0-9.]+%$", result.output, re.MULTILINE))
    recipe = load_recipe("demo", LIGHT)
    from ecgan.training.objective import terms

    of_terms = set(terms(recipe)) - {"adversarial", "feature_matching"}
    assert set(spans) >= of_terms | {
        "load", "copy", "G forward", "D forward", "D backward", "adversarial, matching",
        "G backward", "optimizers", "averaging", "norms", "other",
    }  # fmt: skip
    each = float(re.search(r"elapsed +([0-9.]+)", result.output)[1])
    assert sum(map(float, spans.values())) == pytest.approx(each, rel=0.02)
    assert re.search(r"loader alone: [0-9.]+ images/s", result.output)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_profile_does_as_much_arithmetic_as_there_is(root):
    small, large = (
        load_recipe("demo", (*LIGHT, f"data.root={root}", f"model.width={width}"))
        for width in (8, 16)
    )
    flops = [
        float(re.search(r"([0-9.]+) GFLOP an image", estimate.profile(r, steps=1, device="cpu"))[1])
        for r in (small, large)
    ]
    assert flops[1] > 1.5 * flops[0] > 0
