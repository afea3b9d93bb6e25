"""Pixel-wise contrastive loss (Eq. 5) over all pairs of embeddings, in O(M) memory.

    s_ij = e_i . e_j / tau
    l_i = log sum over negatives j of i of exp(s_ij)
    loss_i = 1/|P_i| sum over positives j of i of log(1 + exp(l_i - s_ij))

Three passes over tiles of s, none of which is stored: l_i; then loss_i and its gradient in the
positives' s_ij and in l_i, which is called g_i; then the gradient in the negatives' s_ij, which is
g_i exp(s_ij - l_i). s is symmetric, so a tile serves its rows and its columns as anchors.

Here in plain torch; in ``ops.triton.contrast`` for CUDA.

Shape legend:
    M  embeddings           D  length of an embedding      r, c  rows and columns of a tile
    K  embeddings and bank  A  anchors
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgan.ops import backend
from ecgan.ops.precision import exact_arithmetic, to_exact
from ecgan.ops.tiles import (
    Tile,
    class_bounds,
    rectangle_tiles,
    same_class_tiles,
    tile_elements,
)

EXPONENTS = {torch.float32: 60.0, torch.float64: 600.0}
"""Largest range of exponents whose exponentials, and sums of them, a type still holds."""


class ContrastOptions(TypedDict, total=False):
    """Choice of the embeddings that take part in Eq. 5, and of their roles.

    Attributes:
        anchors: embeddings that are anchors; None for all. All are positives and negatives. A rank
            takes its own among those gathered from all ranks; the gradient reaches all of them.
        bank: further embeddings, such as those of earlier steps, (Mb, D): positives and negatives,
            never anchors, without gradient.
        bank_classes: their classes, (Mb,).
        ignore: class of embeddings, and of the bank's, that take no part.
    """

    anchors: slice | None
    bank: Tensor | None
    bank_classes: Tensor | None
    ignore: int | None


def pixel_contrast(
    embeddings: Tensor, classes: Tensor, temperature: float, **options: Unpack[ContrastOptions]
) -> tuple[Tensor, Tensor]:
    """Sum of Eq. 5 over the anchors that have a positive, and their number.

    Args:
        embeddings: L2-normalised pixel embeddings, (M, D).
        classes: class of each, any integer type, (M,).
        temperature: tau of Eq. 5, above 0.
        options: anchors and bank, see :class:`ContrastOptions`.

    Returns:
        The sum, a scalar in float32 or float64, and the number of anchors in it, int64.
    """
    bank, bank_classes = options.get("bank"), options.get("bank_classes")
    anchors, ignore = options.get("anchors"), options.get("ignore")
    everything = embeddings = to_exact(embeddings)
    classes = classes.long()
    if bank is not None and bank_classes is not None:
        everything = torch.cat([embeddings, bank.detach().to(embeddings.dtype)])
        classes = torch.cat([classes, bank_classes.long()])
    is_anchor = torch.zeros_like(classes, dtype=torch.bool)
    is_anchor[: len(embeddings)][anchors or slice(None)] = True
    takes_part = torch.ones_like(is_anchor) if ignore is None else classes != ignore
    sums = _PixelContrast.apply(
        everything, classes, is_anchor, takes_part, temperature, len(embeddings)
    )
    assert isinstance(sums, tuple)
    return sums[0], sums[1]


class _Layout(NamedTuple):
    """Anchors sorted by class, then the others sorted by class."""

    order: Tensor  # (K,)
    num_positives: Tensor  # of each in this order as an anchor, (K,)
    anchor_bounds: list[int]  # where each class starts among the anchors, and where the last stops
    other_bounds: list[int]  # the same among the others, from A to K

    @property
    def num_anchors(self) -> int:
        """A."""
        return self.anchor_bounds[-1]

    def positives(self, elements: int) -> Iterator[Tile]:
        """Tiles of pairs of one class, of which the rows are anchors."""
        for anchors, others in self._classes():
            yield from same_class_tiles(anchors.start, anchors.stop, elements)
            yield from rectangle_tiles(anchors, others, elements)

    def negatives(self, elements: int) -> Iterator[Tile]:
        """Tiles of pairs of different classes, of which the rows are anchors."""
        for anchors, others in self._classes():
            for columns in (
                slice(anchors.stop, self.num_anchors),
                slice(self.num_anchors, others.start),
                slice(others.stop, self.other_bounds[-1]),
            ):
                yield from rectangle_tiles(anchors, columns, elements)

    def _classes(self) -> Iterator[tuple[slice, slice]]:
        anchors, others = self.anchor_bounds, self.other_bounds
        for c in range(len(anchors) - 1):
            yield slice(anchors[c], anchors[c + 1]), slice(others[c], others[c + 1])


def _lay_out(classes: Tensor, is_anchor: Tensor) -> _Layout:
    _, classes = classes.unique(return_inverse=True)  # 0 .. number of classes present - 1
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    key = torch.where(is_anchor, classes, classes + num_classes)
    order = key.argsort(stable=True)
    counts = key.bincount(minlength=2 * num_classes)
    anchor_counts, other_counts = counts[:num_classes], counts[num_classes:]
    anchor_bounds = class_bounds(anchor_counts.tolist())
    other_bounds = [anchor_bounds[-1] + bound for bound in class_bounds(other_counts.tolist())]
    num_positives = (anchor_counts + other_counts)[classes[order]] - 1
    return _Layout(order, num_positives, anchor_bounds, other_bounds)


class _PixelContrast(torch.autograd.Function):
    """The gradient is made with the value and kept, as large as the input."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        everything: Tensor,
        classes: Tensor,
        is_anchor: Tensor,
        takes_part: Tensor,
        temperature: float,
        num_embeddings: int,
    ) -> tuple[Tensor, Tensor]:
        with_gradient = ctx.needs_input_grad[0]

        def with_torch() -> _Sums:
            there = takes_part.nonzero()[:, 0]
            layout = _lay_out(classes[there], is_anchor[there])
            num_there = int(takes_part[:num_embeddings].sum())
            with exact_arithmetic(everything.device):
                pairs = _Pairs(everything[there], layout, temperature, num_there)
                sums = pairs.sums(with_gradient=with_gradient)
            if sums.gradient is None:
                return sums
            gradient = torch.zeros_like(everything).index_copy_(0, there, sums.gradient)
            return sums._replace(gradient=gradient)

        def with_triton() -> _Sums:
            from ecgan.ops.triton import contrast

            keys = contrast.lay_out(everything, classes, is_anchor, takes_part)
            total, gradient = contrast.loss_and_gradient(
                everything, keys, temperature, num_embeddings, with_gradient=with_gradient
            )
            return _Sums(total, keys.num_anchors, gradient)

        sums = backend.run(
            "pixel contrast", everything, with_triton=with_triton, with_torch=with_torch
        )
        if sums.gradient is not None:
            ctx.save_for_backward(sums.gradient)
        ctx.mark_non_differentiable(sums.num_anchors)
        return sums.total.to(everything.dtype), sums.num_anchors

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        *grad_outputs: Tensor,
    ) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None, None


class _Sums(NamedTuple):
    """Eq. 5 summed over the anchors."""

    total: Tensor  # the anchors' losses, float64
    num_anchors: Tensor  # that have a positive, int64
    gradient: Tensor | None  # of the total, in the order in which everything came


class _Pairs:
    """The three passes, over embeddings in the layout's order."""

    def __init__(
        self, everything: Tensor, layout: _Layout, temperature: float, num_embeddings: int
    ) -> None:
        self.layout = layout
        self.temperature = temperature
        self.e = everything[layout.order]  # (K, D)
        self.e_tau = self.e / temperature
        self.gradient = torch.zeros_like(self.e)
        # Others that are only the bank have no use for a gradient.
        self.gradient_stop = (
            len(self.e) if num_embeddings > layout.num_anchors else layout.num_anchors
        )
        self.elements = tile_elements(everything.device)
        self.buffers = everything.new_empty(2, self.elements)

    def sums(self, *, with_gradient: bool) -> _Sums:
        """Loss, number of anchors and gradient, by the three passes."""
        l = self.log_negatives()
        total, g = self.positives(l, with_gradient=with_gradient)
        num_anchors = (self.layout.num_positives[: self.layout.num_anchors] > 0).sum()
        if not with_gradient:
            return _Sums(total, num_anchors, None)
        self.negatives(l, g)
        return _Sums(total, num_anchors, self.gradient_of_everything())

    def log_negatives(self) -> Tensor:
        """l_i: logarithm of the sum of exp(s_ij) over the negatives j of i, -inf if none, (K,)."""
        largest = float(self.e.square().sum(dim=1).max()) / self.temperature if len(self.e) else 0.0
        if 2 * largest <= EXPONENTS[self.e.dtype]:
            return self._log_sums(largest)
        l = self.e.new_full((len(self.e),), -torch.inf)
        for tile in self.layout.negatives(self.elements):
            s = self._s(tile)
            l[tile.rows] = l[tile.rows].logaddexp(s.logsumexp(dim=1))
            if self._mirrored(tile):
                l[tile.columns] = l[tile.columns].logaddexp(s.logsumexp(dim=0))
        return l

    def _log_sums(self, shift: float) -> Tensor:
        """l_i where the type holds every exp(s_ij - shift): one exponential serves both sides."""
        sums = torch.zeros_like(self.e[:, 0])
        for tile in self.layout.negatives(self.elements):
            x = self._s(tile).sub_(shift).exp_()
            sums[tile.rows] += x.sum(dim=1)
            if self._mirrored(tile):
                sums[tile.columns] += x.sum(dim=0)
        return sums.log() + shift

    def positives(self, l: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Sum of the anchors' losses, in float64, and g_i = dloss_i/dl_i, (K,)."""
        total = torch.zeros((), dtype=torch.float64, device=l.device)
        g = torch.zeros_like(l)
        share = self._share()
        for tile in self.layout.positives(self.elements):
            s = self._s(tile)
            x = torch.sub(l[tile.rows, None], s, out=self._buffer(1, tile))
            if tile.diagonal:
                x.fill_diagonal_(-torch.inf)  # no pixel is its own positive
            total += _softplus(x).sum(dim=1) @ share[tile.rows]
            w = x.sigmoid_().mul_(share[tile.rows, None])
            g[tile.rows] += w.sum(dim=1)
            if self._mirrored(tile):
                x = torch.sub(l[None, tile.columns], s, out=s)
                total += _softplus(x).sum(dim=0) @ share[tile.columns]
                mirror = x.sigmoid_().mul_(share[None, tile.columns])
                g[tile.columns] += mirror.sum(dim=0)
                w += mirror
            if with_gradient:
                self._add_gradient(tile, w, -1)
        return total, g

    def negatives(self, l: Tensor, g: Tensor) -> None:
        """The gradient in the negatives' s_ij, g_i exp(s_ij - l_i)."""
        u = torch.where(g > 0, g.log() - l, -torch.inf)
        for tile in self.layout.negatives(self.elements):
            s = self._s(tile)
            w = torch.add(s, u[tile.rows, None], out=self._buffer(1, tile)).exp_()
            if self._mirrored(tile):
                w += s.add_(u[None, tile.columns]).exp_()
            self._add_gradient(tile, w, 1)

    def gradient_of_everything(self) -> Tensor:
        """Gradient of the sum of losses, in the order in which the embeddings came."""
        gradient = torch.empty_like(self.gradient)
        gradient[self.layout.order] = self.gradient / self.temperature
        return gradient

    def _share(self) -> Tensor:
        """1/|P_i|, 0 for an anchor without positives, (K,)."""
        num_positives = self.layout.num_positives.to(self.e.dtype)
        return torch.where(num_positives > 0, 1 / num_positives, 0)

    def _s(self, tile: Tile) -> Tensor:
        s = self._buffer(0, tile)
        return torch.mm(self.e_tau[tile.rows], self.e[tile.columns].T, out=s)

    def _buffer(self, number: int, tile: Tile) -> Tensor:
        r, c = tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start
        return self.buffers[number, : r * c].view(r, c)

    def _mirrored(self, tile: Tile) -> bool:
        """True where the columns are anchors too, with the rows as positives or negatives."""
        return not tile.diagonal and tile.columns.stop <= self.layout.num_anchors

    def _add_gradient(self, tile: Tile, w: Tensor, sign: int) -> None:
        self.gradient[tile.rows].addmm_(w, self.e[tile.columns], alpha=sign)
        if tile.columns.start < self.gradient_stop:
            self.gradient[tile.columns].addmm_(w.T, self.e[tile.rows], alpha=sign)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)  # beyond which log(1 + exp(x)) is x in float64 too
