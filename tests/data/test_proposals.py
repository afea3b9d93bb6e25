"""Recipes that fit the machine: what is proposed for a CPU and for a GPU."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from ecgan.data.proposals import minutes_on_cpu
from ecgan.recipe import data_folder, label_space, load_recipe
from ecgan.training.estimate import memory, parameters
from ecgan_cli.main import cli
from tests.helpers.trees import photo, save, stripes
from tests.helpers.user_folders import draw

README = (Path(__file__).parents[2] / "README.md").read_text()


def write_photos(root, num=40, size=(360, 480)):
    for index in range(num):
        save(root / f"images/{index}.png", photo(index, *size))
        save(root / f"labels/{index}.png", stripes([0, 1], *size))
    (root / "classes.json").write_text('["road", "sky"]')
    return root


def propose(root, *options):
    """The proposed recipe, as text and loaded."""
    path = root / "proposed.yaml"
    path.unlink(missing_ok=True)
    arguments = ["data", "inspect", str(root), "--write-recipe", str(path), *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return path.read_text(), load_recipe(str(path))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.slow
def test_forty_photos_take_minutes_on_a_cpu(photos):
    text, recipe = propose(photos, "--for", "cpu")
    assert (recipe.data.height, recipe.data.width, recipe.train.images) == (96, 128, 2000)
    minutes = minutes_on_cpu(2000, 96, 128)
    assert minutes <= 20
    said = f"{minutes} min of training on one core"
    assert said in text
    assert f"2,000 images at 96 x 128, about {minutes} min" in README
    space, batch = label_space(recipe.data), recipe.train.batch
    assert memory(recipe, space, batch, sum(parameters(recipe, space).values())) < 2**30


def test_every_length_of_a_cpu_recipe_fits_its_training(photos):
    _, recipe = propose(photos, "--for", "cpu")
    images = recipe.train.images
    for training in (
        recipe.model.label_generator_training,
        recipe.evaluate.judge_training,
        recipe.evaluate.downstream_training,
        recipe.sampling.filter_training,
    ):
        assert training.images <= images
        assert training.channels == 16
    train = recipe.train
    assert train.ema_images == images // 8
    for every in (train.checkpoint_every, train.preview_every):
        assert images % every == 0
        assert every % train.batch == 0
        assert every <= images // 4
    assert recipe.data.workers == 0


@pytest.mark.parametrize(("num", "images"), [(1, 2000), (150, 2800), (400, 6000)])
def test_more_photos_have_a_longer_training_of_less_than_an_hour(tmp_path, num, images):
    _, recipe = propose(write_photos(tmp_path, num, (16, 32)), "--for", "cpu")
    assert recipe.train.images == images
    assert minutes_on_cpu(images, 96, 128) <= 50


def test_a_gpu_has_the_large_recipe(photos):
    text, recipe = propose(photos, "--for", "gpu")
    assert (recipe.data.height, recipe.data.width) == (320, 416)
    assert yaml.safe_load(text)["train"] == {
        "images": 20_000, "batch": 16, "ema_images": 5_000, "augment": "diffaugment",
        "checkpoint_every": 2_000, "preview_every": 1_000,
    }  # fmt: skip
    assert recipe.model.label_generator_training.images == 4_000
    assert recipe.evaluate.judge_training.images == 4_000
    assert recipe.sampling.filter_training.images == 4_000
    assert recipe.model.width == 64
    assert "one core" not in text


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_recipe_trains_on_the_split_that_is_there(tmp_path, split):
    draw(tmp_path, folders=(f"images/{split}", f"labels/{split}"))
    text, recipe = propose(tmp_path, "--for", "cpu")
    assert f"There is no split train: this trains on {split}" in text
    assert len(data_folder(recipe.data).items_for(recipe.data.split)) == 6


@pytest.mark.parametrize(("gpus", "width"), [(0, 16), (1, 64)])
def test_the_recipe_is_for_the_machine_that_is_there(photos, monkeypatch, gpus, width):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    text, recipe = propose(photos)
    assert recipe.model.width == width
    assert bool(re.search("^# For a CPU", text, re.MULTILINE)) == (gpus == 0)
