"""``ecgan data``: what it says of a folder, and whether its recipe can be used."""

import json
import re

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from ecgan import labels
from ecgan.data import checks, datasets
from ecgan.data.proposals import propose_classes
from ecgan.data.survey import survey_dataset
from ecgan.recipe import label_space, load_recipe
from ecgan_cli.main import cli
from tests.helpers import folder_items, trees
from tests.helpers.trees import photo, save, stripes
from tests.helpers.user_folders import draw


def run(*arguments):
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


def proposal(root, tmp_path, *options):
    """The recipe that inspect proposes, loaded."""
    path = tmp_path / "proposed.yaml"
    result = run("inspect", root, "--for", "gpu", "--write-recipe", path, *options)
    assert result.exit_code == 0, result.output
    return load_recipe(str(path))


WRITERS = {
    "folder": trees.write_folder,
    "cityscapes": trees.write_cityscapes,
    "ade20k": trees.write_ade20k,
    "coco_stuff": trees.write_coco_stuff,
}


@pytest.mark.parametrize("dataset", WRITERS)
def test_each_structure_is_recognised_and_its_recipe_reads_it(dataset, tmp_path):
    root = WRITERS[dataset](tmp_path / "data")
    recipe = proposal(root, tmp_path)
    assert recipe.data.dataset == dataset
    assert recipe.train.augment == "diffaugment"
    assert recipe.data.instances == (dataset in {"cityscapes", "coco_stuff"})
    for split in ("train", "val"):
        items = folder_items.items_for(dataset, root, split, instances=recipe.data.instances)
        checks.check_labels(items, label_space(recipe.data), dataset)


def test_the_text_has_pairs_sizes_modes_and_shares(tmp_path):
    output = run("inspect", trees.write_folder(tmp_path, splits=("train", "test"))).output
    for expected in (
        "structure folder, 8 pairs",
        "train             4 pairs  (4 photos, 4 label maps)",
        "64 x 32 (8)",
        "mode RGB (8)",
        "mode L (8)",
        "  0                25.00 %  in     8 files  road",
        "  255              25.00 %  in     8 files  unlabelled",
    ):
        assert expected in output
    assert "Faults" not in output


def test_faults_are_part_of_the_report(tmp_path):
    root = trees.write_folder(tmp_path)
    (root / "images/val/0.jpg").unlink()
    (root / "images/train/1.jpg").write_bytes(b"")
    save(root / "labels/train/2.png", stripes([0, 77], 16, 64))
    (root / "classes.json").write_text("[")
    result = run("inspect", root)
    assert result.exit_code == 1
    faults = result.output.partition("Faults to fix before training:\n")[2]
    for expected in (
        "  val: 1 label map has no photo of the same name (first: labels/val/0.png)",
        "images/train/1.jpg: empty file",
        "labels/train/2.png: label 64 x 16, photo 64 x 32",
        "classes.json: not a JSON file",
    ):
        assert expected in faults
    assert "Proposed recipe" not in faults  # they are the last on the screen


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("classes.txt", "road\nsky\ncar\ntree\n", "two class lists that differ, classes.json and"),
        ("classes.json", "[", "classes.json: not a JSON file"),
        ("classes.json", '["a", "b", "a"]', "classes: name 'a' occurs 2 times"),
    ],
)
def test_names_are_not_made_up_in_place_of_a_faulty_class_list(tmp_path, name, content, fault):
    root = draw(tmp_path / "data")
    (root / name).write_text(content)
    result = run("inspect", root)
    assert result.exit_code == 1
    assert fault in result.output.partition("Faults to fix before training:\n")[2]
    assert "not yet read: the class list has a fault" in result.output
    for made_up in ("class 0", "There is no class list", "Proposed recipe"):
        assert made_up not in result.output
    for option, what in (("--write-recipe", "recipe"), ("--write-classes", "class list")):
        written = tmp_path / "written"
        result = run("inspect", root, option, written)
        assert result.exit_code == 1
        assert f"no {what} can be proposed" in result.output
        assert fault in result.output
        assert not written.exists()
    assert json.loads(run("inspect", root, "--json").output)["recipe"] is None


def test_unknown_ids_are_marked(tmp_path):
    output = run("inspect", trees.write_folder(tmp_path, values=(0, 77))).output
    assert "77               50.00 %  in     8 files  not in the class list" in output


def test_colour_masks_without_a_class_list_get_one(tmp_path):
    root = trees.write_folder(tmp_path / "data", num=2)
    mask = np.zeros((32, 64, 3), np.uint8)
    mask[:, :40], mask[:, 40:60] = (10, 20, 30), (200, 0, 0)  # the rest is black
    for path in (root / "labels").rglob("*.png"):
        save(path, mask)
    (root / "classes.json").unlink()
    output = run("inspect", root).output
    assert "colours of the class list: data.label_encoding color" in output
    assert "Black is proposed as a class; if it is unlabelled, take it out" in output
    recipe = proposal(root, tmp_path)
    space = label_space(recipe.data)
    assert [c.color for c in space.classes] == [(0, 0, 0), (10, 20, 30), (200, 0, 0)]
    item = folder_items.items_for("folder", root, "train")[0]
    assert np.unique(datasets.read_label(item, space, "folder")).tolist() == [0, 1, 2]


def test_a_class_list_is_written_for_the_user_to_name(tmp_path):
    root = trees.write_folder(tmp_path / "data", values=(0, 2, 255))
    (root / "classes.json").unlink()
    written = tmp_path / "mine.json"
    recipe = proposal(root, tmp_path, "--write-classes", written)
    assert recipe.data.classes == str(written)
    space = label_space(recipe.data)
    assert space.names == ("class 0", "class 1", "class 2")  # without gaps
    assert space.ignore == 255
    assert run("inspect", root, "--write-classes", written).exit_code == 2  # never overwritten


def test_palette_images_are_reported_and_lend_their_colours(tmp_path):
    root = trees.write_folder(tmp_path, splits=("train",), num=2)
    for path in (root / "labels").rglob("*.png"):
        image = Image.frombytes("P", (64, 32), stripes([0, 1]).tobytes())
        image.putpalette([1, 2, 3, 4, 5, 6])
        image.save(path)
    (root / "classes.json").unlink()
    found = survey_dataset(root)
    assert "palette images, read by their indices" in found.to_text()
    space = propose_classes(found.values)
    assert space is not None
    assert [c.color for c in space.classes] == [(1, 2, 3), (4, 5, 6)]
    assert space.ignore is None


def test_palette_images_are_reported_as_they_would_be_read(tmp_path):
    """Indices that are no ids, colours that are those of the class list: a colour mask."""
    root = trees.write_folder(tmp_path, splits=("train",), num=2)
    for path in (root / "labels").rglob("*.png"):
        image = Image.frombytes("P", (64, 32), stripes([8, 9]).tobytes())
        image.putpalette([0] * 24 + [128, 64, 128, 0, 0, 142])
        image.save(path)
    text = survey_dataset(root).to_text()
    assert "colours of the class list (palette images, read by their colours)" in text
    assert "(128, 64, 128)   50.00 %  in     2 files  road" in text


def test_no_class_list_is_proposed_for_what_is_none(tmp_path):
    root = trees.write_folder(tmp_path, splits=("train",))
    (root / "classes.json").unlink()
    for path in (root / "labels").rglob("*.png"):
        save(path, np.arange(2048, dtype=np.uint16).reshape(32, 64))  # depth
    assert propose_classes(survey_dataset(root).values) is None
    result = run("inspect", root, "--write-classes", tmp_path / "mine.json")
    assert "no class list can be proposed" in result.output
    assert run("inspect", root).exit_code == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((360, 480), (320, 416)),
        ((1024, 2048), (256, 512)),
        ((480, 360), (416, 320)),
        ((20, 30), (32, 32)),
    ],
)
def test_the_proposed_size_is_one_that_the_trunk_reaches(tmp_path, size, expected):
    root = tmp_path / "data"
    save(root / "images/a.png", photo(0, *size))
    save(root / "labels/a.png", stripes([0, 1], *size))
    recipe = proposal(root, tmp_path)
    assert (recipe.data.height, recipe.data.width) == expected


def test_only_some_pairs_are_opened_if_there_are_many(tmp_path):
    root = trees.write_folder(tmp_path, splits=("train",), num=10)
    assert survey_dataset(root, num_files=4).num_read == 4
    assert survey_dataset(root, num_files=0).num_read == 10
    assert "From 4 pairs, spread evenly" in run("inspect", root, "--files", 4).output


def test_json_has_the_report_and_the_recipe(tmp_path):
    root = trees.write_cityscapes(tmp_path)
    report = json.loads(run("inspect", root, "--json").output)
    assert report["dataset"] == "cityscapes"
    assert report["splits"][0] == {
        "name": "train",
        "pairs": 4,
        "photos": 4,
        "label_maps": 4,
        "faults": [],
    }
    there = [(v["value"], v["name"]) for v in report["values"] if v["share"]]
    assert [value for value, _ in there] == ["0", "7", "26", "33"]
    assert there[1] == ("7", "road")
    assert report["label_encoding"] == "index"
    assert report["instances"] is True
    assert yaml.safe_load(report["recipe"])["data"]["dataset"] == "cityscapes"


def test_a_folder_of_no_structure_says_what_is_expected(tmp_path):
    (tmp_path / "stuff").mkdir()
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert "no label maps: expected photos and label maps in folders such as" in result.output
    assert "Proposed recipe" not in result.output
    result = run("inspect", tmp_path / "stff")
    assert result.exit_code == 1
    assert f"did you mean {tmp_path}/stuff?" in result.output


def test_toy_scenes_are_a_folder_data_set(tmp_path):
    out = tmp_path / "toy"
    result = run("toy", "--out", out, "--num", 10, "--height", 32, "--width", 64)
    assert result.exit_code == 0, result.output
    found = survey_dataset(out)
    assert [(s.name, s.num_pairs) for s in found.splits] == [("train", 8), ("val", 1), ("test", 1)]
    assert found.common_size == (32, 64)
    assert found.space == labels.load_label_space(out / "classes.json")
    assert "is not empty" in run("toy", "--out", out).output


def test_one_pair_is_no_pairs(tmp_path):
    draw(tmp_path, num=1)
    text = survey_dataset(tmp_path).to_text()
    assert "1 pair   (1 photo, 1 label map)" in text
    assert not re.search(r"\b1 (pairs|photos|label maps|files)\b", text)
