"""``ecgan evaluate``."""

import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import click

from ecgan.errors import UsageError
from ecgan.recipe import load_recipe
from ecgan_cli.command import BELOW_LIMIT, INTERRUPTED, Command
from ecgan_cli.options import PATH, terminable


@click.command(cls=Command)
@click.option(
    "--samples",
    multiple=True,
    metavar="DIR|URL|RUN",
    help="Data set, or a run, which makes samples of the split's layouts first; repeatable.",
)
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
@click.option(
    "--force-judge", is_flag=True, help="Judge even with the label generator; the report says so."
)
@click.option(
    "--reference-npz",
    "reference_statistics",
    type=PATH,
    metavar="FILE",
    help="fid against these statistics of pytorch-fid, not against the reference's photos.",
)
@click.option(
    "--save-npz",
    "save_statistics",
    type=PATH,
    metavar="DIR",
    help="Keep mean and covariance of all features, as pytorch-fid reads them.",
)
@click.option("--n-styles", type=click.IntRange(min=1), default=1, help="Of a run's layouts.")
@click.option(
    "--downstream", is_flag=True, help="Train segmenters with and without samples of train layouts."
)
@click.option(
    "--mix",
    default="0,1",
    show_default=True,
    metavar="X,...",
    help="Synthetic draws for each real one; `synthetic` is no real one at all.",
)
@click.option(
    "--real-fraction",
    default="1",
    show_default=True,
    metavar="F,...",
    help="Parts of the real pairs; below 1 the generator must have trained on that part.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--segmenter", metavar="PATH|NAME", help="To fine-tune; default: SegFormer, anew.")
@click.option(
    "--unknown-generator",
    is_flag=True,
    help="Take samples whose generator's training is not known; the report says so.",
)
@click.option(
    "--executor",
    type=click.Choice(["auto", "local", "ray"]),
    default="auto",
    show_default=True,
    help="This machine, or Ray; auto: Ray where --ray-address is given.",
)
@click.option("--workers", type=int, help="Default: one for each GPU, or one.")
@click.option("--gpus-per-worker", type=float, metavar="X", help="A share is allowed.")
@click.option("--ray-address", metavar="A", help="Of a Ray cluster.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json in place of the table.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@click.option(
    "--fail-below", multiple=True, metavar="NAME=X", help="Exit code 4 if the metric is below X."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress bars.")
def evaluate(
    samples: tuple[str, ...],
    recipe_name: str | None,
    overrides: tuple[str, ...],
    fail_below: tuple[str, ...],
    n_styles: int,
    *,
    as_json: bool,
    markdown: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Measure what samples are worth, beside the real photos' own numbers.

    \b
    ecgan evaluate                                            the newest data set below datasets/
    ecgan evaluate --samples DIR --reference DIR --split test
    ecgan evaluate --samples A --samples B --fail-below miou=0.5
    ecgan evaluate --samples runs/city                        samples of test layouts, made first
    ecgan evaluate --samples TRAIN --downstream --mix 0,1,synthetic --real-fraction 1

    With --downstream, sets of the tested split's layouts are judged, all others are trained with.
    """
    limits = [_limit(text) for text in fail_below]
    worth = _worth(options)
    from ecgan.evaluation import run as library
    from ecgan.evaluation.report import page as report

    recipe = None if recipe_name is None else load_recipe(recipe_name, overrides)
    with terminable():
        try:
            made = tuple(_samples_of(place, n_styles, overrides, options) for place in samples)
            request = library.Request(
                samples=made, recipe=recipe, overrides=overrides, worth=worth, **options
            )
            document, out = library.run(request)
        except KeyboardInterrupt:
            click.echo(
                "Interrupted; what was looked at and trained to its end is kept, the same command "
                "goes on",
                err=True,
            )
            sys.exit(INTERRUPTED)
    text = json.dumps(document, indent=2) if as_json else report.table(document, markdown=markdown)
    click.echo(text, nl=as_json)
    click.echo(f"{out}/report.html", err=as_json or markdown)
    failed = [text for name, limit in limits for text in _below(document, name, limit)]
    for text in failed:
        click.echo(text, err=True)
    if failed:
        sys.exit(BELOW_LIMIT)


def _worth(options: dict[str, Any]) -> Any:  # noqa: ANN401  evaluate.Worth, imported late
    """The downstream experiment, if it was asked for; all faults of its options at once."""
    mix, fraction = options.pop("mix"), options.pop("real_fraction")
    seeds, segmenter = options.pop("seeds"), options.pop("segmenter")
    unknown = options.pop("unknown_generator")
    if not options.pop("downstream"):
        return None
    from ecgan.evaluation import run as library

    faults: list[str] = []
    mixes: list[float | Literal["synthetic"]] = [_mix(word, faults) for word in mix.split(",")]
    fractions = [_fraction(word, faults) for word in fraction.split(",")]
    if faults:
        raise UsageError("--downstream", faults)
    return library.Worth(tuple(mixes), tuple(fractions), seeds, segmenter, unknown)


def _mix(word: str, faults: list[str]) -> "float | Literal['synthetic']":
    if word.strip() == "synthetic":
        return "synthetic"
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        faults.append(f"--mix {word}: expected numbers from 0 on, or synthetic, e.g. 0,1,synthetic")
    return value


def _fraction(word: str, faults: list[str]) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        faults.append(f"--real-fraction {word}: expected numbers above 0, up to 1, e.g. 1,0.1")
    return value


def _samples_of(
    place: str, n_styles: int, overrides: tuple[str, ...], options: dict[str, Any]
) -> str:
    """A data set as it is; of a run, samples of the layouts of the split, made here."""
    if "://" in place:
        return place
    path = Path(place)
    if path.is_dir() and not (path / "generator.safetensors").is_file():
        if (path / "recipe.yaml").is_file() and (path / "classes.json").is_file():
            raise UsageError(
                f"--samples {place}: a run without generator.safetensors: its training is not "
                "finished; run the same ecgan train again, it goes on"
            )
        return place
    if path.suffix != ".safetensors" and not path.is_dir():
        return place  # refused where it is read
    from ecgan.checkpoint import load_generator, resolve_generator
    from ecgan.data import datasets
    from ecgan.generation import planner
    from ecgan.generation import run as generate

    run, file = (path, None) if path.is_dir() else (None, path)
    source = resolve_generator(run, file)
    data = load_generator(source).recipe.data
    root = options["reference"] or data.root
    if root is None:
        raise UsageError(f"--samples {place}: its recipe has no data.root; give --reference DIR")
    there = datasets.splits(data.dataset, Path(root))
    split = options["split"] or ("test" if "test" in there else "val")
    styles = "" if n_styles == 1 else f"-{n_styles}-styles"
    out = Path("datasets") / f"{source.parent.name or source.stem}-{split}{styles}"
    where = ("device", "executor", "workers", "gpus_per_worker", "ray_address", "quiet")
    generate.run(
        planner.Request(
            generator=source,
            out=out,
            root=Path(root),
            split=split,
            n_styles=n_styles,
            overrides=tuple(text for text in overrides if text.startswith("sampling.")),
            **{name: options[name] for name in where},
        )
    )
    return str(out)


def _limit(text: str) -> tuple[str, float]:
    from ecgan.evaluation.report.page import MEANINGS

    name, _, number = text.partition("=")
    higher = [n for n, meaning in MEANINGS.items() if meaning.better == "higher"]
    try:
        limit = float(number)
    except ValueError:
        limit = float("nan")
    if not math.isfinite(limit):  # nothing is below NaN
        raise UsageError(f"--fail-below {text}: expected NAME=X, e.g. miou=0.5")
    if name not in higher:
        kind = "better when it is low" if name in MEANINGS else "no such metric"
        raise UsageError(f"--fail-below {text}: {name} is {kind}; choose {', '.join(higher)}")
    return name, limit


def _below(document: dict[str, Any], name: str, limit: float) -> list[str]:
    from ecgan.evaluation.report import page as report

    found = [
        (one["samples"], one["metrics"].get(name, {"value": None})["value"])
        for one in report.sets(document)
    ]
    return [
        f"{samples}: {name} is {report.number(value)}, below {limit:g}"
        for samples, value in found
        if value is None or value < limit
    ]
