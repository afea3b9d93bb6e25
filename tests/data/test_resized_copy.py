"""A resized copy gives the tensors of its original, goes on, and is refused where it differs."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ecgan.data import resized_copy
from ecgan.recipe import label_space, load_recipe
from ecgan.training import run
from ecgan_cli.main import cli
from tests.helpers import trees
from tests.helpers.tiny import write_pairs

SIZE = ("data.height=32", "data.width=64")
CROPPED = (*SIZE, "data.resize_height=40", "data.resize_width=72")


def call(root, out, *overrides, recipe="demo"):
    words = [word for text in overrides for word in ("--set", text)]
    arguments = ["data", "cache", "--recipe", recipe, "--data", str(root), "--out", str(out)]
    return CliRunner().invoke(cli, [*arguments, *words])


def samples(recipe, root, *overrides):
    """Everything that training sees of the first samples of both splits."""
    loaded = load_recipe(recipe, (*overrides, f"data.root={root}"))
    found = []
    for part in run.build_sets(loaded, label_space(loaded.data)):
        for position in range(6 if part.train else len(part)):
            s = part.load(position)
            boundary = None if s.boundary is None else s.boundary.tolist()
            found.append((s.key, s.label.tolist(), s.image.tolist(), s.edge.tolist(), boundary))
    return found


@pytest.mark.parametrize("overrides", [SIZE, CROPPED])
def test_the_copy_gives_the_same_tensors(tmp_path, overrides):
    write_pairs(tmp_path / "real", num_train=5, num_val=3, height=48, width=96)
    result = call(tmp_path / "real", tmp_path / "copy", *overrides)
    assert result.exit_code == 0, result.output
    assert "train 5, val 3; 8 written now" in result.output
    before = samples("demo", tmp_path / "real", *overrides)
    assert samples("demo", tmp_path / "copy", *overrides) == before
    assert not (tmp_path / "copy" / ".ecgan").exists()


def test_other_layouts_instances_and_a_held_out_tenth(tmp_path):
    trees.write_cityscapes(tmp_path / "city", num=3)
    common = (*SIZE, "data.classes=null")
    options = ("data.instances=true", "model.upsamplings=5")
    result = call(tmp_path / "city", tmp_path / "copy", *common, *options, recipe="cityscapes")
    assert result.exit_code == 0, result.output
    before = samples("cityscapes", tmp_path / "city", *common, *options)
    after = samples("cityscapes", tmp_path / "copy", *common, *options, "data.dataset=folder")
    assert after == before
    assert any(np.any(boundary) for *_, boundary in before)
    trees.write_folder(tmp_path / "whole", splits=("train",), num=12)
    assert call(tmp_path / "whole", tmp_path / "parted", *SIZE).exit_code == 0
    assert samples("demo", tmp_path / "parted", *SIZE) == samples("demo", tmp_path / "whole", *SIZE)


def test_a_copy_has_its_own_class_list_whatever_numbers_the_original_has(tmp_path):
    numbers = [1, 1007, 7, 0]
    trees.write_folder(tmp_path / "real", num=3, values=numbers, dtype=np.uint16)
    (tmp_path / "real" / "classes.json").unlink()
    classes = [{"id": 1, "name": "road"}, {"ids": [7, 1007], "name": "sky"}]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"classes": classes, "ignore": 0}))
    options = (*SIZE, f"data.classes={listed}")
    result = call(tmp_path / "real", tmp_path / "copy", *options)
    assert result.exit_code == 0, result.output
    before = samples("demo", tmp_path / "real", *options)
    assert {v for _, label, *_ in before for row in label for v in row} == {0, 1, 255}
    assert samples("demo", tmp_path / "copy", *options) == before
    assert call(tmp_path / "real", tmp_path / "copy", *options).exit_code == 0


def test_it_goes_on_and_follows_its_source(tmp_path):
    write_pairs(tmp_path / "real", num_train=4, num_val=2)
    assert "6 written now" in call(tmp_path / "real", tmp_path / "copy", *SIZE).output
    assert "0 written now" in call(tmp_path / "real", tmp_path / "copy", *SIZE).output
    (tmp_path / "copy" / "images" / "train" / "scene-01.png").unlink()
    (tmp_path / "copy" / "labels" / "val" / "scene-00.png").unlink()
    assert "2 written now" in call(tmp_path / "real", tmp_path / "copy", *SIZE).output
    changed = tmp_path / "real" / "images" / "train" / "scene-02.png"
    trees.save(changed, trees.photo(9))
    assert "1 written now" in call(tmp_path / "real", tmp_path / "copy", *SIZE).output
    assert samples("demo", tmp_path / "copy", *SIZE) == samples("demo", tmp_path / "real", *SIZE)


def test_damaged_notes_of_a_copy_are_made_anew_or_refused(tmp_path):
    write_pairs(tmp_path / "real", num_train=2, num_val=2)
    arguments = tmp_path / "real", tmp_path / "copy", *SIZE
    assert "4 written now" in call(*arguments).output
    whole = (tmp_path / "copy" / "contents.json").read_text()
    for damage in ("", "[]", "[" * 100_000, '{"train/scene-00": 7}', whole[:-3]):
        (tmp_path / "copy" / "contents.json").write_text(damage)
        assert "4 written now" in call(*arguments).output
        assert (tmp_path / "copy" / "contents.json").read_text() == whole
    for damage in ("", "[]", "[" * 100_000, "{" + "NaN"):
        (tmp_path / "copy" / resized_copy._ABOUT).write_text(damage)
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert "not a copy of ecgan data cache" in result.output


def test_other_copies_and_foreign_folders_are_refused(tmp_path):
    write_pairs(tmp_path / "real", num_train=2, num_val=2)
    assert call(tmp_path / "real", tmp_path / "copy", *SIZE).exit_code == 0
    result = call(tmp_path / "real", tmp_path / "copy", "data.height=64", "data.width=64")
    assert result.exit_code == 2
    assert "a copy with another size ([32, 64], now [64, 64])" in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.txt").write_text("x")
    assert "not a copy of ecgan data cache" in call(tmp_path / "real", tmp_path / "mine").output
    result = call(tmp_path / "real", tmp_path / "new", "data.edges=folder")
    assert "edge maps of a folder are not copied" in result.output
    (tmp_path / "file").write_text("x")
    assert "a file; give a folder" in call(tmp_path / "real", tmp_path / "file", *SIZE).output
