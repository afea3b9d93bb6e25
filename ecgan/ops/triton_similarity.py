"""Similarity loss (Eq. 3) as one Triton kernel: loss and gradient in one pass, nothing stored.

A program owns a block of rows i and goes over all columns j:

    grad_i = sum_j w_ij p_j,  w_ij = -1/a''_ij where y_i = y_j, else 1/(1 - a''_ij)

which needs neither atomic additions nor a second pass: the same bits in every run. (The symmetric
half of the tiles would do for w too, but the columns' share of the gradient would have to be added
to memory, M^2 n / 256 numbers: more traffic than the products that it saves.) The loss does use
the symmetry: columns before the block's own have no part in it, those after it count twice.

Products are exact (``triton_pairs``). w and, in the gradient's product alone, p are rounded to
float16's 11 bits: each to 2.4e-4 at most and independently, over M columns. Against float64, in
Triton's interpreter: loss 3e-8, gradient 1e-4 (12 classes) to 3e-4 (182), by norm; where confident
mistakes reach the bound, both are what plain float32 gives. Where p is the same everywhere, what
the gradient of the logits leaves of w p almost cancels, and loses up to 2e-2 of the little it is.

The reciprocal is the square of the reciprocal root, one instruction; there is a logarithm for each
product of all columns, kept as a mantissa and an exponent, not for each pair.

Shape legend:
    N  classes      M  pixels of an image, the labelled ones first      i, j  rows and columns
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgan.ops import triton_pairs as pairs


def losses_and_gradient(
    probabilities: Tensor, labels: Tensor, ignore: int, bound: float, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of each image, (B,), float64, and the gradient of each, as large as the input.

    Args:
        probabilities: float32, (B, N, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        ignore: label of pixels that take no part.
        bound: on a'' and 1 - a'' from below.
        with_gradient: whether it is wanted; None in its place if not.
    """
    gradient = torch.zeros_like(probabilities, memory_format=torch.contiguous_format)
    losses = [
        _loss_of_image(
            probabilities[image].flatten(1).contiguous(),
            labels[image].flatten(),
            ignore,
            bound,
            gradient[image] if with_gradient else None,
        )
        for image in range(len(labels))
    ]
    return torch.stack(losses), gradient if with_gradient else None


def _loss_of_image(
    p: Tensor,
    labels: Tensor,
    ignore: int,
    bound: float,
    gradient: Tensor | None,
) -> Tensor:
    """Loss of one image; its gradient goes to ``gradient``, (N, H, W). p: (N, H * W)."""
    labelled = labels != ignore
    order = labelled.logical_not().to(torch.uint8).argsort(stable=True)
    count = labelled.sum(dtype=torch.int32)
    n, rows = len(p), pairs.padded(len(labels))
    own = torch.full((rows,), ignore, dtype=torch.int32, device=p.device)  # as in the padding
    own[: len(labels)] = labels[order]
    keys = pairs.split(p, order, count, (1, len(labels)), n)
    logs = torch.zeros(rows, dtype=torch.float32, device=p.device)
    width = pairs.widths(n)
    block = pairs.blocks(width)
    _rows[(rows // block.rows,)](
        keys, own, order, count, logs, logs if gradient is None else gradient,
        n, len(labels),
        A=width.a, B=width.b, VECTOR=width.vector, ROWS=block.rows, COLUMNS=block.columns,
        FULL=pairs.SCALE**2, LOWEST=bound * pairs.SCALE**2, SCALE=2 * pairs.SCALE,
        WITH_GRADIENT=gradient is not None,
        num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip
    num_pairs = count.double().clamp(min=1).square()
    return logs.sum(dtype=torch.float64) * -math.log(2) / num_pairs


@triton.jit
def _rows(
    keys, labels, order, count, logs, gradient, n, size,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, FULL: tl.constexpr, LOWEST: tl.constexpr, SCALE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """A block of rows: the logarithms (base 2) of its pairs and its gradient."""
    M = tl.load(count)
    first = tl.program_id(0) * ROWS
    if first >= M:
        return
    i = first + tl.arange(0, ROWS)
    own = tl.load(labels + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    sums = tl.zeros((ROWS, VECTOR), dtype=tl.float32)
    mantissa = tl.full((ROWS, COLUMNS // 4), 1.0, dtype=tl.float32)
    exponent = tl.zeros((ROWS, COLUMNS // 4), dtype=tl.int32)

    if WITH_GRADIENT:
        for start in range(0, first, COLUMNS):
            b, same, j = _bounded(
                keys, labels, left_a, left_b, own, start, A, B, COLUMNS, LOWEST, FULL
            )
            sums = _add_gradient(sums, b, same, keys, j, A + B, VECTOR, WITH_GRADIENT)
    for start in range(first, first + ROWS, COLUMNS):
        b, same, j = _bounded(keys, labels, left_a, left_b, own, start, A, B, COLUMNS, LOWEST, FULL)
        mantissa, exponent = pairs.multiply(mantissa, exponent, b, FULL, ROWS, COLUMNS)
        sums = _add_gradient(sums, b, same, keys, j, A + B, VECTOR, WITH_GRADIENT)
    once = tl.sum(exponent.to(tl.float32) + tl.log2(mantissa), axis=1)
    for start in range(first + ROWS, M, COLUMNS):
        b, same, j = _bounded(keys, labels, left_a, left_b, own, start, A, B, COLUMNS, LOWEST, FULL)
        mantissa, exponent = pairs.multiply(mantissa, exponent, b, FULL, ROWS, COLUMNS)
        sums = _add_gradient(sums, b, same, keys, j, A + B, VECTOR, WITH_GRADIENT)
    both = tl.sum(exponent.to(tl.float32) + tl.log2(mantissa), axis=1)

    labelled = i < M
    tl.store(logs + i, both * 2 - once, mask=labelled)  # later columns twice, the own ones once
    if WITH_GRADIENT:
        # In ``sums``, w is a SCALE^2-th of 1/b and p is SCALE times p.
        pixels = M.to(tl.float32)
        number = tl.arange(0, VECTOR)
        pixel = tl.load(order + i, mask=labelled, other=0)
        tl.store(
            gradient + number[None, :].to(tl.int64) * size + pixel[:, None],
            sums * (SCALE / pixels / pixels),
            mask=labelled[:, None] & (number < n)[None, :],
        )


@triton.jit
def _bounded(
    keys, labels, left_a, left_b, own, start,
    A: tl.constexpr, B: tl.constexpr, COLUMNS: tl.constexpr, LOWEST: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Columns from ``start`` on: b = a'' where classes are the same, 1 - a'' elsewhere.

    Returns:
        FULL times b, bounded; where classes are the same, (ROWS, COLUMNS); the columns.
    """
    j = start + tl.arange(0, COLUMNS)
    same = own[:, None] == tl.load(labels + j)[None, :]
    total = pairs.products(keys, left_a, left_b, j, A + B, A, B)
    return tl.maximum(tl.where(same, total, FULL - total), LOWEST), same, j


@triton.jit
def _add_gradient(
    sums, b, same, keys, j,
    STORED: tl.constexpr, VECTOR: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Sums of w p_j: w = 1/b, negative where classes are the same; p_j from the stored rows.

    What is stored beyond the n numbers of p gives further columns of sums, which nobody reads.
    """
    if WITH_GRADIENT:
        root = tl.math.rsqrt(b)
        w = root * tl.where(same, -root, root)
        right = pairs.load_columns(keys, j, STORED, 0, VECTOR)
        sums = tl.dot(w.to(tl.float16), right, sums, out_dtype=tl.float32)
    return sums
