"""The estimate of a training's time: its work is that of the networks, its rates the device's."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.recipe import label_space, load_recipe
from ecgan.training import step
from ecgan.training.loop import speed
from ecgan.training.loop.speed import Operation, Rates
from ecgan.training.networks import Frozen, untrained_label_generator
from ecgan.training.objective import GeneratorSide, Inputs, Objective
from tests.helpers.tiny import write_pairs
from tests.training.test_run import TINY, ecgan_train, sets

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("speed") / "scenes"
    write_pairs(root, num_train=4, num_val=2, height=32, width=64)
    return root


PLAIN = (
    *TINY, "data.classes=[a, b, c]", "model.style=false", "model.contrastive=false",
    "model.class_specific=false", "model.segmentation_discriminator=off",
    "losses.perceptual_network=none", "model.label_generator=off",
)  # fmt: skip


def recipe_of(*overrides):
    recipe = load_recipe("demo", overrides).resolved("cpu")
    return recipe, label_space(recipe.data)


def flops(work):
    return sum(one.times * one.flops for one in work)


def counted_step(recipe, space):
    """Arithmetic of a real step, as torch counts it while it runs."""
    size, images = (recipe.data.height, recipe.data.width), recipe.train.batch
    trained = step.build(recipe, space, CPU)
    objective = Objective(recipe, space, CPU)
    labels = torch.randint(space.num_classes, (images, *size))
    S = F.one_hot(labels, space.num_conditions(boundary=False)).permute(0, 3, 1, 2).float()
    image, edge = torch.rand(2, images, 3, *size)
    keys = tuple(map(str, range(images)))
    inputs = Inputs(keys, torch.arange(images), labels, S, image, edge)
    with FlopCounterMode(display=False) as counter:
        step.step(trained, objective, [inputs], 1.0)
    return counter.get_total_flops()


@pytest.mark.slow
def test_the_work_is_that_of_a_step_that_runs():
    recipe, space = recipe_of(*PLAIN)
    assert recipe.parts().discriminator
    found = flops(speed.work_of_pass(recipe, space, Frozen(), recipe.train.batch))
    assert found == pytest.approx(counted_step(recipe, space), rel=0.1)


@pytest.mark.slow
def test_every_part_that_a_recipe_adds_is_work():
    def work(overrides, frozen=Frozen()):  # noqa: B008  nothing changes it
        recipe, space = recipe_of(*overrides)
        return flops(speed.work_of_pass(recipe, space, frozen, 4))

    least = work(PLAIN)
    network = EfficientNetLite0()
    recipe, space = recipe_of(*PLAIN, "model.label_generator=train")
    segmenter = untrained_label_generator(recipe, space, CPU)
    assert segmenter is not None
    for overrides, frozen in (
        (["model.style=true"], Frozen()),
        (["model.contrastive=true"], Frozen()),
        (["model.class_specific=true"], Frozen()),
        (["model.segmentation_discriminator=features"], Frozen(features=network)),
        (["losses.perceptual_network=efficientnet_lite0"], Frozen(perceptual=network)),
        (["model.label_generator=train"], Frozen(segmenter=segmenter)),
        (["data.height=64"], Frozen()),
    ):
        assert work([*PLAIN, *overrides], frozen) > 1.001 * least, overrides
    assert all(not p.is_meta for p in [*network.parameters(), *segmenter.parameters()])


def test_an_operation_takes_its_arithmetic_its_bytes_and_its_launch():
    rates = Rates(flops=100.0, bytes=10.0, seconds=0.5)
    assert rates.seconds_of([Operation(200, 30), Operation(0, 0, times=2)]) == pytest.approx(6.5)


def test_rates_are_those_of_the_device():
    numbers = torch.zeros(1 << 22)
    _ = numbers + 1
    start = time.perf_counter()
    for _ in range(5):
        _ = numbers + 1
    bytes_of_a_second = 5 * 2 * numbers.nbytes / (time.perf_counter() - start)
    rates = speed.measure(CPU, torch.float32, 8)
    assert bytes_of_a_second / 20 < rates.bytes < 20 * bytes_of_a_second
    assert 1e7 < rates.flops < 1e14
    assert 1e-8 < rates.seconds < 1e-2


class Judging(nn.Module):
    """A network that looks at what it is shown."""

    def forward(self, images):
        return images if bool(images.mean() > 0) else -images


def test_a_network_that_looks_at_numbers_is_named_as_the_reason():
    recipe, space = recipe_of(*PLAIN)
    text = speed.told(
        recipe, space, Frozen(hed=Judging()), images=100, weights=10, device=CPU, world=1
    )
    assert text.startswith("not known: a frozen network cannot be counted without its numbers (")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1, "roughly 25 s,"), (71.4, "roughly 30 min 0 s,"), (36000, "roughly 10 d 10 h,")],
)
def test_the_figure_has_no_false_precision(monkeypatch, seconds, expected):
    recipe, space = recipe_of(*PLAIN, "train.batch=4")
    monkeypatch.setattr(speed, "seconds_of_step", lambda *_, **__: float(seconds))
    told = speed.told(recipe, space, Frozen(), images=100, weights=1, device=CPU, world=1)
    assert told.startswith(f"{expected} up to twice that ("), told
    assert told.endswith(f"({4 / seconds:.2g} images/s, estimated)")


def test_accumulated_and_shared_batches_are_smaller_passes(monkeypatch):
    recipe, space = recipe_of(*PLAIN, "train.batch=8", "train.accumulate=2")
    asked = []

    def work(_recipe, _space, _frozen, images, world):
        asked.append((images, world))
        return [Operation(100, 0)]

    monkeypatch.setattr(speed, "work_of_pass", work)
    monkeypatch.setattr(speed, "measure", lambda *_: Rates(100.0, 1e9, 0.0))
    seconds = speed.seconds_of_step(recipe, space, Frozen(), weights=0, device=CPU, world=2)
    assert asked == [(2, 2)]
    assert seconds == pytest.approx(2)


@pytest.mark.slow
def test_a_dry_run_says_roughly_how_long(scenes, tmp_path):
    words = ["--recipe", "demo", "--data", str(scenes), "--out", str(tmp_path / "run"), "--dry-run"]
    result = ecgan_train(*words, *sets(TINY))
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("time:")]
    assert " roughly " in line
    assert "--profile 3 instead of --dry-run measures it" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_says_it_before_its_first_step(scenes, tmp_path):
    words = ["--recipe", "demo", "--data", str(scenes), "--out", str(tmp_path / "run")]
    result = ecgan_train(*words, *sets((*TINY, "train.images=64", "train.batch=2")))
    assert result.exit_code == 0, result.output
    assert "  roughly " in result.stderr
    assert result.stderr.index("  roughly ") < result.stderr.index("measured: ")


@pytest.mark.slow
def test_real_steps_take_about_as_long():
    recipe, space = recipe_of("data.classes=[a, b, c]", *PLAIN[len(TINY) :], "model.width=16")
    weights = sum(p.numel() for p in GeneratorSide(recipe, space).parameters())
    estimated = speed.seconds_of_step(recipe, space, Frozen(), weights=weights, device=CPU, world=1)
    counted_step(recipe, space)
    start = time.perf_counter()
    counted_step(recipe, space)
    measured = time.perf_counter() - start
    assert measured / 8 < estimated < 8 * measured
