"""Annotations with values that no tool writes: sentences, and nothing is read elsewhere."""

import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgan.data.imports import import_annotations
from ecgan.data.imports.painting import runs_to_mask, unpack_coco
from ecgan.errors import UserError
from ecgan.labels import load_label_space
from tests.data.test_import_faults import CVAT, SQUARE, coco, photo

__all__ = ["coco"]  # a fixture


@given(runs=st.lists(st.integers(-(2**70), 2**70), max_size=6), data=st.text("0o_Z", max_size=60))
def test_run_lengths_of_no_photo_are_refused(runs, data):
    """What would take all memory, or wrap around at 64 bits."""
    for size in ((4, 4), (2**31, 2**31), (10**9, 0), (-4, -4)):
        for counts in (runs, [size[0] * size[1]], [2**62, 2**62, 2**62, 2**62 + 16]):
            with suppress(ValueError):
                mask = runs_to_mask(counts, size, by_column=False)
                assert mask.shape == size
                assert mask.size <= 16
    with suppress(ValueError):
        runs_to_mask(unpack_coco(data), (4, 4), by_column=True)


def test_a_number_of_very_many_digits_is_refused_at_once():
    with pytest.raises(ValueError, match="longer than any photo"):
        unpack_coco("o" * 20_000_000)


ODD = [[1], {"a": 1}, 10**400, float("nan"), float("inf"), None, "a" * 5000, "\0", "\ud800", 2**70]


@pytest.mark.parametrize("odd", ODD, ids=[repr(value)[:9] for value in ODD])
@pytest.mark.parametrize("tool", ["coco", "labelme", "label_studio"])
def test_odd_values_anywhere_are_sentences(tmp_path, tool, odd):
    photo(tmp_path / "in/images/a.jpg")
    photo(tmp_path / "in/a.jpg")
    document = json.dumps(DOCUMENTS[tool])
    places = [*leaves(json.loads(document))]
    assert len(places) > 10
    for place in places:
        changed = json.loads(document)
        *path, last = place
        inner = changed
        for key in path:
            inner = inner[key]
        inner[last] = odd
        (tmp_path / "in/a.json").write_text(json.dumps(changed))
        with suppress(UserError):
            import_annotations(tmp_path / "in", tmp_path / "out", name=tool)
            load_label_space(tmp_path / "out/classes.json")  # raises where it must not
            shutil.rmtree(tmp_path / "out")
        assert not (tmp_path / "out").exists(), place


def leaves(value, place=()):
    """Places of all values of a document, those of lists and objects, too."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs if isinstance(value, (dict, list)) else ():
        yield (*place, key)
        yield from leaves(inner, (*place, key)) if isinstance(inner, (dict, list)) else ()


DOCUMENTS = {
    "coco": {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "segmentation": [SQUARE]},
            {"image_id": 1, "category_id": 1, "segmentation": {"counts": [600], "size": [20, 30]}},
        ],
        "categories": [{"id": 1, "name": "cat", "color": [1, 2, 3]}],
    },
    "labelme": {
        "imagePath": "a.jpg",
        "imageData": None,
        "imageHeight": 20,
        "imageWidth": 30,
        "shapes": [{"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}],
    },
    "label_studio": [
        {
            "data": {"image": "/data/upload/12345678-a.jpg"},
            "annotations": [
                {
                    "result": [
                        {
                            "type": "polygonlabels",
                            "original_width": 30,
                            "original_height": 20,
                            "value": {"points": [[1, 1], [90, 1], [9, 9]], "polygonlabels": ["a"]},
                        }
                    ]
                }
            ],
        }
    ],
}


def test_names_that_cannot_be_read_back_are_refused(coco):
    document, imported = coco
    document["categories"][0]["name"] = "\ud800"
    with pytest.raises(UserError, match=r"its classes: not names of classes: .*rename it where"):
        imported()


@pytest.mark.parametrize("name", ["a\nb.jpg", "\u202egpj.a", "a" * 2000 + ".jpg"])
def test_names_of_photos_that_nobody_can_see_are_refused(coco, name):
    document, imported = coco
    document["images"][0]["file_name"] = name
    with pytest.raises(UserError, match=r"images\[0\].file_name: .* rename it"):
        imported()


def test_a_subset_of_cvat_leads_nowhere_else(tmp_path):
    photo(tmp_path / "elsewhere/a.jpg")
    (tmp_path / "in").mkdir()
    for subset in ("../../elsewhere", str(tmp_path / "elsewhere")):
        text = CVAT.format('<polygon label="cat" points="2,2;10,2;10,10;2,10"/>')
        text = text.replace('id="0"', f'id="0" subset="{subset}"')
        (tmp_path / "in/a.xml").write_text(text)
        with pytest.raises(UserError, match=r"subset: .* leads out of the folder"):
            import_annotations(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_doctype_is_found_wherever_it_is(tmp_path, encoding):
    text = f"<!--{'x' * 70_000}--><!DOCTYPE a [<!ENTITY b 'c'>]><annotations/>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="has a DOCTYPE"):
        import_annotations(tmp_path / "a.xml", tmp_path / "out")


def test_a_class_of_many_digits_is_named(tmp_path):
    photo(tmp_path / "images/a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("9" * 5000 + " 0 0 1 0 1 1\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(UserError, match=r"line 1: class '999.* is not in data.yaml"):
        import_annotations(tmp_path, tmp_path / "out")
