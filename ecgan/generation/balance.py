"""How many samples each layout gets: more of hard layouts, or of layouts with rare classes.

Counts follow from numbers alone, without a random draw: the same numbers give the same counts on
every machine. Sums over classes go class by class and shares are split in whole numbers, so that no
vector unit's order of addition decides who gets a sample.

Shape legend:
    L  layouts      N  classes      C  classes with a target
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize as _optimize  # pyright: ignore[reportMissingTypeStubs]

from ecgan.errors import UsageError, UserError
from ecgan.runtime.timing import counted

optimize: Any = _optimize  # it has no types
Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

MAX_STYLES = 20  # of the hardest layout, as in FreeMask

_MISS = 0.1  # of a target, beyond which it is said
_RIDGE = 1e-3  # of the dual, whose other terms are of the order of 1
_ROUNDS = 10
_SMALLEST_MOVE = 1e-6  # of lambda, between rounds
_PART = 1 << 24  # parts that a sample is split into, before they are put together again


def hardness(class_pixels: Counts, class_losses: Numbers) -> Numbers:
    """Hardness of layouts (FreeMask, Sec. 3.3): the mean loss of their labelled pixels' classes.

    Args:
        class_pixels: pixels of each class, (L, N).
        class_losses: mean loss of each class on real pairs, (N,); NaN where it is not known: its
            pixels do not count.

    Returns:
        (L,); 0 for layouts without a pixel that counts.
    """
    total, pixels = np.zeros(len(class_pixels)), np.zeros(len(class_pixels))
    for c in np.flatnonzero(np.isfinite(class_losses)):
        total += class_pixels[:, c] * class_losses[c]
        pixels += class_pixels[:, c]
    return np.divide(total, pixels, out=np.zeros_like(total), where=pixels > 0)


def hardness_counts(hardness: Numbers, total: int, max_styles: int = MAX_STYLES) -> Counts:
    """More samples of hard layouts (FreeMask, Sec. 3.3).

    Of L layouts, the one with ``rank`` easier ones has the weight
    ``min(1 + round(max_styles * rank / L), max_styles)``. A total equal to the sum of the weights
    gives exactly these counts, as FreeMask has them; another one is shared out in proportion, by
    largest remainder.

    Args:
        hardness: of each layout, (L,); equal ones rank by their index.
        total: samples.
        max_styles: weight of the hardest layouts; the easiest one has 1.

    Returns:
        Samples of each layout, (L,), never fewer for a harder one; they sum to ``total``. At least
        1 each where ``total`` allows it.
    """
    L = len(hardness)
    order = np.argsort(hardness, kind="stable")  # easiest first
    rank = np.arange(L)
    weights = np.minimum(1 + np.rint(max_styles * rank / L).astype(np.int64), max_styles)
    counts = np.empty(L, np.int64)
    counts[order] = _in_proportion(weights, total)
    return counts


def _in_proportion(weights: Counts, total: int) -> Counts:
    """Whole numbers in proportion to weights that do not fall, (L,); of equal ones the later wins.

    Where ``total`` is at least L, nobody goes without: those whose share is below 1 get 1, and the
    others share the rest.
    """
    L = len(weights)
    least = int(total >= L)
    first = np.arange(L)  # candidates for the first who gets a share, not the least
    rest = total - least * first
    sums = weights[::-1].cumsum()[::-1]  # of the weights from there on
    k = int(np.argmax(rest * weights >= least * sums))
    counts = np.full(L, least, np.int64)
    shares, remainders = np.divmod(rest[k] * weights[k:], sums[k])
    missing = int(rest[k] - shares.sum())
    by_remainder = np.lexsort((np.arange(len(shares)), remainders))
    shares[by_remainder[len(shares) - missing :]] += 1
    counts[k:] = shares
    return counts


def target_counts(
    class_pixels: Counts, targets: Mapping[int, float], total: int, max_styles: int = MAX_STYLES
) -> Counts:
    """Counts with which classes reach given shares of the labelled pixels, as even as can be.

    Layout i, with shares s_ic of its labelled pixels, is weighted by ``exp(sum_c lambda_c s_ic)``,
    capped: of all distributions of labelled pixels over the layouts in which the named classes have
    their shares, this one is the closest to that of equal counts (Kullback-Leibler). The lambda are
    the minimum of the convex dual, with a small ridge; targets that no counts reach
    end at the nearest shares that can be reached, each in units of its spread over the layouts.

    Counts are the weights' running sum, rounded, in the order of the tilt: the share of a single
    target is then met to half a sample. (Largest remainders would give a total below L to the
    layouts with the largest weights alone, far beyond the targets.)

    Args:
        class_pixels: pixels of each class in a sample of each layout, (L, N). Where layouts that
            get ``max_styles`` have a hundredth of the labelled pixels of others, targets may be
            missed by a few hundredths.
        targets: class -> share of the labelled pixels that it shall have, in (0, 1).
        total: samples.
        max_styles: most samples of one layout.

    Returns:
        Samples of each layout, (L,); they sum to ``total``.

    Raises:
        UserError: ``total`` is more than ``max_styles`` of each layout.
    """
    L = len(class_pixels)
    if total > L * max_styles:
        raise UserError(
            f"{counted(total, 'sample')} of {counted(L, 'layout')} are more than {max_styles} of "
            f"each; ask for at most {L * max_styles}, or allow more styles of a layout"
        )
    quotas, scores = _quotas(class_pixels, targets, total, max_styles)
    order = np.argsort(scores, kind="stable")
    parts = np.rint(quotas[order] * _PART).astype(np.int64)
    reached = (parts.cumsum() + _PART // 2) // _PART
    reached[-1] = total
    counts = np.empty(L, np.int64)
    counts[order] = np.diff(reached, prepend=0)
    return counts


def shares(class_pixels: Counts, counts: Counts) -> Numbers:
    """Shares of the classes among the labelled pixels, (N,), with these counts of layouts, (L,).

    All 0 where nothing is labelled.
    """
    pixels = counts @ class_pixels
    return pixels / max(1, pixels.sum())


def missed(targets: Mapping[int, float], reached: Numbers, names: Sequence[str]) -> str:
    """A line on the classes whose share misses its target by more than a tenth; empty without.

    Args:
        targets: class -> share of the labelled pixels that it shall have.
        reached: share of each class, (N,).
        names: of the classes, (N,).
    """
    found = [
        f"{names[c]} {target:.2%} wanted, {reached[c]:.2%} planned"
        for c, target in targets.items()
        if abs(reached[c] - target) > _MISS * target
    ]
    if not found:
        return ""
    return (
        f"--balance target cannot reach: {'; '.join(found)}; add layouts with other shares of "
        "these classes, raise --n-styles or sampling.balance_max_styles, or change --target"
    )


def parse_targets(texts: Sequence[str], names: Sequence[str]) -> dict[int, float]:
    """``["pedestrian=0.02", ...]`` -> class -> share of the labelled pixels.

    Args:
        texts: NAME=SHARE, as the user wrote them.
        names: of the classes, (N,).

    Raises:
        UserError: names that are not there, shares that cannot be; all of them at once.
    """
    faults: list[str] = []
    targets: dict[int, float] = {}
    for text in texts:
        name, equals, number = (part.strip() for part in text.rpartition("="))
        share = _share(number)
        if not equals:
            faults.append(f"{text}: expected CLASS=SHARE, e.g. {names[-1]}=0.02")
        elif name not in names:
            close = difflib.get_close_matches(name, names)
            hint = f" (did you mean {' or '.join(close)}?)" if close else ""
            faults.append(f"{text}: no class is named {name!r}{hint}")
        elif share is None:
            faults.append(f"{text}: expected a share of the labelled pixels between 0 and 1")
        elif names.index(name) in targets:
            faults.append(f"{text}: {name} has a target already; give one")
        else:
            targets[names.index(name)] = share
    if sum(targets.values()) >= 1:
        faults.append(
            f"the shares sum to {sum(targets.values()):g}; together they must be below 1, since "
            "the other classes need pixels too"
        )
    if faults:
        raise UsageError("--target", faults)
    return targets


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1 else None


def _quotas(
    class_pixels: Counts, targets: Mapping[int, float], total: int, max_styles: int
) -> tuple[Numbers, Numbers]:
    """Samples of each layout if samples could be divided, and the scores of its tilt, (L,)."""
    L, cap = len(class_pixels), max_styles * len(class_pixels) / total
    labelled = class_pixels.sum(axis=1)
    mass = labelled / labelled.sum() if labelled.any() else np.full(L, 1 / L)
    x = np.empty((L, len(targets)))  # deviations from the targets; (L, C)
    for column, (c, target) in enumerate(sorted(targets.items())):
        share = class_pixels[:, c] / np.maximum(labelled, 1)
        # A power of two: the division is exact, whatever the last digits of the spread.
        x[:, column] = (share - target) / 2.0 ** np.floor(np.log2(float(share.std()) or 1.0))
    tilt, even = np.zeros(len(targets)), np.full(L, 1 / L)
    for _ in range(_ROUNDS):
        # The dual's weights have a mean of 1 over pixels, those with this cap over layouts.
        pixel_cap = cap / float(mass @ _capped(x @ tilt, even, cap))
        before = tilt
        found = optimize.minimize(
            _dual, before, (x, mass, pixel_cap, before), jac=True, options={"gtol": 1e-10}
        )
        tilt = np.asarray(found.x)
        if np.abs(tilt - before).max(initial=0) < _SMALLEST_MOVE:
            break
    scores = np.zeros(L)
    for column, strength in zip(x.T, tilt, strict=True):
        scores += column * float(f"{strength:.6g}")  # further digits differ between machines
    return _capped(scores, even, cap) * (total / L), scores


def _dual(
    tilt: Numbers, x: Numbers, mass: Numbers, cap: float, centre: Numbers
) -> tuple[float, Numbers]:
    """Log-partition + ridge/2 |lambda - centre|^2: value and gradient, (C,).

    With a cap, the log-partition is the maximum, over the weights that keep it, of
    ``lambda . E[x] - KL``; its gradient is E[x]. The ridge pulls back to the lambda of the round
    before: where the targets can be reached, the rounds converge and the pull vanishes; where they
    cannot, lambda grows round by round.

    Args:
        tilt: lambda, (C,).
        x: deviations from the targets, (L, C).
        mass: share of all labelled pixels in each layout, (L,).
        cap: largest weight of a layout, where the weights' mean over ``mass`` is 1.
        centre: lambda of the round before, (C,).
    """
    weights = _capped(x @ tilt, mass, cap)
    pixels, away = mass * weights, tilt - centre
    mean = pixels @ x
    entropy = pixels @ np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    value = float(tilt @ mean - entropy + _RIDGE / 2 * away @ away)
    return value, mean + _RIDGE * away


def _capped(scores: Numbers, mass: Numbers, cap: float) -> Numbers:
    """Weights ``min(cap, exp(score) / Z)``, (L,), with the Z for which their mean is 1.

    Args:
        scores: logarithms of the weights, but for Z, (L,).
        mass: distribution that the mean is taken over, (L,).
        cap: largest weight, at least 1.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, m = scores[order], mass[order]
    # If the first k have the cap, they leave this much to the others, whose Z is then known.
    left = np.maximum(0, 1 - cap * np.concatenate([[0], m[:-1].cumsum()]))
    with np.errstate(divide="ignore"):  # the logarithm of a mass of 0
        log_z = np.logaddexp.accumulate((ordered + np.log(m))[::-1])[::-1]
    some = left > 0
    log_z = np.where(some, log_z - np.log(left, where=some, out=np.zeros_like(left)), np.inf)
    # If the others keep the cap for some k, they do for every larger one.
    keep = ordered - log_z <= np.log(cap)
    k = int(np.argmax(keep)) if keep.any() else len(scores) - 1
    weights = np.full(len(scores), cap)
    weights[order[k:]] = np.minimum(np.exp(ordered[k:] - log_z[k]), cap)
    return weights
