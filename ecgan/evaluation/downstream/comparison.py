"""Comparison of arms: differences with intervals, worth in labelled photos, conclusions in words.

Shape legend:
    b  blocks of test photos      N  classes      R  resamples
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, variance
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ecgan.data.datasets import sequences
from ecgan.evaluation.downstream.arms import Arm, Run, Source
from ecgan.metrics import statistics
from ecgan.metrics.segmentation import PerImageConfusion, intersection_over_union
from ecgan.metrics.statistics import Difference

BLOCK = 20  # neighbouring photos of one sequence, which are not independent of each other
_RESAMPLES = 500


def blocks(keys: Sequence[str]) -> dict[str, str]:
    """For each key the block of neighbours that it is in.

    Keys that differ in their last number only are a sequence, as frames of a video; each is divided
    into blocks of at most BLOCK, in the order of their keys.
    """
    found: dict[str, str] = {}
    for name, members in sequences(keys).items():
        for index, key in enumerate(members):
            found[key] = f"{name}#{index // BLOCK}"
    return found


def block_sequences(keys: Sequence[str]) -> list[str]:
    """Sequence of each block, in the order of :func:`block_counts`."""
    return [name.rpartition("#")[0] for name in sorted({*blocks(keys).values()})]


def block_counts(counts: PerImageConfusion) -> list[list[list[int]]]:
    """True positives, labelled and predicted pixels of each class, for each block of photos."""
    names, block = np.unique(counts.layouts, return_inverse=True)
    rows = np.stack(
        [np.stack(counts.true_positives), np.stack(counts.labelled), np.stack(counts.predicted)], 1
    )
    summed = np.zeros((len(names), *rows.shape[1:]), np.int64)
    np.add.at(summed, block, rows)
    return cast("list[list[list[int]]]", summed.tolist())


@dataclass(frozen=True, eq=False)
class Scored:
    """Result of a run.

    Attributes:
        run: the run.
        miou: its mean IoU on all test photos.
        blocks: true positives, labelled and predicted pixels by block of test photos, (b, 3, N).
    """

    run: Run
    miou: float
    blocks: npt.NDArray[np.float64]

    @classmethod
    def of(cls, run: Run, result: Mapping[str, Any]) -> "Scored":
        """From the result of a trainer."""
        return cls(run, result["miou"], np.asarray(result["blocks"], np.float64))


def compare(base: Sequence[Scored], other: Sequence[Scored]) -> Difference:
    """Difference in mIoU of two arms, with an interval over draws or seeds, and test photos.

    With several draws of the real pairs the difference is taken within each, of means over seeds,
    so that a lucky draw counts for both arms. The interval is Student's t, over the draws that both
    have, or Welch's over the seeds of a single one. Its variance is the sum of that and of a
    bootstrap over blocks of neighbouring test photos: other photos would move it too.
    """
    draws = [_by_draw(base), _by_draw(other)]
    shared = sorted(draws[0].keys() & draws[1].keys())
    ours, theirs = ([one for d in shared for one in by[d]] for by in draws)
    value, error, freedom, spread = _over_runs(
        [[one.miou for one in draws[0][d]] for d in shared],
        [[one.miou for one in draws[1][d]] for d in shared],
    )
    if freedom is None:
        return Difference(value, None, None, None)
    half = statistics.t_quantile(freedom) * math.sqrt(error + _photo_variance(ours, theirs))
    return Difference(value, value - half, value + half, spread)


def _by_draw(scored: Sequence[Scored]) -> dict[int, list[Scored]]:
    found: dict[int, list[Scored]] = {}
    for one in scored:
        found.setdefault(one.run.part.draw, []).append(one)
    return found


def _over_runs(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> tuple[float, float, float | None, float | None]:
    """Difference, its variance, degrees of freedom and spread, of scores by draw and seed."""
    if len(base) == 1:
        (first,), (second,) = base, other
        found = statistics.difference(first, second)
        if found.spread is None:
            return found.value, 0.0, None, None
        n, m = len(first), len(second)
        v, w = variance(first) / n, variance(second) / m
        freedom = (v + w) ** 2 / (v**2 / (n - 1) + w**2 / (m - 1)) if v + w else float(n + m - 2)
        return found.value, v + w, freedom, found.spread
    paired = [fmean(b) - fmean(a) for a, b in zip(base, other, strict=True)]
    spread = math.sqrt(variance(paired))
    return fmean(paired), spread**2 / len(paired), float(len(paired) - 1), spread


def _photo_variance(base: Sequence[Scored], other: Sequence[Scored]) -> float:
    """Variance of the difference over resamples of the blocks of test photos; 0 of one block."""
    blocks = len(base[0].blocks)
    if blocks < 2:
        return 0.0
    weights = np.random.default_rng(0).multinomial(blocks, [1 / blocks] * blocks, _RESAMPLES)
    ours, theirs = (np.mean([_mious(one.blocks, weights) for one in s], 0) for s in (base, other))
    return float(np.var(theirs - ours, ddof=1))


def _mious(
    counts: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Mean IoU of each resample, (R,), over the classes that all blocks together have."""
    hits, labelled, predicted = np.einsum("rb,bkn->krn", weights, counts)
    everywhere = counts[:, 1].sum(0) > 0
    iou = np.nan_to_num(intersection_over_union(hits, labelled, predicted))
    there = (labelled > 0) & everywhere
    return (iou * there).sum(1) / np.maximum(there.sum(1), 1)


def mean_iou(blocks: npt.NDArray[np.float64]) -> float:
    """Mean IoU of blocks (b, 3, N) together, over the classes that occur or are read; NaN of none.

    Args:
        blocks: true positives, labelled and predicted pixels.
    """
    hits, labelled, predicted = blocks.sum(0)
    known = labelled + predicted > 0
    iou = intersection_over_union(hits, labelled, predicted)[known]
    return float(iou.mean()) if known.any() else math.nan


class CurvePoint(NamedTuple):
    """Mean IoU of students of so many labelled photos alone."""

    photos: int
    miou: float


def photos_worth(curve: Sequence[CurvePoint], miou: float) -> float | None:
    """Number of labelled photos that reach a mean IoU by themselves.

    Linear in the logarithm of the number between points of the learning curve, which is made
    monotonic by its running maximum.

    Args:
        curve: points of different numbers of photos.
        miou: score to reach.

    Returns:
        None where the curve does not hold the score: it has one point, begins above or ends below.
    """
    points = sorted(curve)
    best = np.maximum.accumulate([p.miou for p in points]).tolist()
    if len(points) < 2 or not best[0] <= miou <= best[-1]:
        return None
    for (low, first), (high, second) in pairwise(
        zip((p.photos for p in points), best, strict=True)
    ):
        if miou <= second:
            if second == first:
                return float(low)
            part = (miou - first) / (second - first)
            return float(math.exp(math.log(low) + part * (math.log(high) - math.log(low))))
    raise AssertionError(curve)


# In words


class Compared(NamedTuple):
    """An arm of samples, beside the best of its controls and real pairs alone."""

    arm: Arm
    photos: int  # of the part
    miou: float
    real: float | None  # mean IoU of the part's photos alone
    control: Arm | None  # the best of the controls, real pairs alone among them
    against: Difference | None  # to that control


def conclusion(found: Compared, curve: Sequence[CurvePoint]) -> str:
    """One sentence that a user can act on."""
    name = found.arm.name()
    if found.arm.source is Source.SYNTHETIC:
        return f"{name}: {_of_samples_alone(found)}"
    if found.control is None or found.against is None:
        return f"{name}: nothing to compare it with; add 0 to --mix"
    return f"{name}: {_of_difference(found, found.control, found.against, curve)}"


def _of_samples_alone(found: Compared) -> str:
    if not found.real:
        return f"mIoU {found.miou:.3f}; add 0 to --mix to compare it with photos"
    share = 100 * found.miou / found.real
    return (
        f"keeps {share:.0f} % of the photos' score ({found.miou:.3f} of {found.real:.3f}) "
        "without a photo leaving the house"
    )


def _of_difference(
    found: Compared, best: Arm, against: Difference, curve: Sequence[CurvePoint]
) -> str:
    is_real = best.source is Source.NOTHING
    control = "real pairs alone" if is_real else f"the control {best.source}"
    value = f"{100 * against.value:+.1f} points of mIoU against {control}"
    if against.low is None or against.high is None:
        return f"{value}, of single runs: how far others would differ is not known"
    value += f" (95 % interval {100 * against.low:+.1f} to {100 * against.high:+.1f})"
    if against.low > 0:
        return f"{value}{_more_photos(found, curve)}"
    if against.high < 0:
        return f"harms here: {value}"
    if against.value <= 0 and not is_real:
        return f"adds nothing here: {control} already does it; {value}"
    return f"no difference that these runs could show: {value}"


def _more_photos(found: Compared, curve: Sequence[CurvePoint]) -> str:
    """What a gain is worth in labelled photos, where the learning curve tells."""
    worth = photos_worth(curve, found.miou)
    if worth is None:
        best = max(curve, key=lambda point: point.miou, default=None)
        if best is not None and len(curve) > 1 and found.miou > best.miou:
            return f"; worth more than {best.photos - found.photos} more labelled photos"
        return ""
    more = round(worth) - found.photos
    if more < 1:
        return ""
    return f"; worth {more} more labelled {'photo' if more == 1 else 'photos'}"


def best_of(arms: Mapping[Arm, float], wanted: Callable[[Arm], bool]) -> Arm | None:
    """The arm of the highest mean IoU among those wanted."""
    among = [arm for arm in arms if wanted(arm)]
    return max(among, key=lambda arm: arms[arm], default=None)
