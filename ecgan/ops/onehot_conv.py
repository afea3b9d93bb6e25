"""The condition S: a label map as one channel a class, built on the device, never on disk.

Shape legend:
    B  images in the batch      N  semantic classes      H, W  height and width
"""

import torch
from torch import Tensor


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
        unknown: whether unlabelled pixels get a channel of their own.
        boundary: instance boundaries, (B, 1, H, W), 0 where there is none; None for no channel.
        dtype: of the result.

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
