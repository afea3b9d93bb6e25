"""I' of samples in a report: made again from the generator and the layout of each."""

import numpy as np
import pytest
import torch

from ecgan.checkpoint import load_generator
from ecgan.data.datasets import Item
from ecgan.evaluation.coarse import CoarseImages
from ecgan.generation import run as generate
from ecgan.generation.planner import Request
from ecgan.sampling.sampler import Sampler, condition
from ecgan.sampling.styles import Styles
from ecgan.shards import dataset
from tests.helpers.tiny import SIZE, make_generator, write_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("coarse")
    write_pairs(root / "real", num_train=3, num_val=2)
    data = {
        "height": SIZE[0], "width": SIZE[1], "root": str(root / "real"),
        "classes": str(root / "real" / "classes.json"),
    }  # fmt: skip
    make_generator(root / "run" / "generator.safetensors", data=data)
    return root


def make(world, out, **changes):
    fields = {
        "generator": world / "run" / "generator.safetensors",
        "labels": world / "real" / "labels" / "train",
        "n_styles": 2,
        "device": "cpu",
        "quiet": True,
    }
    generate.run(Request(out=out, **fields | changes))
    return [raw.record for raw in dataset.read_raw(out)]


def test_it_is_what_the_generator_as_trained_gives_for_the_layout_and_style(world, tmp_path):
    records = make(world, tmp_path / "set")
    coarse = CoarseImages(str(tmp_path / "set"), "cpu")
    assert coarse.reason == ""
    path = world / "run" / "generator.safetensors"
    sampler, generator = Sampler(path, torch.device("cpu")), load_generator(path).generator.eval()
    items = {p.stem: p for p in (world / "real" / "labels" / "train").glob("*.png")}
    assert len(records) == 6
    for record in records:
        layout = sampler.read_layout(Item(record["source"], items[record["source"]]))
        labels = torch.from_numpy(layout.label.astype(np.int64))[None]
        z = Styles().draw(record["source"], record["style"])[None]
        with torch.no_grad():
            made = generator(condition(labels, None, sampler.space), labels, 255, z)
        expected = ((made.coarse[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
        found = coarse.of(record)
        assert found is not None
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1
        assert found.std() > 1


def test_there_is_none_of_a_varied_layout(world, tmp_path):
    records = make(world, tmp_path / "set", changes=("flip",), n_variants=1, n_styles=1)
    coarse = CoarseImages(str(tmp_path / "set"), "cpu")
    assert {bool(r["variation"]): coarse.of(r) is None for r in records} == {
        False: False,
        True: True,
    }


def test_why_there_is_none_is_said(world, tmp_path):
    (tmp_path / "folder").mkdir()
    foreign = CoarseImages(str(tmp_path / "folder"), "cpu")
    assert "not a data set of ecgan" in foreign.reason
    assert foreign.of({"source": "a", "style": 0}) is None
    make(world, tmp_path / "set")
    generator = world / "run" / "generator.safetensors"
    generator.rename(world / "elsewhere")
    try:
        assert "generator.safetensors" in CoarseImages(str(tmp_path / "set"), "cpu").reason
    finally:
        (world / "elsewhere").rename(generator)
