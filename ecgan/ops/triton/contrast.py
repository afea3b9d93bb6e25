"""Pixel-wise contrastive loss (Eq. 5) as three Triton kernels, one for each pass, nothing stored.

Embeddings and bank are sorted by class, and anchors come first within a class: positives are square
blocks on the diagonal. Those that take no part come last, as padding; their number stays on the
device, so that the host never waits. A program owns a block of rows i and goes over the columns j
that concern it, so that no sum needs atomic additions: the same bits in every run.

    1. l_i = log sum over negatives j of exp(s_ij)                              rows: anchors
    2. loss_i; g_i = dloss_i/dl_i; the gradient of the positives' s_ij          rows: embeddings
    3. the gradient of the negatives' s_ij, g_i exp(s_ij - l_i)                 rows: embeddings

A row gets the gradient of its own terms as an anchor and of those of each column that is one.

Nearly all tiles of passes 1 and 3 hold negatives alone, and no pair is asked for its class. Unit
vectors' s lies between -1/tau and 1/tau: where float32 holds what comes of that, from tau = 0.065
on for 65,536 embeddings, a pair has one exponential in each pass (DIRECT); else sums are online, by
their largest term, and exponents are subtracted before each exponential.

Dot products are exact (``pairs``), logarithms and exponentials have base 2, sums are float32
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

from ecgan.ops.triton import pairs

CLASS_OF_NONE = -1
"""Class of rows that are only padding."""

WEIGHT_SCALE = 2.0**14
"""Factor that brings weights, at most 2, into float16's range."""

EXPONENTS = 62.0
"""Up to which power of two odds of unit vectors may go: float32 holds products of two of them."""


class Keys(NamedTuple):
    """Embeddings and bank in sorted order, with padding."""

    number: Tensor  # how many are not padding, int32
    vectors: Tensor  # rows [hi, lo, hi], (K, k)
    order: Tensor  # place of each among embeddings and bank, (K,); 0 in the padding
    classes: Tensor  # where the class starts stands for it, (K,)
    start: Tensor  # where the class of each starts, (K,)
    stop: Tensor  # and where it stops, (K,)
    share: Tensor  # 1/|P_i| of anchors that have positives, 0 for all others, (K,)
    num_anchors: Tensor  # that have positives


def blocks(stored: int) -> pairs.Blocks:
    """Rows and columns of a tile, by what an SM's registers hold.

    Args:
        stored: length of a stored row.
    """
    if stored <= 192:
        return pairs.Blocks(128, 64, 8, 2, registers=128)
    return pairs.Blocks(64, 32, 8, 2 if stored <= 640 else 1)


def lay_out(everything: Tensor, classes: Tensor, is_anchor: Tensor, takes_part: Tensor) -> Keys:
    """Sort embeddings and bank by class, anchors first.

    Args:
        everything: embeddings, then the bank, (M + Mb, D).
        classes: class of each, (M + Mb,).
        is_anchor: mask of the anchors, (M + Mb,).
        takes_part: mask of the embeddings that count at all, (M + Mb,).
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
        with_gradient: make the gradient; None in its place if not.
    """
    n = everything.shape[1]
    width = pairs.widths(n)
    block = blocks(width.a + width.b)
    grid = (len(keys.order) // block.rows,)
    # s in base 2, of products that are pairs.SCALE^2 too large
    to_base_2 = math.log2(math.e) / temperature / pairs.SCALE**2
    largest_odds = 2 * math.log2(math.e) / temperature + math.log2(len(keys.order))
    shared = {
        "DIRECT": largest_odds <= EXPONENTS, "A": width.a, "B": width.b, "ROWS": block.rows,
        "num_warps": block.warps, "num_stages": block.stages, "maxnreg": block.registers,
    }  # fmt: skip
    columns = {"COLUMNS": block.columns, "HALF": block.columns // 2}
    of_gradient = {"VECTOR": width.vector, "AT": width.a if width.b == n == width.vector else 0}
    l = torch.full_like(keys.share, -torch.inf)
    g, losses = torch.zeros_like(l), torch.zeros_like(l)
    gradient = torch.zeros_like(everything, memory_format=torch.contiguous_format)
    scale = 1 / (temperature * pairs.SCALE * WEIGHT_SCALE)

    _log_negatives[grid](
        keys.vectors, keys.classes, keys.start, keys.stop, keys.share, l, keys.number,
        n, to_base_2, **columns, **shared,
    )  # fmt: skip
    _positives[grid](
        keys.vectors, keys.order, keys.classes, keys.start, keys.stop, keys.share,
        l, l.exp2(), g, losses, gradient, keys.number,
        num_embeddings, n, to_base_2, -scale,
        COLUMNS=block.columns // 2, WEIGHT_SCALE=WEIGHT_SCALE, WITH_GRADIENT=with_gradient,
        **of_gradient, **shared,
    )  # fmt: skip
    total = losses.sum(dtype=torch.float64) * math.log(2)
    if not with_gradient:
        return total, None
    u = torch.where(g > 0, g.log2() - l, -torch.inf) + math.log2(WEIGHT_SCALE)
    _negatives[grid](
        keys.vectors, keys.order, keys.classes, keys.start, keys.stop,
        u.exp2() if shared["DIRECT"] else u, gradient, keys.number,
        num_embeddings, n, to_base_2, scale, **columns, **of_gradient, **shared,
    )  # fmt: skip
    return total, gradient


@triton.jit
def _classes_of(start, stop, first, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """From where to where columns may be of a class of the block, in whole tiles."""
    last = tl.minimum(first + ROWS, count) - 1
    lower = tl.load(start + first) // COLUMNS * COLUMNS
    return lower, tl.cdiv(tl.load(stop + last), COLUMNS) * COLUMNS


@triton.jit
def _log_negatives(
    keys, classes, start, stop, share, l, number_of_keys, n, to_base_2,
    DIRECT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Pass 1: l of a block of rows in base 2, if one of them is an anchor with positives."""
    count = tl.load(number_of_keys)
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    if (first >= count) | (tl.max(tl.load(share + i), axis=0) == 0):
        return
    own = tl.load(classes + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    lower, upper = _classes_of(start, stop, first, count, ROWS, COLUMNS)
    whole = tl.maximum(count // COLUMNS * COLUMNS, upper)

    largest = tl.full((ROWS,), 0.0 if DIRECT else float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    for at in range(0, lower + whole - upper, COLUMNS):
        j = tl.where(at < lower, at, at - lower + upper) + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        total, largest = _add_exponentials(total, largest, s, DIRECT)
    for at in range(lower, upper + count - whole, HALF):
        j = tl.where(at < upper, at, at - upper + whole) + tl.arange(0, HALF)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        s = tl.where(_negative(own, tl.load(classes + j)), s, float("-inf"))
        total, largest = _add_exponentials(total, largest, s, DIRECT)
    tl.store(l + i, largest + tl.log2(total), mask=i < count)


@triton.jit
def _negative(own, others):
    """Mask of the pairs of different classes that are not padding."""
    return (own[:, None] != others[None, :]) & (others >= 0)[None, :]


@triton.jit
def _add_exponentials(total, largest, s, DIRECT: tl.constexpr):
    """Sums of 2^s of rows, 2^largest times ``total``; with DIRECT, largest is 0."""
    if DIRECT:
        total += tl.sum(tl.exp2(s), axis=1)
    else:
        new = tl.maximum(largest, tl.max(s, axis=1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(s - shift[:, None]), axis=1)
        largest = new
    return total, largest


@triton.jit
def _positives(
    keys, order, classes, start, stop, share, l, X, g, losses, gradient,
    number_of_keys, num_embeddings, n, to_base_2, scale,
    DIRECT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr,
    AT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WEIGHT_SCALE: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
):  # fmt: skip
    """Pass 2: losses (base 2) and g of a block of rows, and the positives' part of its gradient.

    X: 2^l, (K,), read with DIRECT.
    """
    count = tl.load(number_of_keys)
    first = tl.program_id(0) * ROWS
    i = first + tl.arange(0, ROWS)
    inside = i < count
    place = tl.load(order + i)
    embedding = inside & (place < num_embeddings)
    if tl.max(embedding.to(tl.int32), axis=0) == 0:
        return
    own, own_share = tl.load(classes + i), tl.load(share + i)
    level = X if DIRECT else l
    own_level = tl.load(level + i)
    left_a, left_b = pairs.left_side(keys, i, n, A, B)
    lower, upper = _classes_of(start, stop, first, count, ROWS, COLUMNS)

    loss = tl.zeros((ROWS,), dtype=tl.float32)
    mantissa = tl.full((ROWS, COLUMNS // 2), 1.0, dtype=tl.float32)
    exponent = tl.zeros((ROWS, COLUMNS // 2), dtype=tl.int32)
    own_g = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, VECTOR), dtype=tl.float32)
    for at in range(lower, upper, COLUMNS):
        j = at + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        positive = (own[:, None] == tl.load(classes + j)[None, :]) & (i[:, None] != j[None, :])
        s = tl.where(positive, s, float("inf"))  # then r is 0
        if DIRECT:
            s = tl.exp2(-s)
        more, factor, w = _of_positives(s, own_level[:, None], DIRECT)
        if not DIRECT:
            loss += tl.sum(more, axis=1)
        mantissa, exponent = pairs.multiply_two(mantissa, exponent, factor, 1.0, ROWS, COLUMNS)
        own_g += tl.sum(w, axis=1)
        if WITH_GRADIENT:
            _, _, mirrored = _of_positives(s, tl.load(level + j)[None, :], DIRECT)
            mirrored *= tl.load(share + j)[None, :] * WEIGHT_SCALE
            w = w * (own_share * WEIGHT_SCALE)[:, None] + mirrored
            right = pairs.load_columns(keys, j, A + B, AT, VECTOR)
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
def _of_positives(s, level, DIRECT: tl.constexpr):
    """log2(1 + r) of pairs and r/(1 + r), where r = 2^(l - s) is the odds against the positive.

    Args:
        s: s, or 2^-s with DIRECT.
        level: l, or X with DIRECT.
        DIRECT: True where float32 holds all exponentials as they are.

    Returns:
        A part of log2(1 + r), 0 with DIRECT, and two to the power of the rest; r/(1 + r).
    """
    if DIRECT:
        r = level * s
        more, factor, w = tl.zeros_like(r), 1 + r, r * _reciprocal(1 + r)
    else:  # 1 + 2^x = 2^max(x, 0) (1 + 2^-|x|)
        x = level - s
        small = tl.exp2(-tl.abs(x))
        more, factor = tl.maximum(x, 0.0), 1 + small
        w = tl.where(x > 0, 1.0, small) * _reciprocal(1 + small)
    return more, factor, w


@triton.jit
def _negatives(
    keys, order, classes, start, stop, u, gradient,
    number_of_keys, num_embeddings, n, to_base_2, scale,
    DIRECT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr,
    AT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Pass 3: the negatives' part of the gradient of a block of rows, added to it.

    u: log2 of g WEIGHT_SCALE, less l; -inf for all but anchors, (K,). With DIRECT, 2^u.
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
    lower, upper = _classes_of(start, stop, first, count, ROWS, COLUMNS)
    whole = tl.maximum(count // COLUMNS * COLUMNS, upper)

    sums = tl.zeros((ROWS, VECTOR), dtype=tl.float32)
    for at in range(0, lower + whole - upper, COLUMNS):
        j = tl.where(at < lower, at, at - lower + upper) + tl.arange(0, COLUMNS)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        w = _of_negatives(s, own_u, tl.load(u + j), DIRECT)
        right = pairs.load_columns(keys, j, A + B, AT, VECTOR)
        sums = tl.dot(w.to(tl.float16), right, sums, out_dtype=tl.float32)
    for at in range(lower, upper + count - whole, HALF):
        j = tl.where(at < upper, at, at - upper + whole) + tl.arange(0, HALF)
        s = pairs.products(keys, left_a, left_b, j, A + B, A, B) * to_base_2
        s = tl.where(_negative(own, tl.load(classes + j)), s, float("-inf"))
        w = _of_negatives(s, own_u, tl.load(u + j), DIRECT)
        right = pairs.load_columns(keys, j, A + B, AT, VECTOR)
        sums = tl.dot(w.to(tl.float16), right, sums, out_dtype=tl.float32)
    number = tl.arange(0, VECTOR)
    address = gradient + place[:, None] * n + number[None, :]
    mask = embedding[:, None] & (number < n)[None, :]
    tl.store(address, tl.load(address, mask=mask, other=0.0) + sums * scale, mask=mask)


@triton.jit
def _of_negatives(s, own_u, u, DIRECT: tl.constexpr):
    """g_i exp(s - l_i) + g_j exp(s - l_j) of pairs, WEIGHT_SCALE times."""
    if DIRECT:
        return tl.exp2(s) * (own_u[:, None] + u[None, :])
    return tl.exp2(s + own_u[:, None]) + tl.exp2(s + u[None, :])


@triton.jit
def _reciprocal(x):
    """1/x of positive numbers, 0 of infinity: two instructions, where a division is many."""
    root = tl.math.rsqrt(x)
    return root * root
