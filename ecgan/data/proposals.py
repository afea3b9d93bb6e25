"""Proposals of a class list and a recipe for a data set that was surveyed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ecgan import labels
from ecgan.data.datasets import DataFolder
from ecgan.data.files.encoding import Values
from ecgan.data.files.label_maps import Form
from ecgan.data.files.pairing import count
from ecgan.labels import LabelClass, LabelSpace

if TYPE_CHECKING:
    from ecgan.data.survey import DatasetSurvey

MAX_CLASSES = 1024  # more numbers or colours than this are no class list
Machine = Literal["cpu", "gpu"]
# Pixels of a proposed size: the paper's Cityscapes; on a CPU, what trains in minutes
_MAX_PIXELS: dict[Machine, int] = {"gpu": 256 * 512, "cpu": 96 * 128}
PIXELS_PER_SECOND = 26_000  # of a proposed training on one CPU core, measured at 96 x 128
_SMALL: dict[str, dict[str, Any]] = {  # settings for fewer than 2,000 photos
    "model": {
        "style_encoder": "statistics",
        "style_injection": "blocks",
        "segmentation_discriminator": "features",
    },
    "losses": {"edge_slope": 0.05, "kl": 0.005},
    "train": {"augment": "diffaugment"},
    "sampling": {"style_prior": "photos"},
}


def propose_classes(values: Values) -> LabelSpace | None:
    """Class list for label maps that come without one; its names are to be filled in.

    None where the maps hold both numbers and colours, nothing, or more values than classes can be.
    """
    tallies = values.tallies
    colors = [v for v in tallies if v.form == Form.COLORS]
    is_gray = all(v.number >= 0 for v in colors)
    if colors and not is_gray:
        if len(colors) < len(tallies) or len(colors) > MAX_CLASSES:
            return None
        ordered = sorted(colors, key=lambda v: (v.color != 0, -tallies[v].pixels))
        classes = [
            LabelClass(i, f"class {i}", _rgb(value.color)) for i, value in enumerate(ordered)
        ]
        return LabelSpace(tuple(classes), None)
    numbers = sorted({v.number for v in tallies})
    if not numbers or numbers[0] < 0 or numbers[-1] > 65535 or len(numbers) > MAX_CLASSES:
        return None
    # 255 is a class where there are ids above it, and where there is one other value only.
    ignore = 255 if numbers[-1] == 255 and len(numbers) != 2 else None
    ids = [number for number in numbers if number != ignore]
    if ids[-1] < 2 * len(ids) + 2:
        ids = [*range(ids[-1] + 1)]  # some are rare
    palette: dict[int, int] = {}
    for value in tallies:
        if (
            value.form == Form.PALETTE
            and palette.setdefault(value.number, value.color) != value.color
        ):
            palette = {}
            break
    entries = [
        {
            "id": number,
            "name": f"class {number}",
            **({"color": [*_rgb(palette[number])]} if number in palette else {}),
        }
        for number in ids
    ]
    return labels.from_json({"classes": entries, "ignore": ignore}, "proposal")


def proposal_notes(values: Values) -> list[str]:
    """What is uncertain about a proposed class list."""
    space, tallies = values.space, values.tallies
    if space is None:
        return []
    notes = ["There is no class list beside the data; the proposed one has no names yet."]
    numbers = sorted({v.number for v in tallies})
    if len(numbers) == 2 and numbers[-1] == 255:
        notes.append(
            f"The label maps hold {numbers[0]} and 255 only: proposed as two classes; if 255 is "
            'unlabelled, write "ignore": 255 into the class list in place of its class.'
        )
    elif space.file_ids is not None:
        listed = ", ".join(f"{n} -> {label}" for n, label in space.file_ids[:6])
        notes.append(f"The numbers have gaps: the class list maps them to ids ({listed}, ...).")
    is_color = any(v.form == Form.COLORS and v.number < 0 for v in tallies)
    if is_color and any(v.color == 0 for v in tallies):
        notes.append(
            "Black is proposed as a class; if it is unlabelled, take it out of the class list."
        )
    return notes


def propose_recipe(
    survey: "DatasetSurvey",
    nearest_size: Callable[[int, int], tuple[int, int]],
    *,
    classes: LabelSpace | Path | None = None,
    machine: Machine = "gpu",
) -> str:
    """Recipe that fits the size and number of the photos and the machine, as YAML with comments.

    Args:
        survey: survey of the data set.
        nearest_size: height and width that a network can have, near to those of the photos.
        classes: class list, or its file, where the data set has none.
        machine: what to train on. On a CPU pictures, network and all lengths are such that forty
            photos take minutes.
    """
    height, width = survey.common_size or (256, 512)
    scale = min(1, math.sqrt(_MAX_PIXELS[machine] / (height * width)))
    fitting = nearest_size(round(height * scale), round(width * scale))
    pairs = {split.name: split.num_pairs for split in survey.splits}
    split = "train" if "train" in pairs else next((name for name in pairs if name), None)
    num_train = pairs.get(split, survey.num_pairs)
    small = num_train < 2000 or machine == "cpu"  # a short training sees few photos, often
    lengths = _on_cpu(num_train) if machine == "cpu" else _on_gpu(num_train, small=small)
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": survey.dataset,
            "root": str(survey.root),
            **({} if split in {None, "train"} else {"split": split}),
            "height": fitting[0],
            "width": fitting[1],
            **lengths.get("data", {}),
            **_class_keys(classes),
            **({"instances": True} if survey.has_instances else {}),
            **_reading_keys(survey.folder),
        },
        "model": {"style": True, **(_SMALL["model"] if small else {}), **lengths["model"]},
        "losses": {
            "perceptual_network": "efficientnet_lite0",
            "perceptual": 5,
            **(_SMALL["losses"] if small else {}),
        },
        "train": {**lengths["train"], **(_SMALL["train"] if small else {})},
        "evaluate": lengths.get("evaluate", {}),
        "sampling": {**(_SMALL["sampling"] if small else {}), **lengths.get("sampling", {})},
    }
    sections = {name: section for name, section in sections.items() if section}
    name = labels.clean_key(survey.root.resolve().name)
    text = yaml.safe_dump({"name": name, **sections}, sort_keys=False, allow_unicode=True)
    common = f", most of them {width} x {height}" if survey.common_size else ""
    head = [f"# {name}: {count(num_train, 'pair')} to train on{common}."]
    if machine == "cpu":
        minutes = minutes_on_cpu(lengths["train"]["images"], *fitting)
        head.append(
            "# For a CPU: small pictures, a narrow network; about "
            f"{minutes} min of training on one core."
        )
        head.append("# With a GPU, ecgan data inspect --for gpu proposes larger ones.")
    if split not in {None, "train"}:
        same = "; previews and scores are of the same photos" if split == "val" else ""
        head.append(f"# There is no split train: this trains on {split}{same}.")
    if small:
        kind = "Below 2,000 photos" if num_train < 2000 else "For a short training"
        head.append(f"# {kind}: augmented inputs, a second discriminator, the photos' styles.")
    if survey.space is None:
        head.append("# The names of the classes are yours to fill in.")
    if survey.has_edges:
        head.append("# edges/ has a map for each photo: data.edges: folder uses them.")
    return "\n".join(head) + "\n" + text


def minutes_on_cpu(images: int, height: int, width: int) -> int:
    """Length of a proposed training on one CPU core, from what was measured."""
    return max(1, round(images * height * width / PIXELS_PER_SECOND / 60))


def _on_gpu(num_train: int, *, small: bool) -> dict[str, dict[str, Any]]:
    """Lengths of a training on a GPU, by section."""
    images = min(600_000, max(20_000, 250 * num_train)) // 1000 * 1000
    segmenter = {"images": min(20_000, max(4_000, 20 * num_train))}
    return {
        "model": {"label_generator": "train", "label_generator_training": {**segmenter}},
        "evaluate": {"judge_training": {**segmenter}},
        "sampling": {"filter_training": {**segmenter}},
        "train": {
            "images": images,
            "batch": 16,
            "ema_images": 5_000 if small else 10_000,
            "checkpoint_every": images // 10,
            "preview_every": images // 20,
        },
    }


def _on_cpu(num_train: int) -> dict[str, dict[str, Any]]:
    """Lengths of a training on a CPU, by section, and a network for them; as recipe demo has.

    The label generator is left out: in the time of its training and term more images give more.
    Batches are small, since so short a training lacks steps.
    """
    images = min(6_000, max(2_000, 20 * num_train)) // 400 * 400
    segmenter = {"channels": 16, "images": images * 4 // 5}
    return {
        "data": {"workers": 0},
        "model": {
            "width": 16,
            "label_generator": "off",
            "label_generator_training": {**segmenter},
        },
        "train": {
            "images": images,
            "batch": 2,
            "lr_generator": 0.0004,
            "lr_discriminator": 0.0008,
            "ema_images": images // 8,
            "checkpoint_every": images // 4,
            "preview_every": images // 4,
            "log_every": images // 25,
        },
        "evaluate": {
            "judge_training": {**segmenter},
            "downstream_training": {**segmenter},
        },
        "sampling": {"filter_training": {**segmenter}, "samples_per_shard": 50},
    }


def _reading_keys(folder: DataFolder) -> dict[str, Any]:
    """Keys of section data that the user's own word on files and their reading needs."""
    asked, given = folder.reading, folder.options
    keys = {
        "images": given.images,
        "labels": given.labels,
        "label_suffix": given.label_suffix,
        "label_encoding": None if asked.encoding is None else asked.encoding.value,
        "orientation": None if asked.orientation == "auto" else asked.orientation,
        "photo_levels": None if asked.levels is None else [*asked.levels],
    }
    return {key: value for key, value in keys.items() if value is not None}


def _class_keys(classes: LabelSpace | Path | None) -> dict[str, Any]:
    """Keys of section data that give the numbers in label maps their meaning."""
    if classes is None:
        return {}
    if isinstance(classes, Path):
        return {"classes": str(classes)}
    return {"classes": classes.entries(), "ignore": classes.ignore}


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255
