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
from ecgan_cli.options import (
    DEVICE,
    GPUS_PER_WORKER,
    JSON,
    MARKDOWN,
    PATH,
    POSITIVE,
    QUIET,
    RAY_ADDRESS,
    SET,
    WORKERS,
    option,
    recipe_option,
    terminable,
    under,
)


@click.command(cls=Command)
@under(
    "Data",
    option(
        "--samples",
        multiple=True,
        metavar="DIR|URL|RUN",
        help="Data set, or a run, from which samples of the split's layouts are generated first; "
        "repeatable.",
        show_default="the newest below datasets/",
    ),
    option(
        "--reference",
        type=PATH,
        metavar="DIR",
        help="Real data set.",
        show_default="data.root of the recipe",
    ),
    option("--split", metavar="NAME", help="Split of the real data.", show_default="test, or val"),
    option(
        "--n-styles",
        type=POSITIVE,
        metavar="N",
        default=1,
        show_default=True,
        help="Images of each layout, where a run is given.",
    ),
    recipe_option(help="Recipe to evaluate with.", show_default="the recipe of the samples"),
    SET,
)
@under(
    "Measurement",
    option(
        "--judge",
        metavar="train|DIR|NAME",
        help="Segmenter that judges the samples: trained on the real data, a folder, or a name on "
        "the Hugging Face hub.",
        show_default="evaluate.judge of the recipe",
    ),
    option(
        "--force-judge",
        is_flag=True,
        help="Accept the label generator as judge; the report says so.",
    ),
    option(
        "--reference-npz",
        "reference_statistics",
        type=PATH,
        metavar="FILE",
        help="Compute the FID against these statistics of pytorch-fid, not the real photos.",
    ),
    option(
        "--save-npz",
        "save_statistics",
        type=PATH,
        metavar="DIR",
        help="Save mean and covariance of all features in pytorch-fid's format.",
    ),
)
@under(
    "Downstream training",
    option("--downstream", is_flag=True, help="Train segmenters with and without samples."),
    option(
        "--mix",
        default="0,1",
        show_default=True,
        metavar="X,...",
        help="Synthetic-to-real ratios to train with, e.g. 0,1,2; `synthetic` trains on samples "
        "only.",
    ),
    option(
        "--real-fraction",
        default="1",
        show_default=True,
        metavar="F,...",
        help="Fractions of the real pairs to train with; below 1, the generator must have been "
        "trained on the same fraction.",
    ),
    option(
        "--seeds", type=POSITIVE, metavar="N", default=3, show_default=True, help="Seeds of each."
    ),
    option(
        "--segmenter",
        metavar="DIR|NAME",
        help="Segmenter to fine-tune.",
        show_default="a SegFormer from scratch",
    ),
    option(
        "--unknown-generator",
        is_flag=True,
        expert=True,
        help="Accept samples of a generator whose training data is unknown; the report says so.",
    ),
)
@under(
    "Output",
    option("--out", type=PATH, metavar="DIR", help="Report folder.", show_default="reports/NAME"),
    JSON,
    MARKDOWN,
    option(
        "--fail-below",
        multiple=True,
        metavar="NAME=X",
        help="Exit with 4 if this metric is below X, e.g. miou=0.5; repeatable.",
    ),
)
@under(
    "Workers",
    WORKERS,
    GPUS_PER_WORKER,
    RAY_ADDRESS,
    DEVICE,
)
@QUIET
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
    """Measure the quality of samples, beside the same measures of real photos.

    \b
    ecgan evaluate
    ecgan evaluate --samples DIR --reference DIR --split test
    ecgan evaluate --samples A --samples B --fail-below miou=0.5
    ecgan evaluate --samples runs/city
    ecgan evaluate --samples TRAIN --downstream --mix 0,1,synthetic --real-fraction 1

    With --downstream, samples of the tested split's layouts are judged; segmenters are trained with
    all others.
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
                "Interrupted; finished measurements and trainings are kept, the same command "
                "resumes",
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
    where = ("device", "workers", "gpus_per_worker", "ray_address", "quiet")
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
