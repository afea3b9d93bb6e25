"""A 3 x 3 convolution of a one-hot map as table look-ups, in a Triton kernel.

Shape legend:
    B  images in the batch      H, W  height and width      O  output channels
    R  rows of the table        k     taps, row by row
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 32
"""Pixels that are looked up at once."""


def table_sum(rows: Tensor, table: Tensor) -> Tensor:
    """Sum over taps k of table[k, row of neighbour k], (B, H, W) and (9, R, O) -> (B, H, W, O)."""
    _, H, W = rows.shape
    rows, table = rows.to(torch.int32).contiguous(), table.contiguous()
    _, R, channels = table.shape
    result = table.new_empty(*rows.shape, channels)
    block = _block(channels)
    _look_up[(triton.cdiv(rows.numel(), PIXELS), triton.cdiv(channels, block))](
        rows, table, result, rows.numel(), H, W, R, channels,
        PIXELS=PIXELS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return result


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
