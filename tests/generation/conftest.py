"""Tiny generators with layouts, or with real pairs; requests for small data sets of theirs."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ecgan.generation import run as generate
from ecgan.generation.request import Request
from tests.helpers.data_sets import FORMATS
from tests.helpers.tiny import SIZE, make_generator, write_pairs


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    return make_generator(tmp_path_factory.mktemp("runs") / "run" / "generator.safetensors")


@pytest.fixture(scope="session")
def plain_generator(tmp_path_factory):
    """One without a style encoder."""
    path = tmp_path_factory.mktemp("runs") / "plain" / "generator.safetensors"
    return make_generator(path, model={"style": False})


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """Five label maps, some unlabelled pixels, in two folders."""
    folder = tmp_path_factory.mktemp("layouts")
    for i in range(5):
        label = np.random.default_rng(i).integers(0, 4, (4, 8), dtype=np.uint8)
        label[label == 3] = 255
        path = folder / ("b" if i % 2 else "a") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.kron(label, np.ones((8, 8), np.uint8))).save(path)
    return folder


@pytest.fixture(scope="session")
def options(generator, layouts):
    """Fifteen samples in four shards; the layouts of a shard do not always come whole."""
    return {
        "generator": generator,
        "labels": layouts,
        "n_styles": 3,
        "samples_per_shard": 4,
        "device": "cpu",
        "quiet": True,
    }


@pytest.fixture
def request_(options, tmp_path):
    return lambda **changes: Request.of(**{"out": tmp_path / "out"} | options | changes)


@pytest.fixture(scope="session")
def finished(options, tmp_path_factory):
    """A finished data set of each format, made once."""
    folder = tmp_path_factory.mktemp("finished")
    for data_format in FORMATS:
        generate.run(Request.of(out=folder / data_format, data_format=data_format, **options))
    return folder


@pytest.fixture
def made(finished, tmp_path):
    """A copy of one of them, as if it had been made there."""

    def copy(data_format):
        return shutil.copytree(finished / data_format, tmp_path / "out")

    return copy


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Real pairs, and a generator of their classes with random weights."""
    root = tmp_path_factory.mktemp("engine")
    write_pairs(root / "real", num_train=6, num_val=2)
    make_generator(
        root / "run" / "generator.safetensors",
        data={
            "height": SIZE[0], "width": SIZE[1], "root": str(root / "real"),
            "classes": str(root / "real" / "classes.json"),
        },
        sampling={"filter_training": {"images": 8, "channels": 8}, "filter_tolerance": 1.0},
    )  # fmt: skip
    return root


@pytest.fixture
def request_of(world, tmp_path):
    base = {
        "generator": world / "run" / "generator.safetensors",
        "out": tmp_path / "out",
        "labels": world / "real" / "labels" / "train",
        "n_styles": 3,
        "samples_per_shard": 4,
        "device": "cpu",
        "quiet": True,
    }
    return lambda **changes: Request.of(**base | changes)
