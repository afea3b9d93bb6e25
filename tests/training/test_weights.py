"""Weights that a recipe needs are looked for first, and the refusal says what does without."""

import pytest
from click.testing import CliRunner

from ecgan_cli.main import cli
from tests.helpers import trees


@pytest.fixture
def cityscapes(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return trees.write_cityscapes(tmp_path / "city")


def refusal(root, tmp_path, *overrides, options=("--dry-run",)):
    """Lines of the refusal of ``ecgan train``, which leaves no run folder."""
    out = tmp_path / "run"
    words = [word for override in overrides for word in ("--set", override)]
    result = CliRunner().invoke(
        cli,
        [
            "train",
            "--recipe",
            "cityscapes",
            "--data",
            str(root),
            "--out",
            str(out),
            *options,
            "--device",
            "cpu",
            *words,
        ],
    )
    assert result.exit_code == 1, result.output
    assert not out.exists()
    return result.output.splitlines()


@pytest.mark.parametrize("options", [("--dry-run",), (), ("--nproc-per-node", "2")])
def test_missing_weights_are_refused_before_anything_else(cityscapes, tmp_path, options):
    title, line = refusal(cityscapes, tmp_path, options=options)  # no note on the data before
    assert "weights that the recipe needs are missing" in title
    for text in ("no weights for vgg19: losses.vgg19_weights is not set", str(tmp_path / "cache")):
        assert text in line
    assert "--set losses.perceptual_network=efficientnet_lite0 comes with ecgan" in line


def test_all_missing_files_are_named_each_with_what_does_without(cityscapes, tmp_path):
    _, *lines = refusal(
        cityscapes, tmp_path, "losses.vgg19_weights=no.pth", "data.edges=hed",
        "data.hed_weights=no.h5", "model.label_generator=/no/segmenter",
        "evaluate.judge=/no/judge", "train.evaluate_every=8",
    )  # fmt: skip
    expected = [
        ("losses.vgg19_weights: no.pth: no such file", "perceptual_network=efficientnet_lite0"),
        ("data.hed_weights: no.h5: no such file", "--set data.edges=canny"),
        ("model.label_generator: /no/segmenter: no such folder", "model.label_generator=train"),
        ("evaluate.judge: /no/judge: no such folder", "--set evaluate.judge=train"),
    ]
    assert len(lines) == len(expected)
    for line, (fault, way_out) in zip(lines, expected, strict=True):
        assert fault in line
        assert way_out in line


def test_a_name_is_left_to_the_hub_unless_offline(cityscapes, tmp_path, monkeypatch):
    name = "model.label_generator=nobody/segmenter"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(refusal(cityscapes, tmp_path, name)) == 3
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert len(refusal(cityscapes, tmp_path, name)) == 2  # vgg19 alone


@pytest.mark.slow
def test_the_way_out_is_one(cityscapes, tmp_path):
    result = CliRunner().invoke(
        cli,
        [
            *("train", "--recipe", "cityscapes", "--data", str(cityscapes), "--dry-run"),
            *("--set", "losses.perceptual_network=efficientnet_lite0"),
            *("--set", "data.height=32", "--set", "data.width=64", "--set", "model.width=8"),
        ],
    )
    assert result.exit_code == 0, result.output
