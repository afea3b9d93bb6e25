"""``--batch auto``: what fits by the estimate, and what a run keeps."""

import pytest
import torch
from click.testing import CliRunner

from ecgan.errors import UserError
from ecgan.recipe import label_space, load_recipe
from ecgan.training import estimate as dry_run
from ecgan_cli.main import cli
from tests.helpers.tiny import write_pairs
from tests.training.test_run import LIGHT

CPU = torch.device("cpu")


def recipe_of(*overrides):
    return load_recipe("demo", ("data.classes=[a, b]", *overrides))


def fitting(recipe, available, world=1):
    space = label_space(recipe.data)
    return dry_run.fitting_batch(recipe, space, device=CPU, world=world, available=available)


@pytest.mark.slow
def test_twice_the_memory_is_twice_the_batch_up_to_a_bound(monkeypatch):
    recipe = recipe_of()
    estimate = dry_run.Estimate(recipe, label_space(recipe.data), bfloat16=False)
    one, two = estimate.of(1), estimate.of(2)
    monkeypatch.setattr(dry_run, "Estimate", lambda *_, **__: estimate)  # seconds to build
    each, fixed = two - one, 2 * one - two
    assert each > 0
    assert fixed > 0

    def room(images):
        return int((fixed + 2 * images * each) / 0.8) + 1000

    assert [fitting(recipe, room(n)) for n in (1, 2, 3, 4, 9)] == [1, 2, 2, 4, 8]
    assert fitting(recipe, room(4), world=2) == 8
    assert fitting(recipe_of("train.accumulate=2"), room(4)) == 8
    assert fitting(recipe, 10**15) == 64
    with pytest.raises(UserError, match=r"one image of 64 x 128 needs about .* GiB are free"):
        fitting(recipe, int(fixed / 0.8))


@pytest.mark.slow
def test_the_command_chooses_prints_and_keeps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "toy", num_train=6, num_val=2, height=64, width=128)
    overrides = [word for text in LIGHT for word in ("--set", text)]
    common = ["train", "--recipe", "demo", "--data", "toy", "--device", "cpu", *overrides]
    result = CliRunner().invoke(cli, [*common, "--batch", "auto", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "train.batch: 64" in result.output
    assert "of 64 images (64 at a time on a rank)" in result.output
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    kept = load_recipe("demo", (*LIGHT, "data.root=toy", "train.batch=8"))
    (tmp_path / "runs" / "demo" / "recipe.yaml").write_text(kept.to_yaml())
    result = CliRunner().invoke(cli, [*common, "--batch", "auto", "--dry-run"])
    assert "train.batch: 8" in result.output
    result = CliRunner().invoke(cli, [*common, "--batch", "many", "--dry-run"])
    assert result.exit_code == 2
    assert "train.batch" in result.output
