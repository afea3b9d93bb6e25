"""``ecgan demo``."""

import sys
from pathlib import Path

import click

from ecgan_cli.options import DEVICE, INTERRUPTED, QUIET, SET, Command, folder_option


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

    outcome = library.run(out, device=device, overrides=overrides, quiet=quiet, say=click.echo)
    if outcome.numbers is None:
        click.echo(f"Interrupted; the same command resumes ({out})", err=True)
        sys.exit(INTERRUPTED)
    click.echo()
    click.echo(tables.table(outcome.numbers))
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    click.echo(f"{spent}. A few minutes' training: expect recognisable streets, no photos.\n")
    click.echo("Where to look:")
    newest = max(outcome.run.glob("samples-*.png"), default=outcome.run)
    for path, what in (
        (newest, "label | edge | real edge | coarse | image | real, while training"),
        (outcome.samples / "preview.png", "five styles of each layout"),
        (outcome.samples, "the data set: shards, manifest, card"),
        (outcome.report / "report.html", "numbers and pictures, to open in a browser"),
    ):
        click.echo(f"  {path!s:<36} {what}")
