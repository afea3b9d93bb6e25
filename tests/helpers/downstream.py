"""A downstream experiment in a blink: real pairs, samples of tiny generators, requests."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ecgan import checkpoint, labels
from ecgan.data.datasets import DataFolder, Subset
from ecgan.errors import UserError
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream.arms import Arm
from ecgan.generation import run as generate
from ecgan.recipe import parse_recipe
from ecgan.recipe.segmenters import DownstreamTraining
from ecgan.runtime.files import sha256
from tests.helpers import folder_items
from tests.helpers.tiny import SIZE, write_pairs

FEW = {"train": 10, "val": 3}


def write_real(root, num_train=FEW["train"], num_val=FEW["val"]):
    """A real data set whose splits have keys of their own."""
    write_pairs(root, num_train, num_val)
    for path in root.glob("*/val/*.png"):
        path.rename(path.with_name(path.name.replace("scene", "view")))
    return root


def keys_of(root, split="train", fraction=1.0):
    return {i.key for i in folder_items.items_for("folder", root, split, subset=Subset(fraction))}


def make_samples(folder, real, *, seen=None, fraction=1.0, data=(), model=(), **options):
    """A data set of ours, by a generator with random weights that says what it saw."""
    document = {
        "data": {"root": str(real), "height": SIZE[0], "width": SIZE[1], "fraction": fraction},
        "model": {"width": 4, "upsamplings": 5, "style": True, "label_generator": "off"},
    }
    document["data"] |= dict(data)
    document["model"] |= dict(model)
    recipe = parse_recipe(document, "test")
    space = labels.load_label_space(real / "classes.json")
    folder.mkdir(parents=True)
    checkpoint.save_generator(
        folder / checkpoint.GENERATOR,
        checkpoint.build_generator(recipe, space),
        recipe,
        space,
        style_encoder=checkpoint.build_style_encoder(recipe),
        seen_keys=keys_of(real, fraction=fraction) if seen is None else seen,
    )
    out = folder / "samples"
    generate.run(
        generate.Request.of(
            folder / checkpoint.GENERATOR, out, n_styles=2, device="cpu", quiet=True, **options
        )
    )
    return out


def copy_samples(source, folder, *, seen=None, **recipe):
    """A copy of a set whose generator says that it saw other keys, or was of another recipe."""
    shutil.copytree(source / "samples", folder / "samples")
    file = folder / checkpoint.GENERATOR
    if seen is None:
        shutil.copy(source / checkpoint.GENERATOR, file)
    else:
        write_metadata(source / checkpoint.GENERATOR, file, seen_keys=sorted(seen))

    def change(about):
        about["fingerprint"]["checkpoint"] = sha256(file)
        for name, values in recipe.items():
            about["recipe"][name] |= values

    return edit_manifest(folder / "samples", change)


def write_metadata(source, file, **changes):
    """A generator file without weights, whose metadata are another's with changes."""
    document = checkpoint.read_metadata(source).model_dump() | changes
    save_file({"nothing": torch.zeros(1)}, file, {"ecgan": json.dumps(document)})


def edit_manifest(place, change):
    path = place / "manifest.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    return place


def training(**changes):
    tiny = {"architecture": "segformer", "channels": 8, "images": 4, "batch": 2, "mix_until": 1}
    return DownstreamTraining(**tiny | changes)


def arms(*words):
    return tuple(Arm.of(word) for word in words)


def parts(*fractions):
    return tuple(Subset(fraction) for fraction in fractions)


def request_of(world, cache, **changes):
    fields = {
        "folder": DataFolder("folder", world / "real"),
        "train_split": "train",
        "test_split": "val",
        "space": labels.load_label_space(world / "real" / "classes.json"),
        "size": SIZE,
        "samples": (world / "whole" / "samples",),
        "cache": cache,
        "arms": arms(0, 1),
        "seeds": 2,
        "training": training(),
        "generators": (
            world / "whole" / checkpoint.GENERATOR,
            world / "third" / checkpoint.GENERATOR,
        ),
        "quiet": True,
    }
    return downstream.Request(**fields | changes)


def ran(request):
    """The experiment's section of report.json."""
    return downstream.run(downstream.check(request)).report.model_dump(mode="json")


def numbers(section):
    """What must not depend on when and where it ran."""
    return section["rows"], section["sentences"], section["failed"]


def refusal(request):
    with pytest.raises(UserError) as error:
        downstream.check(request)
    return str(error.value)


def write_plain(folder, real, keys, spoil=lambda image: image):
    """Photos and label maps of train pairs as a plain folder of samples."""
    for key in keys:
        for kind in ("images", "labels"):
            pixels = np.asarray(Image.open(real / kind / "train" / f"{key}.png"))
            target = folder / kind / f"{key}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(spoil(pixels) if kind == "images" else pixels).save(target)
    return folder
