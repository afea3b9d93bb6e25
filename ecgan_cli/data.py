"""``ecgan data``: toy scenes, a look at a data set, checks, conversion, a resized copy."""

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgan.errors import UsageError, UserError
from ecgan_cli.command import Group
from ecgan_cli.options import (
    COUNT,
    FORMAT,
    JSON,
    PATH,
    POSITIVE,
    QUIET,
    SET,
    data_option,
    option,
    recipe_option,
    require_data,
    write_new,
)

if TYPE_CHECKING:
    from ecgan.data.survey import Inspection
    from ecgan.labels import LabelSpace

_side = partial(option, type=click.IntRange(min=16), metavar="PIXELS")
_PIXELS = 256 * 512  # of a proposed size, at most: the paper's Cityscapes


@click.group(cls=Group)
def data() -> None:
    """Draw, inspect, verify and convert data.

    \b
    ecgan data toy --out datasets/toy --num 200
    ecgan data inspect datasets/mine
    ecgan data verify datasets/mine-augment
    ecgan data convert datasets/mine-augment shards/mine --format parquet
    ecgan data cache --recipe cityscapes --data DIR --out cached
    """


@data.command(short_help="Draw a toy data set.")
@option("--out", type=PATH, metavar="DIR", required=True, help="New folder.")
@option("--num", type=POSITIVE, default=200, help="Scenes.")
@option("--seed", type=COUNT, default=0, help="Seed.")
@_side("--height", default=128, help="Height in pixels.")
@_side("--width", default=256, help="Width in pixels.")
def toy(out: Path, num: int, seed: int, height: int, width: int) -> None:
    """Draw a toy data set: street scenes with label maps, free of any licence."""
    from ecgan.demo.toy import write_toy

    write_toy(out, num, seed, height=height, width=width)
    click.echo(f"Wrote {num} scenes to {out}; train on them with --recipe demo --data {out}")


@data.command(short_help="Survey a data set, propose a recipe.")
@click.argument("folder", metavar="DIR", type=PATH)
@option(
    "--dataset",
    type=click.Choice(["folder", "cityscapes", "ade20k", "coco_stuff"]),
    help="Directory structure.",
    show_default="recognised from the folders",
)
@option("--files", type=COUNT, default=500, help="Number of pairs to open, spread evenly; 0: all.")
@JSON
@option(
    "--write-classes",
    type=PATH,
    metavar="FILE",
    help="Write the proposed class list; its names are yours to fill in.",
)
@option("--write-recipe", type=PATH, metavar="FILE", help="Write the proposed recipe.")
def inspect(
    folder: Path,
    dataset: str | None,
    files: int,
    *,
    as_json: bool,
    write_classes: Path | None,
    write_recipe: Path | None,
) -> None:
    """Print files, sizes and classes of the data set in DIR, and propose a recipe for it."""
    from ecgan.data import survey as library

    found = library.inspect(folder, dataset=dataset, num_files=files)
    proposed = None if found.space is not None else library.propose_classes(found)
    if write_classes is not None:
        space = found.space or proposed
        if space is None:
            raise UserError(f"{folder}: no class list can be proposed for these label maps")
        write_new(write_classes, json.dumps(space.to_json(), indent=1) + "\n")
    recipe = _recipe(found, proposed, write_classes)
    if write_recipe is not None:
        write_new(write_recipe, recipe)
    if as_json:
        click.echo(json.dumps({**found.to_json(), "recipe": recipe}, indent=2))
        return
    click.echo(found.to_text())
    click.echo("Proposed recipe (save it as a .yaml file, or use --write-recipe FILE):\n")
    click.echo(recipe, nl=False)


@data.command(short_help="Verify the files of generated samples.")
@click.argument("place", metavar="DIR|URL")
@JSON
@QUIET
def verify(place: str, *, as_json: bool, quiet: bool) -> None:
    """Verify a finished data set of ecgan: read every byte and list all faults.

    Checks hashes, counts, keys, fields, kinds of maps, ids and class pixels. Exit code 1 if
    there is a fault.
    """
    from dataclasses import asdict

    from ecgan.shards.verify import verify as library

    found = library(place, quiet=quiet)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    if found.faults:
        more = [f"and {found.more} more"] if found.more else []
        raise UserError(f"{place}: verification failed", [*found.faults, *more])
    if not as_json:
        click.echo(f"{place}: {found.samples} samples in {found.shards} shards, no faults")


@data.command(short_help="Convert samples to another format.")
@click.argument("source", metavar="DIR|URL")
@click.argument("out", metavar="OUT")
@FORMAT(required=True)
@option(
    "--samples-per-shard", type=int, metavar="N", help="Samples a shard.", show_default="as before"
)
@QUIET
def convert(
    source: str,
    out: str,
    data_format: Any,  # noqa: ANN401  one of the three
    samples_per_shard: int | None,
    *,
    quiet: bool,
) -> None:
    """Convert a finished data set of ecgan to another format; samples keep their bytes."""
    from ecgan.shards.convert import convert as library

    count = library(source, out, data_format, samples_per_shard=samples_per_shard, quiet=quiet)
    click.echo(f"{count} samples in {out}")


def _recipe(found: "Inspection", proposed: "LabelSpace | None", classes: Path | None) -> str:
    """A recipe that fits the size and number of the photos, as YAML with comments."""
    import yaml

    from ecgan.labels import clean_key
    from ecgan.recipe import nearest_size

    height, width = found.common_size or (256, 512)
    scale = min(1, math.sqrt(_PIXELS / (height * width)))
    fitting = nearest_size(round(height * scale), round(width * scale), "auto")
    num_train = next((s.num_pairs for s in found.splits if s.name == "train"), found.num_pairs)
    small = num_train < 2000
    images = min(600_000, max(20_000, 250 * num_train)) // 1000 * 1000
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "dataset": found.dataset,
            "root": str(found.root),
            "height": fitting[0],
            "width": fitting[1],
            **_classes(found, proposed, classes),
            **({"instances": True} if found.has_instances else {}),
        },
        "model": {
            "style": True,
            "label_generator": "train",
            "label_generator_training": {"images": min(20_000, max(4_000, 20 * num_train))},
        },
        "losses": {"perceptual_network": "efficientnet_lite0", "perceptual": 5},
        "train": {
            "images": images,
            "batch": 16,
            "ema_images": 5_000 if small else 10_000,
            **({"augment": "diffaugment"} if small else {}),
            "checkpoint_every": images // 10,
            "preview_every": images // 20,
        },
    }
    name = clean_key(found.root.resolve().name)
    text = yaml.safe_dump({"name": name, **sections}, sort_keys=False, allow_unicode=True)
    common = f", most of them {width} x {height}" if found.common_size else ""
    head = [f"# {name}: {num_train} pairs to train on{common}."]
    if small:
        head.append("# Below 2,000 photos: D sees augmented inputs (train.augment).")
    if found.space is None:
        head.append("# The names of the classes are yours to fill in.")
    if found.has_edges:
        head.append("# edges/ has a map for each photo: data.edges: folder uses them.")
    return "\n".join(head) + "\n" + text


def _classes(
    found: "Inspection", proposed: "LabelSpace | None", written: Path | None
) -> dict[str, Any]:
    """The keys of section data that say what the numbers in label maps mean."""
    if written is not None:
        return {"classes": str(written)}
    if found.space is not None or proposed is None:
        return {}
    return {"classes": proposed.to_json()["classes"], "ignore": proposed.ignore}


@data.command(short_help="Copy a data set, resized for training.")
@recipe_option(required=True, help="Recipe to train with; gives the size.")
@data_option("root", type=PATH)
@option("--out", type=PATH, metavar="DIR", required=True, help="Folder of the copy.")
@SET
@option("--threads", type=POSITIVE, help="Threads.", show_default="all cores")
def cache(
    recipe_name: str,
    root: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    threads: int | None,
) -> None:
    """Copy a data set, resized as the recipe's training would, so that loading is faster.

    \b
    ecgan data cache --recipe cityscapes --data DIR --out cached
    ecgan train --recipe cityscapes --set data.dataset=folder --data cached

    The copy is lossless and gives the same tensors. The same command again resumes.
    """
    import os

    from ecgan.data import checks, datasets
    from ecgan.data import resized_copy as library
    from ecgan.recipe import label_space, load_recipe

    if require_data(root) is not None:
        overrides = (*overrides, f"data.root={json.dumps(str(root))}")
    found = load_recipe(recipe_name, overrides).data
    if found.root is None:
        raise UsageError("the recipe has no data.root: give the data set with --data DIR")
    if found.edges == "folder":
        raise UserError(
            "data.edges: folder: edge maps of a folder are not copied; use the original"
        )
    base = Path(found.root)
    others = {*datasets.splits(found.dataset, base)} - {found.split}
    splits = {
        split: datasets.items_for(
            found.dataset, base, split, train_split=found.split, instances=found.instances
        )
        for split in dict.fromkeys((found.split, "val", *sorted(others)))
    }
    space = label_space(found)
    for items in splits.values():
        checks.check_labels(items, space, found.dataset)
    source = library.Source(
        found.dataset,
        base,
        space,
        found.split,
        found.resize_to,
        (found.height, found.width),
        found.instances,
    )
    written = library.write_cache(source, splits, out, threads=threads or os.cpu_count() or 1)
    counts = ", ".join(f"{split} {len(items)}" for split, items in splits.items())
    click.echo(f"{out}: {counts}; {written} written now")
