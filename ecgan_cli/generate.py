"""``ecgan sample`` and ``ecgan augment``: data sets of generated samples."""

import shlex
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgan.errors import UsageError, UserError
from ecgan_cli.options import (
    ADDRESS,
    COUNT,
    DEVICE,
    DRY_RUN,
    FAILED_SHARDS,
    FORMAT,
    GPUS_PER_WORKER,
    PATH,
    POSITIVE,
    QUIET,
    RAY_ADDRESS,
    WORKERS,
    CommaList,
    Command,
    Decorator,
    complete_run,
    data_option,
    echo,
    folder_option,
    interruptible,
    number_option,
    option,
    require_folder,
    set_option,
    under,
)

if TYPE_CHECKING:
    from ecgan.generation.run import Outcome

_CHANGES = ("flip", "crop", "paste")  # in the order in which they are made


def _change(word: str) -> str:
    if word not in _CHANGES:
        raise ValueError(word)
    return word


_VARIATION = (
    option(
        "--vary",
        "changes",
        type=CommaList(_change, f"choose from {', '.join(_CHANGES)}, e.g. flip,crop"),
        default=(),
        metavar="flip,crop,paste",
        help="Add variants of each layout: mirrored, cropped, with objects pasted in "
        "(experimental).",
    ),
    number_option("--n-variants", expert=True, help="Variants of each layout.", show_default="1"),
    option(
        "--onto",
        type=click.Choice(["photos"]),
        expert=True,
        help="Put what --vary paste adds into the layouts' own photos of the run's data, whose "
        "pixels stay (experimental).",
    ),
)
_GENERATOR = (
    folder_option(
        "--run",
        help="Run folder.",
        show_default="the newest finished below runs/",
        shell_complete=complete_run,
    ),
    option(
        "--checkpoint",
        type=PATH,
        metavar="FILE",
        expert=True,
        help="A generator.safetensors, in place of --run.",
    ),
    set_option(metavar="sampling.KEY=VALUE", help="Change a key of the section sampling."),
)
_STYLES = (
    option("--seed", type=COUNT, help="Seed; every sample draws its own style.", show_default="0"),
    option("--style-seed", type=COUNT, help="Seed of styles that all layouts share."),
    folder_option("--style-images", help="Photos whose styles all layouts get."),
)
_QUALITY = (
    option(
        "--filter",
        "label_filter",
        metavar="train|DIR|NAME",
        help='Set pixels to "ignore" where a segmenter disagrees. `train`: cross-fit two '
        "segmenters on halves of the real data.",
    ),
    option(
        "--on-inconsistent",
        type=click.Choice(["ignore", "drop", "retry"]),
        default="ignore",
        help="Where the filter leaves little of a sample: keep it, drop it, or draw another style.",
    ),
    option(
        "--balance",
        "spread",
        type=click.Choice(["none", "hardness", "target"]),
        default="none",
        help="Distribute the styles: evenly, more for hard layouts, or to reach --target.",
    ),
    option(
        "--target",
        "targets",
        multiple=True,
        metavar="CLASS=SHARE",
        help="Share of a class in the labelled pixels, e.g. car=0.1; repeatable.",
    ),
)
_OUTPUT = (
    option(
        "--out",
        type=ADDRESS,
        metavar="DIR|URL",
        help="Data set; s3:// and gs:// too.",
        show_default="datasets/RUN-...",
    ),
    FORMAT(default="webdataset"),
    option(
        "--image-format",
        type=click.Choice(["jpg", "png", "webp"]),
        expert=True,
        help="Codec of the images.",
        show_default="sampling.image_format of the recipe",
    ),
    number_option(
        "--samples-per-shard",
        expert=True,
        help="Samples in a shard.",
        show_default="sampling.samples_per_shard of the recipe",
    ),
    option(
        "--label-space",
        type=click.Choice(["input", "evaluation"]),
        default="input",
        expert=True,
        help="Class ids of the written labels.",
    ),
    option(
        "--provenance/--no-provenance",
        default=True,
        expert=True,
        help="Mark images and records as synthetic and name the generator.",
    ),
    option("--overwrite", is_flag=True, help="Replace an existing data set of ecgan."),
    option("--extend", is_flag=True, help="Add styles and layouts to an existing data set."),
    option(
        "--verify", is_flag=True, expert=True, help="Compare hashes of finished shards, not sizes."
    ),
    DRY_RUN(help="Print samples, classes and bytes; write nothing."),
)
_WORKERS = (
    WORKERS,
    GPUS_PER_WORKER,
    RAY_ADDRESS,
    option(
        "--shard-timeout",
        type=float,
        metavar="SECONDS",
        expert=True,
        help="Time after which a worker that has not finished its shard is replaced; a single "
        "worker then runs on Ray, too.",
        show_default="3600; none for one worker",
    ),
    number_option(
        "--batch",
        expert=True,
        help="Images a step.",
        show_default="sampling.batch of the recipe",
    ),
    DEVICE,
    option(
        "--profile",
        type=POSITIVE,
        expert=True,
        help="Generate N samples, print where the time goes, keep nothing.",
    ),
)


def _generation_options(*layouts: Decorator) -> Decorator:
    """Options of ``sample`` and ``augment``: the layouts of one of them, and what both share."""
    parts = [
        under("Layouts", *layouts, *_VARIATION),
        under("Generator", *_GENERATOR),
        under("Styles", *_STYLES),
        under("Quality", *_QUALITY),
        under("Output", *_OUTPUT),
        under("Workers", *_WORKERS),
        QUIET,
    ]
    return lambda command: reduce(lambda decorated, part: part(decorated), reversed(parts), command)


@click.command(cls=Command)
@_generation_options(
    number_option("--num", help="Samples, spread evenly over the layouts."),
    number_option("--n-styles", help="Images of each layout, in place of --num."),
    option("--split", metavar="NAME", help="Split.", show_default="the one of training"),
    data_option("root"),
    folder_option("--labels", expert=True, help="Label maps, as in ecgan augment."),
    folder_option("--instances", expert=True, help="Instance maps of --labels."),
)
def sample(split: str | None, **options: Any) -> None:  # noqa: ANN401
    """Generate samples of the layouts in the recipe's own data set.

    \b
    ecgan sample --num 10000
    ecgan sample --run runs/city --num 500 --split val --out shards/city-val

    The same command again completes what was interrupted.
    """
    if options["num"] is None and options["n_styles"] is None:
        raise click.UsageError("give --num N, the number of samples, or --n-styles")
    suffix = f"sample-{split}" if split is not None else "sample"
    _generate(suffix=suffix, split=split, **options)


@click.command(cls=Command)
@_generation_options(
    folder_option("--labels", required=True, help="Label maps, at any depth."),
    number_option(
        "--n-styles",
        help="Images of each layout.",
        show_default="1, or one for each of --style-images",
    ),
    folder_option(
        "--instances",
        help="Instance maps with the names of the label maps, for a run that uses them.",
        show_default="boundaries between classes",
    ),
    data_option("root", expert=True),
)
def augment(**options: Any) -> None:  # noqa: ANN401
    """Generate samples of the layouts in a folder of label maps; photos are not needed.

    \b
    ecgan augment --labels DIR --n-styles 5
    ecgan augment --run runs/city --labels DIR --n-styles 5 --format parquet --out shards/city

    The same command again completes what was interrupted.
    """
    _generate(suffix="augment", **options)


def _generate(
    *,
    run: Path | None,
    checkpoint: Path | None,
    out: str | None,
    suffix: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Generate a data set and print what was done."""
    dry_run, profiled = options.pop("dry_run"), options.pop("profile")
    if dry_run and profiled is not None:
        raise UsageError("--dry-run generates nothing and --profile does; give one of them")
    from ecgan.checkpoint import resolve_generator
    from ecgan.generation import run as generate
    from ecgan.generation.request import Request

    require_folder("--data", options["root"])
    require_folder("--labels", options["labels"])
    path = resolve_generator(run, checkpoint)
    if run is None and checkpoint is None:
        echo(f"Using the newest run, {path.parent}", err=True)
    if out is None:
        out = str(Path("datasets") / f"{path.parent.name or path.stem}-{suffix}")
    options["changes"] = tuple(change for change in _CHANGES if change in options["changes"])
    request = Request.of(path, out, **options)
    if dry_run:
        echo(generate.describe(request))
        return
    if profiled is not None:
        echo(generate.profile(request, profiled))
        return
    with interruptible(f"finished shards are kept, the same command resumes ({out})"):
        outcome = generate.run(request)
    _tell(outcome, out, quiet=request.quiet)


def _tell(outcome: "Outcome", out: str, *, quiet: bool) -> None:
    """Print what was done, and unless quiet where to look and what to type next."""
    from ecgan.runtime.timing import counted

    if outcome.failed:
        raise _Failed(
            UserError(f"{out}: {counted(len(outcome.failed), 'shard')} failed", outcome.failed)
        )
    now = f"{outcome.made} made now"
    if outcome.made:
        now += (
            f", {outcome.made / outcome.seconds:.1f} samples/s, "
            f"{outcome.made_bytes / 1e6 / outcome.seconds:.1f} MB/s, bottleneck: "
            f"{outcome.spent.bottleneck()}"
        )
    echo(f"{counted(outcome.num_samples, 'sample')}, {outcome.bytes / 1e6:.1f} MB ({now})")
    if outcome.filtered:
        echo(outcome.filtered)
    if quiet:
        return
    if outcome.num_samples:
        echo(f"preview: {out}/preview.png", err=True)
    # evaluate reads a data set on this machine alone
    then = "data verify" if "://" in out else "evaluate --samples"
    echo(f"next: ecgan {then} {shlex.quote(out)}", err=True)


class _Failed(click.ClickException):
    exit_code = FAILED_SHARDS

    def __init__(self, error: UserError) -> None:
        super().__init__(f"{error}\nThe others are kept; the same command makes the missing ones")
