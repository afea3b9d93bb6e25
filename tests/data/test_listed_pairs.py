"""Photos and label maps that metadata.jsonl and metadata.csv of Hugging Face's ImageFolder pair."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from ecgan.data import datasets
from ecgan.data.datasets import DataFolder
from ecgan.errors import UserError
from ecgan_cli.main import cli
from tests.helpers.tiny import write_pairs


def listed(root, ending="jsonl", column="label_file_name", *, change=None, split=""):
    """Photos 0.png … beside label maps of other names, which only the list pairs."""
    write_pairs(root / "as_drawn", num_train=3, num_val=1)
    folder = root / "set" / split
    rows = []
    for number, item in enumerate(DataFolder("folder", root / "as_drawn").items_for("train")):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        names = f"files/{number}.png", f"files/map-{2 - number}.png"
        for name, file in zip(names, (item.image, item.label), strict=True):
            (folder / name).write_bytes(file.read_bytes())
        rows.append({"file_name": names[0], column: names[1], "text": "a street"})
    if change is not None:
        change(rows)
    path = folder / f"metadata.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "set" / "classes.json").write_bytes((root / "as_drawn" / "classes.json").read_bytes())
    return root / "set"


def fault(root):
    with pytest.raises(UserError) as caught:
        DataFolder("folder", root).index(None)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("column", ["label_file_name", "mask_file_name", "annotation", "mask"])
def test_pairs_are_those_of_the_list(tmp_path, ending, column):
    items = DataFolder("folder", listed(tmp_path, ending, column)).index(None)
    drawn = DataFolder("folder", tmp_path / "as_drawn").items_for("train")
    assert [item.key for item in items] == ["files-0", "files-1", "files-2"]
    for one, other in zip(items, drawn, strict=True):
        assert one.label.read_bytes() == other.label.read_bytes()
        np.testing.assert_array_equal(datasets.read_image(one), datasets.read_image(other))


def test_a_list_in_each_split_names_files_beside_it(tmp_path):
    root = listed(tmp_path, split="train")
    (tmp_path / "more").mkdir()
    listed(tmp_path / "more", split="validation")
    (tmp_path / "more" / "set" / "validation").rename(root / "validation")
    folder = DataFolder("folder", root)
    assert folder.splits() == ["train", "val"]
    assert [item.key for item in folder.index("val")] == ["files-0", "files-1", "files-2"]
    assert folder.find("val", ["label", "image"]).notes == [
        "Photos and label maps are paired as metadata.jsonl says."
    ]


def test_what_no_line_lists_is_left_out_and_said(tmp_path):
    root = listed(tmp_path, change=lambda rows: rows.pop())
    found = DataFolder("folder", root).find(None, ["label", "image"])
    assert sorted(found.files["label"]) == ["files-0", "files-1"]
    assert "2 pictures that it does not list: not read." in found.notes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../as_drawn/labels/train/scene-00.png", "is no name of a file below a folder"),
        ("/etc/passwd", "is no name of a file below a folder"),
        ("files\\0.png", "is no name of a file below a folder"),
        ("files/none.png", "files/none.png: no such file"),
        ("files/link.png", "a link that leads out of the data set; copy the file into it"),
        ("linked/secret.png", "a link that leads out of the data set; copy the file into it"),
        (["files/0.png"], "a list, not the name of a file"),
    ],
)
def test_names_stay_inside_the_data_set(tmp_path, name, expected):
    root = listed(tmp_path, change=lambda rows: rows[1].update(label_file_name=name))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes((root / "files" / "map-0.png").read_bytes())
    (root / "files" / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside)
    text = fault(root)
    assert "metadata.jsonl: line 2, label_file_name: " in text
    assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[2].update(label_file_name=None), "1 line without a label map (first: l"),
        (lambda rows: rows.append(rows[0]), "metadata.jsonl: line 4: 0.png stands twice"),
        (
            lambda rows: [row.update(mask_file_name="files/0.png") for row in rows],
            "the columns label_file_name and mask_file_name may both be meant; rename one",
        ),
    ],
)
def test_lines_that_do_not_say_are_faults(tmp_path, change, expected):
    assert expected in fault(listed(tmp_path, change=change))


def test_a_damaged_line_is_named(tmp_path):
    root = listed(tmp_path)
    with (root / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": \n')
    assert "metadata.jsonl: line 4: not JSON" in fault(root)


@pytest.mark.parametrize("text", ["file_name,text\nimages/0.png,a street\n", "\xff\xfe", ""])
def test_a_list_of_something_else_is_left_alone(tmp_path, text):
    write_pairs(tmp_path)
    before = DataFolder("folder", tmp_path).items_for("train")
    (tmp_path / "metadata.csv").write_text(text, "latin-1")
    assert DataFolder("folder", tmp_path).items_for("train") == before


def test_inspect_says_how_pairs_were_found(tmp_path):
    root = listed(tmp_path)
    result = CliRunner().invoke(cli, ["data", "inspect", str(root)])
    assert result.exit_code == 0, result.output
    assert "Photos and label maps are paired as metadata.jsonl says." in result.output
