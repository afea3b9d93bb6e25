"""A folder data set in a blink: blocks of classes, photos that show them, a little noise."""

import json

import numpy as np
from PIL import Image

NAMES = ("road", "sky", "building", "tree", "car")


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
