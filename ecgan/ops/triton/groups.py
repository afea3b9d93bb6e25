"""Pixels sorted by group and cut into pieces of one group each, for kernels.

How many pixels a group has stays on the device: there is room for as many pieces as there can be,
and those that are not needed end at once. So the host never waits, and a launch costs the same for
any number of groups.

Sums over the pixels of a group are made piece by piece and then added up in the order of the
pieces: no atomic additions, the same bits in every run.

Shape legend:
    P  pixels      G  groups      T  room for pieces: P / piece size + G
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Pieces(NamedTuple):
    """Up to ``size`` pixels of one group each."""

    order: Tensor  # pixels sorted by group, those of no group last, int64, (P,)
    bounds: Tensor  # where each group starts among them, and where the last stops, (G + 1,)
    first: Tensor  # the first piece of each group, and the number of all, (G + 1,)
    group: Tensor  # of each piece, G where there is room only, (T,)
    size: int


def cut(groups: Tensor, num_groups: int, size: int) -> Pieces:
    """Pieces of pixels whose groups are 0 .. G-1, any other number for none, (P,)."""
    groups = groups.where((groups >= 0) & (groups < num_groups), num_groups)
    groups, order = groups.sort(stable=True)
    names = torch.arange(num_groups + 1, device=groups.device)
    bounds = torch.searchsorted(groups, names)
    pieces = (bounds.diff() + size - 1) // size
    first = torch.nn.functional.pad(pieces.cumsum(0), (1, 0))
    room = triton.cdiv(len(groups), size) + num_groups
    group = torch.searchsorted(first[1:], torch.arange(room, device=first.device), right=True)
    return Pieces(order, bounds, first, group, size)


def add_up(parts: Tensor, pieces: Pieces, out: Tensor) -> Tensor:
    """Sums over the pieces of each group, (T, ...) -> (G, ...), written to out."""
    numbers = parts[0].numel()
    block = 256
    grid = (len(out), triton.cdiv(numbers, block))
    _add_up[grid](parts, pieces.first, out, numbers, BLOCK=block)
    return out


@triton.jit
def piece_of_group(bounds, first, group, size):
    """The group of this program's piece, and where in ``order`` the piece starts and stops."""
    piece = tl.program_id(0)
    own = tl.load(group + piece)
    start = tl.load(bounds + own) + (piece - tl.load(first + own)) * size
    stop = tl.minimum(start + size, tl.load(bounds + own + 1))
    return start, stop


@triton.jit
def _add_up(parts, first, out, numbers, BLOCK: tl.constexpr):
    """Some numbers of one group."""
    group = tl.program_id(0)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = number < numbers
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in range(tl.load(first + group), tl.load(first + group + 1)):
        total += tl.load(parts + piece * numbers + number, mask=inside, other=0.0)
    tl.store(out + group.to(tl.int64) * numbers + number, total, mask=inside)
