"""``ecgan evaluate``."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from ecgan.errors import UserError
from ecgan.recipe import load_recipe
from ecgan_cli.options import PATH

BELOW = 4  # exit code


@click.command()
@click.option("--samples", type=PATH, multiple=True, metavar="DIR", help="Data set; repeatable.")
@click.option("--reference", type=PATH, metavar="DIR", help="Real data set; default: the recipe's.")
@click.option("--out", type=PATH, help="Folder of the report; default: reports/NAME.")
@click.option("--split", help="Of the reference; default: test, or val.")
@click.option("--recipe", "recipe_name", metavar="NAME|FILE", help="In place of the samples' own.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a key of the recipe.",
)
@click.option("--judge", metavar="train|PATH|NAME", help="Default: evaluate.judge of the recipe.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json in place of the table.")
@click.option(
    "--fail-below", multiple=True, metavar="NAME=X", help="Exit code 4 if the metric is below X."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(
    samples: tuple[Path, ...],
    recipe_name: str | None,
    overrides: tuple[str, ...],
    fail_below: tuple[str, ...],
    *,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure what samples are worth, beside the real photos' own numbers.

    \b
    ecgan evaluate                                            the newest data set below datasets/
    ecgan evaluate --samples DIR --reference DIR --split test
    ecgan evaluate --samples A --samples B --fail-below miou=0.5
    """
    limits = [_limit(text) for text in fail_below]
    from ecgan import evaluate as library
    from ecgan import report

    recipe = None if recipe_name is None else load_recipe(recipe_name, overrides)
    request = library.Request(samples=samples, recipe=recipe, overrides=overrides, **options)
    document, out = library.run(request)
    click.echo(json.dumps(document, indent=2) if as_json else report.table(document), nl=as_json)
    click.echo(f"{out}/report.html", err=as_json)
    failed = [text for name, limit in limits for text in _below(document, name, limit)]
    for text in failed:
        click.echo(text, err=True)
    if failed:
        sys.exit(BELOW)


def _limit(text: str) -> tuple[str, float]:
    from ecgan.report import MEANINGS

    name, _, number = text.partition("=")
    higher = [n for n, meaning in MEANINGS.items() if meaning.better == "higher"]
    try:
        limit = float(number)
    except ValueError:
        raise UserError(f"--fail-below {text}: expected NAME=X, e.g. miou=0.5") from None
    if name not in higher:
        kind = "better when it is low" if name in MEANINGS else "no such metric"
        raise UserError(f"--fail-below {text}: {name} is {kind}; choose {', '.join(higher)}")
    return name, limit


def _below(document: dict[str, Any], name: str, limit: float) -> list[str]:
    from ecgan import report

    found = [(one["samples"], one["metrics"][name]["value"]) for one in report.sets(document)]
    return [
        f"{samples}: {name} is {report.number(value)}, below {limit:g}"
        for samples, value in found
        if value is None or value < limit
    ]
