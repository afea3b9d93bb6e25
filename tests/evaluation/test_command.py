"""The command line of an evaluation, and the scores of a generator in training."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from ecgan import checkpoint, labels
from ecgan.data import datasets
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.evaluation import measure
from ecgan.evaluation import run as evaluate
from ecgan.evaluation.report.document import load
from ecgan.evaluation.report.tables import table
from ecgan.evaluation.sources import Scene
from ecgan.generation import run as generate
from ecgan.metrics.segmentation import agreement
from ecgan.recipe.schema import JudgeTraining
from ecgan.segmentation.segmenter import (
    Normalisation,
    Provenance,
    Segmenter,
)
from ecgan.shards.manifest import read_manifest
from ecgan.training.validation import validate
from ecgan_cli.main import cli
from tests.helpers import folder_items
from tests.helpers.evaluation import TINY, evaluated, recipe_of, request_of
from tests.helpers.segmenters import ByColour
from tests.helpers.tiny import NAMES


def command(world, *arguments):
    (world / "recipe.yaml").write_text(recipe_of(world).to_yaml())
    line = ["evaluate", "--samples", world / "samples", "--recipe", world / "recipe.yaml"]
    line += ["--judge", world / "judge", "--device", "cpu", "-q", *arguments]
    return CliRunner().invoke(cli, [str(part) for part in line])


@pytest.mark.slow
def test_command_prints_the_table_and_json(world, tmp_path):
    result = command(world, "--out", tmp_path, "--set", "evaluate.num_images=2")
    assert result.exit_code == 0, result.output
    assert table(load(tmp_path)) in result.output
    assert load(tmp_path).to_json()["metrics"]["miou"]["n"] == 2
    result = command(world, "--out", tmp_path, "--json")
    assert json.loads(result.stdout) == load(tmp_path).to_json()


@pytest.mark.slow
def test_fail_below(world, tmp_path):
    assert command(world, "--out", tmp_path, "--fail-below", "accuracy=0").exit_code == 0
    result = command(world, "--out", tmp_path, "--fail-below", "miou=0.99")
    assert result.exit_code == 4
    assert "below 0.99" in result.output
    for text, sentence in (
        ("fid=10", "better when it is low"),
        ("beauty=1", "no such metric"),
        ("miou", "expected NAME=X"),
    ):
        result = command(world, "--fail-below", text)
        assert result.exit_code == 2
        assert sentence in result.output


def test_newest_samples(tmp_path):
    with pytest.raises(UserError, match="no data set of samples below"):
        evaluate.newest_samples(tmp_path)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    old = (tmp_path / "old" / "manifest.json").stat().st_mtime
    import os

    os.utime(tmp_path / "new" / "manifest.json", (old + 9, old + 9))
    assert evaluate.newest_samples(tmp_path) == tmp_path / "new"


def generator_of(world):
    recipe = recipe_of(world, model=TINY, losses={"similarity": 0, "perceptual_network": "none"})
    space = labels.load_label_space(world / "real" / "classes.json")
    return checkpoint.build_generator(recipe, space), recipe, space


def test_validate_scores_a_generator(world):
    generator, _, space = generator_of(world)
    items = folder_items.index("folder", world / "real", "val")
    data = TripleDataset(items, space, "folder", height=32, width=64, train=False, edges="none")
    judge = Segmenter(
        ByColour(),
        range(len(NAMES)),
        NAMES,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "by colour"),
        evaluation=True,
    )
    generator.train()
    scores = validate(generator, data, judge, features=["efficientnet_lite0"], batch=2)
    assert set(scores) == {"miou", "accuracy", "fd_efficientnet_lite0"}
    assert generator.training
    assert validate(generator, data, judge, batch=2) == pytest.approx(
        {name: scores[name] for name in ("miou", "accuracy")}
    )
    assert validate(generator, data, judge, batch=3)["accuracy"] == pytest.approx(
        scores["accuracy"], abs=1e-3
    )
    assert validate(generator, data, None) == {}
    # The judge is right about what the scenes show, so a perfect generator would score 1.
    scenes = [
        Scene(item.key, item.key, datasets.read_image(item), label)
        for item in items
        if (label := datasets.read_label(item, space, "folder")) is not None
    ]
    found, _ = measure.measured(scenes, judge, {}, len(NAMES), torch.device("cpu"))
    assert agreement(found.confusion).overall["accuracy"].value > 0.99


@pytest.mark.slow
def test_evaluate_without_arguments_after_augment(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator, recipe, space = generator_of(world)
    recipe = recipe.model_copy(
        update={
            "evaluate": recipe.evaluate.model_copy(
                update={"judge_training": JudgeTraining(channels=32, images=16)}
            )
        }
    )
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    checkpoint.save_generator(
        run / checkpoint.GENERATOR,
        generator,
        recipe,
        space,
        style_encoder=checkpoint.build_style_encoder(recipe),
    )
    lines = [{"images": n, "discriminator": 1 / n} for n in (1, 2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate.run(
        generate.Request.of(
            generator=run / checkpoint.GENERATOR,
            out=tmp_path / "datasets" / "made",
            labels=world / "real" / "labels" / "val",
            n_styles=2,
            device="cpu",
            quiet=True,
        )
    )
    result = CliRunner().invoke(cli, ["evaluate", "--device", "cpu", "-q"])
    assert result.exit_code == 0, result.output
    document = load(tmp_path / "reports" / "made").to_json()
    assert document["metrics"]["miou"]["n"] == 6
    assert document["protocol"]["layouts"] == 3
    assert "photos of the samples' own layouts" in document["protocol"]["real"]
    page = (tmp_path / "reports" / "made" / "report.html").read_text()
    assert "Training of the generator" in page
    assert "discriminator" in page
    # A run makes samples of the split's layouts by itself
    arguments = ["evaluate", "--samples", "runs/tiny", "--n-styles", "2", "--device", "cpu", "-q"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    of_run = load(tmp_path / "reports" / "tiny-val-2-styles").to_json()
    assert of_run["samples"] == "datasets/tiny-val-2-styles"
    assert of_run["metrics"]["miou"]["n"] == 6
    assert of_run["metrics"]["diversity_efficientnet_lite0"]["n"] == 3
    made = read_manifest(tmp_path / "datasets" / "tiny-val-2-styles")
    assert made is not None
    assert made.seen_layouts == 0


@pytest.mark.slow
def test_a_set_may_have_any_name(world, tmp_path, monkeypatch):
    """The photos are not told apart from it by a word."""
    monkeypatch.chdir(tmp_path)
    for name in ("reference", "train photos"):
        shutil.copytree(world / "real" / "images" / "train", tmp_path / name / "images")
        shutil.copytree(world / "real" / "labels" / "train", tmp_path / name / "labels")
        for path in (tmp_path / name).glob("*/*.png"):
            path.rename(path.with_name(f"x{path.name}"))
        document, _ = evaluated(
            request_of(world, tmp_path / f"out {name}", samples=(name,), device="cpu")
        )
        own, _ = evaluated(request_of(world, tmp_path / f"own {name}"))
        assert document["metrics"]["miou"]["n"] == 4
        assert document["metrics"]["miou"]["real"] == own["metrics"]["miou"]["real"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fail-below", "miou=nan"], "--fail-below miou=nan: expected NAME=X"),
        (["--samples", "one.tar"], "one.tar: is a file; give the folder that holds it"),
        (["--samples", "unfinished"], "unfinished: a run without generator.safetensors"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_once(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.tar").write_bytes(b"")
    (tmp_path / "unfinished").mkdir()
    for name in ("recipe.yaml", "classes.json"):
        (tmp_path / "unfinished" / name).write_text("{}")
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert sentence in result.output
