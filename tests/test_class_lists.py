"""Class lists: numbers of the label files, colours that nobody gave, and lists of other tools."""

import json
from pathlib import Path

import pytest

from ecgan import class_files
from ecgan.class_files import find_class_list, read_class_list
from ecgan.data.survey import survey_dataset
from ecgan.errors import UserError
from ecgan.labels import from_json
from tests.helpers import trees

# Numbers of the label files


def test_ids_from_one_become_ids_from_zero():
    space = from_json(
        {"classes": [{"id": 2, "name": "sky"}, {"id": 1, "name": "road"}], "ignore": 0}, "x"
    )
    assert space.names == ("road", "sky")
    assert space.file_ids == ((1, 0), (2, 1))


def test_several_numbers_of_a_class():
    space = from_json(
        {"classes": [{"ids": [1007, 7], "name": "road"}, {"id": 2007, "name": "sky"}]}, "x"
    )
    assert space.file_ids == ((7, 0), (1007, 0), (2007, 1))


def test_several_numbers_of_unlabelled_pixels():
    space = from_json({"classes": ["road", "sky"], "ignore": [254, 255]}, "x")
    assert (space.ignore, space.file_ids) == (254, ((0, 0), (1, 1), (255, 255)))


def test_ids_without_gaps_need_no_numbers_of_their_own():
    space = from_json([{"ids": [1], "name": "sky"}, {"id": 0, "name": "road"}], "x")
    assert space.file_ids is None
    assert "file_ids" not in space.to_json()


@pytest.mark.parametrize(
    "document",
    [
        {"classes": [{"ids": [7, 1007], "name": "road"}, {"id": 8, "name": "sky"}], "ignore": 0},
        {"classes": ["road", "sky"], "ignore": [254, 255]},
        {"classes": [{"id": 255, "name": "sky"}]},
    ],
)
def test_numbers_of_the_files_survive_json(document):
    space = from_json(document, "x")
    assert from_json(json.loads(json.dumps(space.to_json())), "x") == space


def test_entries_give_a_list_back_as_its_user_wrote_it():
    classes = [{"ids": [7, 1007], "name": "road", "color": [1, 2, 3]}, {"id": 8, "name": "sky"}]
    assert from_json(classes, "x").entries() == classes


def test_label_maps_that_we_write_hold_ids():
    space = from_json({"classes": [{"id": 7, "name": "road"}], "ignore": 0}, "x")
    assert space.written().file_ids is None
    assert space.written().ignore == 255
    assert space.written().classes == space.classes
    assert space != space.written()


def test_a_number_that_another_class_has_is_ignored_by_no_default():
    assert from_json([{"id": 255, "name": "sky"}], "x").ignore is None


# Colours that nobody gave


def test_whether_a_color_was_given_survives_json_and_decides_no_equality():
    space = from_json([{"name": "road", "color": [1, 2, 3]}, "sky"], "x")
    document = json.loads(json.dumps(space.to_json()))
    assert [c.get("has_color") for c in document["classes"]] == [None, False]
    assert from_json(document, "x").colors_given == (True, False)
    # As version 0.1 and runs before this key wrote it
    earlier = from_json(space.identity(), "x")
    assert earlier.colors_given == (True, True)
    assert earlier == space
    assert hash(earlier) == hash(space)
    assert earlier.identity() == space.identity()


# Lists of other tools

ROAD_SKY = [(0, "road", None), (1, "sky", None)]
COLORED = [(0, "road", (128, 64, 128)), (1, "sky", (70, 130, 180))]
FORMS = {
    "ours": ("classes.json", '{"classes": [{"id": 0, "name": "road"}, "sky"]}', ROAD_SKY),
    "a bare list": ("classes.json", '["road", "sky"]', ROAD_SKY),
    "number: name": ("id2label.json", '{"0": "road", "1": "sky"}', ROAD_SKY),
    "any order": ("id2label.json", '{"1": "sky", "0": "road"}', ROAD_SKY),
    "a configuration": (
        "config.json",
        '{"model": 3, "id2label": {"0": "road", "1": "sky"}}',
        ROAD_SKY,
    ),
    "name: number": (
        "labels.json",
        '{"road": 7, "sky": 1007}',
        [(7, "road", None), (1007, "sky", None)],
    ),
    "name: numbers": (
        "labels.json",
        '{"road": [7, 8], "sky": 9}',
        [(7, "road", None), (8, "road", None), (9, "sky", None)],
    ),
    "255 is unlabelled": ("id2label.json", '{"0": "road", "1": "sky", "255": "void"}', ROAD_SKY),
    "-1 is unlabelled": ("labels.json", '{"__ignore__": -1, "road": 0, "sky": 1}', ROAD_SKY),
    "mmsegmentation": (
        "dataset_meta.json",
        '{"classes": ["road", "sky"], "palette": [[128, 64, 128], [70, 130, 180]]}',
        COLORED,
    ),
    "mmsegmentation 0.x": ("meta.json", '{"CLASSES": ["road", "sky"], "PALETTE": null}', ROAD_SKY),
    "Datumaro": (
        "dataset_meta.json",
        '{"label_map": {"0": "road", "1": "sky"}, '
        '"segmentation_colors": [[128, 64, 128], [70, 130, 180]]}',
        COLORED,
    ),
    "CVAT": (
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\n",
        COLORED,
    ),
    "CVAT without a colour": (
        "labelmap.txt",
        "road:::\nsky:70,130,180::",
        [ROAD_SKY[0], COLORED[1]],
    ),
    "Roboflow": ("_classes.csv", "Pixel Value, Class\n0, road\n1, sky\n", ROAD_SKY),
    "CamVid": ("class_dict.csv", "name,r,g,b\nroad,128,64,128\nsky,70,130,180\n", COLORED),
    "a quoted name": (
        "_classes.csv",
        'Pixel Value,Class\n0,"road, paved"\n',
        [(0, "road, paved", None)],
    ),
    "LabelMe's labels": (
        "labels.txt",
        "__ignore__\n_background_\nroad\n",
        [(0, "_background_", None), (1, "road", None)],
    ),
    "LabelMe's class names": (
        "class_names.txt",
        "_background_\nroad\n",
        [(0, "_background_", None), (1, "road", None)],
    ),
    "names": ("mine.names", "road\nsky\n", ROAD_SKY),
    "numbered lines": (
        "classes.txt",
        "7: road\n1007: sky\n",
        [(7, "road", None), (1007, "sky", None)],
    ),
    "Ultralytics": ("data.yaml", "train: images\nnames:\n  0: road\n  1: sky\n", ROAD_SKY),
    "Ultralytics' list": ("dataset.yaml", "nc: 2\nnames: [road, sky]\n", ROAD_SKY),
    "YAML": ("mine.yaml", "0: road\n1: sky\n", ROAD_SKY),
    "YAML by name": ("mine.yml", "road: 7\ncar: 1007\n", [(7, "road", None), (1007, "car", None)]),
    "YAML with anchors": (
        "mine.yaml",
        "defaults: &a {x: 1}\nother: {<<: *a}\nnames: [road, sky]",
        ROAD_SKY,
    ),
    "ours as YAML": (
        "mine.yaml",
        "classes: [{id: 0, name: road}, {id: 1, name: sky}]\nignore: null",
        ROAD_SKY,
    ),
}


def listed(space):
    return sorted(
        (number, entry["name"], tuple(entry["color"]) if "color" in entry else None)
        for entry in space.entries()
        for number in entry.get("ids", [entry.get("id")])
    )


@pytest.mark.parametrize(("name", "text", "classes"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("as_windows", [False, True])
def test_class_lists_of_other_tools(tmp_path, name, text, classes, as_windows):
    if as_windows:
        text = "\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / name).write_bytes(text.encode())
    assert listed(read_class_list(tmp_path / name)) == classes


def test_blank_lines_comments_and_spaces_are_no_names(tmp_path):
    (tmp_path / "labels.txt").write_text("# of the survey\n\n  road \n\nsky\n")
    assert read_class_list(tmp_path / "labels.txt").names == ("road", "sky")


def test_the_callers_value_of_unlabelled_pixels_gives_way_to_the_files(tmp_path):
    for name, text in {"a.json": '{"classes": ["road"], "ignore": 7}', "b.txt": "road"}.items():
        (tmp_path / name).write_text(text)
    assert read_class_list(tmp_path / "a.json", ignore=9).ignore == 7
    assert read_class_list(tmp_path / "b.txt", ignore=9).ignore == 9
    assert read_class_list(tmp_path / "b.txt", ignore=None).ignore is None
    assert read_class_list(tmp_path / "b.txt").ignore == 255


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(22)
)
FAULTY = {
    "duplicate names": (
        "labels.txt",
        "road\nsky\nroad\n",
        "name 'road' occurs 2 times (line 1, line 3)",
    ),
    "duplicate numbers": (
        "_classes.csv",
        "Pixel Value,Class\n0,road\n0,sky",
        "id 0 occurs 2 times (line 2, line 3)",
    ),
    "a number twice": ("id2label.json", '{"0": "road", "0": "sky"}', "key '0' occurs twice"),
    "a number twice in YAML": ("a.yaml", "0: road\n0: sky", "key '0' occurs twice"),
    "a name twice": ("a.json", '{"road": 0, "road": 1}', "key 'road' occurs twice"),
    "no names": ("labels.txt", "\n# nothing\n", "the list is empty"),
    "an empty file": ("classes.json", "", "not a JSON file"),
    "an empty object": ("classes.json", "{}", 'expected {"classes": ['),
    "another file": ("classes.json", '{"lr": 0.1}', 'expected {"classes": ['),
    "numbers only": ("classes.json", '{"0": 1}', 'expected {"classes": ['),
    "a number": ("classes.json", "3", 'expected {"classes": ['),
    "damaged JSON": ("classes.json", '{"classes": [', "not a JSON file: Expecting value"),
    "damaged YAML": ("data.yaml", "names: [road", "not a YAML file"),
    "nested JSON": ("classes.json", "[" * 100_000, "not a JSON file: maximum recursion"),
    "nested YAML": ("data.yaml", "[" * 5_000, "not a YAML file"),
    "no names in YAML": ("data.yaml", "train: images\n", "no class names in it"),
    "names of a wrong type": ("data.yaml", "names: {a: b}", "names: expected names, or"),
    "truth values": (
        "data.yaml",
        "names: [yes, no]",
        "names[0]: expected a name or an object, got True",
    ),
    "aliases of aliases": (
        "data.yaml",
        BOMB + "names: {0: *w}",
        "more than 100,000 values",
    ),
    "half a letter of UTF-16": (
        "labels.txt",
        b"\xff\xfer",
        "not text in UTF-8 (byte 2); save it as UTF-8",
    ),
    "no UTF-8": ("labels.txt", b"stra\xdfe\n", "not text in UTF-8 (byte 4); save it as UTF-8"),
    "too few colours": (
        "dataset_meta.json",
        '{"classes": ["a", "b"], "palette": [[1, 2, 3]]}',
        "palette: expected 2 colours",
    ),
    "a wrong colour": (
        "labelmap.txt",
        "road:1,2::\n",
        "line 1.color: expected three numbers from 0 to 255, got [1, 2]",
    ),
    "a colour out of range": (
        "class_dict.csv",
        "name,r,g,b\nroad,1,2,256\n",
        "line 2.color: expected three",
    ),
    "no column": ("_classes.csv", "a,b\n0,road\n", "no column Class"),
    "a cell too few": (
        "_classes.csv",
        "Pixel Value,Class\n0\n",
        "line 2: number of columns 1, expected 2",
    ),
    "no number": (
        "_classes.csv",
        "Pixel Value,Class\nx,road\n",
        "line 2.id: expected a number from 0 to 65535, got 'x'",
    ),
    "a negative number": (
        "a.json",
        '{"road": -1}',
        "key road.id: expected a number from 0 to 65535, got -1",
    ),
    "__ignore__ in between": (
        "labels.txt",
        "road\n__ignore__\n",
        "line 2: __ignore__ stands for -1",
    ),
    "megabytes": (
        "labels.txt",
        b"road\n" * 2_000_000,
        "larger than 8 MiB",
    ),
    "megabytes of YAML": ("data.yaml", b"#\n" * 600_000, "larger than 1 MiB"),
}


@pytest.mark.parametrize(("name", "text", "message"), FAULTY.values(), ids=FAULTY)
def test_faults_of_a_file_are_one_error(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_class_list(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_all_faults_of_a_file_come_at_once(tmp_path):
    (tmp_path / "labelmap.txt").write_text("a:1,2::\na:x,y,z::\n:1,2,3::\n")
    with pytest.raises(UserError) as error:
        read_class_list(tmp_path / "labelmap.txt")
    assert len(error.value.faults) == 4


def test_a_file_that_is_not_there_and_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"mine\.txt: no such file; write the class list there"):
        read_class_list(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="a folder, not a file"):
        read_class_list(tmp_path)


# Lists beside the data


def write_lists(folder, **texts):
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_json", ".json").replace("_txt", ".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_no_list_beside_the_data(tmp_path):
    assert find_class_list(tmp_path) is None
    assert find_class_list(tmp_path / "none") is None


@pytest.mark.parametrize("name", class_files.NAMES)
def test_each_known_name_is_found(tmp_path, name):
    (tmp_path / name).write_text(next(text for n, text, _ in FORMS.values() if n == name))
    assert find_class_list(tmp_path) == tmp_path / name


def test_inspect_reads_the_list_of_another_tool(tmp_path):
    trees.write_folder(tmp_path, num=2, values=(0, 1))
    (tmp_path / "classes.json").unlink()
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nroad:1,2,3::\n")
    found = survey_dataset(tmp_path)
    assert found.space is not None
    assert found.space.names == ("background", "road")
    (tmp_path / "labels.txt").write_text("road\n")
    (fault,) = survey_dataset(tmp_path).all_faults
    assert "two class lists that differ, labelmap.txt and labels.txt" in fault


def test_of_equal_lists_the_first_is_taken(tmp_path):
    write_lists(
        tmp_path,
        labels_txt="road\nsky",
        id2label_json='{"0": "road", "1": "sky"}',
        labelmap_txt="road:1,2,3::\nsky:::",
    )
    assert find_class_list(tmp_path) == tmp_path / "id2label.json"


def test_the_lists_of_roboflows_splits(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_classes.csv").write_text("Pixel Value,Class\n0,road\n")
    assert find_class_list(tmp_path) == tmp_path / "train/_classes.csv"
    (tmp_path / "valid/_classes.csv").write_text("Pixel Value,Class\n0,sky\n")
    with pytest.raises(UserError) as error:
        find_class_list(tmp_path)
    assert (
        "two class lists that differ, train/_classes.csv and valid/_classes.csv: 0 is road in the "
        "first and sky in the second; remove the wrong one" in str(error.value)
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ('["road", "sky", "car"]', "2 is car in the first and no class in the second"),
        ('["sky", "road"]', "0 is sky in the first and road in the second"),
        ('[{"name": "road", "color": [9, 9, 9]}, "sky"]', r"road is \[9, 9, 9\] in the first"),
    ],
)
def test_lists_that_differ_are_refused(tmp_path, classes, message):
    write_lists(tmp_path, classes_json=classes, labelmap_txt="road:1,2,3::\nsky:4,5,6::")
    with pytest.raises(UserError, match=message):
        find_class_list(tmp_path)


def test_a_list_may_leave_a_class_of_the_other_unlabelled(tmp_path):
    write_lists(
        tmp_path,
        classes_json='{"classes": [{"id": 1, "name": "road"}], "ignore": 0}',
        labelmap_txt="background:0,0,0::\nroad:1,2,3::",
    )
    assert find_class_list(tmp_path) == tmp_path / "classes.json"


def test_a_yaml_about_something_else_is_no_list(tmp_path):
    (tmp_path / "data.yaml").write_text("train: images\n")
    assert find_class_list(tmp_path) is None


def test_a_damaged_list_beside_the_data_is_no_missing_one(tmp_path):
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(UserError, match=r"classes\.json: not a JSON file"):
        find_class_list(tmp_path)


def test_the_whole_disk_is_not_searched_for_a_list(tmp_path):
    (tmp_path / "link").symlink_to("/")
    for folder in (Path("/"), tmp_path / "link"):
        with pytest.raises(UserError, match="holds the whole disk; give the folder"):
            find_class_list(folder)


@pytest.mark.parametrize(
    "text", ['["road", "\\ud800"]', '{"names": {"0": "road", "1": "\\ud800"}}']
)
def test_half_a_character_is_no_name(tmp_path, text):
    """What holds it could not be read back after a training."""
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=r"1\]?\.name: .*has half a character; write the name anew"):
        class_files.read_class_list(tmp_path / "classes.json")


@pytest.mark.parametrize(
    "about",
    ["", "[]", "null", "[" * 100_000, '{"version": NaN, "cropped": 1, "classes": 1}', "\xff", "{}"],
)
def test_only_what_data_cache_wrote_is_a_copy(tmp_path, about):
    (tmp_path / "classes.json").write_text('["road"]')
    (tmp_path / class_files.RESIZED_COPY).write_bytes(about.encode("latin1"))
    assert class_files.list_of_copy(tmp_path) is None
    ours = '{"version": 1, "cropped": false, "classes": []}'
    (tmp_path / class_files.RESIZED_COPY).write_text(ours)
    assert class_files.list_of_copy(tmp_path) == tmp_path / "classes.json"
