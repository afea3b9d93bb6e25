"""Proposals of a class list and a recipe for a data set that was surveyed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ecgan import labels
from ecgan.data.datasets import DataFolder
from ecgan.data.files.encoding import Values
from ecgan.data.files.label_maps import Form
from ecgan.labels import LabelClass, LabelSpace

if TYPE_CHECKING:
    from ecgan.data.survey import DatasetSurvey

MAX_CLASSES = 1024  # more numbers or colours than this are no class list
_MAX_PIXELS = 256 * 512  # of a proposed size: the paper's Cityscapes
_SMALL: dict[str, dict[str, Any]] = {  # settings for fewer than 2,000 photos
    "model": {
        "style_encoder": "statistics",
        "style_injection": "blocks",
        "segmentation_discriminator": "features",
    },
    "losses": {"kl": 0.005},
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
) -> str:
    """Recipe that fits the size and number of the photos, as YAML with comments.

    Args:
        survey: survey of the data set.
        nearest_size: height and width that a network can have, near to those of the photos.
        classes: class list, or its file, where the data set has none.
    """
    height, width = survey.common_size or (256, 512)
    scale = min(1, math.sqrt(_MAX_PIXELS / (height * width)))
    fitting = nearest_size(round(height * scale), round(width * scale))
    num_train = next((s.num_pairs for s in survey.splits if s.name == "train"), survey.num_pairs)
    small = num_train < 2000
    images = min(600_000, max(20_000, 250 * num_train)) // 1000 * 1000
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": survey.dataset,
            "root": str(survey.root),
            "height": fitting[0],
            "width": fitting[1],
            **_class_keys(classes),
            **({"instances": True} if survey.has_instances else {}),
            **_reading_keys(survey.folder),
        },
        "model": {
            "style": True,
            **(_SMALL["model"] if small else {}),
            "label_generator": "train",
            "label_generator_training": {"images": min(20_000, max(4_000, 20 * num_train))},
        },
        "losses": {
            "perceptual_network": "efficientnet_lite0",
            "perceptual": 5,
            **(_SMALL["losses"] if small else {}),
        },
        "train": {
            "images": images,
            "batch": 16,
            "ema_images": 5_000 if small else 10_000,
            **(_SMALL["train"] if small else {}),
            "checkpoint_every": images // 10,
            "preview_every": images // 20,
        },
        **({"sampling": _SMALL["sampling"]} if small else {}),
    }
    name = labels.clean_key(survey.root.resolve().name)
    text = yaml.safe_dump({"name": name, **sections}, sort_keys=False, allow_unicode=True)
    common = f", most of them {width} x {height}" if survey.common_size else ""
    head = [f"# {name}: {num_train} pairs to train on{common}."]
    if small:
        head.append(
            "# Below 2,000 photos: augmented inputs, a second discriminator, the photos' styles."
        )
    if survey.space is None:
        head.append("# The names of the classes are yours to fill in.")
    if survey.has_edges:
        head.append("# edges/ has a map for each photo: data.edges: folder uses them.")
    return "\n".join(head) + "\n" + text


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
