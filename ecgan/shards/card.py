"""What people look at first in a data set: its card (README.md) and its preview."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from ecgan.shards import sidecars
from ecgan.shards.formats import ShardSample
from ecgan.visualization import colorize, grid

PREVIEW_ROWS, PREVIEW_STYLES = 6, 5

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_OPENED_BY = {
    "webdataset": """import io
import numpy as np
import webdataset as wds
from PIL import Image

ids = wds.handle_extension("seg.png", lambda data: np.array(Image.open(io.BytesIO(data))))
data = wds.WebDataset("{last}", shardshuffle=100).decode(ids, "rgb8").to_tuple("{image}", "seg.png")
""",
    "parquet": """from datasets import load_dataset

data = load_dataset("FOLDER", split="{split}")  # columns image, label, edge, key, ...
""",
    "folder": """# mmsegmentation: mmseg_dataset.py; Ultralytics: dataset.yaml
from datasets import load_dataset

data = load_dataset("FOLDER", split="{split}")  # columns image, label, edge, key, ...
""",
}


def card(about: dict[str, Any]) -> str:
    """README.md of a data set, from its manifest. No time, so that the same set has the same card.

    The front matter names the files of the data: with it no reader of Hugging Face's guesses.
    """
    recipe, count, split = about["recipe"], about["samples"], about["split"]
    dataset = recipe["data"]["dataset"]
    front = {
        "license": recipe["sampling"]["license"],
        "task_categories": ["image-segmentation"],
        "task_ids": ["semantic-segmentation"],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["extended|" + ("other" if dataset == "folder" else dataset)],
        "size_categories": [next((n for m, n in _SIZES.items() if count < m), "n>1M")],
        "tags": ["synthetic", "ecgan"],
        "configs": [
            {
                "config_name": "default",
                # Hugging Face's cache knows a local data set by this entry and the folder's name
                "description": f"shards {_digest(about)}",
                "data_files": [
                    {"split": split, "path": sidecars.card_data_files(about["format"], split)}
                ],
            }
        ],
    }
    pixels = about["class_pixels"]
    total = max(1, sum(pixels))
    rows = "".join(
        f"| {i} | {name} | {n / total:.2%} |\n"
        for i, (name, n) in enumerate(zip(about["names"], pixels, strict=True))
    )
    code = _OPENED_BY[about["format"]].format(
        last=_braces(about), image=about["image_format"], split=split
    )
    height, width = about["size"]
    quality = "" if about["image_format"] == "png" else f", quality {about['quality']}"
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {count} synthetic samples from {about["layouts"]} layouts

{_made_by(about)}

```python
{code}```

- Size {height} x {width} (height x width), {about["image_format"]}{quality}.
- Labels are greyscale PNG, pixel = class id ({about["label_space"]} ids), {about["ignore_index"]} =
  unlabelled.
- Edges are greyscale PNG, source: {about["edge_source"]}. Styles: {about["style_source"]}.
{_filter(about)}{_plan(about)}- `manifest.json` has recipe, hashes and counts; `preview.png` shows
  some samples.

| id | class | share of labelled pixels |
|---|---|---|
{rows}"""


def _digest(about: dict[str, Any]) -> str:
    """Short hash of all shards: another data set in a folder of the same name is another one."""
    sums = "".join(shard["sha256"] for shard in about["shards"])
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def _made_by(about: dict[str, Any]) -> str:
    """What made the images; less of it without provenance."""
    recipe, made = about["recipe"], about.get("provenance")
    labels = "the labels are the maps themselves"
    if about["filter"]["kind"] != "none":
        labels = "the labels are the maps, less what the label filter made unlabelled"
    if about["varied_layouts"]:
        labels += f"; {about['varied_layouts']} of the maps were varied before ({_listed(about)})"
    if made is None:
        return f"Images and edges from label maps; {labels}. All images are synthetic."
    return (
        f"Images and edges made by ECGAN (ecgan {about['versions']['ecgan']}, recipe "
        f"{recipe['name']},\ncheckpoint `{made['checkpoint']['sha256'][:16]}` after "
        f"{made['checkpoint']['images_seen']} images) from label maps;\n{labels}.\n"
        "All images are synthetic (IPTC digital source type "
        f"{made['digital_source_type']}, in each image's XMP and each record)."
    )


def _listed(about: dict[str, Any]) -> str:
    return ", ".join(about["vary"])


_INDEPENDENT = {
    "yes": "no sample was judged by a network that was trained on its layout's photo",
    "no": "**the segmenter was trained on photos of these very layouts**, so it is lenient",
    "unknown": "whether the segmenter was trained on photos of these layouts is not known",
}


def _filter(about: dict[str, Any]) -> str:
    """A line on the label filter."""
    done = about["filter"]
    if done["kind"] == "none":
        return ""
    return (
        f"- Label filter: segmenter {done['segmenter']}, pixels above "
        f"{done['thresholds']['tolerance']:g} x their class's mean loss on real images are\n"
        f"  unlabelled; {done['kept_fraction']:.1%} of the labelled pixels were kept, "
        f"{done['inconsistent']} samples kept less than {done['thresholds']['min_kept']:.0%},\n"
        f"  {done['dropped']} were left out, {done['retried']} attempts were made again. "
        f"Independence: {_INDEPENDENT[done['independent']]}.\n"
    )


def _plan(about: dict[str, Any]) -> str:
    """A line on how samples were spread over the layouts, where not evenly."""
    if about["balance"] == "none":
        return ""
    kind = {"hardness": "by hardness of the layouts", "target": "by target class shares"}
    return f"- Samples are spread over the layouts {kind[about['balance']]}.\n"


def preview(
    samples: Iterable[ShardSample], palette: npt.NDArray[np.uint8], size: tuple[int, int]
) -> Image.Image:
    """Rows of layouts: label, edge of the first style, images of the first styles.

    Args:
        samples: in the order of the data set; only as many are read as are shown.
        palette: colours of the class ids.
        size: height and width of the samples.
    """
    rows: dict[str, list[npt.NDArray[np.uint8]]] = {}
    for sample in samples:
        if sample.source not in rows:
            if len(rows) == PREVIEW_ROWS:
                break
            assert sample.edge is not None
            rows[sample.source] = [colorize(sample.label, palette), sample.edge]
        if len(rows[sample.source]) < 2 + PREVIEW_STYLES:
            rows[sample.source].append(sample.image)
    columns = max(len(row) for row in rows.values())
    blank = np.full((*size, 3), 255, np.uint8)
    titles = ["label", "edge", *(f"style {k}" for k in range(columns - 2))]
    return grid([row + [blank] * (columns - len(row)) for row in rows.values()], titles)


def _braces(about: dict[str, Any]) -> str:
    """All shards in webdataset's notation."""
    names = [shard["name"] for shard in about["shards"]]
    if about["format"] != "webdataset" or len(names) == 1:
        return names[0]
    first, last = (name.removesuffix(".tar").rpartition("-")[2] for name in (names[0], names[-1]))
    return names[0].replace(first, f"{{{first}..{last}}}")
