"""``ecgan evaluate`` and ``ecgan downstream``."""

import json
import math
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ecgan.errors import UsageError
from ecgan.recipe import load_recipe
from ecgan_cli.options import (
    ADDRESS,
    BELOW_LIMIT,
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
    CommaList,
    Command,
    echo,
    folder_option,
    interruptible,
    option,
    recipe_option,
    require_folder,
    under,
)

if TYPE_CHECKING:
    from ecgan.evaluation.report.document import Report
    from ecgan.evaluation.request import DownstreamOptions


_ARMS = ("copy-paste", "histogram", "self-training", "pretrain", "synthetic")


def _arm(word: str) -> float | str:
    return word if word in _ARMS else float(word)


_DATA = (
    folder_option("--reference", help="Real data set.", show_default="data.root of the recipe"),
    option("--split", metavar="NAME", help="Split of the real data.", show_default="test, or val"),
    recipe_option(help="Recipe to evaluate with.", show_default="the recipe of the samples"),
    SET,
)
_OUTPUT = (
    folder_option("--out", help="Report folder.", show_default="reports/NAME"),
    JSON,
    MARKDOWN,
)
_WORKERS = (WORKERS, GPUS_PER_WORKER, RAY_ADDRESS, DEVICE)


_EXPERIMENT = (
    option(
        "--mix",
        type=CommaList(_arm, f"expected numbers, {', '.join(_ARMS)}, separated by commas"),
        default="0,copy-paste,1,synthetic",
        metavar="X,...",
        help="What to train with: samples for each real pair (0: none), `synthetic` (samples "
        "alone), `pretrain` (samples, then real pairs), and controls without a generator: "
        "`copy-paste`, `histogram`, `self-training`.",
    ),
    option(
        "--real-fraction",
        type=CommaList(float, "expected numbers, separated by commas"),
        metavar="F,...",
        help="Fractions of the real pairs to train with; below 1, the generator must have been "
        "trained on the same fraction.",
        show_default="1, or --real-pairs",
    ),
    option(
        "--real-pairs",
        type=CommaList(int, "expected numbers of pairs, separated by commas"),
        metavar="N,...",
        help="Numbers of real pairs to train with, as data.pairs of the generators.",
    ),
    option("--draws", type=POSITIVE, default=1, help="Draws of these pairs, as data.draw."),
    option(
        "--draw-by",
        type=click.Choice(["hash", "block"]),
        default="hash",
        help="How pairs are drawn, as data.draw_by: over all, or a block of neighbours.",
    ),
    option(
        "--curve",
        type=CommaList(int, "expected numbers of pairs, separated by commas"),
        metavar="N,...",
        help="Numbers of real pairs to train with alone: what a gain is worth in labelled photos.",
    ),
    folder_option(
        "--unlabelled", help="Photos without labels, for `histogram` and `self-training`."
    ),
    option("--seeds", type=POSITIVE, default=3, help="Seeds of each training."),
    option(
        "--segmenter",
        metavar="DIR|NAME",
        help="Segmenter to fine-tune.",
        show_default="evaluate.downstream_training.architecture",
    ),
    option(
        "--unknown-generator",
        is_flag=True,
        help="Accept samples whose generator's training data is unknown; the report says so.",
    ),
)


@click.command(cls=Command)
@under(
    "Data",
    option(
        "--samples",
        multiple=True,
        type=ADDRESS,
        metavar="DIR|URL|RUN",
        help="Data set, or a run, from which samples of the split's layouts are generated first; "
        "repeatable.",
        show_default="the newest below datasets/",
    ),
    option(
        "--n-styles", type=POSITIVE, default=1, help="Images of each layout, where a run is given."
    ),
    *_DATA,
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
    folder_option(
        "--save-npz",
        "save_statistics",
        help="Save mean and covariance of all features in pytorch-fid's format.",
    ),
)
@under(
    "Downstream",
    option("--downstream", is_flag=True, help="Run ecgan downstream."),
    *_EXPERIMENT,
    hidden=True,
)
@under(
    "Output",
    *_OUTPUT,
    option(
        "--fail-below",
        multiple=True,
        metavar="NAME=X",
        help="Exit with 4 if this metric is below X, e.g. miou=0.5; repeatable.",
    ),
)
@under("Workers", *_WORKERS)
@QUIET
def evaluate(
    fail_below: tuple[str, ...],
    *,
    downstream: bool,
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
    """
    limits = [_limit(text) for text in fail_below]
    if downstream:
        echo("--downstream is now a command: ecgan downstream", err=True)
    options["downstream"] = _downstream_options(options, wanted=downstream)
    report = _run(options, as_json=as_json, markdown=markdown)
    failed = [text for name, limit in limits for text in _below(report, name, limit)]
    for text in failed:
        echo(text, err=True)
    if failed:
        sys.exit(BELOW_LIMIT)


@click.command(cls=Command)
@under(
    "Data",
    option(
        "--samples",
        multiple=True,
        required=True,
        type=ADDRESS,
        metavar="DIR|URL",
        help="Data set of layouts that are not of the tested split; repeatable.",
    ),
    *_DATA,
)
@under("Experiment", *_EXPERIMENT)
@under("Output", *_OUTPUT)
@under("Workers", *_WORKERS)
@QUIET
def downstream(
    *,
    as_json: bool,
    markdown: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Train segmenters with and without samples, and compare them on real photos.

    \b
    ecgan downstream --samples datasets/city-train --mix 0,copy-paste,1,synthetic
    ecgan downstream --samples datasets/city-20 --real-pairs 20 --curve 40,80,160

    Samples of layouts of the tested split are not trained with; they are judged, as ecgan evaluate
    does. The same command again resumes.
    """
    options["downstream"] = _downstream_options(options, wanted=True)
    _run(options, as_json=as_json, markdown=markdown)


def _downstream_options(options: dict[str, Any], *, wanted: bool) -> "DownstreamOptions | None":
    """Options of the downstream experiment, taken out of the command's; None if not wanted."""
    names = (
        *("mix", "real_fraction", "real_pairs", "draws", "draw_by", "curve", "unlabelled"),
        *("seeds", "segmenter", "unknown_generator"),
    )
    given = {name: options.pop(name) for name in names}
    if not wanted:
        return None
    from ecgan.data.datasets import Subset
    from ecgan.evaluation import run as library
    from ecgan.evaluation.downstream.arms import Arm

    faults: list[str] = []
    arms: list[Arm] = []
    for word in given["mix"]:
        try:
            arms.append(Arm.of(word))
        except ValueError as error:
            faults.append(f"--mix {word}: {error}")
    if given["real_fraction"] and given["real_pairs"]:
        faults.append("--real-fraction and --real-pairs: give one of them")
    for name in ("real_pairs", "curve"):
        faults += [
            f"--{name.replace('_', '-')} {number}: must be 1 or more"
            for number in given[name] or ()
            if number < 1
        ]
    if faults:
        raise UsageError("ecgan downstream", faults)
    draws = range(given["draws"])
    by = given["draw_by"]
    sizes = [Subset(fraction=f, draw_by=by) for f in given["real_fraction"] or ()]
    sizes += [Subset(pairs=n, draw_by=by) for n in given["real_pairs"] or ()]
    curve = [Subset(pairs=n, draw_by=by) for n in given["curve"] or ()]
    return library.DownstreamOptions(
        arms=tuple(dict.fromkeys(arms)),
        parts=tuple(replace(s, draw=d) for s in sizes for d in draws) or (Subset(),),
        curve=tuple(replace(s, draw=d) for s in curve for d in draws),
        unlabelled=given["unlabelled"],
        seeds=given["seeds"],
        segmenter=given["segmenter"],
        unknown_generator=given["unknown_generator"],
    )


def _run(options: dict[str, Any], *, as_json: bool, markdown: bool) -> "Report":
    """Evaluate and print; the report."""
    from ecgan.evaluation import run as library
    from ecgan.evaluation.report import tables

    require_folder("--reference", options["reference"])
    name, overrides = options.pop("recipe_name"), options["overrides"]
    recipe = None if name is None else load_recipe(name, overrides)
    with interruptible("finished measurements and trainings are kept, the same command resumes"):
        report, out = library.run(library.Request(recipe=recipe, **options))
    table = partial(tables.table, markdown=markdown)
    text = json.dumps(report.to_json(), indent=2) if as_json else table(report)
    echo(text, nl=as_json)
    echo(f"{out}/report.html", err=as_json or markdown)
    return report


def _limit(text: str) -> tuple[str, float]:
    from ecgan.evaluation.report.tables import MEANINGS

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


def _below(report: "Report", name: str, limit: float) -> list[str]:
    from ecgan.evaluation.report.tables import number

    found = [
        (one.samples, one.metrics[name].value if name in one.metrics else None)
        for one in report.sets
    ]
    return [
        f"{samples}: {name} is {number(value)}, below {limit:g}"
        for samples, value in found
        if value is None or value < limit
    ]
