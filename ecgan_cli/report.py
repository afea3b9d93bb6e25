"""``ecgan report``: evaluation reports shown and compared; the user study."""

from pathlib import Path

import click

from ecgan_cli.options import (
    COUNT,
    JSON,
    MARKDOWN,
    PATH,
    POSITIVE,
    Group,
    echo,
    folder_option,
    option,
)


@click.group(cls=Group)
def report() -> None:
    """Show, compare and publish evaluation results."""


@report.command(short_help="Print the numbers of a report.")
@click.argument("path", type=PATH)
@MARKDOWN
def show(path: Path, *, markdown: bool) -> None:
    """Print the numbers of the report in PATH, a folder or a report.json."""
    from ecgan.evaluation.report import document, tables

    echo(tables.table(document.load(path), markdown=markdown), nl=False)


@report.command(short_help="Compare runs as the paper's Table 3.")
@click.argument("places", metavar="RUN...", nargs=-1, required=True, type=PATH)
@folder_option(
    "--report",
    "reports",
    multiple=True,
    help="Folder in which the runs' reports are searched; repeatable.",
    show_default="reports",
)
@MARKDOWN
@JSON
def ablation(
    places: tuple[Path, ...], reports: tuple[Path, ...], *, markdown: bool, as_json: bool
) -> None:
    """Print mIoU, accuracy and FID of several runs as the paper's Table 3.

    RUN is a run folder, whose report is searched, or a report. Reports with different protocols
    are refused.
    """
    from ecgan.evaluation.report import ablation as library

    entries = library.read(places, reports or (Path("reports"),))
    if as_json:
        echo(library.dumps(entries))
    else:
        echo(library.table(entries, markdown=markdown), nl=False)


@report.command(short_help="Make a user study of two data sets.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@folder_option("--out", default=Path("study"), help="Output.")
@option("--num", type=POSITIVE, default=50, help="Layouts.")
@option("--seed", type=COUNT, default=0, help="Seed of the order.")
@option("--question", metavar="SENTENCE", help="Question that participants are asked.")
@option("--show-reference", is_flag=True, help="Also show the real photo of each layout.")
@folder_option(
    "--reference",
    help="Data set of these photos.",
    show_default="the data set of the samples' recipe",
)
def study(
    a: Path,
    b: Path,
    out: Path,
    num: int,
    seed: int,
    question: str | None,
    reference: Path | None,
    *,
    show_reference: bool,
) -> None:
    """Make a web page that asks people which of two data sets is better (the paper's Table 1).

    OUT/study.html is for participants: a layout, an image of A and one of B in random order. It
    needs no network and exports its answers. OUT/assignment.json says which image is whose; do not
    publish it.
    """
    from ecgan.evaluation.report import study as library
    from ecgan.runtime.timing import counted

    count = library.write(
        a,
        b,
        out,
        num=num,
        seed=seed,
        question=question or library.QUESTION,
        show_reference=show_reference,
        reference=reference,
    )
    number = counted(count, "layout")
    if count < num:
        echo(f"The data sets have {number} in common, fewer than {num}", err=True)
    echo(f"{out}/study.html: {number}; do not publish {out}/assignment.json")


@report.command("study-results", short_help="Evaluate the answers of a user study.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@option(
    "--assignment",
    type=PATH,
    metavar="FILE",
    default=Path("study/assignment.json"),
    help="File written by ecgan report study.",
)
@JSON
def study_results(files: tuple[Path, ...], assignment: Path, *, as_json: bool) -> None:
    """Count the answers that participants exported."""
    import json

    from ecgan.evaluation.report import study as library

    results = library.read(files, assignment)
    if as_json:
        echo(json.dumps(results.to_json(), indent=2))
    else:
        echo(results.table(), nl=False)
