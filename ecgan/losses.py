"""The terms of Eq. 10, unweighted, each a pure function named after what it computes.

Every function computes in float32 (float64 stays float64) and outside autocast, which would run
the dot products in bfloat16 and the logarithms on top of that. None holds state or knows networks.

Over several ranks, means are taken over all of them: functions with ``reduce_sums`` hand it their
sums before they divide. It has to add a tensor up over the ranks, with a gradient that is added up
as well: every rank then holds the loss of the whole batch, and a gradient that is the number of
ranks times its share, which averaging over ranks (DDP) undoes.

Shape legend:
    B  images in the batch      N  semantic classes      M  pixels or embeddings
    D  length of an embedding   H, W  height and width
"""

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgan.ops.pair_similarity import pair_similarity
from ecgan.ops.pixel_contrast import ContrastOptions, pixel_contrast
from ecgan.ops.precision import to_exact

AdversarialKind = Literal["hinge", "log"]
ReduceSums = Callable[[Tensor], Tensor]


def discriminator_real(kind: AdversarialKind, scores: Sequence[Tensor]) -> Tensor:
    """D's loss on real pairs, Eq. 8: mean over patches, then over scales.

    Args:
        kind: ``hinge``: relu(1 - score); ``log``: -log D, with D = sigmoid(score).
        scores: one patch map a scale, each (B, 1, h, w).
    """
    match kind:
        case "hinge":
            return _mean_of_scales([F.relu(1 - score) for score in _exact(scores)])
        case "log":
            return _mean_of_scales([F.softplus(-score) for score in _exact(scores)])


def discriminator_fake(kind: AdversarialKind, scores: Sequence[Tensor]) -> Tensor:
    """D's loss on generated pairs, Eq. 8: ``hinge``: relu(1 + score); ``log``: -log(1 - D)."""
    match kind:
        case "hinge":
            return _mean_of_scales([F.relu(1 + score) for score in _exact(scores)])
        case "log":
            return _mean_of_scales([F.softplus(score) for score in _exact(scores)])


def discriminator_loss(
    kind: AdversarialKind,
    real: Sequence[Tensor],
    fakes: Sequence[tuple[float, Sequence[Tensor]]],
) -> Tensor:
    """D's loss of one modality, Eq. 8 for edges, Eq. 9 for images.

    Args:
        kind: ``hinge`` or ``log``.
        real: scores of the real pairs, one patch map a scale.
        fakes: (weight, scores) of each kind of generated pair. The real pairs weigh as much as
            all of them together: lambda + 1 where I' weighs 1 and I'' weighs lambda.
    """
    loss = sum(weight for weight, _ in fakes) * discriminator_real(kind, real)
    for weight, scores in fakes:
        loss = loss + weight * discriminator_fake(kind, scores)
    return loss


def generator_adversarial(kind: AdversarialKind, scores: Sequence[Tensor]) -> Tensor:
    """G's adversarial loss, Eqs. 8-9, for one kind of generated pair.

    Args:
        kind: ``hinge``: -score; ``log``: log(1 - D), which saturates, as the paper prints it.
        scores: scores of the generated pairs, one patch map a scale.
    """
    match kind:
        case "hinge":
            return _mean_of_scales([-score for score in _exact(scores)])
        case "log":
            return _mean_of_scales([-F.softplus(score) for score in _exact(scores)])


def feature_matching(
    real_maps: Sequence[Sequence[Tensor]], fake_maps: Sequence[Sequence[Tensor]]
) -> Tensor:
    """L1 between D's inner maps of real and generated pairs.

    Mean over each map, sum over the maps of a scale, mean over scales; no gradient to the real
    side.

    Args:
        real_maps: inner maps of the real pairs, without the score, for each scale.
        fake_maps: those of the generated pairs.
    """
    scales = [
        torch.stack([_l1(fake, real) for real, fake in zip(reals, fakes, strict=True)]).sum()
        for reals, fakes in zip(real_maps, fake_maps, strict=True)
    ]
    return torch.stack(scales).mean()


def perceptual(
    real_features: Sequence[Tensor], fake_features: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Weighted sum of the mean L1 between a frozen network's maps; no gradient to the real side."""
    terms = [
        weight * _l1(fake, real)
        for weight, real, fake in zip(weights, real_features, fake_features, strict=True)
    ]
    return torch.stack(terms).sum()


def kl_divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """KL divergence of the style from a standard normal: sum over the style, mean over the batch.

    Args:
        mu: mean of the style, (B, 256).
        log_var: logarithm of its variance, (B, 256).
    """
    mu, log_var = to_exact(mu), to_exact(log_var)
    return 0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1).mean()


def class_specific_l1(
    generated: Tensor,
    real: Tensor,
    labels: Tensor,
    num_classes: int,
    ignore: int,
    *,
    mean: Literal["class", "pixels"] = "class",
    reduce_sums: ReduceSums | None = None,
) -> Tensor:
    """L1 of the class-specific image I_g over labelled pixels, Eq. 6.

    Args:
        generated: I_g, (B, 3, H, W).
        real: real images, (B, 3, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        num_classes: N.
        ignore: label of unlabelled pixels.
        mean: ``class``: mean over each class's pixels, then over the classes present in the batch;
            ``pixels``: mean over all labelled pixels.
        reduce_sums: adds up over ranks (module docstring) each class's sum and count, (2, N).

    Returns:
        The loss, a scalar; 0 where nothing is labelled.
    """
    distance = (to_exact(generated) - to_exact(real)).abs().mean(dim=1).flatten()  # (B * H * W,)
    classes = labels.flatten().long()
    labelled = classes != ignore
    classes = classes.masked_fill(~labelled, 0)
    zeros = distance.new_zeros(num_classes)
    sums = torch.stack(
        [
            zeros.index_add(0, classes, distance.masked_fill(~labelled, 0)),
            zeros.index_add(0, classes, labelled.to(distance.dtype)),
        ]
    )
    if reduce_sums is not None:
        sums = reduce_sums(sums)
    total, count = sums[0], sums[1].detach()
    match mean:
        case "class":
            return (total / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)
        case "pixels":
            return total.sum() / count.sum().clamp(min=1)


def class_balance(
    labels: Tensor,
    num_classes: int,
    ignore: int,
    *,
    limits: tuple[float, float],
    reduce_sums: ReduceSums | None = None,
) -> Tensor:
    """Weight of each class by its inverse frequency, w_k = M / (K n_k) (OASIS, arXiv:2012.04781).

    M pixels are labelled, n_k of them class k, and K classes are present.

    Args:
        labels: class of each pixel, any integer type, (B, H, W).
        num_classes: N.
        ignore: label of unlabelled pixels.
        limits: least and largest weight.
        reduce_sums: adds up over ranks (module docstring) the counts, (N,).

    Returns:
        Weights, (N,), float32; the largest for a class that is not there.
    """
    flat = labels.flatten().long()
    classes = flat.masked_fill(flat == ignore, num_classes)
    counts = torch.zeros(num_classes + 1, device=flat.device)
    counts = counts.index_add(0, classes, torch.ones_like(classes, dtype=counts.dtype))[:-1]
    if reduce_sums is not None:
        counts = reduce_sums(counts)
    present = (counts > 0).sum().clamp(min=1)
    return (counts.sum() / (present * counts)).nan_to_num(nan=limits[1]).clamp(*limits)


def segmentation_real(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    ignore: int,
    *,
    smoothing: float = 0.0,
    reduce_sums: ReduceSums | None = None,
) -> Tensor:
    """Class-balanced cross-entropy of a discriminator of N + 1 classes with the labels.

    Of photos it is the discriminator's loss, of generated pictures the generator's (OASIS,
    arXiv:2012.04781, Eqs. 1 and 2).

    Args:
        logits: (B, N + 1, H, W), the last of generated pictures.
        labels: class of each pixel, any integer type, (B, H, W).
        weights: weight of each class, (N,), see :func:`class_balance`.
        ignore: label of unlabelled pixels.
        smoothing: share of the target that the N other logits have among them.
        reduce_sums: adds up over ranks (module docstring) the sum and the count, (2,).

    Returns:
        Mean over labelled pixels, a scalar; 0 where nothing is labelled.
    """
    log_p = to_exact(logits).log_softmax(dim=1)
    known = labels != ignore
    classes = labels.long().masked_fill(~known, 0)[:, None]
    own = log_p.gather(1, classes)[:, 0]
    others = (log_p.sum(dim=1) - own) / (logits.shape[1] - 1)
    loss = -((1 - smoothing) * own + smoothing * others)
    # Where nothing is labelled, weights may be infinite: 0 times that would be NaN in the gradient
    loss = loss * weights.to(loss.dtype)[classes[:, 0]].masked_fill(~known, 0)
    return _mean_where(loss, known, reduce_sums)


def segmentation_made(
    logits: Tensor, shown: Tensor, *, reduce_sums: ReduceSums | None = None
) -> Tensor:
    """Cross-entropy of generated pictures with the class "made", for the discriminator.

    Args:
        logits: (B, N + 1, H, W), the last of generated pictures.
        shown: pixels that show something generated, bool (B, H, W).
        reduce_sums: adds up over ranks (module docstring) the sum and the count, (2,).

    Returns:
        Mean over the pixels that are shown, a scalar.
    """
    return _mean_where(-to_exact(logits).log_softmax(dim=1)[:, -1], shown, reduce_sums)


def label_mix(mixed: Tensor, real: Tensor, fake: Tensor, mask: Tensor) -> Tensor:
    """LabelMix consistency (OASIS, arXiv:2012.04781, Eq. 4) of a discriminator's logits.

    Args:
        mixed: logits of pictures that show the photo in the mask and the generated picture
            elsewhere, (B, N + 1, H, W).
        real: logits of the photos.
        fake: logits of the generated pictures.
        mask: bool (B, 1, H, W).

    Returns:
        Mean squared difference of the logits of the mixture and the mixture of the logits.
    """
    expected = torch.where(mask, to_exact(real), to_exact(fake))
    return (to_exact(mixed) - expected).square().mean()


def _mean_where(values: Tensor, where: Tensor, reduce_sums: ReduceSums | None) -> Tensor:
    sums = torch.stack([values.masked_fill(~where, 0).sum(), where.sum().to(values.dtype)])
    if reduce_sums is not None:
        sums = reduce_sums(sums)
    return sums[0] / sums[1].detach().clamp(min=1)


def similarity_loss(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Similarity loss, Eq. 3, of each image over all pairs of its labelled pixels; batch mean.

    Args:
        probabilities: softmax of the label generator, S' or S'', (B, N, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        ignore: label of pixels that take no part. An image with no others counts as 0.
    """
    return pair_similarity(probabilities, labels, ignore).mean()


def pixel_contrastive_loss(
    embeddings: Tensor,
    classes: Tensor,
    temperature: float,
    *,
    reduce_sums: ReduceSums | None = None,
    **options: Unpack[ContrastOptions],
) -> Tensor:
    """Pixel-wise contrastive loss, Eq. 5, averaged over the anchors that have a positive.

    Positives of a pixel are the other pixels of its class, negatives those of all other classes,
    from any image.

    Args:
        embeddings: L2-normalised pixel embeddings, (M, D).
        classes: class of each embedding, (M,).
        temperature: tau of Eq. 5, above 0.
        reduce_sums: adds up over ranks (module docstring) the anchors' sum and count, (2,).
        options: anchors and memory bank, see :class:`~ecgan.ops.pixel_contrast.ContrastOptions`.

    Returns:
        The loss, a scalar; 0 when no anchor has a positive.
    """
    total, count = pixel_contrast(embeddings, classes, temperature, **options)
    sums = torch.stack([total, count.to(total.dtype)])
    if reduce_sums is not None:
        sums = reduce_sums(sums)
    return sums[0] / sums[1].detach().clamp(min=1)


def _l1(fake: Tensor, real: Tensor) -> Tensor:
    return (to_exact(fake) - to_exact(real.detach())).abs().mean()


def _exact(scores: Sequence[Tensor]) -> list[Tensor]:
    return [to_exact(score) for score in scores]


def _mean_of_scales(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([patches.mean() for patches in maps]).mean()
