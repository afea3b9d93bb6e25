"""The condition S: a label map as one channel a class, built on the device, never on disk.

A 3 x 3 convolution of S needs no S: it is a sum of 9 table look-ups, one for each tap, and its cost
does not depend on the number of channels. Here in plain torch; in ``ops.triton.onehot`` for CUDA.

Shape legend:
    B  images in the batch      N  semantic classes      H, W  height and width
    O  output channels          R  rows of the table: what one pixel of S can be
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgan.ops import backend

TAPS = 9  # of a 3 x 3 kernel


def one_hot(
    labels: Tensor,
    num_classes: int,
    ignore_index: int,
    *,
    unknown: bool,
    boundary: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One-hot label S; its channels are the N classes, then unknown, then boundary.

    Args:
        labels: class of each pixel, any integer type, (B, H, W); 0..N-1 or ``ignore_index``.
        num_classes: N.
        ignore_index: value of unlabelled pixels. They are 0 in every class.
        unknown: give unlabelled pixels a channel of their own.
        boundary: instance boundaries, (B, 1, H, W), 0 where there is none; None for no channel.
        dtype: type of the result.

    Returns:
        S, (B, N + unknown + boundary, H, W).
    """
    B, H, W = labels.shape
    channels = num_classes + unknown + (boundary is not None)
    S = torch.zeros(B, channels, H, W, dtype=dtype, device=labels.device)
    labels = labels.long()[:, None]  # (B, 1, H, W)
    labelled = labels != ignore_index
    S.scatter_(1, labels.where(labelled, 0), labelled.to(dtype))
    if unknown:
        S[:, num_classes] = ~labelled[:, 0]
    if boundary is not None:
        S[:, -1] = boundary[:, 0] != 0
    return S


def onehot_conv(
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_classes: int,
    ignore_index: int,
    *,
    unknown: bool,
    boundary: Tensor | None = None,
) -> Tensor:
    """``conv2d(one_hot(labels, ...), weight, bias, padding=1)`` without the one-hot map.

    Labels that are to be resized first are resized themselves, nearest neighbour. For sampling
    alone: it has no gradient. A compiled network takes it for one operation.

    Args:
        labels: class of each pixel, any integer type, (B, H, W); 0..N-1 or ``ignore_index``.
        weight: (O, N + unknown + boundary, 3, 3), channels in the order of ``one_hot``.
        bias: (O,), or None.
        num_classes: N.
        ignore_index: value of unlabelled pixels. They are 0 in every class.
        unknown: True where unlabelled pixels have a channel of their own.
        boundary: instance boundaries, (B, 1, H, W), 0 where there is none; None for no channel.

    Returns:
        (B, O, H, W), channels last, in the type of the weight.
    """
    channels = num_classes + unknown + (boundary is not None)
    assert weight.shape[1] == channels, f"weight for {weight.shape[1]} channels, not {channels}"
    rows = labels.long()
    rows = rows.where(rows != ignore_index, num_classes)
    table = weight[:, : num_classes + unknown].permute(2, 3, 1, 0).flatten(0, 1)
    if not unknown:
        table = F.pad(table, (0, 0, 0, 1))  # an unlabelled pixel has no channel
    if boundary is not None:
        at_boundary = weight[:, -1].permute(1, 2, 0).flatten(0, 1)[:, None]  # (9, 1, O)
        rows = rows + (boundary[:, 0] != 0) * table.shape[1]
        table = torch.cat([table, table + at_boundary], dim=1)  # (9, R, O)
    if bias is not None:
        # Every pixel looks up the middle tap once, and never outside.
        table = torch.cat([table[:4], table[4:5] + bias, table[5:]])
    return _sum_op(rows, table).permute(0, 3, 1, 2)


@torch.library.custom_op("ecgan::table_sum", mutates_args=())
def _sum_op(rows: Tensor, table: Tensor) -> Tensor:
    """Sum over taps k of table[k, row of neighbour k], (B, H, W) and (9, R, O) -> (B, H, W, O).

    What lies outside the image adds nothing.
    """

    def with_triton() -> Tensor:
        from ecgan.ops.triton import onehot

        return onehot.table_sum(rows, table)

    def with_torch() -> Tensor:
        R = table.shape[1]
        padded = F.pad(table, (0, 0, 0, 1))  # R: outside
        first = torch.arange(0, TAPS * (R + 1), R + 1, device=table.device)
        numbers = _neighbour_rows(rows, outside=R) + first  # (B * H * W, 9)
        return F.embedding_bag(numbers, padded.flatten(0, 1), mode="sum").view(*rows.shape, -1)

    return backend.run("one-hot convolution", table, with_triton=with_triton, with_torch=with_torch)


@_sum_op.register_fake
def _sum_shape(rows: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(*rows.shape, table.shape[2])


def _neighbour_rows(rows: Tensor, outside: int) -> Tensor:
    """The rows of each pixel's 9 neighbours, (B, H, W) -> (B * H * W, 9)."""
    _, H, W = rows.shape
    padded = F.pad(rows, (1, 1, 1, 1), value=outside)
    taps = [padded[:, dy : dy + H, dx : dx + W].flatten() for dy in range(3) for dx in range(3)]
    return torch.stack(taps, dim=1)
