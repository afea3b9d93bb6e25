"""The paper's data sets in their authors' folders, through ``ecgan train``, and labels of theirs
through ``ecgan augment``."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ecgan import checkpoint
from ecgan_cli.main import cli
from tests.helpers import trees

TINY = [
    "data.height=32", "data.width=64", "data.resize_height=null", "data.resize_width=null",
    "data.workers=0", "model.width=4", "model.upsamplings=5", "model.label_generator=off",
    "losses.perceptual_network=none", "train.batch=2", "train.images=4", "train.preview_every=4",
]  # fmt: skip


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "write", "labels", "written"),
    [
        ("cityscapes", trees.write_cityscapes, "gtFine/val", {0, 7, 26, 33}),
        (
            "ade20k",
            trees.write_ade20k,
            "ADEChallengeData2016/annotations/validation",
            {0, 149, 255},
        ),
        ("coco_stuff", trees.write_coco_stuff, "stuffthingmaps/val2017", {0, 181, 255}),
    ],
)
def test_a_data_set_of_the_paper_is_trained_on_and_augmented(
    recipe, write, labels, written, tmp_path
):
    root, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "out"
    write(root)
    overrides = [word for text in TINY for word in ("--set", text)]
    invoke("train", "--recipe", recipe, "--data", root, "--out", run, "--quiet", *overrides)
    assert checkpoint.load_generator(run / checkpoint.GENERATOR).metadata.images_seen == 4
    invoke(
        "augment", "--run", run, "--labels", root / labels, "--n-styles", 2, "--out", out,
        "--format", "folder", "--quiet",
    )  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    masks = sorted((out / "masks" / "train").iterdir())
    assert len(masks) == manifest["samples"] == 2 * manifest["layouts"]
    assert set(np.unique(np.asarray(Image.open(masks[0]))).tolist()) == written
    expected = "boundaries between classes" if recipe != "ade20k" else "none"
    assert manifest["boundary_source"] == expected
