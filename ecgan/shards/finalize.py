"""Last step of a data set: card, preview, index files of other programs; the manifest last.

All of it follows from the manifest and the shards, so a data set that was converted has it too.
``id2label.json`` is for transformers, ``index.json`` for wids; of the folder format,
``dataset.yaml`` for Ultralytics, ``mmseg_dataset.py`` for mmsegmentation and ``dataset_meta.json``
for Datumaro. The docs, "Formats", are the contract; where a line here looks odd, a reader is why.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from ecgan.errors import UserError, in_markdown
from ecgan.labels import Labels
from ecgan.runtime.storage import Store
from ecgan.runtime.timing import counted
from ecgan.shards.files.names import Format, listing_name
from ecgan.shards.manifest import MANIFEST, Manifest, ShardEntry
from ecgan.shards.readers import read_raw
from ecgan.shards.records import ShardSample, decoded
from ecgan.visualization import colorize, grid, legend_of

PREVIEW_ROWS, PREVIEW_STYLES = 6, 5
# What stands beside the shards of a data set, of any format
SIDECARS = (
    *("README.md", "id2label.json", MANIFEST, "index.json", "preview.png", "metadata.jsonl"),
    *("dataset.yaml", "mmseg_dataset.py", "dataset_meta.json"),
)

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


def finish(store: Store, about: Manifest) -> None:
    """Write what stands beside all shards of a data set; its manifest makes it complete."""
    space = about.class_list(store)
    palette = space.evaluation_palette if about.label_space == "evaluation" else space.palette
    texts = {"id2label.json": id2label(about.names), "README.md": card(about)}
    if about.format == "webdataset":
        texts["index.json"] = wids_index(about.name, about.shards)
    if about.format == "folder":
        texts |= folder_sidecars(about, palette)
        names = [listing_name(shard.name) for shard in about.shards]
        with store.writing("metadata.jsonl") as file:
            for name, text in zip(names, store.read_many(names), strict=True):
                if text is None:
                    raise UserError(f"{store}/{name}: not there; run the same command again")
                file.write(text)
    for name, text in texts.items():
        store.write(name, text)
    if any(shard.samples for shard in about.shards):
        with store.writing("preview.png") as file:
            preview(_samples(store, about), about.names, palette, about.size).save(file, "PNG")
    store.write(MANIFEST, about.text())


def _samples(store: Store, about: Manifest) -> Iterator[ShardSample]:
    for shard in about.shards:
        for raw in read_raw(store, shard.name):
            sample = decoded(raw, str(store))
            if int(sample.label.max(initial=0)) > about.ignore_index:
                raise UserError(
                    f"{store}: sample {sample.key}: its label has ids above {about.ignore_index}; "
                    "make the data set again"
                )
            yield sample


# Card and preview


def card(about: Manifest) -> str:
    """README.md of a data set, from its manifest. No time, so that the same set has the same card.

    The front matter names the files of the data: with it no reader of Hugging Face's guesses.
    """
    count, split = about.samples, about.split
    dataset = about.of_recipe("data", "dataset", "folder")
    front = {
        "license": about.of_recipe("sampling", "license", "other"),
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
                "data_files": [{"split": split, "path": card_data_files(about.format, split)}],
            }
        ],
    }
    pixels = about.class_pixels
    total = max(1, sum(pixels))
    rows = "".join(
        f"| {i} | {in_markdown(name)} | {n / total:.2%} |\n"
        for i, (name, n) in enumerate(zip(about.names, pixels, strict=True))
    )
    code = _OPENED_BY[about.format].format(
        last=_braces(about), image=about.image_format, split=split
    )
    height, width = about.size
    more = _onto(about) + _filter(about) + _plan(about) + _unlabelled(about)
    quality = "" if about.image_format == "png" else f", quality {about.quality}"
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {count} {"partly " * bool(about.onto)}synthetic samples from {about.layouts or "some"} layouts

{_made_by(about)}

```python
{code}```

- Size {height} x {width} (height x width), {about.image_format}{quality}.
- Labels are greyscale PNG, pixel = class id ({about.label_space} ids), {about.ignore_index} =
  unlabelled.
- Edges are greyscale PNG, source: {about.edge_source}. Styles: {about.styles}.
{more}- `manifest.json` has recipe, hashes and counts; `preview.png` shows
  some samples.

| id | class | share of labelled pixels |
|---|---|---|
{rows}"""


def _digest(about: Manifest) -> str:
    """Short hash of all shards: another data set in a folder of the same name is another one."""
    sums = "".join(shard.sha256 for shard in about.shards)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def _made_by(about: Manifest) -> str:
    """What made the images; less of it without provenance."""
    made = about.provenance
    labels = "the labels are the maps themselves"
    if about.filter.kind != "none":
        labels = "the labels are the maps, less what the label filter made unlabelled"
    if about.varied_layouts:
        kinds = in_markdown(", ".join(about.vary))
        labels += f"; {about.varied_layouts} of the maps were varied before ({kinds})"
    if made is None:
        return f"Images and edges from label maps; {labels}. All images are {_kind(about)}."
    version = in_markdown(about.versions.get("ecgan", ""))
    return (
        f"Images and edges made by ECGAN (ecgan {version}, recipe "
        f"{in_markdown(about.name)},\ncheckpoint `{made.checkpoint.sha256[:16]}` after "
        f"{made.checkpoint.images_seen} images) from label maps;\n{labels}.\n"
        f"All images are {_kind(about)} (IPTC digital source type "
        f"{in_markdown(made.digital_source_type)}, in each image's XMP and each record)."
    )


def _kind(about: Manifest) -> str:
    return "photos with synthetic objects" if about.onto else "synthetic"


_INDEPENDENT = {
    "yes": "no sample was judged by a network that was trained on its layout's photo",
    "no": "**the segmenter was trained on photos of these very layouts**, so it is lenient",
    "unknown": "whether the segmenter was trained on photos of these layouts is not known",
}


def _filter(about: Manifest) -> str:
    """A line on the label filter."""
    done = about.filter
    if done.kind == "none" or done.kept_fraction is None:
        return ""
    return (
        f"- Label filter: segmenter {in_markdown(str(done.segmenter))}, pixels above "
        f"{done.thresholds['tolerance']:g} x their class's mean loss on real images are\n"
        f"  unlabelled; {done.kept_fraction:.1%} of the labelled pixels were kept, "
        f"{counted(done.inconsistent, 'sample')} kept less than "
        f"{done.thresholds['min_kept']:.0%},\n"
        f"  {done.dropped} were left out, {done.retried} attempts were made again. "
        f"Independence: {_INDEPENDENT[done.independent]}.\n"
    )


def _onto(about: Manifest) -> str:
    """A line on pixels of photos, where there are any."""
    if not about.onto:
        return ""
    return (
        f"- **These images hold pixels of photos** ({about.layouts} of the generator's training "
        "data): only objects that were pasted into\n  the label maps are generated, as each "
        "record's `variation` says, and one pixel around them is blended. Licence and\n  privacy "
        "of the photos apply.\n"
    )


def _unlabelled(about: Manifest) -> str:
    """A line on photos without label maps, where the generator learnt from any."""
    if not about.unlabelled:
        return ""
    return (
        f"- The generator also learnt from {counted(len(about.unlabelled), 'photo')} without label "
        "maps, read by a segmenter; their\n  digests are in `manifest.json` (`unlabelled`).\n"
    )


def _plan(about: Manifest) -> str:
    """A line on how samples were spread over the layouts, where not evenly."""
    if about.balance == "none":
        return ""
    kind = {"hardness": "by hardness of the layouts", "target": "by target class shares"}
    return f"- Samples are spread over the layouts {kind.get(about.balance, 'unevenly')}.\n"


def preview(
    samples: Iterable[ShardSample],
    names: Sequence[str],
    palette: npt.NDArray[np.uint8],
    size: tuple[int, int],
) -> Image.Image:
    """Rows of label maps: label, edge of the first style, images of the first styles; a legend.

    A layout that was varied has a row for each form, so that each image is beside its own label.

    Args:
        samples: in the order of the data set; only as many are read as are shown.
        names: of the classes.
        palette: colours of the class ids.
        size: height and width of the samples.
    """
    rows: dict[tuple[str, bytes], list[npt.NDArray[np.uint8]]] = {}
    labels: list[Labels] = []
    for sample in samples:
        own = sample.source, sample.label.tobytes()
        if own not in rows:
            if len(rows) == PREVIEW_ROWS:
                break
            assert sample.edge is not None
            rows[own] = [colorize(sample.label, palette), sample.edge]
            labels.append(sample.label)
        if len(rows[own]) < 2 + PREVIEW_STYLES:
            rows[own].append(sample.image)
    columns = max(len(row) for row in rows.values())
    blank = np.full((*size, 3), 255, np.uint8)
    titles = ["label", "edge", *(f"style {k}" for k in range(columns - 2))]
    filled = [row + [blank] * (columns - len(row)) for row in rows.values()]
    return grid(filled, titles, legend=legend_of(labels, names, palette))


def _braces(about: Manifest) -> str:
    """All shards in webdataset's notation."""
    names = [shard.name for shard in about.shards]
    if about.format != "webdataset" or len(names) == 1:
        return names[0]
    first, last = (name.removesuffix(".tar").rpartition("-")[2] for name in (names[0], names[-1]))
    return names[0].replace(first, f"{{{first}..{last}}}")


# Index files of other programs


def wids_index(name: str, shards: Sequence[ShardEntry]) -> str:
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


def folder_sidecars(about: Manifest, palette: npt.NDArray[np.uint8]) -> dict[str, str]:
    """Files by which mmsegmentation, Ultralytics and others open the folder format.

    Returns:
        Name -> text: dataset.yaml (Ultralytics) and mmseg_dataset.py, both up to 255 classes, and
        dataset_meta.json (Datumaro, in a folder with images and masks side by side).
    """
    names, split, ignore_index = about.names, about.split, about.ignore_index
    colors = [palette[i].tolist() for i in range(len(names))]
    classes = "".join(  # YAML does not know all characters
        f"  {i}: {json.dumps(n, ensure_ascii=not n.isprintable())}\n" for i, n in enumerate(names)
    )
    images, masks = f"images/{split}", f"masks/{split}"
    # mmengine: an import would make it a lazy config, and no config has a __file__
    mmseg = f'''"""The data set for mmsegmentation: name this file in _base_, or copy the dict."""

dataset = dict(
    type="BaseSegDataset",
    data_root="{{{{ fileDirname }}}}",
    data_prefix=dict(img_path={images!r}, seg_map_path={masks!r}),
    img_suffix='.{about.image_format}',
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
