"""``ecgan report``: reports read again, and put together."""

from pathlib import Path

import click

from ecgan_cli.command import Group
from ecgan_cli.options import PATH


@click.group(cls=Group)
def report() -> None:
    """Read a report again."""


@report.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="As Markdown, for a pull request.")
def show(path: Path, *, markdown: bool) -> None:
    """Print the numbers of the report in PATH, a folder or a report.json."""
    from ecgan.evaluation.report import page as library

    click.echo(library.table(library.load(path), markdown=markdown), nl=False)


@report.command()
@click.argument("places", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=PATH,
    metavar="DIR",
    help="Where reports of runs are looked for: a report, or a folder of reports; may be repeated. "
    "Default: reports.",
)
@click.option("--markdown", is_flag=True, help="As Markdown.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ablation(
    places: tuple[Path, ...], reports: tuple[Path, ...], *, markdown: bool, as_json: bool
) -> None:
    """Print mIoU, Acc and FID of several runs as the paper's Table 3.

    RUN is a run, for which the report of its generator is looked for, or a report. Reports of
    different protocols are refused.
    """
    from ecgan.evaluation.report import ablation as library

    entries = library.read(places, reports or (Path("reports"),))
    if as_json:
        click.echo(library.dumps(entries))
    else:
        click.echo(library.table(entries, markdown=markdown), nl=False)


@report.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option("--out", type=PATH, default=Path("study"), show_default=True, help="Folder.")
@click.option("--num", type=click.IntRange(min=1), default=50, show_default=True, help="Layouts.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--question", help="What participants are asked.")
@click.option("--show-reference", is_flag=True, help="Show the real photo of each layout, too.")
@click.option(
    "--reference",
    type=PATH,
    metavar="DIR",
    help="Where that photo is from; default: the data set of the samples' recipe.",
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
    """Make a page that asks people which of two data sets is better (the paper's Table 1).

    OUT/study.html is for participants: a layout, an image of A and one of B in random order. It
    needs no network and exports its answers. OUT/assignment.json says whose image is whose: keep
    it.
    """
    from ecgan.evaluation.report import study as library

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
    if count < num:
        click.echo(f"The sets have {count} layouts in common, not {num}", err=True)
    click.echo(f"{out}/study.html: {count} layouts; keep {out}/assignment.json to yourself")


@report.command("study-results")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option("--assignment", type=PATH, default=Path("study/assignment.json"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def study_results(files: tuple[Path, ...], assignment: Path, *, as_json: bool) -> None:
    """Count the answers that participants exported."""
    import json

    from ecgan.evaluation.report import study as library

    results = library.read(files, assignment)
    if as_json:
        click.echo(json.dumps(results.to_json(), indent=2))
    else:
        click.echo(results.table(), nl=False)
