"""Dot products of all pairs on tensor cores, for the kernels of Eqs. 3 and 5.

Tensor cores multiply half-precision numbers of 11 bits and add in float32. One such product is not
enough for Eq. 5, whose exponentials magnify what it rounds away. So x is split, x = hi + lo with 22
bits in all, and

    x_i . x_j = hi_i . hi_j + hi_i . lo_j + lo_i . hi_j     (lo_i . lo_j is below float32's epsilon)

is one product of rows three times as long: [hi, hi, lo]_i . [hi, lo, hi]_j. x is multiplied by 64
first, which keeps the small numbers of lo within float16's normal range. TF32, with its 11 bits
too, would do the same at half the speed.

Rows are stored as [hi, lo, hi], padded with zeros; the other order is read from the same array.

Shape legend:
    M  items, K with padding     n  length of an item's vector      k  3n, padded: two powers of two
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SCALE = 64.0
"""Factor of vectors before they are split; products have its square."""

ROWS = 128
"""Items are padded to a multiple of this; blocks of rows and of columns divide it."""


class Widths(NamedTuple):
    """Lengths of rows, for kernels: powers of two from 16 on, as ``tl.dot`` takes them."""

    a: int  # a stored row of k numbers is a part of ``a`` and one of ``b``, which may be 0
    b: int
    vector: int  # n, padded


class Blocks(NamedTuple):
    """Tile sizes and launch options of a kernel over pairs."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread, at most: half of an SM's for two programs at once


def powers(length: int) -> tuple[int, int]:
    """The shortest row of two powers of two that holds so many numbers; the second may be 0."""
    candidates = [2**e for e in range(4, 13)]
    return min(
        ((a, b) for a in candidates for b in (0, *candidates) if b <= a and a + b >= length),
        key=lambda parts: (sum(parts), parts[1]),
    )


def widths(n: int) -> Widths:
    """Rows that hold a vector three times."""
    return Widths(*powers(3 * n), max(16, triton.next_power_of_2(n)))


def padded(count: int) -> int:
    """Items with padding."""
    return triton.cdiv(max(count, 1), ROWS) * ROWS


def split(x: Tensor, order: Tensor, count: Tensor, strides: tuple[int, int], n: int) -> Tensor:
    """Rows [hi, lo, hi] of the items in an order, (K, k), float16; zeros from ``count`` on.

    Args:
        x: tensor that holds the vectors.
        order: number of each item in x, int64, (M,).
        count: number of them to take, a tensor of one int32: it stays on the device.
        strides: steps from one item to the next in x, and from one number of a vector to the next.
        n: length of a vector.
    """
    width = widths(n)
    rows = padded(len(order))
    keys = x.new_empty(rows, width.a + width.b, dtype=torch.float16)
    block = max(1, 4096 // width.vector)
    _split[(triton.cdiv(rows, block),)](
        x, order, count, keys, n, rows, *strides,
        WIDTH=width.vector, STORED=width.a + width.b, BLOCK=block, SCALE=SCALE,
    )  # fmt: skip
    return keys


@triton.jit
def _split(
    x, order, count, keys, n, rows, stride_item, stride_number,
    WIDTH: tl.constexpr, STORED: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One block of rows: split, and stored three times; the rest of a row is 0."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.arange(0, WIDTH)
    taken = row < tl.load(count)
    item = tl.load(order + row, mask=taken, other=0).to(tl.int64)
    inside = taken[:, None] & (number < n)[None, :]
    address = item[:, None] * stride_item + number[None, :].to(tl.int64) * stride_number
    value = tl.load(x + address, mask=inside, other=0.0).to(tl.float32) * SCALE
    hi = value.to(tl.float16)
    lo = (value - hi.to(tl.float32)).to(tl.float16)

    stored = keys + row.to(tl.int64)[:, None] * STORED + number[None, :]
    of_vector = (row < rows)[:, None] & (number < n)[None, :]
    tl.store(stored, hi, mask=of_vector)
    tl.store(stored + n, lo, mask=of_vector)
    tl.store(stored + 2 * n, hi, mask=of_vector)
    zero = tl.zeros((BLOCK, WIDTH), dtype=tl.float16)
    for start in range(3 * n, STORED, WIDTH):
        rest = start + number
        tl.store(
            keys + row.to(tl.int64)[:, None] * STORED + rest[None, :],
            zero,
            mask=(row < rows)[:, None] & (rest < STORED)[None, :],
        )


@triton.jit
def left_side(keys, i, n, A: tl.constexpr, B: tl.constexpr):
    """Rows i as the left side of products, [hi, hi, lo], in their two parts."""
    left_a = _load_rows(keys, i, n, A + B, 0, A)
    left_b = left_a
    if B > 0:
        left_b = _load_rows(keys, i, n, A + B, A, B)
    return left_a, left_b


@triton.jit
def _load_rows(keys, i, n, STORED: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    k = FIRST + tl.arange(0, WIDTH)
    source = tl.where(k < n, k, k - n)
    return tl.load(
        keys + i.to(tl.int64)[:, None] * STORED + source[None, :],
        mask=(k < 3 * n)[None, :],
        other=0.0,
    )


@triton.jit
def load_columns(keys, j, STORED: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Rows j as the right side of a product, [hi, lo, hi]; columns FIRST to FIRST + WIDTH."""
    k = FIRST + tl.arange(0, WIDTH)
    return tl.load(keys + j.to(tl.int64)[:, None] * STORED + k[None, :])


@triton.jit
def products(
    keys, left_a, left_b, j, STORED: tl.constexpr, A: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """SCALE^2 x_i . x_j of the rows on the left and the items j, (rows, columns), float32."""
    right = load_columns(keys, j, STORED, 0, A)
    total = tl.dot(left_a, tl.trans(right), out_dtype=tl.float32)
    if B > 0:
        right = load_columns(keys, j, STORED, A, B)
        total = tl.dot(left_b, tl.trans(right), total, out_dtype=tl.float32)
    return total


@triton.jit
def multiply(
    mantissa, exponent, x, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Multiply x/UNIT, four columns at a time, into products kept as mantissa * 2^exponent.

    So a sum of logarithms takes one logarithm, when all columns are done. The product of four
    numbers x, and of four x/UNIT, must be a normal float32.
    """
    of_two = _product_of_halves(x, ROWS, COLUMNS)
    return multiply_two(mantissa, exponent, of_two, UNIT * UNIT, ROWS, COLUMNS // 2)


@triton.jit
def multiply_two(
    mantissa, exponent, x, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Dot products as of ``multiply``, two columns at a time."""
    product = mantissa * (_product_of_halves(x, ROWS, COLUMNS) * (1 / (UNIT * UNIT)))
    bits = product.to(tl.int32, bitcast=True)
    exponent += (bits >> 23) - 127
    return ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True), exponent


@triton.jit
def _product_of_halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Left half of the columns times right half: within a thread's registers."""
    left, right = tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
    return left * right
