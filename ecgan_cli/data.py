"""``ecgan data``: toy scenes, a look at a data set, checks, conversion, a resized copy."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgan.errors import UsageError, UserError
from ecgan_cli.command import Group
from ecgan_cli.options import write_new

if TYPE_CHECKING:
    from ecgan.data.survey import Inspection
    from ecgan.labels import LabelSpace

_PIXELS = 256 * 512  # of a proposed size, at most: the paper's Cityscapes


@click.group(cls=Group)
def data() -> None:
    """Draw, inspect, check and convert data.

    \b
    ecgan data toy --out datasets/toy --num 200
    ecgan data inspect datasets/mine
    ecgan data verify datasets/mine-augment
    ecgan data convert datasets/mine-augment shards/mine --format parquet
    ecgan data cache --recipe cityscapes --data DIR --out cached
    """


@data.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder; must not exist yet."
)
@click.option("--num", type=click.IntRange(min=1), default=200, show_default=True, help="Scenes.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--height", type=click.IntRange(min=16), default=128, show_default=True)
@click.option("--width", type=click.IntRange(min=16), default=256, show_default=True)
def toy(out: Path, num: int, seed: int, height: int, width: int) -> None:
    """Draw street scenes with label maps: a data set with no licence to mind."""
    from ecgan.demo.toy import write_toy

    write_toy(out, num, seed, height=height, width=width)
    click.echo(f"Wrote {num} scenes to {out}; train on them with --recipe demo --data {out}")


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--dataset",
    type=click.Choice(["folder", "cityscapes", "ade20k", "coco_stuff"]),
    help="Layout of the files; default: what the folders look like.",
)
@click.option(
    "--files",
    type=click.IntRange(min=0),
    default=500,
    show_default=True,
    help="Pairs to open, spread evenly; 0: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--write-classes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the proposed class list, to be named by you.",
)
@click.option(
    "--write-recipe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the proposed recipe.",
)
def inspect(
    folder: Path,
    dataset: str | None,
    files: int,
    *,
    as_json: bool,
    write_classes: Path | None,
    write_recipe: Path | None,
) -> None:
    """Print what DIR holds, and propose a recipe for it."""
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


@data.command()
@click.argument("place", metavar="DIR|URL")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def verify(place: str, *, as_json: bool, quiet: bool) -> None:
    """Read every byte of a finished data set of ecgan, and say what is wrong with it.

    Hashes, counts, keys, fields, kinds of maps, ids, class pixels. Exit code 1 if anything is.
    """
    from dataclasses import asdict

    from ecgan.shards.verify import verify as library

    found = library(place, quiet=quiet)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    if found.faults:
        more = [f"and {found.more} more"] if found.more else []
        raise UserError(f"{place}: not as it was written", [*found.faults, *more])
    if not as_json:
        click.echo(f"{place}: {found.samples} samples in {found.shards} shards, all as written")


@data.command()
@click.argument("source", metavar="DIR|URL")
@click.argument("out", metavar="OUT")
@click.option(
    "--format",
    "data_format",
    type=click.Choice(["webdataset", "parquet", "folder"]),
    required=True,
    help="Tar shards, Parquet shards, or loose files.",
)
@click.option("--samples-per-shard", type=int, help="Default: the shards as they are.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
def convert(
    source: str,
    out: str,
    data_format: Any,  # noqa: ANN401  one of the three
    samples_per_shard: int | None,
    *,
    quiet: bool,
) -> None:
    """Write a finished data set of ecgan in another format, the same samples byte for byte."""
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
            "label_generator_images": min(20_000, max(4_000, 20 * num_train)),
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


@data.command()
@click.option("--recipe", "recipe_name", required=True, metavar="NAME|FILE", help="Says the size.")
@click.option(
    "--data", "root", type=click.Path(path_type=Path), metavar="DIR", help="The recipe's data.root."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the copy.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change the recipe."
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: one for each core.")
def cache(
    recipe_name: str,
    root: Path | None,
    out: Path,
    overrides: tuple[str, ...],
    threads: int | None,
) -> None:
    """Copy a recipe's data, resized as training would, so that its loader only reads.

    \b
    ecgan data cache --recipe cityscapes --data DIR --out cached
    ecgan train --recipe cityscapes --set data.dataset=folder --data cached

    The copy is lossless and gives the same tensors. The same command again goes on.
    """
    import os

    from ecgan.data import datasets
    from ecgan.data import resized_copy as library
    from ecgan.recipe import label_space, load_recipe

    if root is not None:
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
        datasets.check_labels(items, space, found.dataset)
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
