"""What an import refuses, counts and paints in doubtful cases."""

import json
import os
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ecgan.data.imports import import_annotations
from ecgan.data.imports.painting import fill_polygon, runs_to_mask, unpack_coco, unpack_label_studio
from ecgan.errors import UsageError, UserError

SIZE = (20, 30)
SQUARE = [2, 2, 10, 2, 10, 10, 2, 10]


def photo(path, size=SIZE, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size[::-1], (9, 90, 200)).save(path, exif=exif)


@pytest.fixture
def coco(tmp_path):
    """A document of one photo and one square, and a function that imports it, changed."""
    photo(tmp_path / "in/images/a.jpg")
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE]}],
        "categories": [{"id": 1, "name": "cat"}],
    }

    def imported(**options):
        (tmp_path / "in/a.json").write_text(json.dumps(document))
        found = import_annotations(tmp_path / "in", tmp_path / "out", **options)
        return found, np.asarray(Image.open(tmp_path / "out/labels/a.png"))

    return document, imported


def test_pixels_whose_centres_are_inside(coco):
    _, imported = coco
    _, label = imported()
    expected = np.full(SIZE, 255)
    expected[2:10, 2:10] = 0
    assert np.array_equal(label, expected)


@given(
    corner=st.tuples(*[st.floats(0, 12)] * 2),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
)
def test_neighbours_neither_overlap_nor_leave_a_gap(corner, size):
    """A triangle fan around any point covers each pixel of the photo once."""
    height, width = size
    label = np.zeros((height, width), np.uint8)
    rim = [(0, 0), (width, 0), (width, height), (0, height)]
    middle = (min(corner[0], width), min(corner[1], height))
    painted = 0
    for index in range(4):
        triangle = np.array([rim[index], rim[(index + 1) % 4], middle], np.float64)
        painted += fill_polygon(label, triangle, index + 1)
    assert painted == height * width
    assert label.all()


@given(points=st.lists(st.tuples(*[st.integers(-9, 20)] * 2), min_size=3, max_size=8))
def test_polygons_are_those_of_a_ray_from_each_centre(points):
    label = np.zeros((9, 12), np.uint8)
    fill_polygon(label, np.array(points, np.float64), 1)
    half = Fraction(1, 2)
    for y, x in np.ndindex(label.shape):
        crossed = 0
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if (y0 <= y + half) != (y1 <= y + half):
                crossed += x0 + Fraction(x1 - x0, y1 - y0) * (y + half - y0) <= x + half
        assert label[y, x] == crossed % 2


def test_later_annotations_lie_above(coco):
    document, imported = coco
    document["categories"].append({"id": 2, "name": "dog"})
    above = {"id": 0, "image_id": 1, "category_id": 2, "segmentation": [[4, 4, 6, 4, 6, 6, 4, 6]]}
    document["annotations"].append(above)
    assert (imported()[1][4:6, 4:6] == 1).all()


def test_what_is_left_out_is_counted(tmp_path, coco):
    document, imported = coco
    document["images"].append({"id": 2, "file_name": "gone.jpg", "height": 20, "width": 30})
    photo(tmp_path / "in/images/further.jpg")
    more = [
        {"image_id": 9, "category_id": 1, "segmentation": [SQUARE]},
        {"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "segmentation": []},
        {"image_id": 1, "category_id": 1, "keypoints": [1, 1, 2]},
        {"image_id": 1, "caption": "a cat"},
        {"image_id": 1, "category_id": 1, "segmentation": [[3, 3, 3, 3, 3, 3]]},
        {"image_id": 1, "category_id": 1, "segmentation": [[25, 15, 99, 15, 99, 18, 25, 18]]},
        {"image_id": 1, "category_id": 1, "segmentation": [[50, 50, 60, 50, 60, 60]]},
    ]
    document["annotations"] += more
    found, label = imported()
    assert found.notes == {
        "photos without a file, left out": 1,
        "photos without annotations, left out": 1,
        "annotations of photos that the file does not list, left out": 1,
        "boxes without an outline, left out": 1,
        "key points without an outline, left out": 1,
        "captions without an outline, left out": 1,
        "regions without a pixel inside the photo": 2,
        "regions that reach out of their photo, clipped": 2,
    }
    assert (label[15:18, 25:30] == 0).all()
    assert (label == 0).sum() == 64 + 15


@pytest.mark.parametrize(
    ("names", "background", "expected"),
    [
        (["cat"], None, (["cat"], 255)),
        (["cat"], "rest", (["rest", "cat"], 0)),
        (["cat", "Background"], None, (["cat", "Background"], 1)),
        (["cat", "road"], "road", (["cat", "road"], 1)),
    ],
)
def test_pixels_without_a_region(coco, names, background, expected):
    document, imported = coco
    document["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    found, label = imported(background=background)
    assert (list(found.space.names), label[0, 0]) == expected
    assert found.space.names[label[5, 5]] == "cat"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_maps_stand_upright(tmp_path, coco, orientation):
    """A region drawn on the photo as tools show it covers the same part of the turned photo."""
    document, imported = coco
    stored = np.full((*SIZE, 3), 255, np.uint8)
    path = tmp_path / "in/images/a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    (tmp_path / "in/images/a.jpg").unlink()
    upright = SIZE[::-1] if orientation >= 5 else SIZE
    document["images"][0] |= {"file_name": "a.png", "height": upright[0], "width": upright[1]}
    found, label = imported()
    assert label.shape == upright
    assert (label[2:10, 2:10] == 0).all()
    assert not found.notes


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_regions_on_stored_pixels_are_turned_with_the_photo(tmp_path, coco, orientation):
    from PIL import ImageOps

    document, imported = coco
    document["images"][0]["file_name"] = "a.png"
    stored = np.zeros(SIZE, np.uint8)
    stored[2:10, 2:10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    image.save(tmp_path / "in/images/a.png", exif=exif)
    (tmp_path / "in/images/a.jpg").unlink()
    found, label = imported()
    with Image.open(tmp_path / "in/images/a.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(label == 0, expected == 255)
    assert found.notes == {"label maps turned upright with their photos": 1}


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("annotations", {"category_id": 7}, "annotations[0].category_id: 7 is not in categories"),
        (
            "annotations",
            {"segmentation": [[1, 2, 3]]},
            "annotations[0].segmentation: expected pairs",
        ),
        (
            "annotations",
            {"segmentation": [[1, "x"]]},
            "annotations[0].segmentation: expected pairs",
        ),
        ("annotations", {"segmentation": [[1, float("nan")]]}, "expected pairs of numbers"),
        ("annotations", {"segmentation": {"size": [20, 30], "counts": [1, 2]}}, "do not add up"),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [81]}}, "its photo has"),
        ("annotations", {"segmentation": {"size": [20, 30], "counts": "é"}}, "segmentation"),
        ("images", {"file_name": "../a.jpg"}, "leads out of the folder"),
        ("images", {"file_name": "/etc/a.jpg"}, "leads out of the folder"),
        ("images", {"file_name": "..\\a.jpg"}, "leads out of the folder"),
        ("images", {"file_name": "C:\\a.jpg"}, "leads out of the folder"),
        ("images", {"file_name": 3}, "expected the name of a photo"),
        ("images", {"file_name": "no.jpg"}, "no file of 1 photo is there (first: no.jpg)"),
        ("images", {"height": 21}, "annotated at 30 x 21 pixels, but the photo a.jpg has 30 x 20"),
        ("images", {"id": None}, "images[0].id: expected an id"),
        ("categories", {"name": ""}, "categories[0]: expected a number as id and a name"),
    ],
)
def test_faults_name_the_field_and_nothing_is_written(tmp_path, coco, key, changes, message):
    document, imported = coco
    document[key][0].update(changes)
    with pytest.raises(UserError) as caught:
        imported()
    assert message in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_all_faults_are_told_at_once(coco):
    document, imported = coco
    document["annotations"] = [document["annotations"][0] | {"category_id": i} for i in range(30)]
    with pytest.raises(UserError) as caught:
        imported()
    assert len(caught.value.faults) == 21
    assert caught.value.faults[-1] == "and 9 more"


def test_two_photos_of_one_label_map(tmp_path, coco):
    document, imported = coco
    document["images"].append({"id": 2, "file_name": "a.png", "height": 20, "width": 30})
    with pytest.raises(UserError, match="share a label map"):
        imported()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not whole JSON"),
        ("a.json", b"\xff\xfe\x00", "not whole JSON"),
        ("a.json", b"[" * 200_000, "nested too deeply"),
        ("a.xml", b"<annotations>", "not whole XML"),
        ("a.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "DOCTYPE"),
        ("a.xml", b"<annotations><track/></annotations>", "annotations of a video"),
        ("a.json", b"[1, 2]", "no annotations of a known form"),
        ("a.txt", b"", "no annotations of a known form"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        import_annotations(tmp_path / "in", tmp_path / "out")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


CVAT = """<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image id="0" name="a.jpg" width="30" height="20">{}</image></annotations>"""


def test_cvat_counts_what_is_no_region(tmp_path):
    photo(tmp_path / "in/images/a.jpg")
    shapes = '<polygon label="cat" points="2,2;10,2;10,10;2,10"/><tag label="cat"/>'
    shapes += '<box label="cat"/><box label="cat"/><skeleton label="cat"><points/></skeleton>'
    (tmp_path / "in/a.xml").write_text(CVAT.format(shapes))
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert found.notes == {
        "tags, left out": 1,
        "boxes, left out": 2,
        "skeletons, left out": 1,
    }


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="dog" points="1,1;2,2;3,1"/>', "image 'a.jpg': label 'dog' is not in"),
        ('<polygon label="cat" points="1,1;2"/>', "image 'a.jpg': polygon: points: expected pairs"),
        ('<polygon label="cat" points=""/>', "image 'a.jpg': polygon: points: expected pairs"),
        ('<polygon label="cat" points="1,1" z_order="x"/>', "z_order 'x': expected a whole number"),
        ('<mask label="cat" rle="4" left="0" top="0" width="2" height="3"/>', "do not add up"),
        ('<mask label="cat" rle="9e9" left="0" top="0" width="1" height="1"/>', "invalid literal"),
        (
            f'<mask label="cat" rle="{2**70}" left="0" top="0" width="{2**35}" height="{2**35}"/>',
            "a mask of more than",
        ),
        ('<mask label="cat" rle="1" left="-1" top="0" width="1" height="1"/>', "from 0"),
        ('<star label="cat"/>', "<star> is not known"),
    ],
)
def test_faults_of_cvat(tmp_path, shape, message):
    photo(tmp_path / "in/images/a.jpg")
    (tmp_path / "in/a.xml").write_text(CVAT.format(shape))
    with pytest.raises(UserError) as caught:
        import_annotations(tmp_path / "in", tmp_path / "out")
    assert message in str(caught.value)


def test_two_forms_are_both_named(tmp_path, coco):
    _, imported = coco
    labelme = {"shapes": [], "imagePath": "a.jpg"}
    (tmp_path / "in/b.json").write_text(json.dumps(labelme))
    with pytest.raises(UsageError, match="--format coco or --format labelme"):
        imported()
    found, _ = imported(name="coco")
    assert found.notes == {"JSON or XML files of another form, left out": 1}


def test_a_folder_that_is_not_empty_is_refused(tmp_path, coco):
    _, imported = coco
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        imported()


def test_an_interrupted_import_leaves_nothing(tmp_path, coco, monkeypatch):
    _, imported = coco

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ecgan.data.imports.folder.fill_polygon", interrupt)
    with pytest.raises(KeyboardInterrupt):
        imported()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_labelme_reads_no_photo_outside_of_its_folder(tmp_path):
    photo(tmp_path / "photos/a.jpg")
    shape = {"label": "cat", "points": [[0, 0], [9, 0], [9, 9]]}
    document = {"imagePath": "..\\photos\\a.jpg", "imageData": None, "shapes": [shape]}
    (tmp_path / "json").mkdir()
    (tmp_path / "json/a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"lies outside of .* name its folder with --images"):
        import_annotations(tmp_path / "json", tmp_path / "out")
    options = {"images": tmp_path / "photos"}
    assert import_annotations(tmp_path / "json", tmp_path / "out", **options).splits == {"": 1}


def test_more_than_255_classes(coco):
    document, imported = coco
    document["categories"] = [{"id": i, "name": f"class {i}"} for i in range(300)]
    document["annotations"][0]["category_id"] = 299
    found, label = imported()
    assert label.dtype == np.uint16
    assert (label[5, 5], label[0, 0], found.space.ignore) == (299, 65535, 65535)


@given(data=st.binary(max_size=40))
def test_damaged_run_lengths_raise_nothing_else(data):
    for decode in (
        lambda: runs_to_mask(unpack_coco(data.decode("latin1")), (4, 4), by_column=True),
        lambda: unpack_label_studio([*data], (4, 4)),
    ):
        with suppress(ValueError):
            assert decode().shape == (4, 4)


def test_datumaro_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datumaro", None)
    with pytest.raises(UserError, match=r"pip install 'ecgan\[import\]'"):
        import_annotations(tmp_path, tmp_path / "out", name="voc")


@pytest.mark.parametrize("name", ["a.json", "a.xml", "labels/a.txt"])
def test_pipes_are_no_annotations(tmp_path, name):
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    if name.endswith("txt"):
        (tmp_path / "in/data.yaml").write_text("names: [cat]\ntrain: images\n")
        photo(tmp_path / "in/images/a.jpg")
    with pytest.raises(UserError):
        import_annotations(tmp_path / "in", tmp_path / "out")
