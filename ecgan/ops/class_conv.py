"""Class-specific heads (Sec. 3.3, Eqs. 6-7) at a cost independent of the class count.

The definition has one branch a class: the input of each of its two convolutions and its output are
masked to the class, and the branches' outputs are summed. A pixel of class c so gets a value from
branch c alone, and that branch sees its neighbours of class c alone. Here each pixel is evaluated
by its own class's kernels only: pixels are sorted by class, each class is one matrix product, and
the 3 x 3 sums run over the neighbours of the same class.

Here in plain torch; in ``ops.triton.class_conv`` for CUDA. The heads are float32 (float64 stays
float64) under autocast too: they are less than a hundredth of the generator's arithmetic.

Shape legend:
    B  images in the batch      N  semantic classes      H, W  height and width
    C  channels of F            P  labelled pixels       P_c   pixels of class c
"""

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgan.ops import backend

if TYPE_CHECKING:
    from ecgan.ops.triton.class_conv import ClassBlocks

TAPS = 9  # of a 3 x 3 kernel
SLOPE = 0.2  # of LeakyReLU

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Gradients of features, w1, b1, w2 and b2."""


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
    convolution and the output are masked to the class. A compiled network takes it for one
    operation, whatever classes a batch has.

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
    if torch.compiler.is_compiling():
        image, _ = _heads_op(features, labels, ignore, w1, b1, w2, b2)
    else:
        image = _Heads.apply(features, labels, ignore, w1, b1, w2, b2)
        assert isinstance(image, Tensor)
    return image.permute(0, 3, 1, 2)


class Pixels:
    """The pixels of a batch by class: what the layers of the heads need to know of the labels."""

    def __init__(self, labels: Tensor, ignore: int, num_classes: int) -> None:
        self.labels, self.ignore, self.num_classes = labels, ignore, num_classes

    def conv(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        """Each pixel's own kernel on the neighbours of its class; 0 where unlabelled.

        Args:
            x: (B, H, W, in).
            kernels: (N, out, in, 3, 3).
            biases: (N, out).

        Returns:
            (B, H, W, out), in the type of the kernels.
        """
        return backend.run(
            "class convolution",
            x,
            with_triton=lambda: self._unsorted.conv(x, kernels, biases),
            with_torch=lambda: self._sorted.conv(x, kernels, biases),
        )

    def conv_gradients(
        self, x: Tensor, kernels: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, kernels and biases from that of the result, in the kernels' type."""
        return backend.run(
            "class convolution, backward",
            x,
            with_triton=lambda: self._unsorted.conv_gradients(x, kernels, grad),
            with_torch=lambda: self._sorted.conv_gradients(x, kernels, grad),
        )

    @cached_property
    def _sorted(self) -> "SortedPixels":
        return SortedPixels(self.labels, self.ignore, self.num_classes)

    @cached_property
    def _unsorted(self) -> "ClassBlocks":
        from ecgan.ops.triton.class_conv import ClassBlocks

        return ClassBlocks(self.labels, self.ignore, self.num_classes)


def _forward(
    pixels: Pixels, features: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor]:
    """I_g, (B, H, W, 3), and the hidden layer, (B, H, W, 16)."""
    with torch.autocast(features.device.type, enabled=False):
        x = features.permute(0, 2, 3, 1)
        hidden = F.leaky_relu(pixels.conv(x, w1, b1), SLOPE)
        return pixels.conv(hidden, w2, b2).tanh(), hidden


def _backward(
    pixels: Pixels,
    grad: Tensor,
    image: Tensor,
    hidden: Tensor,
    features: Tensor,
    w1: Tensor,
    w2: Tensor,
) -> Gradients:
    """Gradients from that of I_g, (B, H, W, 3)."""
    with torch.autocast(features.device.type, enabled=False):
        grad = grad * (1 - image * image)
        grad_hidden, grad_w2, grad_b2 = pixels.conv_gradients(hidden, w2, grad)
        grad_hidden *= torch.where(hidden > 0, 1.0, SLOPE)
        x = features.permute(0, 2, 3, 1)
        grad_x, grad_w1, grad_b1 = pixels.conv_gradients(x, w1, grad_hidden)
        grad_features = grad_x.permute(0, 3, 1, 2).to(features.dtype)
        return grad_features, grad_w1, grad_b1, grad_w2, grad_b2


class _Heads(torch.autograd.Function):
    """The heads outside a compiled network."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        features: Tensor,
        labels: Tensor,
        ignore: int,
        *weights: Tensor,
    ) -> Tensor:
        w1, b1, w2, b2 = weights
        ctx.pixels = Pixels(labels, ignore, len(w1))
        image, hidden = _forward(ctx.pixels, features, w1, b1, w2, b2)
        ctx.save_for_backward(image, hidden, features, w1, w2)
        return image

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        gradients = _backward(ctx.pixels, grad_outputs[0], *ctx.saved_tensors)
        return gradients[0], None, None, *gradients[1:]


@torch.library.custom_op("ecgan::class_specific_heads", mutates_args=())
def _heads_op(
    features: Tensor,
    labels: Tensor,
    ignore: int,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
) -> tuple[Tensor, Tensor]:
    """The heads in a compiled network: I_g, (B, H, W, 3), and the hidden layer."""
    return _forward(Pixels(labels, ignore, len(w1)), features, w1, b1, w2, b2)


@torch.library.custom_op("ecgan::class_specific_heads_backward", mutates_args=())
def _heads_backward_op(
    grad: Tensor, saved: list[Tensor], labels: Tensor, ignore: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in a compiled network; saved: image, hidden, features, w1, w2."""
    gradients = _backward(Pixels(labels, ignore, len(saved[-1])), grad, *saved)
    return gradients[0].contiguous(), *gradients[1:]


@_heads_op.register_fake
def _heads_shape(
    features: Tensor,
    labels: Tensor,
    ignore: int,  # noqa: ARG001
    w1: Tensor,
    b1: Tensor,  # noqa: ARG001
    w2: Tensor,
    b2: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    B, H, W = labels.shape
    empty = features.new_empty
    return (
        empty(B, H, W, w2.shape[1], dtype=w2.dtype),
        empty(B, H, W, w1.shape[1], dtype=w1.dtype),
    )


@_heads_backward_op.register_fake
def _gradient_shapes(
    grad: Tensor,  # noqa: ARG001
    saved: list[Tensor],
    labels: Tensor,  # noqa: ARG001
    ignore: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    features, w1, w2 = saved[2:]
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (features, w1, w2)]
    return grads[0], grads[1], w1.new_empty(w1.shape[:2]), grads[2], w2.new_empty(w2.shape[:2])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    features, labels, ctx.ignore, w1, _, w2, _ = inputs
    ctx.save_for_backward(*output, features, w1, w2, labels)


def _gradients_of_op(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    *saved, labels = ctx.saved_tensors
    gradients = _heads_backward_op(grad, saved, labels, ctx.ignore)
    return gradients[0], None, None, *gradients[1:]


_heads_op.register_autograd(_gradients_of_op, setup_context=_keep_for_backward)


class SortedPixels:
    """The plain torch implementation of ``Pixels``: pixels are sorted, a class is one product."""

    def __init__(self, labels: Tensor, ignore: int, num_classes: int) -> None:
        self.shape = labels.shape
        self.order, self.bounds = _sort_by_class(labels, ignore, num_classes)
        self.neighbours = _same_class_neighbours(labels, ignore, self.order)

    def conv(self, x: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
        """Each pixel's own kernel; see ``Pixels.conv``."""
        x = self._gather(x, kernels.dtype)
        y = x.new_empty(len(x), kernels.shape[1])
        for c, rows, neighbours in self._classes():
            # Multiplied first, gathered second: P_c x 9 x out numbers rather than P_c x 9 x in.
            products = x[rows] @ _matrix(kernels[c])  # (P_c, 9 * out)
            products = F.pad(products.view(-1, TAPS, kernels.shape[1]), (0, 0, 0, 0, 0, 1))
            of_class = y[rows]
            of_class.copy_(biases[c])
            for k in range(TAPS):
                of_class += products[:, k].index_select(0, neighbours[:, k])
        return self._scatter(y)

    def conv_gradients(
        self, x: Tensor, kernels: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of :meth:`conv`; see ``Pixels.conv_gradients``."""
        x, grad = self._gather(x, kernels.dtype), self._gather(grad, kernels.dtype)
        grad_x = torch.empty_like(x)
        grad_kernels = torch.zeros_like(kernels)
        grad_biases = kernels.new_zeros(kernels.shape[:2])
        for c, rows, neighbours in self._classes():
            # Pixel j is neighbour k of i exactly where i is neighbour 8-k of j, so the gradient is
            # a gather too: no atomic additions, the same bits in every run.
            taps = F.pad(grad[rows], (0, 0, 0, 1))[neighbours.flip(1)].flatten(1)  # (P_c, 9 * out)
            torch.mm(taps, _matrix(kernels[c]).T, out=grad_x[rows])
            grad_matrix = x[rows].T @ taps  # (in, 9 * out)
            grad_kernels[c].permute(1, 2, 3, 0).copy_(
                grad_matrix.view(kernels.shape[2], 3, 3, kernels.shape[1])
            )
            grad_biases[c] = grad[rows].sum(dim=0)
        return self._scatter(grad_x), grad_kernels, grad_biases

    def _gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, H, W, C) -> (P, C)."""
        return x.flatten(0, 2).index_select(0, self.order).to(dtype)

    def _scatter(self, rows: Tensor) -> Tensor:
        """(P, C) -> (B, H, W, C), 0 where unlabelled."""
        image = rows.new_zeros(math.prod(self.shape), rows.shape[1])
        return image.index_copy_(0, self.order, rows).view(*self.shape, -1)

    def _classes(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Each class present, its rows, and the neighbours of each among them, (P_c, 9).

        Neighbours are positions within the class; those of another class are P_c: a row of zeros.
        """
        for c, (start, stop) in enumerate(pairwise(self.bounds)):
            if start < stop:
                rows = slice(start, stop)
                yield c, rows, (self.neighbours[rows] - start).clamp(max=stop - start)


def _matrix(kernel: Tensor) -> Tensor:
    """Kernel (out, in, 3, 3) -> (in, 9 * out)."""
    return kernel.permute(1, 2, 3, 0).flatten(1)


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
