"""Similarity loss (Eq. 3) as one Triton kernel: loss and gradient in one pass, nothing stored.

A program owns a block of rows i and goes over all columns j:

    grad_i = sum_j w_ij p_j,  w_ij = -1/a''_ij where y_i = y_j, else 1/(1 - a''_ij)

which needs neither atomic additions nor a second pass: the same bits in every run. (The symmetric
half of the tiles would do for w too, but the columns' share of the gradient would have to be added
to memory, M^2 n / 256 numbers: more traffic than the products that it saves.) The loss does use
the symmetry: columns before the block's own have no part in it, those after it count twice.

Neither product loses digits, so that half precision is enough for both. a'' is a sum of positive
numbers, and so, where p sums to one, is

    1 - a''_ij = sum_n p_in (1 - p_jn)

(what p lacks of one is added, so that it holds for any p). Pixels are sorted by class: nearly all
tiles take one of the two sums alone, without asking for each pair which. Tensor cores multiply
numbers of 11 bits and add them in float32. p and 1 - p are rounded to them at random, up or down
with the chances that make the mean right, by a hash of the pixel and the class, so the same in
every run: errors of the pairs do not add up in the loss. w is rounded to the nearest, in the
gradient's product alone.

Against float64, in Triton's interpreter: loss within 1e-4 of 1,200 pixels and 3e-5 of 3,000,
falling with their root; gradient 1e-4 to 4e-4, by norm, and up to 2e-3 where p is nearly the same
everywhere, so that most of it cancels. Where confident mistakes reach the bound, the gradient of
the logits is as near as plain float32's.

The reciprocal is the square of the reciprocal root, one instruction; there is a logarithm for each
product of all columns, kept as a mantissa and an exponent, not for each pair.

Shape legend:
    B  images      N  classes      K  N + 2, padded: two powers of two      i, j  rows and columns
    M  pixels of an image, sorted by class, the unlabelled ones last; R with padding
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgan.ops.triton import pairs

SCALE = 2.0**14
"""Factor of p and 1 - p: numbers from 4e-9 on are normal in float16."""

WEIGHT_SCALE = 2.0**-6
"""Factor that brings w, 1 to 10^6, into float16's range."""

BYTES_AT_ONCE = 64e6
"""Images are taken together as long as their stored rows are no larger: few launches."""


def blocks(stored: int) -> pairs.Blocks:
    """Rows and columns of a tile, by what an SM's registers hold.

    Args:
        stored: length of a stored row.
    """
    if stored <= 48:
        return pairs.Blocks(128, 64, 8, 3, registers=128)
    if stored <= 96:
        return pairs.Blocks(128, 64, 8, 2)
    if stored <= 256:
        return pairs.Blocks(64, 64, 8, 2)
    return pairs.Blocks(64, 32, 8, 1)


def losses_and_gradient(
    probabilities: Tensor, labels: Tensor, ignore: int, bound: float, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss of each image, (B,), float64, and the gradient of each, as large as the input.

    Args:
        probabilities: float32, (B, N, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        ignore: label of pixels that take no part.
        bound: lower bound of a'' and 1 - a''.
        with_gradient: make the gradient; None in its place if not.
    """
    p, flat_labels = probabilities.flatten(2), labels.flatten(1)
    gradient = torch.zeros_like(p, memory_format=torch.contiguous_format) if with_gradient else None
    bytes_of_image = 4 * sum(pairs.powers(p.shape[1] + 2)) * pairs.padded(p.shape[2])
    at_once = max(1, int(BYTES_AT_ONCE / bytes_of_image))
    losses = [
        _losses(
            p[start : start + at_once],
            flat_labels[start : start + at_once],
            ignore,
            bound,
            None if gradient is None else gradient[start : start + at_once],
        )
        for start in range(0, len(p), at_once)
    ]
    return torch.cat(losses), None if gradient is None else gradient.view(probabilities.shape)


def _losses(
    p: Tensor, labels: Tensor, ignore: int, bound: float, gradient: Tensor | None
) -> Tensor:
    """Loss of each image; the gradient goes to ``gradient``. p: (B, N, M), labels: (B, M)."""
    B, n, size = p.shape
    rows, device = pairs.padded(size), p.device
    last = torch.iinfo(torch.int32).max  # the unlabelled ones, and the padding
    own = torch.full((B, rows), last, dtype=torch.int32, device=device)
    own[:, :size], order = labels.int().masked_fill(labels == ignore, last).sort(stable=True)
    count = (own != last).sum(dim=1, dtype=torch.int32)

    width = pairs.powers(n + 2)
    stored = sum(width)
    block = blocks(stored)
    keys = p.new_empty(2, B, rows, stored, dtype=torch.float16)  # of p; of 1 - p
    lacking = p.new_empty(B, rows, dtype=torch.float16)
    items = max(1, 4096 // triton.next_power_of_2(stored))
    _round[(triton.cdiv(rows, items), B)](
        p, order, count, keys, keys[1], lacking, n, size, rows, *p.stride(),
        WIDTH=triton.next_power_of_2(stored), STORED=stored, BLOCK=items, SCALE=SCALE,
    )  # fmt: skip

    # Where the classes of a block of rows start and stop
    first = own[:, :: block.rows].contiguous()
    final = own[:, block.rows - 1 :: block.rows].contiguous()
    bounds = torch.stack(
        [torch.searchsorted(own, first), torch.searchsorted(own, final, right=True)], dim=2
    ).int()
    logs = p.new_zeros(B, rows)
    _rows[(rows // block.rows, B)](
        keys, keys[1], lacking, own, order, count, bounds, logs,
        logs if gradient is None else gradient, n, size, rows,
        A=width[0], B=width[1], ROWS=block.rows, COLUMNS=block.columns, HALF=block.columns // 2,
        FULL=SCALE**2, LOWEST=bound * SCALE**2, SCALE=SCALE, WEIGHT=WEIGHT_SCALE * SCALE**2,
        GRADIENT_SCALE=2 / (SCALE * WEIGHT_SCALE), WITH_GRADIENT=gradient is not None,
        num_warps=block.warps, num_stages=block.stages, maxnreg=block.registers,
    )  # fmt: skip
    num_pairs = count.double().clamp(min=1).square()
    return logs.sum(dim=1, dtype=torch.float64) * -math.log(2) / num_pairs


@triton.jit
def _round(
    p, order, count, keys, rest_keys, lacking, n, size, rows, stride_image, stride_number,
    stride_item,
    WIDTH: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Rows [p, 0, 0] and [1 - p, 1, 0] of a block of items, and what p lacks of one.

    Padding is [0, 0, 0] and [0, 0, 1]: the last number makes its 1 - a'' one.
    """
    image = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, WIDTH)
    taken = row < tl.load(count + image)
    item = tl.load(order + image * size + row, mask=taken, other=0)
    inside = taken[:, None] & (number < n)[None, :]
    place = item[:, None] * stride_item + number[None, :] * stride_number
    x = tl.load(p + image * stride_image + place, mask=inside, other=0.0).to(tl.float32)
    # 1 - sum of p, the largest first: what is left is small, and so are the errors of its sum
    largest = tl.max(x, axis=1)
    smaller = x < largest[:, None]
    more = tl.sum(tl.where(smaller | (number >= n)[None, :], 0.0, 1.0), axis=1) - 1
    lacks = (1 - largest) - more * largest - tl.sum(tl.where(smaller, x, 0.0), axis=1)

    at = image * rows + row
    seed = item.to(tl.int32)[:, None] * 512 + number[None, :] * 2
    stored = at[:, None] * STORED + number[None, :]
    mask = (row < rows)[:, None] & (number < STORED)[None, :]
    tl.store(keys + stored, _at_random(x * SCALE, seed), mask=mask)
    rest = tl.where(inside, _at_random((1 - x) * SCALE, seed + 1).to(tl.float32), 0.0)
    rest = tl.where(number[None, :] == tl.where(taken, n, n + 1)[:, None], SCALE, rest)
    tl.store(rest_keys + stored, rest.to(tl.float16), mask=mask)
    tl.store(lacking + at, tl.where(taken, lacks * SCALE, 0.0).to(tl.float16), mask=row < rows)


@triton.jit
def _at_random(x, seed):
    """x, at least 0, in float16: up or down by chance, and the mean over seeds is x."""
    bits = seed ^ (seed >> 15)
    bits = bits * 0x2C1B3C6D
    bits = bits ^ ((bits >> 12) & 0xFFFFF)
    bits = bits * 0x297A2D39
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) & 0x1FFF  # the digits that float16 has not
    raised = (x.to(tl.int32, bitcast=True) + bits) & ~0x1FFF
    return raised.to(tl.float32, bitcast=True).to(tl.float16)


@triton.jit
def _rows(  # noqa: C901  one loop for each kind of columns
    keys, rest_keys, lacking, labels, order, count, bounds, logs, gradient, n, size, rows,
    A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    HALF: tl.constexpr, FULL: tl.constexpr, LOWEST: tl.constexpr, SCALE: tl.constexpr,
    WEIGHT: tl.constexpr, GRADIENT_SCALE: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """A block of rows: the logarithms (base 2) of its pairs and its gradient."""
    image = tl.program_id(1).to(tl.int64)
    M = tl.load(count + image)
    first = tl.program_id(0) * ROWS
    if first >= M:
        return
    # Columns whose class may be a row's, in whole tiles
    block = (image * (rows // ROWS) + tl.program_id(0)) * 2
    lower = tl.load(bounds + block) // COLUMNS * COLUMNS
    upper = tl.minimum(tl.load(bounds + block + 1), M)
    upper = tl.maximum(tl.cdiv(upper, COLUMNS) * COLUMNS, first + ROWS)

    keys += image * rows * (A + B)
    rest_keys += image * rows * (A + B)
    labels += image * rows
    i = first + tl.arange(0, ROWS)
    own = tl.load(labels + i)
    lacks = tl.load(lacking + image * rows + i)
    left_a = _left(keys, i, lacks, n, A + B, 0, A, SCALE)
    left_b = left_a
    if B > 0:
        left_b = _left(keys, i, lacks, n, A + B, A, B, SCALE)
    sums_a = tl.zeros((ROWS, A), dtype=tl.float32)
    sums_b = tl.zeros((ROWS, B if B > 0 else 16), dtype=tl.float32)
    mantissa = tl.full((ROWS, COLUMNS // 4), 1.0, dtype=tl.float32)
    exponent = tl.zeros((ROWS, COLUMNS // 4), dtype=tl.int32)

    if WITH_GRADIENT:
        for start in range(0, lower, COLUMNS):
            _, root, j = _of_others(rest_keys, left_a, left_b, start, A, B, COLUMNS, LOWEST)
            sums_a, sums_b = _add_gradient(
                sums_a, sums_b, root, root, keys, j, A, B, WEIGHT, WITH_GRADIENT
            )
        for start in range(lower, first, HALF):
            _, root, signed, j = _of_any(
                keys, rest_keys, labels, left_a, left_b, own, start, A, B, HALF, LOWEST
            )
            sums_a, sums_b = _add_gradient(
                sums_a, sums_b, root, signed, keys, j, A, B, WEIGHT, WITH_GRADIENT
            )
    for start in range(first, first + ROWS, HALF):
        b, root, signed, j = _of_any(
            keys, rest_keys, labels, left_a, left_b, own, start, A, B, HALF, LOWEST
        )
        mantissa, exponent = pairs.multiply_two(mantissa, exponent, b, FULL, ROWS, HALF)
        sums_a, sums_b = _add_gradient(
            sums_a, sums_b, root, signed, keys, j, A, B, WEIGHT, WITH_GRADIENT
        )
    once = tl.sum(exponent.to(tl.float32) + tl.log2(mantissa), axis=1)
    for start in range(first + ROWS, upper, HALF):
        b, root, signed, j = _of_any(
            keys, rest_keys, labels, left_a, left_b, own, start, A, B, HALF, LOWEST
        )
        mantissa, exponent = pairs.multiply_two(mantissa, exponent, b, FULL, ROWS, HALF)
        sums_a, sums_b = _add_gradient(
            sums_a, sums_b, root, signed, keys, j, A, B, WEIGHT, WITH_GRADIENT
        )
    for start in range(upper, M, COLUMNS):
        b, root, j = _of_others(rest_keys, left_a, left_b, start, A, B, COLUMNS, LOWEST)
        mantissa, exponent = pairs.multiply(mantissa, exponent, b, FULL, ROWS, COLUMNS)
        sums_a, sums_b = _add_gradient(
            sums_a, sums_b, root, root, keys, j, A, B, WEIGHT, WITH_GRADIENT
        )
    both = tl.sum(exponent.to(tl.float32) + tl.log2(mantissa), axis=1)

    # Later columns twice, the own ones once
    tl.store(logs + image * rows + i, both * 2 - once, mask=i < M)
    if WITH_GRADIENT:
        scale = GRADIENT_SCALE / M.to(tl.float32) / M.to(tl.float32)
        pixel = tl.load(order + image * size + i, mask=i < M, other=0)
        gradient += image * n * size
        _store_gradient(gradient, sums_a * scale, pixel, i < M, n, size, 0, A)
        if B > 0:
            _store_gradient(gradient, sums_b * scale, pixel, i < M, n, size, A, B)


@triton.jit
def _left(
    keys, i, lacks, n,
    STORED: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Rows i as the left side of products, [p, what p lacks, 1], a part of them."""
    k = FIRST + tl.arange(0, WIDTH)
    left = pairs.load_columns(keys, i, STORED, FIRST, WIDTH)
    left = tl.where((k == n)[None, :], lacks[:, None], left)
    return tl.where((k == n + 1)[None, :], SCALE, left).to(tl.float16)


@triton.jit
def _of_others(
    rest_keys, left_a, left_b, start,
    A: tl.constexpr, B: tl.constexpr, COLUMNS: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Columns from ``start`` on, none of a row's class: b = 1 - a'', SCALE^2 times, bounded.

    Returns:
        b and its reciprocal root, (ROWS, COLUMNS); the columns.
    """
    j = start + tl.arange(0, COLUMNS)
    b = tl.maximum(pairs.products(rest_keys, left_a, left_b, j, A + B, A, B), LOWEST)
    return b, tl.math.rsqrt(b), j


@triton.jit
def _of_any(
    keys, rest_keys, labels, left_a, left_b, own, start,
    A: tl.constexpr, B: tl.constexpr, COLUMNS: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    """Columns from ``start`` on: b = a'' where classes are the same, 1 - a'' elsewhere.

    Returns:
        b, its reciprocal root, and that negative where classes are the same, (ROWS, COLUMNS); the
        columns.
    """
    j = start + tl.arange(0, COLUMNS)
    same = own[:, None] == tl.load(labels + j)[None, :]
    of_same = pairs.products(keys, left_a, left_b, j, A + B, A, B)
    of_others = pairs.products(rest_keys, left_a, left_b, j, A + B, A, B)
    b = tl.maximum(tl.where(same, of_same, of_others), LOWEST)
    root = tl.math.rsqrt(b)
    return b, root, tl.where(same, -root, root), j


@triton.jit
def _add_gradient(
    sums_a, sums_b, root, signed_root, keys, j,
    A: tl.constexpr, B: tl.constexpr, WEIGHT: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Sums of w p_j, w the product of the two roots; columns beyond n are read by nobody."""
    if WITH_GRADIENT:
        w = (root * WEIGHT * signed_root).to(tl.float16)
        right = pairs.load_columns(keys, j, A + B, 0, A)
        sums_a = tl.dot(w, right, sums_a, out_dtype=tl.float32)
        if B > 0:
            right = pairs.load_columns(keys, j, A + B, A, B)
            sums_b = tl.dot(w, right, sums_b, out_dtype=tl.float32)
    return sums_a, sums_b


@triton.jit
def _store_gradient(
    gradient, sums, pixel, labelled, n, size, FIRST: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    number = FIRST + tl.arange(0, WIDTH)
    tl.store(
        gradient + number[None, :].to(tl.int64) * size + pixel[:, None],
        sums,
        mask=labelled[:, None] & (number < n)[None, :],
    )
