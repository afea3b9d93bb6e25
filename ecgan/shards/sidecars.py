"""What stands beside the shards of a data set, so that other programs open it in one line.

``id2label.json`` (transformers), ``index.json`` (wids), and for the folder format
``dataset.yaml`` (Ultralytics), ``mmseg_dataset.py`` (mmsegmentation), ``dataset_meta.json``
(Datumaro). README, "The data set", is the contract; where a line here looks odd, a reader is why.
"""

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ecgan.shards.codecs import ImageFormat
from ecgan.shards.formats import Format, Listed


def wids_index(name: str, shards: Sequence[Listed]) -> str:
    """``index.json`` for random access by wids; addresses are relative to it."""
    listed = [
        {"url": s.name, "nsamples": s.samples, "filesize": s.bytes, "md5sum": s.md5} for s in shards
    ]
    value = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name}
    return json.dumps({**value, "shardlist": listed}, indent=2) + "\n"


def card_data_files(data_format: Format, split: str) -> list[str]:
    """Patterns for ``configs:`` of the data set card: with them no reader guesses."""
    match data_format:
        case "webdataset":
            return [f"data/{split}-*.tar"]
        case "parquet":
            return [f"data/{split}-*.parquet"]
        case "folder":
            return ["metadata.jsonl", *(f"{n}/{split}/*" for n in ("images", "masks", "edges"))]


def id2label(names: Sequence[str]) -> str:
    """``id2label.json``, which transformers' scripts ask for by that name."""
    return json.dumps(dict(enumerate(names)), indent=2, ensure_ascii=False) + "\n"


def folder_sidecars(
    names: Sequence[str],
    palette: npt.NDArray[np.uint8],
    *,
    split: str,
    image_format: ImageFormat,
    ignore_index: int,
) -> dict[str, str]:
    """Files by which mmsegmentation, Ultralytics and others open the folder format.

    Returns:
        Name -> text: dataset.yaml (Ultralytics) and mmseg_dataset.py, both up to 255 classes, and
        dataset_meta.json (Datumaro, in a folder with images and masks side by side).
    """
    colors = [palette[i].tolist() for i in range(len(names))]
    classes = "".join(f"  {i}: {json.dumps(n, ensure_ascii=False)}\n" for i, n in enumerate(names))
    images, masks = f"images/{split}", f"masks/{split}"
    # mmengine: an import would make it a lazy config, and no config has a __file__
    mmseg = f'''"""The data set for mmsegmentation: name this file in _base_, or copy the dict."""

dataset = dict(
    type="BaseSegDataset",
    data_root="{{{{ fileDirname }}}}",
    data_prefix=dict(img_path={images!r}, seg_map_path={masks!r}),
    img_suffix={"." + image_format!r},
    seg_map_suffix=".png",
    ignore_index={ignore_index},
    reduce_zero_label=False,
    metainfo=dict(
        classes={tuple(names)!r},
        palette={colors!r},
    ),
)
'''
    meta = {
        "label_map": {str(i): n for i, n in enumerate(names)},
        "segmentation_colors": colors,
    }
    texts = {"dataset_meta.json": json.dumps(meta, indent=2, ensure_ascii=False) + "\n"}
    if ignore_index > 255:
        return texts  # both read masks as 8 bits, one of them without a word
    return texts | {
        # without path, Ultralytics takes the folder of the YAML; "." would be the working directory
        "dataset.yaml": (
            "# Ultralytics, semantic segmentation. There is one split: validate on real images.\n"
            f"train: {images}\nval: {images}\nmasks_dir: masks\nnames:\n{classes}"
        ),
        "mmseg_dataset.py": mmseg,
    }
