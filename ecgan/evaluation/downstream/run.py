"""Downstream experiment: segmenters trained with and without samples, tested on real photos.

    real pairs, samples --checked for leaks--> [runs that are not kept] --cluster--> results, kept
    results --over seeds--> means, spreads, differences from real pairs only

A condition is a part of the real pairs and what is added: r samples drawn for each real pair,
samples alone, or a control that needs no generator. Each is trained with several draws of the real
pairs and several seeds. A run's result lies in a file named by a hash of all that decides it, so
that an interrupted experiment goes on with the runs that are missing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ecgan.data.datasets import Subset
from ecgan.errors import UserError
from ecgan.evaluation.downstream import copies
from ecgan.evaluation.downstream import student as students
from ecgan.evaluation.downstream.arms import Arm, Run, Source
from ecgan.evaluation.downstream.comparison import (
    BLOCK,
    Compared,
    CurvePoint,
    Scored,
    best_of,
    block_sequences,
    compare,
    conclusion,
    mean_iou,
    photos_worth,
)
from ecgan.evaluation.downstream.experiment import Experiment, Request, check, match_samples
from ecgan.evaluation.downstream.leakage import Doubt
from ecgan.evaluation.downstream.student import SegmenterTrainer
from ecgan.evaluation.report.document import (
    Condition,
    Copies,
    Difference,
    DownstreamReport,
    SeedScore,
    Spread,
)
from ecgan.evaluation.report.page import Gallery
from ecgan.evaluation.sources import Photos
from ecgan.metrics import statistics
from ecgan.reading.documents import read_cached
from ecgan.reading.numbers import Count
from ecgan.runtime.device import choose_device
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.files import write_whole
from ecgan.runtime.jobs import Done
from ecgan.runtime.timing import Progress, counted
from ecgan.segmentation.probe import PROBE
from ecgan.segmentation.unet import UNET

_MOST_SEQUENCES = 20  # of test photos, that are scored one by one
_STUDENTS = {
    "probe": PROBE,
    "unet": UNET,
    "scratch": "U-Net of the shape of EfficientNet-Lite1, from scratch",
    "segformer": "SegFormer, from scratch",
}

__all__ = ["Request", "check", "match_samples", "run"]


class Outcome(NamedTuple):
    """What came out of an experiment."""

    report: DownstreamReport  # section of the report
    galleries: list[Gallery]  # of the copy check


def run(experiment: Experiment) -> Outcome:
    """Train what is missing, and compare.

    Args:
        experiment: as of :func:`check`.

    Raises:
        UserError: no run came to its end.
    """
    found, failed = _results(experiment)
    if not found:
        raise UserError("ecgan downstream: no run came to its end", [*dict.fromkeys(failed)])
    rows, conclusions = _rows(experiment, found)
    checked, missing = _copies(experiment)
    report = DownstreamReport(
        protocol=_protocol(experiment),
        rows=rows,
        copies=[one for one, _ in checked],
        sentences=conclusions + [copies.conclusion(one) for one, _ in checked],
        notes=experiment.notes + _missing(experiment.asked) + missing,
        failed=failed,
    )
    return Outcome(report, [gallery for _, gallery in checked])


# Runs


class _Kept(BaseModel):
    """Result in a file, as of :class:`SegmenterTrainer`; further keys are let be."""

    model_config = ConfigDict(extra="allow", frozen=True)

    miou: float
    accuracy: float
    iou: list[float | None]
    blocks: Annotated[list[list[list[Count]]], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        own = {tuple(map(len, block)) for block in self.blocks}
        if own != {(len(self.iou),) * 3}:
            raise ValueError("blocks: expected three rows of all classes in each")
        return self


def _results(experiment: Experiment) -> tuple[dict[Run, dict[str, Any]], list[str]]:
    """Results of all runs that came to their end, and what became of the others."""
    request = experiment.request
    paths = {run: experiment.path(run) for run in request.runs}
    blocks = len(block_sequences(experiment.config.test.keys))
    kept = {run: _kept(path, blocks) for run, path in paths.items()}
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


def _kept(path: Path, blocks: int) -> dict[str, Any] | None:
    """The result of an earlier call; None where there is none, or it is damaged."""
    found = read_cached(path, _Kept)
    return None if found is None or len(found.blocks) != blocks else found.model_dump()


def _copies(experiment: Experiment) -> tuple[list[tuple[Copies, Gallery]], list[str]]:
    """Copy check of the samples of each part, where students learn from samples alone."""
    request, config = experiment.request, experiment.config
    if not any(arm.source is Source.SYNTHETIC for arm in request.arms):
        return [], []
    held_out = Photos(config.test, range(len(config.test)))
    workers = request.workers  # those of a cluster may have GPUs that this machine has not
    device = choose_device(workers.device if workers.in_process else "auto")
    try:
        encoder = copies.Encoder(device)
    except UserError as error:
        return [], [f"no copy check of the samples: {error}"]
    checked = [
        copies.check(
            Photos(config.real, config.parts[part]),
            held_out,
            sets,
            encoder,
            part="all pairs" if part.is_whole else str(part),
            quiet=request.quiet,
        )
        for part, sets in config.samples.items()
    ]
    return checked, []


# What is written

Results = Mapping[Run, Mapping[str, Any]]
Family = tuple[Subset, Arm]  # a part's size without its draw, and what is added


def _rows(experiment: Experiment, found: Results) -> tuple[list[Condition], list[str]]:
    """A row of each condition, draws and seeds together, and a conclusion on each of samples."""
    families: dict[Family, dict[Run, Mapping[str, Any]]] = {}
    for run in experiment.request.runs:
        if run in found:
            families.setdefault((replace(run.part, draw=0), run.arm), {})[run] = found[run]
    scored = {
        family: [Scored.of(run, result) for run, result in results.items()]
        for family, results in families.items()
    }
    means = {family: fmean([one.miou for one in those]) for family, those in scored.items()}
    curve = [
        CurvePoint(_photos(experiment, part), means[part, arm])
        for part, arm in families
        if arm.source is Source.NOTHING
    ]
    rows: list[Condition] = []
    conclusions: list[str] = []
    for (part, arm), results in families.items():
        of_part = {a: mean for (p, a), mean in means.items() if p == part}
        real = best_of(of_part, lambda a: a.source is Source.NOTHING)
        control = best_of(of_part, lambda a, own=arm: a.is_control and a != own)
        against = {
            other: compare(scored[part, other], scored[part, arm])
            for other in {real, control}
            if other is not None and other != arm
        }
        rows.append(_row(experiment, results, arm))
        rows[-1].against_real = _reported(against.get(real) if real else None)
        if not arm.needs_samples:
            continue
        rows[-1].control = None if control is None else str(control.source)
        rows[-1].against_control = _reported(against.get(control) if control else None)
        rows[-1].photos_worth = photos_worth(curve, means[part, arm])
        compared = Compared(
            arm,
            _photos(experiment, part),
            means[part, arm],
            None if real is None else of_part[real],
            control,
            against.get(control) if control else None,
        )
        where = "" if part.is_whole else f"{part}: "
        conclusions.append(where + conclusion(compared, curve))
    return rows, conclusions


def _photos(experiment: Experiment, part: Subset) -> int:
    parts = experiment.config.parts
    return next(len(own) for one, own in parts.items() if replace(one, draw=0) == part)


def _row(experiment: Experiment, results: Results, arm: Arm) -> Condition:
    """A condition's results over draws and seeds."""
    run, config = next(iter(results)), experiment.config
    scores = [
        SeedScore(
            seed=one.seed, draw=one.part.draw, miou=result["miou"], accuracy=result["accuracy"]
        )
        for one, result in results.items()
    ]
    return Condition(
        name=replace(run, part=replace(run.part, draw=0)).name,
        real_fraction=run.part.fraction,
        source=arm.source,
        mix=arm.mix if arm.has_real else None,
        real_images=len(config.parts[run.part]) if arm.has_real else 0,
        synthetic_images=sum(map(len, config.samples[run.part])) if arm.needs_samples else 0,
        runs=scores,
        miou=_spread([one.miou for one in scores]),
        accuracy=_spread([one.accuracy for one in scores]),
        per_class={
            name: _spread([iou for r in results.values() if (iou := r["iou"][c]) is not None])
            for c, name in enumerate(config.space.names_for_evaluation)
        },
        per_sequence=_by_sequence(config.test.keys, list(results.values())),
        against_real=None,
    )


def _by_sequence(keys: Sequence[str], results: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Mean IoU on the photos of each sequence; empty unless there are a few."""
    of_block = np.asarray(block_sequences(keys))
    names = np.unique(of_block).tolist()
    if not 1 < len(names) <= _MOST_SEQUENCES:
        return {}
    counts = [np.asarray(result["blocks"], np.float64) for result in results]
    scores = {name: [mean_iou(one[of_block == name]) for one in counts] for name in names}
    return {
        f"{name}*": _spread([s for s in own if math.isfinite(s)]) for name, own in scores.items()
    }


def _spread(values: Sequence[float]) -> Spread:
    """Spread over runs; of a class, over those in which it occurs or is predicted."""
    if not values:
        return Spread(mean=None, std=None)
    return Spread(**statistics.over_runs(values)._asdict())


def _reported(found: statistics.Difference | None) -> Difference | None:
    if found is None:
        return None
    return Difference(
        difference=found.value,
        low=found.low,
        high=found.high,
        spread=found.spread,
        larger=found.is_significant,
    )


def _missing(request: Request) -> list[str]:
    notes: list[str] = []
    if Source.NOTHING not in {arm.source for arm in request.arms}:
        notes.append("nothing is compared with real pairs only: --mix has no 0")
    draws = {part.draw for part in request.parts}
    if request.seeds < 2 and len(draws) < 2:
        notes.append("one seed: no spread, so no difference can be told from chance")
    if any(arm.needs_samples for arm in request.arms) and not any(
        arm.is_control and arm.source is not Source.NOTHING for arm in request.arms
    ):
        notes.append(
            "samples are compared with nothing that users can have without them; add copy-paste to "
            "--mix"
        )
    return notes


def _protocol(experiment: Experiment) -> dict[str, str]:
    request, config, training = experiment.request, experiment.config, experiment.config.training
    height, width = config.real.size
    generators = "none saw a held-out pair, or one outside of the real part"
    student = _STUDENTS[training.architecture]
    if training.architecture == "segformer":
        student = f"SegFormer of width {training.channels}, from scratch"
    if config.segmenter is not None:
        student = f"{config.segmenter}, fine-tuned, the same for all"
    return {
        "reference": str(request.folder.root),
        "samples": ", ".join(experiment.places) or "none",
        "student": student,
        "budget": f"{config.steps} steps of {counted(training.batch, 'image')} for every "
        "condition, so real pairs are seen less often where samples are mixed in",
        "schedule": "AdamW, gradients clipped at 1, rate up over a tenth of the steps, then "
        "linearly to 0; cross entropy over labelled pixels",
        "augmentation": f"zoom of 1 to {students.MOST_ZOOM:g} into a random window"
        + (", half mirrored" if config.flip else "")
        + f"; brightness, contrast, saturation, hue and gamma of {100 * students.RECOLOURED:g} % "
        "of the pictures; the same in every arm",
        "mix": "r x: a position shows a sample with probability r / (1 + r), by a hash of seed and "
        f"position, until {100 * training.mix_until:g} % of the steps; controls as r = 1",
        "samples_in_loss": f"weight {training.sample_weight:g} in the loss; "
        f"{counted(training.border, 'pixel')} at class borders not learnt",
        "real_part": "chosen by a hash of the key, or a block of neighbours by key; each draw anew",
        "test": f"{len(config.test)} real photos of split {request.test_split}",
        "size": f"{height} x {width} (height x width); real photos bicubic with antialias, labels "
        "nearest",
        "classes": f"{config.space.num_evaluation_classes} evaluation ids; the mean is over "
        "those that occur or are read",
        "seeds": ", ".join(map(str, sorted({run.seed for run in request.runs}))),
        "interval": "95 %: Student's t over runs. Of differences: t over draws, paired, or Welch's "
        "over the seeds of one draw, with the variance of a bootstrap over blocks of "
        f"{BLOCK} neighbouring test photos added",
        "larger": "the interval of the difference leaves out 0",
        "precision": "bfloat16 autocast in training on CUDA, else float32; tests float32",
        "held_out": "samples of val and test layouts are refused",
        "generators": next((d for d in Doubt if d in experiment.doubts), generators)
        if experiment.places
        else "none",
    }
