"""``ecgan train`` and ``ecgan demo``."""

import logging
import sys
from pathlib import Path

import click

from ecgan.errors import UsageError
from ecgan.recipe import load_recipe
from ecgan_cli.options import (
    DEVICE,
    DRY_RUN,
    INTERRUPTED,
    PATH,
    POSITIVE,
    QUIET,
    SET,
    Command,
    data_option,
    echo,
    folder_option,
    option,
    recipe_option,
    require_root,
    with_data,
)

_MESSAGES = {
    "done": "{run}/generator.safetensors",
    "interrupted": "Interrupted; the same command resumes ({run})",
}


@click.command(cls=Command)
@recipe_option(required=True, help="Recipe to train.")
@data_option("data")
@folder_option("--out", show_default="runs/NAME", help="Run folder.")
@SET
@option(
    "--nproc-per-node",
    type=POSITIVE,
    help="Processes on this machine, one for each GPU; starts torchrun.",
)
@option(
    "--init",
    type=PATH,
    metavar="RUN|FILE",
    help="Start from the weights of another run, or of its generator.safetensors; its class list "
    "may differ.",
)
@option(
    "--accept-changed-data",
    is_flag=True,
    help="Go on where label maps or photos are not those that the run learnt from.",
)
@option(
    "--batch",
    type=POSITIVE,
    help="Images a step, over all processes.",
    show_default="train.batch of the recipe",
)
@DEVICE
@DRY_RUN(help="Print parameters, memory and steps; train nothing.")
@option(
    "--profile",
    "profiled",
    type=POSITIVE,
    help="Train N steps, print where the time goes, keep nothing.",
)
@QUIET
def train(
    recipe_name: str,
    data: Path | None,
    out: Path | None,
    overrides: tuple[str, ...],
    nproc_per_node: int | None,
    init: Path | None,
    device: str,
    *,
    accept_changed_data: bool,
    batch: int | None,
    profiled: int | None,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Train ECGAN on photos with label maps. The same command again resumes.

    \b
    ecgan train --recipe camvid --data DIR
    ecgan train --recipe camvid --data DIR --profile 10
    ecgan train --recipe cityscapes --data DIR --nproc-per-node 8
    torchrun --nproc-per-node 8 -m ecgan_cli train --recipe cityscapes --data DIR

    Ctrl-C, SIGTERM and SIGHUP write a checkpoint before the command exits with 130.
    """
    overrides = with_data(overrides, data)
    overrides += () if batch is None else (f"train.batch={batch}",)
    recipe = load_recipe(recipe_name, overrides)
    run = out if out is not None else Path("runs") / recipe.name
    init = None if init is None else _generator_of(init)
    require_root(recipe.data.root)

    from ecgan.runtime import distributed
    from ecgan.runtime.device import choose_device
    from ecgan.training import estimate
    from ecgan.training import run as library

    ranks = nproc_per_node or distributed.launched_ranks()
    _check_profile(profiled, ranks, dry_run=dry_run)
    if dry_run:
        text = estimate.dry_run(
            recipe,
            run,
            device=device,
            num_processes=ranks,
            init=init,
            accept_changed_data=accept_changed_data,
            quiet=quiet,
        )
        echo(text)
    elif profiled is not None:
        echo(estimate.profile(recipe, steps=profiled, device=device, init=init))
    elif nproc_per_node is not None:
        # what can be refused at once is refused once, not by every rank
        library.check(
            recipe,
            run,
            device=choose_device(device),
            num_processes=nproc_per_node,
            read_files=False,
        )
        arguments = ["train", "--recipe", recipe_name, "--out", str(run), "--device", device]
        arguments += [word for override in overrides for word in ("--set", override)]
        arguments += ["--init", str(init)] if init is not None else []
        arguments += ["--accept-changed-data"] if accept_changed_data else []
        arguments += ["--quiet"] if quiet else []
        arguments += ["--verbose"] if logging.getLogger("ecgan").isEnabledFor(logging.INFO) else []
        sys.exit(distributed.launch(nproc_per_node, arguments, device=device))
    else:
        outcome = library.run(
            recipe,
            run,
            device=device,
            init=init,
            accept_changed_data=accept_changed_data,
            quiet=quiet,
        )
        if distributed.is_first():
            echo(_MESSAGES[outcome].format(run=run), err=outcome == "interrupted")
            if outcome == "done" and not quiet:
                _tell_next(run)
        if outcome == "interrupted":
            sys.exit(INTERRUPTED)


def _generator_of(init: Path) -> Path:
    """The file that ``--init`` means."""
    path = init / "generator.safetensors" if init.is_dir() else init
    if not path.is_file():
        raise UsageError(
            f"--init {path}: no such file; give the folder of a run, or its generator.safetensors"
        )
    return path


def _tell_next(run: Path) -> None:
    previews = sorted(run.glob("samples-*.png"))
    if previews:
        echo(f"preview: {previews[-1]}", err=True)
    echo(f"next: ecgan augment --run {run} --labels DIR --n-styles 5", err=True)


def _check_profile(profiled: int | None, ranks: int, *, dry_run: bool) -> None:
    if profiled is None:
        return
    if dry_run:
        raise UsageError("--dry-run runs no step and --profile runs some; give one of them")
    if ranks > 1:
        raise UsageError(
            f"--profile measures one process, got {ranks}; leave out --nproc-per-node and "
            "torchrun, and give --batch the images of one rank"
        )


@click.command(cls=Command)
@folder_option("--out", default=Path("ecgan-demo"), help="Output folder.")
@SET
@DEVICE
@QUIET
def demo(out: Path, overrides: tuple[str, ...], device: str, *, quiet: bool) -> None:
    """Run every step once, on a toy data set, in under ten minutes on two CPU cores.

    Draws street scenes, trains the demo recipe on them, generates shards with 5 styles of each
    validation layout, evaluates them and writes the report. The same command again resumes.
    """
    from ecgan.demo import run as library
    from ecgan.evaluation.report import tables

    outcome = library.run(out, device=device, overrides=overrides, quiet=quiet, say=echo)
    if outcome.numbers is None:
        echo(f"Interrupted; the same command resumes ({out})", err=True)
        sys.exit(INTERRUPTED)
    echo()
    echo(tables.table(outcome.numbers))
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    echo(f"{spent}. A few minutes' training: expect recognisable streets, no photos.\n")
    echo("Where to look:")
    newest = max(outcome.run.glob("samples-*.png"), default=outcome.run)
    for path, what in (
        (newest, "label | edge | real edge | coarse | image | real, while training"),
        (outcome.samples / "preview.png", "five styles of each layout"),
        (outcome.samples, "the data set: shards, manifest, card"),
        (outcome.report / "report.html", "numbers and pictures, to open in a browser"),
    ):
        echo(f"  {path!s:<36} {what}")
