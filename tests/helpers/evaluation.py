"""An evaluation in a blink: requests, and sets of samples in several formats."""

import json
import shutil

import numpy as np
from PIL import Image

from ecgan import labels
from ecgan.data import datasets
from ecgan.evaluation import run as evaluate
from ecgan.recipe import parse_recipe
from ecgan.runtime.storage import HIDDEN, open_store
from ecgan.shards import codecs, formats, records
from ecgan.shards.files import names
from ecgan.shards.manifest import SCHEMA
from tests.helpers import folder_items
from tests.helpers.tiny import NAMES, SIZE

TINY = {"width": 4, "upsamplings": 5, "style": True, "label_generator": "off"}


def evaluated(request):
    """The content of report.json, and its folder."""
    report, out = evaluate.run(request)
    return report.to_json(), out


def recipe_of(root, **sections):
    document = {"data": {"root": str(root / "real"), "height": SIZE[0], "width": SIZE[1]}}
    return parse_recipe(document | sections, "test")


def request_of(world, out, **changes):
    fields = {
        "samples": (world / "samples",),
        "out": out,
        "recipe": recipe_of(world),
        "judge": str(world / "judge"),
        "device": "cpu",
        "quiet": True,
    }
    return evaluate.Request(**fields | changes)


def encoded_photos(root, split, keys=None):
    """The photos of a split as samples in the bytes of files."""
    for item in folder_items.index("folder", root / "real", split):
        if keys is not None and item.key not in keys:
            continue
        space = labels.load_label_space(root / "real" / "classes.json")
        label = datasets.read_label(item, space, "folder")
        counts = records.count_classes(label, space.num_classes)
        record = records.Record(f"{item.key}-s000", item.key, 0, 1, SIZE[1], SIZE[0], counts)
        image = codecs.encode_image(datasets.read_image(item), "png", 95)
        yield records.Encoded(
            record, image, codecs.encode_map(label), codecs.encode_map(label * 0 + 9)
        )


def write_samples(world, out, data_format, split="val"):
    formats.write_shard(
        open_store(out),
        names.shard_name(data_format, "train", 0),
        encoded_photos(world, split),
        data_format=data_format,
        image_format="png",
        num_classes=len(NAMES),
    )
    shutil.rmtree(out / HIDDEN, ignore_errors=True)
    return out


def other_samples(world, out, change):
    """The samples with one file changed by ``change(image, label)``."""
    shutil.copytree(world / "samples", out)
    paths = [out / folder / "view-01.png" for folder in ("images", "labels")]
    arrays = change(*(np.array(Image.open(path)) for path in paths))
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    return out


def shards_of(world, out, **changes):
    """Samples with a manifest as ours, as far as evaluate reads it."""
    write_samples(world, out, "webdataset")
    recipe = recipe_of(world, model=TINY)
    space = labels.load_label_space(world / "real" / "classes.json")
    (tar,) = (out / "data").glob("*.tar")
    shard = {
        "name": f"data/{tar.name}",
        "samples": 3,
        "bytes": 0,
        "sha256": "0" * 64,
        "md5": "0" * 32,
    }
    about = {
        "schema": SCHEMA,
        "samples": 3,
        "layouts": 3,
        "label_space": "input",
        "recipe": recipe.model_dump(mode="json"),
        "classes": space.to_json(),
        "names": list(space.names),
        "class_pixels": [0] * len(space.names),
        "fingerprint": {},
        "shards": [shard],
    }
    (out / "manifest.json").write_text(json.dumps(about | changes))
    return out
