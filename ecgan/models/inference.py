"""Inference form of the generator: what weights or labels alone decide is computed once.

    labels --> neighbourhoods --> modulation maps --+     once for a layout
                                                    v
    z -------------------------> 7 residual blocks --> F --> pictures      for every style

Equal to ``Generator.forward`` but for the order of sums:

* Spectral norms and the statistics of batch norms are multiplied into the weights beside them.
* A SPADE layer's scale and shift at a pixel depend on the labels of the 5 x 5 pixels around it and
  on nothing else, and a label map has few such neighbourhoods: street scenes of 256 x 512 have one
  for every 15 to 50 pixels. Each is computed once, and looked up.
* The last two convolutions of Gs have nothing between them: they are one of 5 x 5.
* Ge and Gi are one chain of convolutions of twice the channels.
* Heads and taps that only training looks at are left out.

Shape legend:
    B  images in the batch      L, K  layouts, and styles of each: B = L * K
    N  semantic classes         C  channels of F          H, W  height and width
    T  distinct 3 x 3 neighbourhoods of the layouts       U  distinct 5 x 5 ones
"""

import itertools
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgan.models.class_specific import ClassSpecificGenerator
from ecgan.models.encoder import Spade, SpadeResidualBlock, StyleModulation
from ecgan.models.generator import EdgeGuidedBranches, Fusion, Generator, SemanticPreserving
from ecgan.models.inference_layers import (
    Conditions,
    Conv,
    Grid,
    Kernel,
    LabelConv,
    Lookup,
    Map,
    StyleStart,
    WindowConv,
    bias_of,
    weight_of,
)
from ecgan.models.layers import leaky
from ecgan.ops.class_conv import class_specific_heads
from ecgan.ops.neighbourhoods import Neighbourhoods
from ecgan.ops.onehot_conv import one_hot


class LayoutFeatures(NamedTuple):
    """Features of L layouts that all their styles share."""

    modulations: list[list[Map]]  # of each block: scale and shift of its SPADE layers, in turn
    start: Map | None  # of the trunk, where there is no style
    to_classes: Map | None  # S's part in the first convolution of Gs
    labels: Tensor | None  # for class-specific heads: classes, N where unlabelled, (L, H, W)


class InferenceGenerator(nn.Module):
    """G in evaluation mode, for sampling alone.

    Args:
        generator: G, with the weights to keep; it is not changed.
        boundary: True where the last channel of S is that of instance boundaries.
        lookups: compute modulation maps once for each neighbourhood; see :class:`Conditions`.
    """

    @torch.no_grad()
    def __init__(self, generator: Generator, *, boundary: bool, lookups: bool) -> None:
        super().__init__()
        assert not generator.training, "batch statistics would mix the samples: call eval() first"
        trunk, num_classes = generator.trunk, generator.num_classes
        blocks = [cast("SpadeResidualBlock", block) for block in trunk.blocks]
        num_conditions = weight_of(blocks[0].spade_1.hidden).shape[1]
        conditions = Conditions(
            num_classes, num_conditions > num_classes + boundary, boundary, lookups
        )
        self.conditions = conditions
        self.sizes = trunk.block_sizes()
        self.upsamples_after = trunk.upsamples_after
        self.start = (
            StyleStart(trunk.start, trunk.start_channels, trunk.start_size)
            if isinstance(trunk.start, nn.Linear)
            else LabelConv(weight_of(trunk.start), None, conditions)
        )
        self.blocks = nn.ModuleList(InferenceBlock(block, conditions) for block in blocks)
        self.style_modulations = nn.ModuleList(
            InferenceStyleModulation(cast("StyleModulation", one).linear)
            for one in trunk.style_modulations
        )
        self.branches = InferenceBranches(generator.branches)
        self.semantic_preserving = None
        if generator.semantic_preserving is not None:
            channels = trunk.tap_channels[0][0]
            self.semantic_preserving = InferenceSemanticPreserving(
                generator.semantic_preserving, channels, conditions
            )
        self.fusion = None
        if generator.fusion is not None:
            assert generator.class_specific is not None
            self.fusion = InferenceFusion(generator.fusion, generator.class_specific)

    def prepare(self, labels: Tensor, boundary: Tensor | None) -> LayoutFeatures:
        """Features of L layouts, computed once for all their styles.

        Args:
            labels: class of each pixel, N where unlabelled, any integer type, (L, H, W).
            boundary: instance boundaries, 0 where there is none, (L, 1, H, W).
        """
        grids: dict[int, Grid] = {}
        steps = [self.sizes[-1][0] // height for height, _ in self.sizes]
        for step in steps:
            if step not in grids:  # resized to the nearest pixel
                edges = None if boundary is None else boundary[:, :, ::step, ::step]
                grids[step] = self.conditions.grid(labels[:, ::step, ::step], edges)
        modulations = [
            cast("InferenceBlock", block).modulations(grids[step])
            for block, step in zip(self.blocks, steps, strict=True)
        ]
        start = to_classes = None
        if isinstance(self.start, LabelConv):
            start = self.start.map(grids[steps[0]])
        if self.semantic_preserving is not None:
            to_classes = self.semantic_preserving.from_S.map(grids[1])
        return LayoutFeatures(
            modulations, start, to_classes, None if self.fusion is None else labels
        )

    def sample(self, shared: LayoutFeatures, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """K images and edges for each layout.

        Args:
            shared: features of the layouts.
            z: styles, (L, K, 256); None if G has none, and then K = 1.

        Returns:
            Image and edge, each (L, K, 3, H, W), float32. Edge is None without Ge.
        """
        F = self._features(shared, z)  # (B, C, H, W)
        coarse, edge = self.branches(F)
        image = coarse
        if self.semantic_preserving is not None:
            assert shared.to_classes is not None
            pictures = coarse if edge is None else torch.cat([coarse, edge], dim=1)
            image = self.semantic_preserving(F, pictures, shared.to_classes)
        if self.fusion is not None:
            assert shared.labels is not None
            labels = shared.labels.repeat_interleave(len(F) // len(shared.labels), dim=0)
            image = self.fusion(F, image, labels, self.conditions.num_classes)
        num_styles = 1 if z is None else z.shape[1]
        layouts = (-1, num_styles)
        return image.unflatten(0, layouts), None if edge is None else edge.unflatten(0, layouts)

    def _features(self, shared: LayoutFeatures, z: Tensor | None) -> Tensor:
        """F, (B, C, H, W)."""
        if isinstance(self.start, StyleStart):
            assert z is not None, "this generator makes an image of a layout and a style"
            x = self.start(z.flatten(0, 1))
        else:
            assert z is None or self.style_modulations, "this generator takes no style"
            assert shared.start is not None
            x = _laid_out(shared.start)
        for index, (block, modulations) in enumerate(
            zip(self.blocks, shared.modulations, strict=True)
        ):
            x = block(x, modulations)
            if z is not None and self.style_modulations:
                x = self.style_modulations[index](x, z)
            if self.upsamples_after[index]:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return x


class DirectGenerator(nn.Module):
    """G as it is in training, with the two parts of :class:`InferenceGenerator`.

    For a style that is a map: there, modulation maps depend on it, and styles share nothing.

    Args:
        generator: G, with the weights to keep.
        unlabelled: whether unlabelled pixels have a channel of S.
        boundary: True where the last channel of S is that of instance boundaries.
    """

    def __init__(self, generator: Generator, *, unlabelled: bool, boundary: bool) -> None:
        super().__init__()
        assert not generator.training, "batch statistics would mix the samples: call eval() first"
        self.generator, self.unlabelled, self.boundary = generator, unlabelled, boundary

    def prepare(self, labels: Tensor, boundary: Tensor | None) -> LayoutFeatures:
        """Labels, (L, H, W), and boundaries, (L, 1, H, W), as S, (L, channels of S, H, W)."""
        num_classes = self.generator.num_classes
        S = one_hot(
            labels, num_classes, num_classes, unknown=self.unlabelled, boundary=boundary,
            dtype=next(self.generator.parameters()).dtype,
        )  # fmt: skip
        return LayoutFeatures([], S, None, labels)

    def sample(self, shared: LayoutFeatures, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As :meth:`InferenceGenerator.sample`."""
        num_styles = 1 if z is None else z.shape[1]
        S, labels = (
            cast("Tensor", x).repeat_interleave(num_styles, dim=0)
            for x in (shared.start, shared.labels)
        )
        made = self.generator(
            S,
            labels,
            self.generator.num_classes,
            None if z is None else z.flatten(0, 1).to(S.dtype),
        )
        image, edge = made.image.float(), made.edge
        layouts = (-1, num_styles)
        return image.unflatten(0, layouts), None if edge is None else edge.unflatten(0, layouts)


class InferenceBlock(nn.Module):
    """A residual block of the trunk, in two parts: of the layouts, and of the styles too."""

    def __init__(self, block: SpadeResidualBlock, conditions: Conditions) -> None:
        super().__init__()
        spades, mean, deviation = [block.spade_1, block.spade_2], *_statistics(block.spade_2)
        # The second normalisation is in the convolution before it; others are in scale and shift
        kernels = [_normalising(block.spade_1), _modulating(block.spade_2)]
        first = weight_of(block.conv_1) / deviation[:, None, None, None]
        self.conv_1 = Conv(first, -mean / deviation)
        self.conv_2 = Conv(weight_of(block.conv_2))
        self.conv_3 = None
        if block.learned_shortcut:
            spades.append(block.spade_3)
            shortcut = weight_of(block.conv_3)
            # A convolution of a scaled and shifted map is the sum of two, and the second is the
            # same for all styles
            scale, shift = _normalising(block.spade_3)
            kernels.append((scale, shift.before(shortcut[:, :, 0, 0])))
            self.conv_3 = Conv(shortcut)
        self.hidden = LabelConv(
            torch.cat([weight_of(spade.hidden) for spade in spades]),
            torch.cat([bias_of(spade.hidden) for spade in spades]),
            conditions,
        )
        self.widths = [[len(kernel.bias) for kernel in pair] for pair in kernels]
        self.to_modulation = nn.ModuleList(
            WindowConv(Kernel(*map(torch.cat, zip(*pair, strict=True))), conditions)
            for pair in kernels
        )

    def modulations(self, grid: Grid) -> list[Map]:
        """Scale and shift of each SPADE layer, in turn; the third shift is behind its conv."""
        hidden = self.hidden(grid).relu_().chunk(len(self.widths), dim=1)
        maps: list[Map] = []
        for layer, x, widths in zip(self.to_modulation, hidden, self.widths, strict=True):
            for made in layer(x, grid).split(widths, dim=1):
                looked_up = isinstance(grid, Neighbourhoods)
                maps += [Lookup(made.contiguous(), grid.index) if looked_up else made]
        return maps

    def forward(self, x: Tensor, modulations: list[Map]) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w); x is written over."""
        scale, shift, next_scale, next_shift, *last = modulations
        y = self.conv_1(_leaky_(_modulated(x, scale, shift)))
        _by_layout(y, next_scale).mul_(_for_styles(next_scale, y))
        _by_layout(y, next_shift).add_(_for_styles(next_shift, y))
        y = self.conv_2(_leaky_(y))
        if self.conv_3 is None:
            return y.add_(x)
        scale, shift = last
        _by_layout(x, scale).mul_(_for_styles(scale, x))
        y += self.conv_3(x)
        _by_layout(y, shift).add_(_for_styles(shift, y))
        return y


class InferenceStyleModulation(nn.Module):
    """Scale and shift of a block's output by the style."""

    weight: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = bias_of(linear).clone()
        bias[: len(bias) // 2] += 1  # the scale is 1 + what the layer gives
        self.register_buffer("weight", weight_of(linear).float())
        self.register_buffer("bias", bias.float())

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Modulate x, (B, C, h, w), in place, by styles z, (L, K, 256).

        Where x is one for all styles of a layout, (L, C, h, w), they part here.
        """
        made = functional.linear(z.flatten(0, 1).to(self.weight.dtype), self.weight, self.bias)
        if len(x) < len(made):  # laid out channels last, as all that follows
            x = x.movedim(1, -1).repeat_interleave(z.shape[1], dim=0).movedim(-1, 1)
        scale, shift = made[:, :, None, None].chunk(2, dim=1)
        return x.mul_(scale).add_(shift)


class InferenceBranches(nn.Module):
    """Gi, and Ge beside it: layer by layer one convolution, the edges' channels first.

    From the second on, its kernel is zero between the two.
    """

    def __init__(self, branches: EdgeGuidedBranches) -> None:
        super().__init__()
        self.transfers, self.has_edges = branches.transfers, branches.edge_branch is not None
        both = [branches.image_branch]
        if branches.edge_branch is not None:
            both.insert(0, branches.edge_branch)
        layers = [[*branch.layers, branch.to_picture] for branch in both]
        self.layers = nn.ModuleList()
        for pair in zip(*layers, strict=True):
            weights = [weight_of(layer) for layer in pair]
            weight = torch.cat(weights) if not self.layers else _block_diagonal(weights)
            self.layers.append(Conv(weight, torch.cat([bias_of(layer) for layer in pair])))

    def forward(self, F: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features F, (B, C, H, W) -> coarse image I' and edge I'_e, each (B, 3, H, W)."""
        x = leaky(F)
        for layer in self.layers[:-1]:
            x = _leaky_(self._transferred(layer(x)))
        x = self._transferred(_pixels(self.layers[-1](x)))
        if not self.has_edges:
            return x, None
        edge, image = x.chunk(2, dim=1)
        return image, edge

    def _transferred(self, x: Tensor) -> Tensor:
        """Eq. 1, in grid."""
        if self.transfers:
            edge, image = x.chunk(2, dim=1)
            image.mul_(edge.sigmoid().add_(1))
        return x


class InferenceSemanticPreserving(nn.Module):
    """Gs, of which S's part is made apart and the last two convolutions are one.

    At the border the two are not one: what the first makes outside of the picture is not zero, and
    the second must not see it. There they are run as they were.
    """

    def __init__(self, module: SemanticPreserving, channels: int, conditions: Conditions) -> None:
        super().__init__()
        weight, bias = weight_of(module.to_classes), bias_of(module.to_classes)
        bounds = (channels, module.num_generated)
        from_F, from_pictures, from_S = weight.tensor_split(bounds, dim=1)
        self.from_F, self.from_pictures = Conv(from_F), Conv(from_pictures)
        self.from_S = LabelConv(from_S, bias, conditions)
        first = Kernel(weight_of(module.from_classes), bias_of(module.from_classes))
        second = Kernel(weight_of(module.to_image), bias_of(module.to_image))
        self.inner = Conv(*first)
        self.outer = Conv(*second)
        self.both = Conv(*_composed(first, second))

    def forward(self, F: Tensor, pictures: Tensor, from_S: Map) -> Tensor:
        """F and cat(I', I'_e), (B, ..., H, W), and S's part, (L, N, H, W) -> I'', (B, 3, H, W)."""
        F_c = self.from_F(F).add_(self.from_pictures(pictures.to(F.dtype)))
        _by_layout(F_c, from_S).add_(_for_styles(from_S, F_c))
        F_c *= F_c.mean(dim=(2, 3), keepdim=True).sigmoid().add_(1)  # Eq. 2
        image = self.both(F_c)
        for dim, length in ((2, F.shape[2]), (3, F.shape[3])):
            reach = min(3, length)
            for start, row in ((0, 0), (length - reach, -1)):
                strip = self.outer(self.inner(F_c.narrow(dim, start, reach)))
                image.select(dim, row).copy_(strip.select(dim, row))
        return _pixels(image)


class InferenceFusion(nn.Module):
    """The output "fused", with the class-specific heads that it needs."""

    def __init__(self, fusion: Fusion, heads: ClassSpecificGenerator) -> None:
        super().__init__()
        weight, bias = weight_of(fusion.to_weights), bias_of(fusion.to_weights)
        self.to_weight = Conv(weight[1:] - weight[:1], bias[1:] - bias[:1])  # softmax of two
        for name in ("weight_1", "bias_1", "weight_2", "bias_2"):
            self.register_buffer(name, getattr(heads, name).detach().clone())

    def forward(self, F: Tensor, refined: Tensor, labels: Tensor, unlabelled: int) -> Tensor:
        """F, I'' and labels, (B, H, W) -> (B, 3, H, W)."""
        at_least = torch.promote_types(F.dtype, torch.float32)  # as in training
        weights = [
            cast("Tensor", getattr(self, name)).to(at_least)
            for name in ("weight_1", "bias_1", "weight_2", "bias_2")
        ]
        class_image = class_specific_heads(F, labels, unlabelled, *weights)
        pictures = torch.cat([refined, class_image], dim=1).to(F.dtype)
        class_weight = self.to_weight(torch.cat([F, pictures], dim=1)).sigmoid()
        class_weight = class_weight.to(refined.dtype) * (labels != unlabelled)[:, None]
        return refined + class_weight * (class_image.to(refined.dtype) - refined)


# Kernels


def _modulating(spade: Spade) -> tuple[Kernel, Kernel]:
    """Kernels of 1 + gamma and beta."""
    gamma_weight, beta_weight = weight_of(spade.to_modulation).chunk(2)
    gamma_bias, beta_bias = bias_of(spade.to_modulation).chunk(2)
    return Kernel(gamma_weight, gamma_bias + 1), Kernel(beta_weight, beta_bias)


def _normalising(spade: Spade) -> tuple[Kernel, Kernel]:
    """Kernels of scale and shift of a map that is not normalised yet.

    (x - mean) / deviation * (1 + gamma) + beta = x * scale + shift
    """
    (mean, deviation), (gamma, beta) = _statistics(spade), _modulating(spade)
    columns = (slice(None), None, None, None)
    scale = Kernel(gamma.weight / deviation[columns], gamma.bias / deviation)
    return scale, Kernel(beta.weight - mean[columns] * scale.weight, beta.bias - mean * scale.bias)


def _statistics(spade: Spade) -> tuple[Tensor, Tensor]:
    """Mean and deviation that the batch norm of a SPADE layer has kept, (C,) each."""
    mean, variance = spade.norm.running_mean, spade.norm.running_var
    assert mean is not None
    assert variance is not None
    return mean.double(), (variance.double() + spade.norm.eps).sqrt()


def _composed(first: Kernel, second: Kernel) -> Kernel:
    """Two 3x3 convolutions, one after the other, as one of 5x5: inside, where both see pixels."""
    (out, _, _, _), (_, into, _, _) = second.weight.shape, first.weight.shape
    weight = first.weight.new_zeros(out, into, 5, 5)
    for y, x in itertools.product(range(3), range(3)):
        reached = torch.einsum("om,mikl->oikl", second.weight[:, :, y, x], first.weight)
        weight[:, :, y : y + 3, x : x + 3] += reached
    return Kernel(weight, second.bias + second.weight.sum(dim=(2, 3)) @ first.bias)


def _block_diagonal(weights: list[Tensor]) -> Tensor:
    """Kernels side by side: each reads and makes channels of its own."""
    sizes = torch.tensor([weight.shape[:2] for weight in weights]).sum(dim=0).tolist()
    whole = weights[0].new_zeros(*sizes, *weights[0].shape[2:])
    row = column = 0
    for weight in weights:
        rows, columns = weight.shape[:2]
        whole[row : row + rows, column : column + columns] = weight
        row, column = row + rows, column + columns
    return whole


# Arithmetic


def _laid_out(found: Map) -> Tensor:
    """(L, c, h, w), channels last."""
    if not isinstance(found, Lookup):
        return found
    pixels = found.rows.index_select(0, found.numbers.flatten())
    return pixels.unflatten(0, found.numbers.shape).permute(0, 3, 1, 2)


def _modulated(x: Tensor, scale: Map, shift: Map) -> Tensor:
    """Scale and shift, (L, C, h, w) each, applied to x, (B, C, h, w)."""
    made = torch.addcmul(_for_styles(shift, x), _by_layout(x, scale), _for_styles(scale, x))
    return made.view_as(x)


def _by_layout(x: Tensor, shared: Map) -> Tensor:
    """(B, ...) -> (L, K, ...), a view; x itself where K = 1."""
    layouts = _num_layouts(shared)
    return x if layouts == len(x) else x.unflatten(0, (layouts, -1))


def _for_styles(shared: Map, x: Tensor) -> Tensor:
    """(L, ...) as it fits ``_by_layout`` of x, (B, ...), without a copy."""
    laid_out = _laid_out(shared)
    return laid_out if len(laid_out) == len(x) else laid_out[:, None]


def _num_layouts(shared: Map) -> int:
    return len(shared.numbers if isinstance(shared, Lookup) else shared)


def _leaky_(x: Tensor) -> Tensor:
    """LeakyReLU as :func:`ecgan.models.layers.leaky`, in grid."""
    return functional.leaky_relu_(x, 0.2)


def _pixels(x: Tensor) -> Tensor:
    """tanh, in float32: bfloat16 is coarser than 8-bit pixels."""
    return x.float().tanh_()
