"""Resumed runs do not read label files again that have not changed."""

import os

import pytest
import torch

from ecgan.data.files import label_maps
from ecgan.data.label_cache import NAME
from ecgan.errors import UserError
from ecgan.generation import run as generate
from ecgan.recipe import load_recipe
from ecgan.training import run as train
from tests.helpers.tiny import make_generator, write_pairs
from tests.helpers.trees import save, stripes


def settle(folder):
    for path in folder.rglob("*.png"):
        os.utime(path, (1e9, 1e9))


def test_a_resumed_training_reads_changed_files_only(tmp_path, monkeypatch):
    write_pairs(tmp_path / "data", num_train=2, num_val=1)
    settle(tmp_path / "data")
    recipe = load_recipe("demo", ("data.height=32", "data.width=64", f"data.root={tmp_path}/data"))
    cpu = torch.device("cpu")
    for _ in range(2):
        cache = train.check(recipe, tmp_path / "run", device=cpu, quiet=True).label_cache
        assert cache is not None
        cache.save()
        monkeypatch.setattr(label_maps, "read_hashed", None)
    monkeypatch.undo()
    changed = tmp_path / "data/labels/train/scene-01.png"
    save(changed, stripes([77]))
    with pytest.raises(UserError, match=r"label 77 found in 1 file"):
        train.check(recipe, tmp_path / "run", device=cpu, quiet=True)


def test_a_data_set_made_again_reads_no_label_file(tmp_path, monkeypatch):
    make_generator(tmp_path / "run/generator.safetensors")
    for i in range(2):
        save(tmp_path / "labels" / f"{i}.png", stripes([i, 255]))
    settle(tmp_path / "labels")
    request = generate.Request.of(
        generator=tmp_path / "run/generator.safetensors",
        out=tmp_path / "out",
        labels=tmp_path / "labels",
        device="cpu",
        quiet=True,
    )
    generate.describe(request)
    assert not (tmp_path / "out").exists()
    generate.run(request)
    assert (tmp_path / "out" / NAME).is_file()
    monkeypatch.setattr(label_maps, "read_hashed", None)
    assert generate.run(request).num_samples == 2
