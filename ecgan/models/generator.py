"""The generator G of ECGAN (Fig. 1): encoder E, branches Ge and Gi, transfer Gt, module Gs.

    S --> E --> F --+--> Ge ------------------> edge I'_e
                    |     | Gt, after each layer
                    +--> Gi --> I'_i --Eq. 1--> coarse I'
                    |
    cat(F, I', I'_e, S) --> Gs --- Eq. 2 -----> refined I''
                    |
                    +--> class-specific, Eq. 7 > I_g

Shape legend:
    B  images in the batch      N  semantic classes         C  channels of F, 64 in the paper
    H, W  height and width      S  condition, (B, channels of S, H, W): one-hot label first
    z  style, (B, 256)

Names are the paper's (arXiv:2003.13898v2, Sec. 3.1-3.3). Edges and images are in [-1, 1], but for
I', which Eq. 1 lets reach 1 + sigmoid(1) = 1.73 in magnitude, and are float32 or wider: bfloat16
is coarser than 8-bit pixels.
"""

import itertools
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecgan.models.class_specific import ClassSpecificGenerator
from ecgan.models.encoder import StyleInjection, Trunk
from ecgan.models.layers import SpectralNorm, convolution, leaky

STYLE_DIM = 256
NUM_LAYERS = 3  # n of Ge, Gi, Gt


class Generated(NamedTuple):
    """Output of the generator for one batch of layouts. Images are (B, 3, H, W)."""

    image: Tensor  # the output: I'', or its fusion with I_g, or I' if there is no Gs
    refined: Tensor | None  # I''
    coarse: Tensor  # I', up to 1.73 in magnitude
    edge: Tensor | None  # I'_e
    class_image: Tensor | None  # I_g, 0 where unlabelled
    features: Tensor  # F, (B, C, H, W)
    taps: list[Tensor]  # F, then the outputs of the trunk's earlier blocks, the last first


def edge_transfer(edge: Tensor, image: Tensor) -> Tensor:
    """Attention guided edge transfer Gt, Eq. 1; on features and on images alike.

    Args:
        edge: edge features F_e^j, (B, c, H, W), or edge map I'_e, (B, 3, H, W).
        image: image features F_i^j or image I'_i, of the same shape.
    """
    return edge.sigmoid() * image + image


def reweight_classes(F_c: Tensor) -> Tensor:
    """Weight each class map by its own mean activation, Eq. 2: (B, N, H, W) -> (B, N, H, W)."""
    gamma = F_c.mean(dim=(2, 3), keepdim=True).sigmoid()  # (B, N, 1, 1)
    return F_c * gamma + F_c


class Branch(nn.Module):
    """Ge or Gi: three convolutions, C -> C/2 -> C/4 -> C/8, and one to three channels.

    Layer by layer, so that Gt can step between; LeakyReLU stands before every convolution, since F
    is the raw output of the trunk.
    """

    def __init__(self, channels: int, *, spectral: bool) -> None:
        super().__init__()
        widths = [max(1, channels // 2**j) for j in range(NUM_LAYERS + 1)]
        self.layers = nn.ModuleList(
            convolution(c_in, c_out, spectral=spectral)
            for c_in, c_out in itertools.pairwise(widths)
        )
        self.to_picture = convolution(widths[-1], 3, spectral=spectral)

    def layer(self, j: int, x: Tensor) -> Tensor:
        """Features after layer j from those before it."""
        return self.layers[j](leaky(x))

    def picture(self, x: Tensor, slope: float = 0.0) -> Tensor:
        """Last features to edge or image, (B, 3, H, W)."""
        return _pixels(self.to_picture(leaky(x)), slope)


class EdgeGuidedBranches(nn.Module):
    """Image generator Gi and, unless switched off, edge generator Ge and transfer Gt.

    Attributes:
        edge_slope: what is added to the slope of the edge's tanh in the backward pass.
    """

    edge_slope = 0.0

    def __init__(
        self, channels: int, *, edge_generator: bool, edge_transfer: bool, spectral: bool
    ) -> None:
        super().__init__()
        self.image_branch = Branch(channels, spectral=spectral)
        self.edge_branch = Branch(channels, spectral=spectral) if edge_generator else None
        self.transfers = edge_transfer

    def forward(self, F: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features F, (B, C, H, W) -> coarse image I' and edge I'_e, each (B, 3, H, W)."""
        F_e = F_i = F
        for j in range(NUM_LAYERS):
            F_i = self.image_branch.layer(j, F_i)
            if self.edge_branch is not None:
                F_e = self.edge_branch.layer(j, F_e)
                F_i = edge_transfer(F_e, F_i) if self.transfers else F_i
        image = self.image_branch.picture(F_i)  # I'_i
        if self.edge_branch is None:
            return image, None
        edge = self.edge_branch.picture(F_e, self.edge_slope)
        return edge_transfer(edge, image) if self.transfers else image, edge


class SemanticPreserving(nn.Module):
    """Semantic preserving module Gs, Eq. 2: reweights one feature map for each class.

    Args:
        num_generated: channels of cat(F, I', I'_e), or of cat(F, I') without Ge.
        num_conditions: channels of S.
        num_classes: N.
        spectral: spectral norm on its three convolutions.
    """

    def __init__(
        self, num_generated: int, num_conditions: int, num_classes: int, *, spectral: bool
    ) -> None:
        super().__init__()
        combined = num_generated + num_conditions
        self.num_generated = num_generated
        self.to_classes = convolution(combined, num_classes, spectral=spectral)
        self.from_classes = convolution(num_classes, combined, spectral=spectral)
        self.to_image = convolution(combined, 3, spectral=spectral)

    def forward(self, S: Tensor, generated: Tensor) -> Tensor:
        """S, (B, channels of S, H, W), and cat(F, I', I'_e), (B, ...) -> I''."""
        F_c = reweight_classes(self._to_classes(S, generated))
        return _pixels(self.to_image(self.from_classes(F_c)))

    def _to_classes(self, S: Tensor, generated: Tensor) -> Tensor:
        """F_c, the convolution of cat(F, I', I'_e, S), as a sum, which copies nothing."""
        weight = cast("Tensor", self.to_classes.weight)
        bias = cast("Tensor", self.to_classes.bias)
        from_generated = functional.conv2d(generated, weight[:, : self.num_generated], padding=1)
        from_S = functional.conv2d(S, weight[:, self.num_generated :], bias, padding=1)
        return from_generated + from_S


class Fusion(nn.Module):
    """The output "fused": I'' and I_g, each pixel weighted by a softmax over the two.

    Where a pixel is unlabelled, I_g has nothing to say and I'' stands alone.
    """

    def __init__(self, channels: int, *, spectral: bool) -> None:
        super().__init__()
        self.to_weights = convolution(channels + 3 + 3, 2, spectral=spectral)

    def forward(self, F: Tensor, refined: Tensor, class_image: Tensor, known: Tensor) -> Tensor:
        """F, (B, C, H, W), I'', I_g, (B, 3, H, W), known, bool (B, H, W) -> (B, 3, H, W)."""
        logits = self.to_weights(torch.cat([F, refined, class_image], dim=1))  # (B, 2, H, W)
        class_weight = (logits[:, 1] - logits[:, 0]).sigmoid() * known  # softmax of two
        class_weight = class_weight[:, None].to(refined.dtype)
        return refined + class_weight * (class_image - refined)


class Generator(nn.Module):
    """G: condition S, and a style if it has one, to edge, coarse image and image.

    Args:
        num_classes: N.
        num_conditions: channels of S: N, and one for unlabelled pixels and one for instance
            boundaries where the data set has them.
        height: height of S and of every picture, pixels.
        width_px: width of S and of every picture, pixels.
        channels: C; the widths of all layers follow.
        upsamplings: x2 steps of the trunk, 5 or 6.
        style: True where G takes a style z.
        style_injection: where it enters the trunk; see :class:`Trunk`.
        output: "refined": I'' is the image; "fused": its per-pixel fusion with I_g.
        spectral_norm: "default": the trunk's blocks; "all": every layer of G.
        edge_generator: Ge.
        edge_transfer: Gt, which needs Ge.
        semantic_preserving: Gs; without it I' stands for I''.
        class_specific: heads that make I_g, which "fused" needs.
    """

    style_dim = STYLE_DIM

    def __init__(  # noqa: PLR0913 - each part of the model can be switched off
        self,
        *,
        num_classes: int,
        num_conditions: int,
        height: int,
        width_px: int,
        channels: int = 64,
        upsamplings: int = 6,
        style: bool = False,
        style_injection: StyleInjection = "start",
        output: Literal["refined", "fused"] = "refined",
        spectral_norm: SpectralNorm = "default",
        edge_generator: bool = True,
        edge_transfer: bool = True,
        semantic_preserving: bool = True,
        class_specific: bool = True,
    ) -> None:
        super().__init__()
        assert edge_generator or not edge_transfer, "Gt needs Ge"
        assert class_specific or output == "refined", "the fused output needs class-specific heads"
        spectral = spectral_norm == "all"
        self.num_classes = num_classes
        self.size = (height, width_px)
        self.style = style
        self.trunk = Trunk(
            num_conditions,
            channels,
            self.size,
            upsamplings=upsamplings,
            style_dim=STYLE_DIM if style else None,
            style_injection=style_injection,
            spectral_norm=spectral_norm,
        )
        self.branches = EdgeGuidedBranches(
            channels, edge_generator=edge_generator, edge_transfer=edge_transfer, spectral=spectral
        )
        num_generated = channels + (6 if edge_generator else 3)
        self.semantic_preserving = (
            SemanticPreserving(num_generated, num_conditions, num_classes, spectral=spectral)
            if semantic_preserving
            else None
        )
        self.class_specific = (
            ClassSpecificGenerator(channels, num_classes, spectral=spectral)
            if class_specific
            else None
        )
        self.fusion = Fusion(channels, spectral=spectral) if output == "fused" else None

    @property
    def tap_channels(self) -> list[tuple[int, int]]:
        """Channels of each of ``Generated.taps``, and how many times smaller than S it is."""
        return self.trunk.tap_channels

    def forward(
        self, S: Tensor, labels: Tensor | None, ignore: int, z: Tensor | None = None
    ) -> Generated:
        """Everything that training looks at, one image for each layout.

        Args:
            S: condition, (B, channels of S, H, W).
            labels: class of each pixel, (B, H, W); only class-specific heads need it.
            ignore: value of unlabelled pixels in ``labels``.
            z: style, (B, 256), if G has one.
        """
        F, taps = self.trunk(S, z)
        coarse, edge, refined = self._pictures(S, F)
        class_image = None
        if self.class_specific is not None:
            assert labels is not None, "class-specific heads need labels"
            class_image = self.class_specific(F, labels, ignore)
        image = coarse if refined is None else refined
        if self.fusion is not None:
            assert labels is not None
            image = self.fusion(F, image, class_image, labels != ignore)
        return Generated(image, refined, coarse, edge, class_image, F, taps)

    def _pictures(self, S: Tensor, F: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """I', I'_e and I'' of features F, (B, C, H, W)."""
        coarse, edge = self.branches(F)
        if self.semantic_preserving is None:
            return coarse, edge, None
        generated = [F, coarse] if edge is None else [F, coarse, edge]
        return coarse, edge, self.semantic_preserving(S, torch.cat(generated, dim=1))


def _pixels(x: Tensor, slope: float = 0.0) -> Tensor:
    """tanh, in float32 at least; ``slope`` is added to its gradient alone.

    Nine tenths of an edge map are black. What pushes all of it there leaves tanh without a
    gradient, and no loss brings the edges back.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x.tanh() + slope * (x - x.detach()) if slope else x.tanh()
