"""Class-specific heads (Sec. 3.3, Eqs. 6-7) at a cost independent of the class count.

The definition has one branch a class: the input of each of its two convolutions and its output are
masked to the class, and the branches' outputs are summed. A pixel of class c so gets a value from
branch c alone, and that branch sees its neighbours of class c alone. Here each pixel is evaluated
by its own class's kernels only: pixels are sorted by class, each class is one matrix product, and
the 3 x 3 sums run over the neighbours of the same class.

Shape legend:
    B  images in the batch      N  semantic classes      H, W  height and width
    C  channels of F            P  labelled pixels       P_c   pixels of class c
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = 9  # of a 3 x 3 kernel


def class_specific_heads(
    features: Tensor,
    labels: Tensor,
    ignore: int,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
) -> Tensor:
    """I_g, the composite of what each class's head makes of its own pixels; 0 where unlabelled.

    Per class: conv 3x3, LeakyReLU 0.2, conv 3x3, tanh, with zero padding; the input of each
    convolution and the output are masked to the class.

    Args:
        features: F, (B, C, H, W).
        labels: class of each pixel, any integer type, (B, H, W).
        ignore: label of unlabelled pixels.
        w1: first kernels, (N, 16, C, 3, 3).
        b1: first biases, (N, 16).
        w2: second kernels, (N, 3, 16, 3, 3).
        b2: second biases, (N, 3).

    Returns:
        I_g, (B, 3, H, W).
    """
    B, C, H, W = features.shape
    order, bounds = _sort_by_class(labels, ignore, len(w1))
    neighbours = _same_class_neighbours(labels, ignore, order)  # (P, 9)
    pixels = features.permute(0, 2, 3, 1).reshape(-1, C).index_select(0, order)  # (P, C)

    heads = list(zip(w1.unbind(), b1.unbind(), w2.unbind(), b2.unbind(), strict=True))
    present = [c for c in range(len(w1)) if bounds[c] < bounds[c + 1]]
    outputs: list[Tensor] = []
    # With no labelled pixel, head 0 runs on none: every weight still gets its (zero) gradient.
    for c in present or [0]:
        rows = slice(bounds[c], bounds[c + 1])
        # Positions within the class; those of no neighbour of the class become P_c, a row of zeros.
        local = (neighbours[rows] - bounds[c]).clamp(max=bounds[c + 1] - bounds[c])
        kernel1, bias1, kernel2, bias2 = heads[c]
        hidden = F.leaky_relu(_conv(pixels[rows], local, kernel1) + bias1, 0.2)  # (P_c, 16)
        outputs.append((_conv(hidden, local, kernel2) + bias2).tanh())  # (P_c, 3)
    values = torch.cat(outputs)  # (P, 3)
    image = values.new_zeros(B * H * W, values.shape[1]).index_copy(0, order, values)
    return image.view(B, H, W, -1).permute(0, 3, 1, 2)


def _conv(x: Tensor, neighbours: Tensor, kernel: Tensor) -> Tensor:
    """3 x 3 convolution of one class's pixels, (P_c, in) -> (P_c, out); kernel (out, in, 3, 3).

    Multiplied first, gathered second: P_c x 9 x out numbers rather than P_c x 9 x in.
    """
    out_channels = kernel.shape[0]
    products = x @ kernel.permute(1, 2, 3, 0).flatten(1)  # (P_c, 9 * out)
    products = products.view(len(x), TAPS, out_channels)
    summed = _NeighbourSum.apply(products, neighbours)
    assert isinstance(summed, Tensor)
    return summed


class _NeighbourSum(torch.autograd.Function):
    """y_i = sum over taps k of x[neighbour k of i, k]: (P_c, 9, out) -> (P_c, out).

    Pixel j is neighbour k of i exactly where i is neighbour 8-k of j, so the gradient is a gather
    too: no atomic additions, the same bits in every run.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, neighbours: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(neighbours)
        padded = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
        y = padded[:, 0].index_select(0, neighbours[:, 0])
        for k in range(1, TAPS):
            y += padded[:, k].index_select(0, neighbours[:, k])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (neighbours,) = ctx.saved_tensors
        (grad,) = grad_outputs
        padded = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        return padded[neighbours.flip(1)], None


def _sort_by_class(labels: Tensor, ignore: int, num_classes: int) -> tuple[Tensor, list[int]]:
    """Labelled pixels in the order of their classes, (P,), and the N + 1 bounds of the classes."""
    flat = labels.flatten().long()
    flat = flat.masked_fill(flat == ignore, num_classes)  # to the end
    counts = torch.bincount(flat, minlength=num_classes + 1)
    bounds = [0, *counts[:num_classes].cumsum(0).tolist()]
    return flat.argsort(stable=True)[: bounds[-1]], bounds


def _same_class_neighbours(labels: Tensor, ignore: int, order: Tensor) -> Tensor:
    """Position in ``order`` of each pixel's 9 neighbours, (P, 9); P where it has another class."""
    B, H, W = labels.shape
    none = len(order)
    position = order.new_full((B * H * W,), none)
    position[order] = torch.arange(none, device=order.device)
    position = F.pad(position.view(B, H, W), (1, 1, 1, 1), value=none)
    labels = labels.long()
    padded = F.pad(labels, (1, 1, 1, 1), value=ignore)
    taps = [
        position[:, dy : dy + H, dx : dx + W]
        .where(padded[:, dy : dy + H, dx : dx + W] == labels, none)
        .flatten()[order]
        for dy in range(3)
        for dx in range(3)
    ]
    return torch.stack(taps, dim=1)
