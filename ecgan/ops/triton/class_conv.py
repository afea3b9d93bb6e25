"""Class-specific convolution (Eqs. 6-7) as Triton kernels: a program takes pixels of one class.

It gathers, tap by tap, their neighbours of the same class, straight from the image, and multiplies
them by the class's own kernel. The gradient of the image is the same convolution with the kernels
transposed and turned: pixel j is neighbour k of i exactly where i is neighbour 8-k of j. That of
the kernels is summed over pieces of each class, then over the pieces (``ops.triton.groups``).

Products are float32, whatever the type of the features.

Shape legend:
    B  images in the batch      N  classes      H, W  height and width
    T  pieces of pixels of one class            k     taps of a 3 x 3 kernel, row by row
"""

# Triton's kernels are not typed:
# pyright: reportArgumentType=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgan.ops.triton import groups

PIXELS = 64
"""Pixels that are multiplied at once."""

PIECE = 2048
"""Pixels whose share of a kernel's gradient one program sums."""


class ClassBlocks:
    """The Triton implementation of ``class_conv.Pixels``."""

    def __init__(self, labels: Tensor, ignore: int, num_classes: int) -> None:
        self.labels = labels.to(torch.int32).contiguous()
        self.height, self.width = labels.shape[1:]
        classes = self.labels.flatten()
        classes = classes.masked_fill(classes == ignore, -1)
        self.blocks = groups.cut(classes, num_classes, PIXELS)
        self.pieces = groups.cut(classes, num_classes, PIECE)

    def conv(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        """Each pixel's own kernel; see ``class_conv.Pixels.conv``."""
        taps = kernels.permute(0, 3, 4, 2, 1).contiguous()  # (N, 3, 3, in, out)
        return self._convolve(x, taps, biases)

    def conv_gradients(
        self, x: Tensor, kernels: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`conv`; see ``class_conv.Pixels.conv_gradients``."""
        turned = kernels.flip(3, 4).permute(0, 3, 4, 1, 2).contiguous()  # (N, 3, 3, out, in)
        grad_x = self._convolve(grad, turned, None)
        N, out_channels, in_channels = kernels.shape[:3]
        room = len(self.pieces.group)
        parts = grad.new_empty(room, 9, in_channels, out_channels)
        bias_parts = grad.new_empty(room, out_channels)
        x, grad = x.contiguous(), grad.contiguous()
        _kernel_gradients[(room, 9)](
            x, grad, self.labels, *self.pieces[:4], parts, bias_parts,
            N, self.height, self.width, in_channels, out_channels,
            PIECE=PIECE, PIXELS=PIXELS, IN=_width(in_channels), OUT=_width(out_channels),
            num_warps=4,
        )  # fmt: skip
        sums = groups.add_up(parts, self.pieces, grad.new_empty(N, 9, in_channels, out_channels))
        grad_kernels = sums.permute(0, 3, 2, 1).reshape(kernels.shape).contiguous()
        return (
            grad_x,
            grad_kernels,
            groups.add_up(bias_parts, self.pieces, grad.new_empty(N, out_channels)),
        )

    def _convolve(self, x: Tensor, taps: Tensor, biases: Tensor | None) -> Tensor:
        """Convolve x, (B, H, W, in), by taps, (N, 3, 3, in, out)."""
        x = x.contiguous()
        N, _, _, in_channels, out_channels = taps.shape
        y = torch.zeros(*self.labels.shape, out_channels, dtype=taps.dtype, device=x.device)
        _convolve[(len(self.blocks.group),)](
            x, self.labels, *self.blocks[:4], taps, taps if biases is None else biases, y,
            N, self.height, self.width, in_channels, out_channels,
            PIXELS=PIXELS, CHUNK=min(64, _width(in_channels)), OUT=_width(out_channels),
            WITH_BIAS=biases is not None, num_warps=4,
        )  # fmt: skip
        return y


def _width(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))


@triton.jit
def _neighbour(labels, pixel, own, tap, H, W, inside):
    """A tap's neighbours of pixels, and which of them are of the pixels' class."""
    dy, dx = tap // 3 - 1, tap % 3 - 1
    small = pixel.to(tl.int32)  # divisions of 64 bits take long
    y, x = small // W % H + dy, small % W + dx
    neighbour = pixel + dy * W + dx
    inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    label = tl.load(labels + neighbour, mask=inside, other=0)
    return neighbour, inside & (label == own)


@triton.jit
def _convolve(
    image, labels, order, bounds, first, group, taps, biases, result,
    N, H, W, in_channels, out_channels,
    PIXELS: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr, WITH_BIAS: tl.constexpr,
):  # fmt: skip
    """Some pixels of one class: bias and the sum over taps and channels."""
    own = tl.load(group + tl.program_id(0))
    if own >= N:
        return
    start, stop = groups.piece_of_group(bounds, first, group, PIXELS)
    at = start + tl.arange(0, PIXELS)
    inside = at < stop
    pixel = tl.load(order + at, mask=inside, other=0)
    o = tl.arange(0, OUT)
    total = tl.zeros((PIXELS, OUT), dtype=tl.float32)
    for tap in range(9):
        neighbour, same = _neighbour(labels, pixel, own, tap, H, W, inside)
        for chunk in range(0, in_channels, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            x = tl.load(
                image + neighbour[:, None] * in_channels + c[None, :],
                mask=same[:, None] & (c < in_channels)[None, :],
                other=0.0,
            )
            kernel = tl.load(
                taps + ((own * 9 + tap) * in_channels + c[:, None]) * out_channels + o[None, :],
                mask=(c < in_channels)[:, None] & (o < out_channels)[None, :],
                other=0.0,
            )
            total = tl.dot(x.to(tl.float32), kernel.to(tl.float32), total, input_precision="ieee")
    if WITH_BIAS:
        total += tl.load(biases + own * out_channels + o, mask=o < out_channels, other=0.0)[None, :]
    tl.store(
        result + pixel[:, None] * out_channels + o[None, :],
        total,
        mask=inside[:, None] & (o < out_channels)[None, :],
    )


@triton.jit
def _kernel_gradients(
    image, grad, labels, order, bounds, first, group, parts, bias_parts,
    N, H, W, in_channels, out_channels,
    PIECE: tl.constexpr, PIXELS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """One tap's gradient, (in, out), from a piece of one class; and once the bias's."""
    piece, tap = tl.program_id(0), tl.program_id(1)
    own = tl.load(group + piece)
    if own >= N:
        return
    start, stop = groups.piece_of_group(bounds, first, group, PIECE)
    c, o = tl.arange(0, IN), tl.arange(0, OUT)
    total = tl.zeros((IN, OUT), dtype=tl.float32)
    bias = tl.zeros((OUT,), dtype=tl.float32)
    for block in range(start, stop, PIXELS):
        at = block + tl.arange(0, PIXELS)
        inside = at < stop
        pixel = tl.load(order + at, mask=inside, other=0)
        neighbour, same = _neighbour(labels, pixel, own, tap, H, W, inside)
        x = tl.load(
            image + neighbour[:, None] * in_channels + c[None, :],
            mask=same[:, None] & (c < in_channels)[None, :],
            other=0.0,
        )
        g = tl.load(
            grad + pixel[:, None] * out_channels + o[None, :],
            mask=inside[:, None] & (o < out_channels)[None, :],
            other=0.0,
        )
        total = tl.dot(tl.trans(x.to(tl.float32)), g, total, input_precision="ieee")
        bias += tl.sum(g, axis=0)
    tl.store(
        parts
        + ((piece.to(tl.int64) * 9 + tap) * in_channels + c[:, None]) * out_channels
        + o[None, :],
        total,
        mask=(c < in_channels)[:, None] & (o < out_channels)[None, :],
    )
    tl.store(bias_parts + piece * out_channels + o, bias, mask=(o < out_channels) & (tap == 4))
