"""Annotations of other tools give back the label maps that they were traced from."""

import base64
import json
from collections import defaultdict
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ecgan import checkpoint
from ecgan.data.imports import import_annotations
from ecgan.demo.street import SPACE
from ecgan.demo.toy import draw_scene
from ecgan.labels import load_label_space
from ecgan.recipe import load_recipe
from ecgan.training import run as train
from ecgan_cli.main import cli
from tests.training.test_run import LIGHT

SCENES = 3


def outline(mask):
    """Outer loop of pixel edges of a 4-connected region, as [x, y] corners."""
    padded = np.pad(mask, 1)
    follow = defaultdict(list)  # directed edges, the region to their right
    for dy, dx, begin, end in (
        (-1, 0, (0, 0), (1, 0)),  # top
        (0, 1, (1, 0), (1, 1)),  # right
        (1, 0, (1, 1), (0, 1)),  # bottom
        (0, -1, (0, 1), (0, 0)),  # left
    ):
        neighbours = np.roll(padded, (-dy, -dx), (0, 1))
        for y, x in np.argwhere(padded & ~neighbours) - 1:
            follow[x + begin[0], y + begin[1]].append((x + end[0], y + end[1]))
    loops = []
    while follow:
        first = min(follow, key=lambda p: (p[1], p[0]))  # on the outer loop of what is left
        loop, at, heading = [first], first, (1, 0)
        while True:
            # Where two pixels touch at a corner, turn right: stay with the same pixel
            right = (-heading[1], heading[0])
            options = follow[at]
            nearest = max(options, key=lambda p: np.dot(np.subtract(p, at), right))
            options.remove(nearest)
            if not options:
                del follow[at]
            heading = tuple(np.subtract(nearest, at))
            at = nearest
            if at == first:
                break
            loop.append(at)
        loops.append(loop)
    return np.array(loops[0])


def regions(label):
    """Class and outline of each connected region, large ones first: they hold the small ones."""
    found = []
    for value in np.unique(label[label != 255]):
        count, parts = cv2.connectedComponents((label == value).astype(np.uint8), connectivity=4)
        found += [(int(value), parts == number) for number in range(1, count)]
    # A region is painted over those that it lies in: their outlines enclose more pixels
    traced = [(value, outline(mask)) for value, mask in found]
    return sorted(traced, key=lambda entry: -cv2.contourArea(entry[1].astype(np.float32)))


@pytest.fixture(scope="module")
def scenes():
    """Photo, label map and outlines of each scene."""
    drawn = [draw_scene((5, index), 64, 128) for index in range(SCENES)]
    return [(image, label, regions(label)) for image, label in drawn]


def save_photos(folder, scenes, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, _, _) in enumerate(scenes):
        path = folder / (names[index] if names else f"scene-{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_coco(path, scenes, names=None, first_id=0):
    """COCO's JSON in the order of painting; Label Studio's ids begin at 0, those of others at 1."""
    images, annotations = [], []
    for index, (image, _, traced) in enumerate(scenes):
        height, width = image.shape[:2]
        name = names[index] if names else f"scene-{index}.png"
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for value, points in traced:
            box = [*map(int, points.min(0)), *map(int, np.ptp(points, axis=0))]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": value + first_id,
                    "segmentation": [points.ravel().tolist()],
                    "area": float(cv2.contourArea(points.astype(np.float32))),
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": c.id + first_id, "name": c.name} for c in SPACE.classes]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return document


def cvat_tree(scenes):
    """CVAT's XML, with the regions of each image in the wrong order and z_order to mend it."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels"
    )
    for c in SPACE.classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = c.name
        ElementTree.SubElement(label, "color").text = "#" + bytes(c.color).hex()
    for index, (image, _, traced) in enumerate(scenes):
        height, width = map(str, image.shape[:2])
        named = {"id": str(index), "name": f"scene-{index}.png", "width": width, "height": height}
        element = ElementTree.SubElement(root, "image", named)
        for order, (value, points) in reversed([*enumerate(traced)]):
            ElementTree.SubElement(
                element,
                "polygon",
                {
                    "label": SPACE.classes[value].name,
                    "points": ";".join(f"{x:.2f},{y:.2f}" for x, y in points),
                    "z_order": str(order),
                    "occluded": "0",
                },
            )
    return root


def write_labelme(folder, scenes):
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, _, traced) in enumerate(scenes):
        document = {
            "version": "5.4.1",
            "shapes": [
                {"label": SPACE.classes[value].name, "points": points.tolist(), "group_id": None}
                | {"shape_type": "polygon", "flags": {}}
                for value, points in traced
            ],
            "imagePath": f"scene-{index}.png",
            "imageData": None,
            "imageHeight": image.shape[0],
            "imageWidth": image.shape[1],
        }
        (folder / f"scene-{index}.json").write_text(json.dumps(document, default=int))


def check(out, scenes, *, below=""):
    """Photos are unchanged, and label maps equal the scenes' in every pixel."""
    space = load_label_space(out / "classes.json")
    for index, (image, label, _) in enumerate(scenes):
        photo = out / "images" / below / f"scene-{index}.png"
        assert np.array_equal(np.asarray(Image.open(photo)), image)
        found = np.asarray(Image.open(out / "labels" / below / f"scene-{index}.png"))
        table = np.full(256, 255)
        table[list(range(space.num_classes))] = [SPACE.names.index(name) for name in space.names]
        assert np.array_equal(table[found], label), index
    assert space.ignore == 255


def test_coco(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    write_coco(tmp_path / "annotations.json", scenes)
    found = import_annotations(tmp_path / "annotations.json", tmp_path / "out")
    assert found.format == "coco"
    assert not found.notes
    assert found.space.names == SPACE.names
    check(tmp_path / "out", scenes)


def test_coco_of_label_studio(tmp_path, scenes):
    """Its names begin with the folder images, its ids with 0."""
    save_photos(tmp_path / "images", scenes)
    write_coco(tmp_path / "result.json", scenes, [f"images/scene-{i}.png" for i in range(SCENES)])
    import_annotations(tmp_path, tmp_path / "out")
    check(tmp_path / "out", scenes)


def test_coco_of_two_splits(tmp_path, scenes):
    for split, part in (("train2017", scenes[:2]), ("val2017", scenes[2:])):
        save_photos(tmp_path / "images" / split, part)
        write_coco(tmp_path / "annotations" / f"instances_{split}.json", part, first_id=1)
    found = import_annotations(tmp_path, tmp_path / "out")
    assert found.splits == {"train": 2, "val": 1}
    check(tmp_path / "out", scenes[:2], below="train")
    check(tmp_path / "out", scenes[2:], below="val")


def test_run_lengths_of_coco(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    document = write_coco(tmp_path / "a.json", scenes)
    document["annotations"] = [
        {
            "id": number,
            "image_id": index,
            "category_id": int(value),
            "iscrowd": 1,
            "segmentation": {"size": list(label.shape), "counts": counts(label == value)},
        }
        for index, (_, label, _) in enumerate(scenes)
        for number, value in enumerate(np.unique(label[label != 255]))
    ]
    packed = document["annotations"][0]["segmentation"]
    packed["counts"] = pack(packed["counts"])
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = import_annotations(tmp_path / "a.json", tmp_path / "out")
    assert list(found.notes) == ["crowd regions, painted as their class"]
    check(tmp_path / "out", scenes)


def counts(mask):
    """Run lengths down the columns, the first of unset pixels."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def pack(runs):
    """COCO's compressed form, as its authors write it."""
    text = ""
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
            if not more:
                break
    return text


def test_cvat(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    ElementTree.ElementTree(cvat_tree(scenes)).write(tmp_path / "annotations.xml")
    found = import_annotations(tmp_path, tmp_path / "out")
    assert found.format == "cvat"
    assert found.space.classes == SPACE.classes  # colours, too
    check(tmp_path / "out", scenes)


def test_masks_of_cvat(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    root = cvat_tree(scenes)
    for element, (_, label, _) in zip(root.iter("image"), scenes, strict=True):
        for shape in [*element]:
            element.remove(shape)
        for value in np.unique(label[label != 255]):
            rows, columns = np.nonzero(label == value)
            top, left = int(rows.min()), int(columns.min())
            window = (label == value)[top : rows.max() + 1, left : columns.max() + 1]
            named = {"label": SPACE.classes[value].name, "left": str(left), "top": str(top)}
            size = {"width": str(window.shape[1]), "height": str(window.shape[0])}
            named |= size | {"rle": ", ".join(map(str, counts(window.T)))}
            ElementTree.SubElement(element, "mask", named)
    ElementTree.ElementTree(root).write(tmp_path / "annotations.xml")
    import_annotations(tmp_path, tmp_path / "out")
    check(tmp_path / "out", scenes)


def test_labelme(tmp_path, scenes):
    save_photos(tmp_path / "in" / "train", scenes)
    write_labelme(tmp_path / "in" / "train", scenes)
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert found.format == "labelme"
    check(tmp_path / "out", scenes, below="train")


def test_photos_and_masks_inside_labelme_files(tmp_path, scenes):
    save_photos(tmp_path / "photos", scenes[:1])
    write_labelme(tmp_path / "in", scenes[:1])
    path = tmp_path / "in" / "scene-0.json"
    document = json.loads(path.read_text())
    photo = (tmp_path / "photos" / "scene-0.png").read_bytes()
    document["imageData"] = base64.b64encode(photo).decode()
    _, png = cv2.imencode(".png", np.full((3, 5), 255, np.uint8))
    box = {"label": "mine", "shape_type": "mask", "points": [[10, 20], [14, 22]]}
    document["shapes"].append(box | {"mask": base64.b64encode(png.tobytes()).decode()})
    document["shapes"].append({"label": "car", "shape_type": "rectangle", "points": [[0, 0]]})
    path.write_text(json.dumps(document))
    found = import_annotations(tmp_path / "in", tmp_path / "out")
    assert found.notes == {
        "boxes, left out": 1,
        "photos taken out of the annotation files, as they have no file": 1,
    }
    assert (tmp_path / "out/images/scene-0.png").read_bytes() == photo
    label = np.asarray(Image.open(tmp_path / "out/labels/scene-0.png"))
    mine = found.space.names.index("mine")
    assert (label[20:23, 10:15] == mine).all()
    assert (label == mine).sum() == 15


def test_yolo(tmp_path, scenes):
    for split, part in (("train", scenes[:2]), ("val", scenes[2:])):
        save_photos(tmp_path / "images" / split, part)
        for index, (image, _, traced) in enumerate(part):
            size = image.shape[1::-1]
            lines = [
                f"{v} " + " ".join(map(repr, map(float, (p / size).ravel()))) for v, p in traced
            ]
            path = tmp_path / "labels" / split / f"scene-{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join([*lines, "3 0.5 0.5 0.2 0.2"]))
    (tmp_path / "data.yaml").write_text(json.dumps({"names": dict(enumerate(SPACE.names))}))
    (tmp_path / "data.yaml").write_text("names:\n" + "".join(f"- {n}\n" for n in SPACE.names))
    found = import_annotations(tmp_path, tmp_path / "out")
    assert found.notes == {"boxes, left out": 3}
    assert found.splits == {"train": 2, "val": 1}
    check(tmp_path / "out", scenes[:2], below="train")
    check(tmp_path / "out", scenes[2:], below="val")


def test_label_studio(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    tasks = []
    for index, (image, label, traced) in enumerate(scenes):
        height, width = image.shape[:2]
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        results = [
            size
            | {"type": "polygonlabels"}
            | {
                "value": {
                    "points": (points * 100 / [width, height]).tolist(),
                    "polygonlabels": [SPACE.classes[value].name],
                }
            }
            for value, points in traced
        ]
        sky = {"format": "rle", "rle": brush(label == 0), "brushlabels": ["sky"]}
        results.append(size | {"type": "brushlabels", "value": sky})
        address = {"image": f"/data/upload/3/0a1b2c3d-scene-{index}.png"}
        tasks.append({"id": index, "data": address, "annotations": [{"result": results}]})
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    found = import_annotations(tmp_path / "project.json", tmp_path / "out")
    assert found.format == "label_studio"
    assert not found.notes
    check(tmp_path / "out", scenes)


def brush(mask):
    """Label Studio's brush of a mask: RGBA values in runs of one value, some as a stretch."""
    values = np.repeat(mask.ravel() * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{n - 1:04b}" for n in (3, 4, 8, 16))
    ends = [*(np.flatnonzero(np.diff(values)) + 1), len(values)]
    begin = 0
    for end in ends:
        while begin < end:
            length = min(int(end) - begin, 1 << 16)
            if length <= 8:
                bits += f"0{0:02b}{length - 1:03b}" + f"{values[begin]:08b}" * length
            else:
                bits += f"1{3:02b}{length - 1:016b}{values[begin]:08b}"
            begin += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def write_cvat(folder, scenes):
    ElementTree.ElementTree(cvat_tree(scenes)).write(folder / "annotations.xml")


EXPORTS = {
    "coco": lambda folder, scenes: write_coco(folder / "annotations.json", scenes, first_id=1),
    "cvat": write_cvat,
    "labelme": write_labelme,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_what_was_imported_trains_to_the_weights_of_the_label_maps(tmp_path, scenes, name):
    """Those of a folder of the drawn label maps, with their classes in the order of the import."""
    save_photos(tmp_path / "in", scenes)
    EXPORTS[name](tmp_path / "in", scenes)
    found = import_annotations(tmp_path / "in", tmp_path / "imported")
    assert found.format == name
    save_photos(tmp_path / "drawn" / "images", scenes)
    (tmp_path / "drawn" / "labels").mkdir()
    place = np.full(256, 255, np.uint8)
    for number, c in enumerate(SPACE.classes):
        if c.name in found.space.names:
            place[number] = found.space.names.index(c.name)
    for index, (_, label, _) in enumerate(scenes):
        Image.fromarray(place[label]).save(tmp_path / f"drawn/labels/scene-{index}.png")
    (tmp_path / "drawn/classes.json").write_text(json.dumps({"classes": found.space.names}))
    weights = []
    for folder in ("drawn", "imported"):
        recipe = load_recipe("demo", (*LIGHT, "train.images=4", f"data.root={tmp_path / folder}"))
        train.run(recipe, tmp_path / f"run-{folder}", device="cpu", quiet=True)
        path = checkpoint.training_checkpoints(tmp_path / f"run-{folder}")[-1]
        weights.append(checkpoint.load_training(path).networks)
    drawn, imported = weights
    assert drawn.keys() == imported.keys()
    for network, tensors in drawn.items():
        assert tensors
        for key, tensor in tensors.items():
            assert torch.equal(tensor, imported[network][key]), (network, key)


def test_the_command_says_what_it_did(tmp_path, scenes):
    save_photos(tmp_path / "images", scenes)
    document = write_coco(tmp_path / "a.json", scenes)
    document["annotations"].append({"image_id": 0, "category_id": 1, "bbox": [0, 0, 5, 5]})
    (tmp_path / "a.json").write_text(json.dumps(document))
    arguments = ["data", "import", str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*arguments, "--background", "rest"])
    assert result.exit_code == 0, result.output
    assert "3 photos with label maps of 11 classes" in result.output
    assert "pixels that no region covers are rest" in result.output
    assert "1 boxes without an outline, left out" in result.output
    label = np.asarray(Image.open(tmp_path / "out/labels/scene-0.png"))
    assert np.array_equal(label == 0, scenes[0][1] == 255)
    inspected = CliRunner().invoke(cli, ["data", "inspect", str(tmp_path / "out")])
    assert inspected.exit_code == 0, inspected.output
