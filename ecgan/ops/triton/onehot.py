"""A 3 x 3 convolution of a one-hot map as table look-ups, in Triton kernels.

The gradient of a table's row is a sum over the pixels that looked it up: pixels are sorted by their
own row, and pixel j was looked up by tap k of pixel i exactly where i is neighbour 8-k of j. Sums
are made piece by piece, then over the pieces (``triton_groups``).

Shape legend:
    B  images in the batch      H, W  height and width      O  output channels
    R  rows of the table        k     taps, row by row      T  pieces of pixels of one row
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgan.ops.triton import groups

PIECE = 1024
"""Pixels whose share of a row's gradient one program sums."""

PIXELS = 32
"""Pixels that are looked up, or added, at once."""


def table_sum(rows: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over taps k of table[k, row of neighbour k], (B, H, W) and (9, R, O) -> (B, H, W, O)."""
    _, H, W = rows.shape
    rows, table = rows.to(torch.int32).contiguous(), table.contiguous()
    _, R, channels = table.shape
    result = table.new_empty(*rows.shape, channels, dtype=dtype)
    block = _block(channels)
    _look_up[(triton.cdiv(rows.numel(), PIXELS), triton.cdiv(channels, block))](
        rows, table, result, rows.numel(), H, W, R, channels,
        PIXELS=PIXELS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return result


def table_gradient(grad: Tensor, rows: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Gradient of the table, (9, R, O), from that of the sums, (B, H, W, O)."""
    _, H, W = rows.shape
    pieces = groups.cut(rows.flatten(), num_rows, PIECE)
    grad = grad.contiguous()
    channels = grad.shape[3]
    block = _block(channels)
    room = len(pieces.group)
    parts = grad.new_empty(room, 9, channels, dtype=torch.float32)
    _add_pieces[(room, 9, triton.cdiv(channels, block))](
        grad, *pieces[:4], parts, num_rows, H, W, channels,
        PIECE=PIECE, PIXELS=PIXELS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    sums = groups.add_up(parts, pieces, parts.new_empty(num_rows, 9, channels))
    return sums.permute(1, 0, 2).contiguous().to(dtype)


def _block(channels: int) -> int:
    return min(128, max(16, triton.next_power_of_2(channels)))


@triton.jit
def _look_up(
    rows, table, result, num_pixels, H, W, R, channels,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some channels of some pixels."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < num_pixels
    x, y = pixel % W, pixel // W % H
    total = tl.zeros((PIXELS, BLOCK), dtype=tl.float32)
    for tap in range(9):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        within = inside & (y + dy >= 0) & (y + dy < H) & (x + dx >= 0) & (x + dx < W)
        row = tl.load(rows + pixel + dy * W + dx, mask=within, other=0)
        numbers = tl.load(
            table + (tap * R + row)[:, None] * channels + o[None, :],
            mask=within[:, None] & (o < channels)[None, :],
            other=0.0,
        )
        total += numbers.to(tl.float32)
    tl.store(
        result + pixel.to(tl.int64)[:, None] * channels + o[None, :],
        total,
        mask=inside[:, None] & (o < channels)[None, :],
    )


@triton.jit
def _add_pieces(
    grad, order, bounds, first, group, parts, R, H, W, channels,
    PIECE: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some channels of one tap's gradient, from a piece of the pixels of one row."""
    piece, tap = tl.program_id(0), tl.program_id(1)
    o = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(group + piece) >= R:
        return
    start, stop = groups.piece_of_group(bounds, first, group, PIECE)
    dy, dx = 1 - tap // 3, 1 - tap % 3  # neighbour 8-k
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for block in range(start, stop, PIXELS):
        at = block + tl.arange(0, PIXELS)
        inside = at < stop
        pixel = tl.load(order + at, mask=inside, other=0)
        small = pixel.to(tl.int32)  # divisions of 64 bits take long
        x, y = small % W + dx, small // W % H + dy
        inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        numbers = tl.load(
            grad + (pixel + dy * W + dx)[:, None] * channels + o[None, :],
            mask=inside[:, None] & (o < channels)[None, :],
            other=0.0,
        )
        total += tl.sum(numbers.to(tl.float32), axis=0)
    tl.store(parts + (piece.to(tl.int64) * 9 + tap) * channels + o, total, mask=o < channels)
