"""``ecgan report``: reports read again, and put together."""

from pathlib import Path

import click

from ecgan_cli.options import PATH


@click.group()
def report() -> None:
    """Read a report again."""


@report.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="As Markdown, for a pull request.")
def show(path: Path, *, markdown: bool) -> None:
    """Print the numbers of the report in PATH, a folder or a report.json."""
    from ecgan import report as library

    click.echo(library.table(library.load(path), markdown=markdown), nl=False)


@report.command()
@click.argument("places", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option("--markdown", is_flag=True, help="As Markdown.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ablation(places: tuple[Path, ...], *, markdown: bool, as_json: bool) -> None:
    """Print mIoU, Acc and FID of several runs as the paper's Table 3.

    RUN is a run, whose report is looked for below reports/, or a report. Reports of different
    protocols are refused.
    """
    from ecgan import ablation as library

    entries = library.read(places)
    if as_json:
        click.echo(library.dumps(entries))
    else:
        click.echo(library.table(entries, markdown=markdown), nl=False)
