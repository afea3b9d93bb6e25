"""``ecgan data``: toy scenes, imports, a look at a data set, checks, conversion, a resized copy."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgan.errors import UsageError, UserError
from ecgan_cli.options import (
    ADDRESS,
    COUNT,
    FORMAT,
    JSON,
    PATH,
    POSITIVE,
    QUIET,
    SET,
    Group,
    data_option,
    echo,
    folder_option,
    option,
    recipe_option,
    require_root,
    with_data,
    write_new,
)

if TYPE_CHECKING:
    from ecgan.data.proposals import Machine
    from ecgan.data.survey import DatasetSurvey

_side = partial(option, type=click.IntRange(min=16), metavar="PIXELS")


@click.group(cls=Group)
def data() -> None:
    """Draw, import, inspect, verify and convert data.

    \b
    ecgan data toy --out datasets/toy --num 200
    ecgan data import annotations.xml --out datasets/mine
    ecgan data inspect datasets/mine
    ecgan data verify datasets/mine-augment
    ecgan data convert datasets/mine-augment shards/mine --format parquet
    ecgan data cache --recipe cityscapes --data DIR --out cached
    """


@data.command(short_help="Draw a toy data set.")
@folder_option("--out", required=True, help="New folder.")
@option("--num", type=POSITIVE, default=200, help="Scenes.")
@option("--seed", type=COUNT, default=0, help="Seed.")
@_side("--height", default=128, help="Height in pixels.")
@_side("--width", default=256, help="Width in pixels.")
def toy(out: Path, num: int, seed: int, height: int, width: int) -> None:
    """Draw a toy data set: street scenes with label maps, free of any licence."""
    from ecgan.demo.toy import write_toy

    write_toy(out, num, seed, height=height, width=width)
    echo(f"Wrote {num} scene{'s' * (num != 1)} to {out}; train with --recipe demo --data {out}")


@data.command("import", short_help="Convert annotations of other tools.")
@click.argument("source", metavar="FILE|DIR", type=PATH)
@folder_option("--out", required=True, help="New folder.")
@option(
    "--format",
    "name",
    metavar="NAME",
    help="Form of the annotations.",
    show_default="recognised from the files",
)
@folder_option("--images", help="Photos.", show_default="found beside the annotations")
@option("--background", metavar="NAME", help="Class of the pixels that no region covers.")
def import_(
    source: Path, out: Path, name: str | None, images: Path | None, background: str | None
) -> None:
    """Convert polygons and masks of an annotation tool to photos with label maps.

    \b
    coco              COCO's JSON, also of CVAT, Roboflow and Label Studio
    cvat              CVAT for images 1.1 (XML)
    labelme           LabelMe's JSON
    label_studio      Label Studio's JSON: polygons and brush
    yolo              YOLO's outlines, with data.yaml
    coco_panoptic, datumaro, labelme_xml, mapillary_vistas, voc
                      with Datumaro: pip install 'ecgan[import]'

    All that is left out, such as boxes, is counted and said.
    """
    from ecgan.data.imports import FORMATS, import_annotations

    if name is not None and name not in FORMATS:
        raise UsageError(f"--format {name}: expected one of {', '.join(FORMATS)}")
    found = import_annotations(source, out, name=name, images=images, background=background)
    echo(found.to_text(out))
    echo(f"Look at it with: ecgan data inspect {out}")


@data.command(short_help="Survey a data set, propose a recipe.")
@click.argument("folder", metavar="DIR", type=PATH)
@option(
    "--dataset",
    type=click.Choice(["folder", "cityscapes", "ade20k", "coco_stuff"]),
    help="Directory structure.",
    show_default="recognised from the folders",
)
@option(
    "--images",
    metavar="DIR",
    help="Folder of photos, below DIR or absolute.",
    show_default="found by name",
)
@option("--labels", metavar="DIR", help="Folder of label maps.", show_default="found by name")
@option(
    "--label-suffix",
    metavar="TEXT",
    help="End of the names of label maps.",
    show_default="found from the names",
)
@option(
    "--label-encoding",
    type=click.Choice(["index", "color", "gray", "nearest"]),
    help="What pixels of label maps are.",
    show_default="decided over all files",
)
@option("--files", type=COUNT, default=0, help="Number of pairs to open, spread evenly; 0: all.")
@JSON
@option(
    "--write-classes",
    type=PATH,
    metavar="FILE",
    help="Write the proposed class list; its names are yours to fill in.",
)
@option("--write-recipe", type=PATH, metavar="FILE", help="Write the proposed recipe.")
@option(
    "--for",
    "machine",
    type=click.Choice(["cpu", "gpu"]),
    help="Machine to train on: its size, network and lengths.",
    show_default="gpu where there is one",
)
def inspect(
    folder: Path,
    dataset: str | None,
    images: str | None,
    labels: str | None,
    label_suffix: str | None,
    label_encoding: str | None,
    files: int,
    *,
    as_json: bool,
    write_classes: Path | None,
    write_recipe: Path | None,
    machine: "Machine | None",
) -> None:
    """Print files, sizes and classes of the data set in DIR, and propose a recipe for it.

    Its faults are what a training would refuse; with any, the exit code is 1.
    """
    from ecgan.data import proposals
    from ecgan.data import survey as library
    from ecgan.data.decode import Encoding
    from ecgan.data.files.layout import Options
    from ecgan.data.files.photo_sets import Reading
    from ecgan.recipe import nearest_size

    found = library.survey_dataset(
        folder,
        dataset=dataset,
        options=Options(images, labels, label_suffix),
        reading=Reading(None if label_encoding is None else Encoding(label_encoding)),
        num_files=files,
        progress=not as_json,
    )
    proposed = None if found.space is not None else found.values.space
    if write_classes is not None:
        space = found.space or proposed
        if space is None:
            why = "beside one that has a fault" if found.list_fault else "for these label maps"
            raise UserError(f"{folder}: no class list can be proposed {why}", found.all_faults)
        write_new(write_classes, json.dumps(space.to_json(), indent=1) + "\n")
    recipe = None
    if found.num_pairs and not found.list_fault:  # names of classes are not made up
        size = partial(nearest_size, upsamplings="auto")
        recipe = proposals.propose_recipe(
            found, size, classes=write_classes or proposed, machine=machine or _machine()
        )
    if write_recipe is not None:
        if recipe is None:
            why = "for a class list that has a fault" if found.list_fault else "for no pairs"
            raise UserError(f"{folder}: no recipe can be proposed {why}", found.all_faults)
        write_new(write_recipe, recipe)
    if as_json:
        echo(json.dumps({**found.to_json(), "recipe": recipe}, indent=2))
    else:
        _show(found, recipe)
    if found.all_faults:
        raise SystemExit(1)


def _machine() -> "Machine":
    """What a training here would run on."""
    from ecgan.runtime.device import count_gpus

    return "gpu" if count_gpus() else "cpu"


def _show(found: "DatasetSurvey", recipe: str | None) -> None:
    """Print a survey, then the recipe, then the faults, which are last on the screen."""
    echo(found.to_text())
    if recipe is not None:
        echo("Proposed recipe (save it as a .yaml file, or use --write-recipe FILE):\n")
        echo(recipe)
    echo(found.faults_text(), nl=False)


@data.command(short_help="Verify the files of generated samples.")
@click.argument("place", metavar="DIR|URL", type=ADDRESS)
@JSON
@QUIET
def verify(place: str, *, as_json: bool, quiet: bool) -> None:
    """Verify a finished data set of ecgan: read every byte and list all faults.

    Checks hashes, counts, keys, fields, kinds of maps, ids and class pixels. Exit code 1 if
    there is a fault.
    """
    from dataclasses import asdict

    from ecgan.runtime.timing import counted
    from ecgan.shards.verify import verify as library

    found = library(place, quiet=quiet)
    if as_json:
        echo(json.dumps(asdict(found), indent=2))
    if found.faults:
        more = [f"and {found.more} more"] if found.more else []
        raise UserError(f"{place}: verification failed", [*found.faults, *more])
    if not as_json:
        samples, shards = counted(found.samples, "sample"), counted(found.shards, "shard")
        echo(f"{place}: {samples} in {shards}, no faults")


@data.command(short_help="Convert samples to another format.")
@click.argument("source", metavar="DIR|URL", type=ADDRESS)
@click.argument("out", metavar="OUT", type=ADDRESS)
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
    from ecgan.runtime.timing import counted
    from ecgan.shards.convert import convert as library

    count = library(source, out, data_format, samples_per_shard=samples_per_shard, quiet=quiet)
    echo(f"{counted(count, 'sample')} in {out}")


@data.command(short_help="Copy a data set, resized for training.")
@recipe_option(required=True, help="Recipe to train with; gives the size.")
@data_option("root")
@folder_option("--out", required=True, help="Folder of the copy.")
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

    from ecgan.data.resized_copy import Source, write_resized_copy
    from ecgan.recipe import data_folder, label_space, load_recipe

    found = load_recipe(recipe_name, with_data(overrides, root)).data
    if found.root is None:
        raise UsageError("the recipe has no data.root: give the data set with --data DIR")
    require_root(found.root)
    if found.edges == "folder":
        raise UserError(
            "data.edges: folder: edge maps of a folder are not copied; use the original"
        )
    source = Source(
        data_folder(found),
        label_space(found),
        found.split,
        found.resize_to,
        (found.height, found.width),
        found.instances,
    )
    copied = write_resized_copy(source, out, threads=threads or os.cpu_count() or 1)
    counts = ", ".join(f"{split} {count}" for split, count in copied.counts.items())
    echo(f"{out}: {counts}; {copied.num_written} written now")
