"""Similarity loss (Eq. 3): binary cross entropy between two maps of all pairs of pixels.

A_ij = [y_i = y_j] and A''_ij = p_i . p_j are M x M: 64 GiB at 256 x 512. They are made tile by tile
and never stored; loss and gradient come from the same pass, in O(M) memory:

    loss = -1/M^2 sum_ij log a''_ij where y_i = y_j, log(1 - a''_ij) elsewhere
    dloss/dp_i = -2/M^2 sum_j w_ij p_j,  w_ij = 1/a''_ij where y_i = y_j, -1/(1 - a''_ij) elsewhere

a'' and 1 - a'' are bounded from below by 1e-6, in the value and in w: the gradient passes straight
through the bound. A gradient killed there would silence exactly the confident mistakes.

Here in plain torch; in ``ops.triton.similarity`` for CUDA.

Shape legend:
    B  images in the batch      N  semantic classes      H, W  height and width
    M  labelled pixels of one image                      r, c  rows and columns of a tile
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ecgan.ops import backend
from ecgan.ops.precision import exact_arithmetic, to_exact
from ecgan.ops.tiles import (
    Tile,
    class_bounds,
    rectangle_tiles,
    same_class_tiles,
    tile_elements,
)

BOUND = 1e-6
FACTORS = 6  # numbers of at least BOUND whose product float32 still holds: 1e-36


def pair_similarity(probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Similarity loss, Eq. 3, of each image: exact, over all pairs of its labelled pixels.

    Args:
        probabilities: softmax of the label generator, (B, N, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        ignore: label of pixels that take no part.

    Returns:
        The loss of each image, (B,), float32 or float64; 0 for an image without labelled pixels.
    """
    losses = _PairSimilarity.apply(to_exact(probabilities), labels, ignore)
    assert isinstance(losses, Tensor)
    return losses


class _PairSimilarity(torch.autograd.Function):
    """The gradient is made with the value and kept, as large as the input."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, labels: Tensor, ignore: int) -> Tensor:  # noqa: ANN401
        with_gradient = ctx.needs_input_grad[0]

        def with_triton() -> tuple[Tensor, Tensor | None]:
            from ecgan.ops.triton import similarity

            return similarity.losses_and_gradient(
                probabilities, labels, ignore, BOUND, with_gradient=with_gradient
            )

        losses, gradient = backend.run(
            "pair similarity",
            probabilities,
            with_triton=with_triton,
            with_torch=lambda: _losses_and_gradient(
                probabilities, labels, ignore, with_gradient=with_gradient
            ),
        )
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses.to(probabilities.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None, None, None], None, None


def _losses_and_gradient(
    probabilities: Tensor, labels: Tensor, ignore: int, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of each image, (B,), float64, and the gradient of each, (B, N, H, W)."""
    gradient = torch.zeros_like(probabilities) if with_gradient else None
    losses = []
    with exact_arithmetic(probabilities.device):
        for image, image_labels in enumerate(labels.flatten(1)):
            order, bounds = _sort_by_class(image_labels, ignore)
            p = probabilities[image].flatten(1)[:, order].T.contiguous()  # (M, N)
            loss, grad = _loss_and_gradient(p, bounds, with_gradient=with_gradient)
            losses.append(loss)
            if gradient is not None:
                gradient[image].view(p.shape[1], -1)[:, order] = grad.T
    return torch.stack(losses), gradient


def _sort_by_class(labels: Tensor, ignore: int) -> tuple[Tensor, list[int]]:
    """Labelled pixels in the order of their classes, (M,), and the bounds of the classes."""
    labelled = (labels != ignore).nonzero()[:, 0]
    classes, order = labels[labelled].sort(stable=True)
    _, counts = classes.unique_consecutive(return_counts=True)
    return labelled[order], class_bounds(counts.tolist())


def _loss_and_gradient(
    p: Tensor, bounds: list[int], *, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Loss of one image and its gradient; p, (M, N), is sorted by class."""
    M = len(p)
    total = torch.zeros((), dtype=torch.float64, device=p.device)
    gradient = torch.zeros_like(p)
    # One more product makes 1 - p_i . p_j in one go: (1, p_i) . (1, -p_j).
    ones = p.new_ones(M, 1)
    left, right = torch.cat([ones, p], dim=1), torch.cat([ones, -p], dim=1)
    buffer = p.new_empty(tile_elements(p.device))

    for tile, same in _tiles(bounds, len(buffer)):
        rows, columns = p[tile.rows], p[tile.columns]
        a = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))  # a'' or 1 - a''
        if same:
            torch.mm(rows, columns.T, out=a)
        else:
            torch.mm(left[tile.rows], right[tile.columns].T, out=a)
        a.clamp_(min=BOUND)
        total -= _sum_of_logs(a) * (1 if tile.diagonal else 2)
        if with_gradient:
            w = a.reciprocal_()
            sign = -1 if same else 1
            gradient[tile.rows].addmm_(w, columns, alpha=sign)
            if not tile.diagonal:
                gradient[tile.columns].addmm_(w.T, rows, alpha=sign)

    pairs = max(M, 1) ** 2
    return total / pairs, gradient.mul_(2 / pairs)


def _tiles(bounds: list[int], elements: int) -> Iterator[tuple[Tile, bool]]:
    """Every pair of pixels once, with its mirror image; True with those of one class."""
    for start, stop in pairwise(bounds):
        for tile in same_class_tiles(start, stop, elements):
            yield tile, True
        for tile in rectangle_tiles(slice(start, stop), slice(stop, bounds[-1]), elements):
            yield tile, False


def _sum_of_logs(a: Tensor) -> Tensor:
    """Sum of log a, (r, c), of numbers in [BOUND, about 1], in float64.

    Six numbers are multiplied before each logarithm: the logarithm is what takes the time.
    """
    folds, rest = divmod(len(a), FACTORS)
    product = a[:folds].clone()
    for k in range(1, FACTORS):
        product *= a[k * folds : (k + 1) * folds]
    logs = product.log_().sum(dtype=torch.float64)
    if rest:
        logs += a[FACTORS * folds :].log().sum(dtype=torch.float64)
    return logs
