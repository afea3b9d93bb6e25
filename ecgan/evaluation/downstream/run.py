"""Downstream experiment: segmenters trained with and without samples, tested on real photos.

    real pairs, samples --checked for leaks--> [runs that are not kept] --cluster--> results, kept
    results --over seeds--> means, spreads, differences from real pairs only

A condition is a fraction of the real pairs and a mix: r samples drawn for each real pair, or
samples only. Each is trained with several seeds. A run's result lies in a file named by a hash of
all that decides it, so that an interrupted experiment goes on with the runs that are missing.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgan.errors import UserError
from ecgan.evaluation.downstream import student as students
from ecgan.evaluation.downstream.experiment import Experiment, Request, check, match_samples
from ecgan.evaluation.downstream.leakage import Doubt
from ecgan.evaluation.downstream.student import Run, SegmenterTrainer
from ecgan.evaluation.report.document import (
    Condition,
    Difference,
    DownstreamReport,
    SeedScore,
    Spread,
)
from ecgan.metrics import statistics
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.files import write_whole
from ecgan.runtime.jobs import Done
from ecgan.runtime.timing import Progress
from ecgan.segmentation.training import ARCHITECTURES

__all__ = ["Request", "check", "match_samples", "run"]


def run(request: Request) -> DownstreamReport:
    """Train what is missing, and compare.

    Returns:
        Section of the report.

    Raises:
        UserError: as :func:`check`, or no run came to its end.
    """
    experiment = check(request)
    found, failed = _results(experiment)
    if not found:
        raise UserError("ecgan downstream: no run came to its end", [*dict.fromkeys(failed)])
    rows = _rows(experiment, found)
    return DownstreamReport(
        protocol=_protocol(experiment),
        rows=rows,
        sentences=[
            _sentence(row.name, row.against_real, len(row.runs))
            for row in rows
            if row.against_real is not None
        ],
        notes=experiment.notes + _missing(request),
        failed=failed,
    )


# Runs


def _results(experiment: Experiment) -> tuple[dict[Run, dict[str, Any]], list[str]]:
    """Results of all runs that came to their end, and what became of the others."""
    request = experiment.request
    paths = {run: experiment.path(run) for run in request.runs}
    kept = {run: _kept(path) for run, path in paths.items()}
    found = {run: result for run, result in kept.items() if result is not None}
    failed: list[str] = []
    # A training takes as long as it takes; a worker that dies is noticed all the same.
    workers = replace(request.workers, timeout=None)
    jobs = [run for run in paths if run not in found]
    bar = Progress(
        len(paths), "training segmenters", "run", show=not request.quiet, done=len(found)
    )
    ran = run_jobs(lambda _: SegmenterTrainer(experiment.config), jobs, workers)
    with bar, closing(ran) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Done):
                found[outcome.job] = outcome.result
                about = {"condition": str(outcome.job), **outcome.result}
                write_whole(paths[outcome.job], (json.dumps(about, indent=1) + "\n").encode())
            else:
                failed.append(f"{outcome.job}: {outcome.reason}")
            bar.update()
    return found, failed


def _kept(path: Path) -> dict[str, Any] | None:
    """The result of an earlier call."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {"miou", "accuracy", "iou"}
    return result if isinstance(result, dict) and names <= result.keys() else None


# What is written


def _rows(experiment: Experiment, found: Mapping[Run, Mapping[str, Any]]) -> list[Condition]:
    conditions: dict[tuple[float, float | None], dict[Run, Mapping[str, Any]]] = {}
    for run in experiment.request.runs:
        if run in found:
            conditions.setdefault((run.fraction, run.mix), {})[run] = found[run]
    return [
        _row(experiment, results, conditions.get((fraction, 0.0)) if mix != 0 else None)
        for (fraction, mix), results in conditions.items()
    ]


def _row(
    experiment: Experiment,
    results: Mapping[Run, Mapping[str, Any]],
    real: Mapping[Run, Mapping[str, Any]] | None,
) -> Condition:
    """A condition's results over seeds, compared with real pairs only where there are those."""
    run, config = next(iter(results)), experiment.config
    scores = [
        SeedScore(seed=one.seed, miou=result["miou"], accuracy=result["accuracy"])
        for one, result in results.items()
    ]
    mious = [one.miou for one in scores]
    return Condition(
        name=run.name,
        real_fraction=run.fraction,
        mix=run.mix,
        real_images=0 if run.mix is None else len(config.parts[run.fraction]),
        synthetic_images=0 if run.mix == 0 else sum(map(len, config.samples[run.fraction])),
        runs=scores,
        miou=_spread(mious),
        accuracy=_spread([one.accuracy for one in scores]),
        per_class={
            name: _spread([iou for r in results.values() if (iou := r["iou"][c]) is not None])
            for c, name in enumerate(config.space.names_for_evaluation)
        },
        against_real=None if real is None else _against([r["miou"] for r in real.values()], mious),
    )


def _spread(values: Sequence[float]) -> Spread:
    """Spread over seeds; of a class, over those in which it occurs or is predicted."""
    if not values:
        return Spread(mean=None, std=None)
    return Spread(**statistics.over_runs(values)._asdict())


def _against(real: Sequence[float], mixed: Sequence[float]) -> Difference:
    found = statistics.difference(real, mixed)
    return Difference(
        difference=found.value,
        low=found.low,
        high=found.high,
        spread=found.spread,
        larger=found.is_significant,
    )


def _sentence(name: str, found: Difference, seeds: int) -> str:
    """A difference to training on real pairs only, in words."""
    value = f"{found.difference:+.3f} mIoU"
    if found.spread is None:
        return f"{name}: {value}, of single runs: how far seeds spread is not known"
    spread = f"the spread over {seeds} seeds ({found.spread:.3f}"
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f})"
    if found.larger:
        return f"{name}: {value}, larger than {spread}; {interval}"
    return (
        f"{name}: no difference that {seeds} seeds could show ({value}, {spread[4:]}); {interval}"
    )


def _missing(request: Request) -> list[str]:
    notes: list[str] = []
    if 0 not in request.mixes:
        notes.append("nothing is compared with real pairs only: --mix has no 0")
    if request.seeds < 2:
        notes.append("one seed: no spread, so no difference can be told from chance")
    return notes


def _protocol(experiment: Experiment) -> dict[str, str]:
    request, config, training = experiment.request, experiment.config, experiment.config.training
    height, width = config.real.size
    generators = "none saw a held-out pair, or one outside of the real part"
    student = f"SegFormer of width {training.channels}, from scratch"
    if config.segmenter is not None:
        student = f"{config.segmenter}, fine-tuned, the same for all"
    elif training.architecture == "unet":
        student = ARCHITECTURES["unet"]
    return {
        "reference": str(request.folder.root),
        "samples": ", ".join(experiment.places) or "none",
        "student": student,
        "budget": f"{config.steps} steps of {training.batch} images for every "
        "condition, so real pairs are seen less often where samples are mixed in",
        "schedule": "AdamW, gradients clipped at 1, rate up over a tenth of the steps, then "
        "linearly to 0; cross entropy over labelled pixels",
        "augmentation": f"zoom of 1 to {students.MOST_ZOOM:g} into a random window"
        + (", half mirrored" if config.flip else "")
        + "; the same for real pairs and samples",
        "mix": "r x: a position shows a sample with probability r / (1 + r), by a hash of seed and "
        "position",
        "real_part": "chosen by a hash of the key; a smaller fraction is a part of a larger one",
        "test": f"{len(config.test)} real photos of split {request.test_split}",
        "size": f"{height} x {width} (height x width); real photos bicubic with antialias, labels "
        "nearest",
        "classes": f"{config.space.num_evaluation_classes} evaluation ids; the mean is over "
        "those that occur or are read",
        "seeds": ", ".join(map(str, sorted({run.seed for run in request.runs}))),
        "interval": "95 %: Student's t over seeds; of differences Welch's. It says how far other "
        "seeds would go, not other photos or other generators",
        "larger": "the interval of the difference leaves out 0",
        "precision": "bfloat16 autocast in training on CUDA, else float32; tests float32",
        "held_out": "samples of val and test layouts are refused",
        "generators": next((d for d in Doubt if d in experiment.doubts), generators)
        if experiment.places
        else "none",
    }
