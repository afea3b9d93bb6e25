"""The last step of a data set: card, preview and what other programs look for; manifest last.

All of it follows from the manifest and the shards, so a data set that was converted has it too.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgan import labels
from ecgan.runtime.storage import Store
from ecgan.shards import card, dataset, sidecars
from ecgan.shards import formats as shards
from ecgan.shards.formats import ShardSample


def finish(store: Store, about: dict[str, Any]) -> None:
    """Write what stands beside the shards.

    Args:
        store: of the data set, with all shards.
        about: its manifest; with it the data set is complete.
    """
    listed = dataset.listed(about)
    palette = palette_of(about)
    texts = {"id2label.json": sidecars.id2label(about["names"]), "README.md": card.card(about)}
    if about["format"] == "webdataset":
        texts["index.json"] = sidecars.wids_index(about["recipe"]["name"], listed)
    if about["format"] == "folder":
        texts |= sidecars.folder_sidecars(
            about["names"],
            palette,
            split=about["split"],
            image_format=about["image_format"],
            ignore_index=about["ignore_index"],
        )
        names = [shards.listing_name(shard.name) for shard in listed]
        with store.writing("metadata.jsonl") as file:
            for text in store.read_many(names):
                assert text is not None
                file.write(text)
    for name, text in texts.items():
        store.write(name, text)
    size = (about["size"][0], about["size"][1])
    if about["samples"]:
        with store.writing("preview.png") as file:
            card.preview(_samples(store, about), palette, size).save(file, "PNG")
    store.write("manifest.json", json.dumps(about, indent=2) + "\n")


def palette_of(about: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Colours of the ids that a data set's labels hold."""
    space = labels.from_json(about["classes"], "manifest.json: classes")
    evaluation = about["label_space"] == "evaluation"
    return space.evaluation_palette if evaluation else space.palette


def _samples(store: Store, about: dict[str, Any]) -> Iterator[ShardSample]:
    for shard in dataset.listed(about):
        for raw in shards.read_raw(store, shard.name):
            yield shards.decoded(raw, str(store))
