"""Pixel-wise contrastive loss (Eq. 5) as three Triton kernels, one for each pass, nothing stored.

Embeddings and bank are sorted by class, and anchors come first within a class: positives are square
blocks on the diagonal. Those that take no part come last, as padding; their number stays on the
device, so that the host never waits. A program owns a block of rows i and goes over the columns j
that concern it, so that no sum needs atomic additions: the same bits in every run.

    1. l_i = log sum over negatives j of exp(s_ij), online                      rows: anchors
    2. loss_i; g_i = dloss_i/dl_i; the gradient of the positives' s_ij          rows: embeddings
    3. the gradient of the negatives' s_ij, g_i exp(s_ij - l_i)                 rows: embeddings

A row gets the gradient of its own terms as an anchor and of those of each column that is one.

Dot products are exact (``triton_pairs``), logarithms and exponentials have base 2, sums are float32
and their total float64. In the gradient's products, weights and vectors are rounded to float16's 11
bits, each to 2.4e-4 at most and independently. Against float64, in Triton's interpreter: loss 1e-7,
gradient 1e-4 to 3e-4, by norm.

Shape legend:
    M  embeddings      K  embeddings, bank and padding      D  length of an embedding
    i, j  rows and columns, in sorted order
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgan.ops import triton_pairs as pairs

CLASS_OF_NONE = -1
"""Class of rows that are only padding."""

WEIGHT_SCALE = 2.0**14
"""What weights, at most 2, are multiplied by to be in float16's range."""


class Keys(NamedTuple):
    """Embeddings and bank in sorted order, with padding."""

    number: Tensor  # how many are not padding, int32
    vectors: Tensor  # rows [hi, lo, hi], (K, k)
    order: Tensor  # place of each among embeddings and bank, (K,); 0 in the padding
    classes: Tensor  # where the class starts stands for it, (K,)
    start: Tensor  # where the class of each starts, (K,)
    stop: Tensor  # and where it stops, (K,)
    padding: Tensor  # -inf for padding, 0 for all others, (K,)
    share: Tensor  # 1/|P_i| of anchors that have positives, 0 for all others, (K,)
    num_anchors: Tensor  # that have positives


def lay_out(everything: Tensor, classes: Tensor, is_anchor: Tensor, takes_part: Tensor) -> Keys:
    """Sort embeddings and bank by class, anchors first.

    Args:
        everything: embeddings, then the bank, (M + Mb, D).
        classes: of each, (M + Mb,).
        is_anchor: which are anchors, (M + Mb,).
        takes_part: which are there at all, (M + Mb,).
    """
    size, n = everything.shape
    rows = pairs.padded(size)
    count = takes_part.sum(dtype=torch.int32)
    key = (classes * 2 + ~is_anchor).masked_fill(~takes_part, torch.iinfo(torch.int64).max)
    key, order = key.sort(stable=True)
    own, inside = key >> 1, takes_part[order]
    start, stop = torch.searchsorted(own, own), torch.searchsorted(own, own, right=True)
    positives = stop - start - 1
    has_positives = inside & is_anchor[order] & (positives > 0)
    share = torch.where(has_positives, 1 / positives, 0.0)

    def pad(x: Tensor, value: float, dtype: torch.dtype) -> Tensor:
        padded = torch.full((rows,), value, dtype=dtype, device=x.device)
        padded[:size] = x.to(dtype).where(inside, value)
        return padded

    return Keys(
        count,
        pairs.split(everything, order, count, everything.stride(), n),
        pad(order, 0, torch.int64),
        pad(start, CLASS_OF_NONE, torch.int32),
        pad(start, 0, torch.int32),
        pad(stop, 0, torch.int32),
        pad(torch.zeros_like(share), -math.inf, torch.float32),
        pad(share, 0.0, torch.float32),
        has_positives.sum(),
    )


def loss_and_gradient(
    everything: Tensor,
    keys: Keys,
    temperature: float,
    num_embeddings: int,
    *,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum of the anchors' losses, float64, and the gradient, as large as ``everything``.

    Args:
        everything: embeddings, then the bank, float32, (M + Mb, D).
        keys: their ``lay_out``.
        temperature: tau of Eq. 5.
        num_embeddings: M. The bank gets no gradient.
        with_gradient: whether it is wanted; None in its place if not.
    """
    n = everything.shape[1]
    width = pairs.widths(n)
    block = pairs.blocks(width.a + width.b)
    grid = (len(keys.order) // block.rows,)
    sizes = {
        "A": width.a, "B": width.b, "ROWS": block.rows, "COLUMNS": block.columns,
        "num_warps": block.warps, "num_stages": block.stages,
    }  # fmt: skip
    # s in base 2, of products that are pairs.SCALE^2 too large
    to_base_2 = math.log2(math.e) / temperature / pairs.SCALE**2
    l = torch.full_like(keys.share, -torch.inf)
    g, losses = torch.zeros_like(l), torch.zeros_like(l)
    gradient = torch.zeros_like(everything, memory_format=torch.contiguous_format)
    scale = 1 / (temperature * pairs.SCALE * WEIGHT_SCALE)

    _log_negatives[grid](
        keys.vectors, keys.classes, keys.start, keys.stop, keys.padding, keys.share, l, keys.number,
        n, to_base_2, **sizes,
    )  # fmt: skip
    fewer_columns = sizes | {"COLUMNS": block.columns // 2}  # this pass needs the most registers
    _positives[grid](
        keys.vectors, keys.order, keys.classes, keys.start, keys.stop, keys.share, l, g, losses,
        gradient, keys.number, num_embeddings, n, to_base_2, -scale,
        VECTOR=width.vector, WEIGHT_SCALE=WEIGHT_SCALE, WITH_GRADIENT=with_gradient,
        **fewer_columns,
    )  # fmt: skip
    total = losses.sum(dtype=torch.float64) * math.log(2)
    if not with_gradient:
        return total, None
    u = torch.where(g > 0, g.log2() - l, -torch.inf) + math.log2(WEIGHT_SCALE)
    _negatives[grid](
        keys.vectors, keys.order, keys.classes, keys.start, keys.stop, keys.padding, u, gradient,
        keys.number, num_embeddings, n, to_base_2, scale, VECTOR=width.vector, **sizes,
    )  # fmt: skip
    return total, gradient


@triton.jit
def _positive_columns(start, stop, first, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """From where to where the columns are of a class of the block, in whole tiles."""
    last = tl.minimum(first + ROWS, count) - 1
    return tl.load(start + first) // COLUMNS * COLUMNS, tl.load(stop + last)


@triton.jit
def _skipped_columns(start, stop, first, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where columns start that hold no negative of the block, and how many: whole tiles.

    They are those of its class, and none if it is of several.
    """
    last = tl.minimum(first + ROWS, count) - 1
    lower, upper = tl.load(start + first), tl.load(stop + last)
    skip_from = tl.cdiv(lower, COLUMNS) * COLUMNS
    skip_to = tl.where(tl.load(start + last) == lower, upper // COLUMNS * COLUMNS, 0)
    return skip_from, tl.maximum(skip_to - skip_from, 0)


@triton.jit
def _log_negatives(
    keys, classes, start, stop, padding, share, l, number_of_keys, n, to_base_2,
    A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pass 1: l of a block of rows in base 2, if one of them is an anchor with positives."""
    count = tl.load(number_of_keys)
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    if (first >= count) | (tl.max(tl.load(share + i), axis=0) == 0):
        return
    own = tl.load(classes + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    skip_from, skipped = _skipped_columns(start, stop, first, count, ROWS, COLUMNS)

    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for at in range(0, count - skipped, COLUMNS):
        j = at + tl.where(at >= skip_from, skipped, 0) + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        s += tl.load(padding + j)[None, :]
        s = tl.where(own[:, None] == tl.load(classes + j)[None, :], float("-inf"), s)
        new_largest = tl.maximum(largest, tl.max(s, axis=1))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(s - shift[:, None]), axis=1)
        largest = new_largest
    tl.store(l + i, largest + tl.log2(total), mask=i < count)


@triton.jit
def _positives(
    keys, order, classes, start, stop, share, l, g, losses, gradient,
    number_of_keys, num_embeddings, n, to_base_2, scale,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, WEIGHT_SCALE: tl.constexpr, WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Pass 2: losses (base 2) and g of a block of rows, and the positives' part of its gradient."""
    count = tl.load(number_of_keys)
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    inside = i < count
    place = tl.load(order + i)
    embedding = inside & (place < num_embeddings)
    if tl.max(embedding.to(tl.int32), axis=0) == 0:
        return
    own = tl.load(classes + i)
    own_share, own_l = tl.load(share + i), tl.load(l + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    lower, upper = _positive_columns(start, stop, first, count, ROWS, COLUMNS)

    loss = tl.zeros((ROWS,), dtype=tl.float32)
    mantissa = tl.full((ROWS, COLUMNS // 4), 1.0, dtype=tl.float32)
    exponent = tl.zeros((ROWS, COLUMNS // 4), dtype=tl.int32)
    own_g = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, VECTOR), dtype=tl.float32)
    for at in range(lower, upper, COLUMNS):
        j = at + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        positive = (own[:, None] == tl.load(classes + j)[None, :]) & (i[:, None] != j[None, :])
        # log2(1 + 2^x) = max(x, 0) + log2(1 + 2^-|x|): the sum of the one, the product of the other
        x = own_l[:, None] - s
        small = tl.exp2(-tl.abs(x))
        loss += tl.sum(tl.where(positive, tl.maximum(x, 0.0), 0.0), axis=1)
        mantissa, exponent = pairs.multiply(
            mantissa, exponent, tl.where(positive, 1 + small, 1.0), 1.0, ROWS, COLUMNS
        )
        w = tl.where(positive, tl.where(x > 0, 1.0, small) * _reciprocal(1 + small), 0.0)
        own_g += tl.sum(w, axis=1)
        if WITH_GRADIENT:
            mirrored = _reciprocal(1 + tl.exp2(s - tl.load(l + j)[None, :]))
            mirrored *= tl.load(share + j)[None, :] * WEIGHT_SCALE
            w = w * (own_share * WEIGHT_SCALE)[:, None] + tl.where(positive, mirrored, 0.0)
            right = pairs.load_columns(keys, j, A + B, 0, VECTOR)
            sums = tl.dot(w.to(tl.float16), right, sums, out_dtype=tl.float32)
    loss += tl.sum(exponent.to(tl.float32) + tl.log2(mantissa), axis=1)
    tl.store(losses + i, loss * own_share, mask=inside)
    tl.store(g + i, own_g * own_share, mask=inside)
    if WITH_GRADIENT:
        number = tl.arange(0, VECTOR)
        tl.store(
            gradient + place[:, None] * n + number[None, :],
            sums * scale,
            mask=embedding[:, None] & (number < n)[None, :],
        )


@triton.jit
def _negatives(
    keys, order, classes, start, stop, padding, u, gradient,
    number_of_keys, num_embeddings, n, to_base_2, scale,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Pass 3: the negatives' part of the gradient of a block of rows, added to it.

    u: log2 of g WEIGHT_SCALE, less l; -inf for all but anchors, (K,).
    """
    count = tl.load(number_of_keys)
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    place = tl.load(order + i)
    embedding = (i < count) & (place < num_embeddings)
    if tl.max(embedding.to(tl.int32), axis=0) == 0:
        return
    own, own_u = tl.load(classes + i), tl.load(u + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    skip_from, skipped = _skipped_columns(start, stop, first, count, ROWS, COLUMNS)

    sums = tl.zeros((ROWS, VECTOR), dtype=tl.float32)
    for at in range(0, count - skipped, COLUMNS):
        j = at + tl.where(at >= skip_from, skipped, 0) + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        s += tl.load(padding + j)[None, :]
        w = tl.exp2(s + own_u[:, None]) + tl.exp2(s + tl.load(u + j)[None, :])
        w = tl.where(own[:, None] == tl.load(classes + j)[None, :], 0.0, w)
        right = pairs.load_columns(keys, j, A + B, 0, VECTOR)
        sums = tl.dot(w.to(tl.float16), right, sums, out_dtype=tl.float32)
    number = tl.arange(0, VECTOR)
    address = gradient + place[:, None] * n + number[None, :]
    mask = embedding[:, None] & (number < n)[None, :]
    tl.store(address, tl.load(address, mask=mask, other=0.0) + sums * scale, mask=mask)


@triton.jit
def _reciprocal(x):
    """1/x of positive numbers, 0 of infinity: two instructions, where a division is many."""
    root = tl.math.rsqrt(x)
    return root * root
