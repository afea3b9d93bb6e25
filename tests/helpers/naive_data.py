"""What is done to labels and layouts, as loops over Python numbers: sharing no code with ecgan.

Arrays come as nested lists. Each function is the definition, written a second time.
"""

import math
from fractions import Fraction

SMALLEST = 1e-6  # bound on a probability


def pixel_loss(probabilities, label):
    """Cross entropy of one pixel, from the probabilities of all classes."""
    return -math.log(max(probabilities[label], SMALLEST))


def mean_class_losses(pixels, num_classes, known):
    """Mean loss and number of the pixels of each class; pixels: (probabilities, label) pairs."""
    means, counts = [], []
    for c in range(num_classes):
        losses = [pixel_loss(p, label) for p, label in pixels if label == c]
        means.append(sum(losses) / len(losses) if losses and known[c] else math.nan)
        counts.append(len(losses))
    return means, counts


def judge(losses, probabilities, label, means, tolerance, min_class_kept, ignore):
    """FreeMask's rule on one sample, all flat lists: new label, consistency, share that is kept."""
    pixels = range(len(label))
    kept = []
    for i in pixels:
        if label[i] != ignore:
            mean = means[label[i]]
            if math.isnan(mean) or losses[i] <= tolerance * mean:
                kept.append(i)
    for c in range(len(means)):
        own = [i for i in pixels if label[i] == c]
        own_kept = [i for i in kept if label[i] == c]
        if own and len(own_kept) / len(own) < min_class_kept:
            kept = [i for i in kept if label[i] != c]
    labelled = [i for i in pixels if label[i] != ignore]
    judged = [probabilities[i] for i in labelled if not math.isnan(means[label[i]])]
    return (
        [label[i] if i in kept else ignore for i in pixels],
        sum(judged) / len(judged) if judged else 1.0,
        len(kept) / len(labelled) if labelled else 1.0,
    )


def hardness(class_pixels, class_losses):
    """Of each layout: mean of its pixels' class losses, of classes whose loss is known."""
    found = []
    for pixels in class_pixels:
        known = [c for c in range(len(class_losses)) if not math.isnan(class_losses[c])]
        total = sum(pixels[c] for c in known)
        weighted = sum(pixels[c] * class_losses[c] for c in known)
        found.append(weighted / total if total else 0.0)
    return found


def hardness_counts(hardness, total, max_styles):
    """FreeMask's number of samples of each layout, in proportion for another total."""
    L = len(hardness)
    weights, ranks = [0] * L, [0] * L
    for rank, i in enumerate(sorted(range(L), key=lambda i: (hardness[i], i))):
        ranks[i] = rank
        weights[i] = min(1 + round(max_styles * rank / L), max_styles)
    least = 1 if total >= L else 0
    shared = set(range(L))
    while True:
        factor = Fraction(total - least * (L - len(shared)), sum(weights[i] for i in shared))
        poor = {i for i in shared if factor * weights[i] < least}
        if not poor:
            break
        shared -= poor
    counts = [int(factor * weights[i]) if i in shared else least for i in range(L)]
    by_remainder = sorted(shared, key=lambda i: (factor * weights[i] % 1, ranks[i]), reverse=True)
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def tilted_quotas(class_pixels, target_class, target, total, max_styles):
    """min(max_styles, exp(lambda * share) / Z), summing to the total, that meet one target."""
    labelled = [sum(pixels) for pixels in class_pixels]
    own = [
        pixels[target_class] / total if total else 0.0
        for pixels, total in zip(class_pixels, labelled, strict=True)
    ]

    def quotas(tilt):
        top = max(tilt * s for s in own)

        def at(shift):
            return [math.exp(min(math.log(max_styles), tilt * s - top + shift)) for s in own]

        shift = bisect(lambda shift: sum(at(shift)) >= total, -50, 2000)
        return at(shift)

    def reached(tilt):
        found = quotas(tilt)
        pixels = [q * p for q, p in zip(found, labelled, strict=True)]
        return sum(x * s for x, s in zip(pixels, own, strict=True)) / sum(pixels)

    return quotas(bisect(lambda tilt: reached(tilt) >= target, -1000, 1000))


def bisect(is_reached, low, high):
    """The number at which a condition begins to hold."""
    for _ in range(60):
        middle = (low + high) / 2
        if is_reached(middle):
            high = middle
        else:
            low = middle
    return high


def shares(class_pixels, counts):
    """Of each class among the labelled pixels."""
    sums = [
        sum(n * pixels[c] for n, pixels in zip(counts, class_pixels, strict=True))
        for c in range(len(class_pixels[0]))
    ]
    return [one / sum(sums) if sum(sums) else 0.0 for one in sums]
