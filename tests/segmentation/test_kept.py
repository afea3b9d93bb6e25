"""Segmenters in a cache: one that is damaged is trained anew, one of the user never."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ecgan.demo import toy
from ecgan.errors import UserError
from ecgan.segmentation import training
from ecgan.segmentation.loading import load_segmenter
from tests.segmentation.test_segmenter import pairs, train


def learnt(data, cache):
    """The segmenter in a cache, trained there for one step if it has to be."""
    return train(data, cache, images=4)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Data, a cache with one segmenter in it, and its hash."""
    root = tmp_path_factory.mktemp("kept")
    toy.write_toy(root / "data", 4, seed=0, height=32, width=64)
    return root, learnt(root / "data", root / "cache").hash


def rewrite(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(folder):
    weights = load_file(folder / "model.safetensors")
    weights["decode_head.classifier.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def halve(folder, name):
    os.truncate(folder / name, (folder / name).stat().st_size // 2)


def replace(folder, put):
    shutil.rmtree(folder)
    put(folder)


DAMAGE = {
    "weights cut": lambda f: halve(f, "model.safetensors"),
    "weights gone": lambda f: (f / "model.safetensors").unlink(),
    "weights not finite": spoil,
    "description cut": lambda f: halve(f, "segmenter.json"),
    "description gone": lambda f: (f / "segmenter.json").unlink(),
    "description of another type": lambda f: (f / "segmenter.json").write_text("[1]"),
    "other classes": lambda f: rewrite(f, "segmenter.json", class_map=[0, 0]),
    "classes swapped": lambda f: rewrite(
        f,
        "segmenter.json",
        class_map=json.loads((f / "segmenter.json").read_text())["class_map"][::-1],
    ),
    "other data": lambda f: rewrite(
        f, "segmenter.json", provenance={"kind": "trained", "source": "x", "data": "0" * 64}
    ),
    "config cut": lambda f: halve(f, "config.json"),
    "config of fewer classes": lambda f: rewrite(f, "config.json", id2label={"0": "a"}),
    "preparation damaged": lambda f: (f / "preprocessor_config.json").write_text(
        '{"image_std": 0}'
    ),
    "empty": lambda f: replace(f, lambda f: f.mkdir()),
    "a file": lambda f: replace(f, lambda f: f.touch()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_trained_anew(kept, tmp_path, damage, capsys):
    root, digest = kept
    shutil.copytree(root / "cache", tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    damage(folder)
    assert learnt(root / "data", tmp_path / "cache").hash == digest
    notes = [line for line in capsys.readouterr().err.splitlines() if "trained anew" in line]
    assert len(notes) == 1
    assert str(folder) in notes[0]
    assert learnt(root / "data", tmp_path / "cache").hash == digest
    assert "anew" not in capsys.readouterr().err
    assert [*(tmp_path / "cache").iterdir()] == [folder]


def test_a_link_in_the_cache_is_removed_and_what_it_names_is_not(kept, tmp_path):
    root, digest = kept
    shutil.copytree(root / "cache", tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    folder.rename(tmp_path / "elsewhere")
    halve(tmp_path / "elsewhere", "model.safetensors")
    folder.symlink_to(tmp_path / "elsewhere")
    assert learnt(root / "data", tmp_path / "cache").hash == digest
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "segmenter.json").is_file()


def test_a_whole_one_is_not_trained_again(kept, monkeypatch):
    root, digest = kept
    monkeypatch.setattr(training, "new_network", None)
    assert learnt(root / "data", root / "cache").hash == digest


def test_a_damaged_folder_of_the_user_is_refused_and_left(kept, tmp_path):
    root, _ = kept
    (folder,) = (root / "cache").iterdir()
    shutil.copytree(folder, tmp_path / "own")
    halve(tmp_path / "own", "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_segmenter(str(tmp_path / "own"), pairs(root / "data").space)
    assert (tmp_path / "own" / "model.safetensors").exists()
