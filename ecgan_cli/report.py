"""``ecgan report``: reports read again."""

from pathlib import Path

import click


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
