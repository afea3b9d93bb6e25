"""Forms that Datumaro reads, and files that Datumaro writes for our own readers."""

import json

import numpy as np
import pytest
from PIL import Image

from ecgan.data.imports import import_annotations
from ecgan.demo.street import SPACE
from ecgan.demo.toy import draw_scene

dm = pytest.importorskip("datumaro")


def exported(folder, name, *, as_polygons=False):
    """Two scenes, written by Datumaro; their label maps by name."""
    labels, items = {}, []
    for index in range(2):
        image, label = draw_scene((6, index), 48, 96)
        labels[f"scene-{index}"] = label
        present = [int(v) for v in np.unique(label[label != 255])]
        shapes = [
            dm.Mask(label == value, label=value, id=order + 1, group=order + 1, z_order=order)
            for order, value in enumerate(present)
        ]
        if as_polygons:  # a road in the middle of the sky, the sky written last
            labels[f"scene-{index}"] = np.full((48, 96), 255, np.uint8)
            labels[f"scene-{index}"][4:40, 8:80] = 0
            labels[f"scene-{index}"][10:20, 20:50] = 1
            shapes = [
                dm.Polygon([20, 10, 50, 10, 50, 20, 20, 20], label=1, id=1, group=1, z_order=1),
                dm.Polygon([8, 4, 80, 4, 80, 40, 8, 40], label=0, id=2, group=2, z_order=0),
                dm.Bbox(0, 0, 5, 5, label=2, id=3, group=3),
            ]
        media = dm.Image.from_numpy(image[..., ::-1])
        items.append(
            dm.DatasetItem(f"scene-{index}", subset="train", media=media, annotations=shapes)
        )
    categories = {
        dm.AnnotationType.label: dm.LabelCategories.from_iterable(SPACE.names),
        dm.AnnotationType.mask: dm.MaskCategories({c.id: c.color for c in SPACE.classes}),
    }
    dataset = dm.Dataset.from_iterable(items, categories=categories)
    dataset.export(str(folder), name, save_media=True)
    return labels


def check(found, out, labels):
    """Label maps are equal once classes are compared by name, those of no name as unlabelled."""
    assert sum(found.splits.values()) == len(labels)
    for path in (out / "labels").rglob("*.png"):
        label = np.asarray(Image.open(path))
        table = np.full(256, 255)
        for c in found.space.classes:
            table[c.id] = SPACE.names.index(c.name) if c.name in SPACE.names else 255
        assert np.array_equal(table[label], labels[path.stem])


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("datumaro", "datumaro"),
        ("coco_panoptic", "coco_panoptic"),
        ("voc_segmentation", "voc"),
        ("coco_instances", "coco"),
        ("cvat", "cvat"),
    ],
)
def test_masks(tmp_path, name, ours):
    labels = exported(tmp_path / "in", name)
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert found.format == ours
    check(found, tmp_path / "out", labels)


@pytest.mark.parametrize(("name", "ours"), [("datumaro", "datumaro"), ("cvat", "cvat")])
def test_order_of_polygons(tmp_path, name, ours):
    labels = exported(tmp_path / "in", name, as_polygons=True)
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert (found.format, found.notes) == (ours, {"boxes, left out": 2})
    check(found, tmp_path / "out", labels)


def test_labelme_xml(tmp_path):
    exported(tmp_path / "in", "label_me", as_polygons=True)
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert found.format == "labelme_xml"
    assert found.splits == {"train": 2}


def test_mapillary_vistas(tmp_path):
    """Laid out as its authors publish it: class times 256 plus instance, 16 bits."""
    labels = {}
    for split, index in (("training", 0), ("validation", 1)):
        image, label = draw_scene((6, index), 48, 96)
        label = np.where(label == 255, 0, label)
        labels[f"scene-{index}"] = label
        folder = tmp_path / "in" / split
        for name in ("images", "v2.0/instances", "v2.0/labels"):
            (folder / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / f"images/scene-{index}.jpg")
        numbers = label.astype(np.uint16) * 256 + np.arange(96, dtype=np.uint16) // 50
        Image.fromarray(numbers).save(folder / f"v2.0/instances/scene-{index}.png")
        Image.fromarray(label).save(folder / f"v2.0/labels/scene-{index}.png")
    config = {"labels": [{"name": c.name, "color": c.color} for c in SPACE.classes]}
    (tmp_path / "in/config_v2.0.json").write_text(json.dumps(config))
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert (found.format, found.splits) == ("mapillary_vistas", {"train": 1, "val": 1})
    assert found.space.classes == SPACE.classes
    check(found, tmp_path / "out", labels)
