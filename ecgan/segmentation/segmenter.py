"""Segmenters: frozen networks that give the probability of each class at each pixel.

One class for several roles: label generator Gl (Sec. 3.2), through which the gradient flows to the
generated images; judge of generated data sets; label filter.

Shape legend:
    B  images in the batch      H, W  height and width
    N  classes of the recipe (input or evaluation ids)      K  classes of the network
    Q  queries of a universal segmenter
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.data.datasets import Item
from ecgan.data.files.images import sha256
from ecgan.errors import UserError
from ecgan.models.pretrained.frozen import Frozen
from ecgan.runtime.files import whole_folder, writing
from ecgan.segmentation.class_mapping import UNMAPPED
from ecgan.segmentation.pretrained import quiet_transformers
from ecgan.segmentation.unet import UNet

OVERFLOW = "what it computes overflows, as after a training that diverged; give another"
DESCRIPTION = "segmenter.json"  # beside config.json and model.safetensors, in folders that we write


@dataclass(frozen=True)
class Provenance:
    """Origin of a segmenter, for reports.

    Attributes:
        kind: ``trained`` here, or ``loaded``.
        source: folder or hub name; of a trained one, its architecture.
        width: channels of the first stage; 0 for a loaded one.
        images: images seen in training; 0 for a loaded one.
        data: hash of its training data and settings; empty for a loaded one.
        train_loss: cross entropy over the last tenth of training.
    """

    kind: str
    source: str
    width: int = 0
    images: int = 0
    data: str = ""
    train_loss: float | None = None


@dataclass(frozen=True)
class Sources:
    """Training pairs of a segmenter; empty where they are not known.

    Attributes:
        keys: keys of the pairs.
        labels: SHA-256 of their label files, by which they are known under other keys too.
    """

    keys: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Sources":
        """Read the label files of these pairs."""
        return cls(
            frozenset(item.key for item in items), frozenset(sha256(item.label) for item in items)
        )

    def to_json(self) -> dict[str, list[str]]:
        return {"keys": sorted(self.keys), "labels": sorted(self.labels)}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[str]]) -> "Sources":
        return cls(frozenset(value["keys"]), frozenset(value["labels"]))


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation that a network expects of images in 0..1."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class Segmenter(Frozen):
    """Images -> probabilities of the recipe's classes.

    Several classes of the network may mean one class of the recipe: their probabilities are added.
    Classes that mean none are left out before the softmax, so that the rest sums to one.

    Args:
        network: a model of transformers for semantic or for universal segmentation, or a U-Net.
        class_map: for each of the network's K classes the class of the recipe; -1 for none.
        names: names of the recipe's classes, N.
        normalisation: preparation of images that the network expects.
        provenance: origin, for reports.
        evaluation: the classes are evaluation ids, not input ids.
        task: tokens of the task's name for a OneFormer, (1, length).
        sources: its training pairs.
        loaded_from: folder or hub name, by which other processes find it.
        role: what it is used as, for messages.
    """

    known: Tensor  # (N,), bool: classes that the network can tell
    known_classes: Tensor  # the same as ids
    _mapped: Tensor  # classes of the network that mean one of the recipe
    _targets: Tensor  # and which
    _scale: Tensor
    _shift: Tensor
    _task: Tensor | None

    def __init__(  # noqa: PLR0913  what our folders hold, file by file
        self,
        network: nn.Module,
        class_map: Sequence[int],
        names: Sequence[str],
        *,
        normalisation: Normalisation,
        provenance: Provenance,
        evaluation: bool = False,
        task: Tensor | None = None,
        sources: Sources = Sources(),
        loaded_from: str = "",
        role: str = "segmenter",
    ) -> None:
        super().__init__()
        self.network = network
        self.class_map = tuple(class_map)
        self.names = tuple(names)
        self.normalisation = normalisation
        self.provenance = provenance
        self.evaluation = evaluation
        self.sources = sources
        self.loaded_from = loaded_from
        self.role = role
        mapped = [index for index, target in enumerate(class_map) if target != UNMAPPED]
        targets = torch.tensor([class_map[index] for index in mapped])
        known = torch.zeros(len(names), dtype=torch.bool)
        known[targets] = True
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("known_classes", known.nonzero()[:, 0], persistent=False)
        self.register_buffer("_mapped", torch.tensor(mapped), persistent=False)
        self.register_buffer("_targets", targets, persistent=False)
        mean, std = torch.tensor([normalisation.mean, normalisation.std]).view(2, 1, 3, 1, 1)
        # (images + 1) / 2 less mean, by std, as one multiplication and one addition
        self.register_buffer("_scale", 0.5 / std, persistent=False)
        self.register_buffer("_shift", (0.5 - mean) / std, persistent=False)
        self.register_buffer("_task", task, persistent=False)
        self.freeze()

    @property
    def num_classes(self) -> int:
        """N."""
        return len(self.names)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights and of the class map."""
        return state_hash(self.network, json.dumps([self.class_map, self.names]))

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights alone: the same network, whatever its classes are called."""
        return state_hash(self.network)

    def describe(self) -> dict[str, Any]:
        """Description for a report or a manifest."""
        return {
            **asdict(self.provenance),
            "hash": self.hash,
            "weights": self.weights_hash,
            "classes": "evaluation" if self.evaluation else "input",
            "unknown": self.unknown_names,
        }

    @property
    def unknown_names(self) -> list[str]:
        """Names of the recipe's classes that the network cannot tell."""
        return [n for n, known in zip(self.names, self.known.tolist(), strict=True) if not known]

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> scores of the network's own classes, (B, K, h, w).

        Bilinear at ``size``, by default that of the images; their softmax is the network's
        distribution.
        """
        size = size or (images.shape[2], images.shape[3])
        inputs = {"pixel_values": images * self._scale + self._shift}
        if self._task is not None:
            inputs["task_inputs"] = self._task.expand(len(images), -1)
        output = self.network(**inputs)
        if hasattr(output, "class_queries_logits"):
            return _mask_logits(output.class_queries_logits, output.masks_queries_logits, size)
        return F.interpolate(output.logits.float(), size, mode="bilinear", align_corners=False)

    def probabilities(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> the recipe's classes, (B, N, h, w), summing to one.

        Where a gradient flows, as in training, the numbers are not looked at: each look would make
        a GPU wait.

        Args:
            images: input of the network.
            size: h and w; default: those of the images.

        Raises:
            UserError: without a gradient: the numbers are not finite.
        """
        logits = self.logits(images, size)
        own = logits.index_select(1, self._mapped).softmax(dim=1)
        if not torch.is_grad_enabled():
            require_finite_scores(own, f"{self.role} {self.loaded_from}".rstrip(), OVERFLOW)
        if self.class_map == tuple(range(self.num_classes)):
            return own
        shape = (len(images), self.num_classes, *own.shape[2:])
        return own.new_zeros(shape).index_add(1, self._targets, own)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> the most probable class, int64, (B, H, W).

        Raises:
            UserError: the probabilities are not finite.
        """
        return self.probabilities(images).argmax(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.probabilities(images)

    def save(self, folder: Path) -> None:
        """Write a folder for ``load_segmenter`` and for transformers; all or nothing.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        try:
            with writing(folder), whole_folder(folder) as partial:
                self._write(partial)
        except UserError:
            if not (folder / DESCRIPTION).is_file():  # else another process was faster
                raise

    def _write(self, folder: Path) -> None:
        if isinstance(self.network, UNet):
            config = {"model_type": "ecgan-unet", "id2label": self.network.config.id2label}
            _write_json(folder / "config.json", config)
            weights = {k: v.contiguous() for k, v in self.network.state_dict().items()}
            safetensors.torch.save_file(weights, folder / "model.safetensors")
        else:
            with quiet_transformers():
                cast(Any, self.network).save_pretrained(folder)
        for name, content in self._descriptions().items():
            _write_json(folder / name, content)

    def _descriptions(self) -> dict[str, dict[str, Any]]:
        """Files beside the network: transformers' preparation of images, and our own."""
        return {
            "preprocessor_config.json": {
                "image_processor_type": "SegformerImageProcessor",
                "image_mean": self.normalisation.mean,
                "image_std": self.normalisation.std,
                "do_resize": False,
            },
            DESCRIPTION: {
                "class_map": self.class_map,
                "names": self.names,
                "evaluation": self.evaluation,
                "provenance": asdict(self.provenance),
                "task": None if self._task is None else self._task.tolist(),
                "sources": self.sources.to_json(),
            },
        }


def require_finite_scores(scores: Tensor, who: str, reason: str) -> None:
    """Refuse what would be counted as a prediction of the first class.

    Args:
        scores: scores or probabilities, of any shape.
        who: the segmenter and its place, for the message.
        reason: why, and what to do, for the message.

    Raises:
        UserError: there is NaN or infinity.
    """
    if not bool(scores.isfinite().all()):
        raise UserError(f"{who}: its predictions are NaN or infinite: {reason}")


def segformer(channels: int, names: Sequence[str], seed: int) -> nn.Module:
    """SegFormer with random weights: B0 with 32 channels, all widths in proportion."""
    config = transformers.SegformerConfig(
        hidden_sizes=[channels * width // 32 for width in (32, 64, 160, 256)],
        decoder_hidden_size=8 * channels,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        # Regularisation for fine-tuning on ImageNet's weights; from scratch it costs accuracy.
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU; CUDA's stays
        return transformers.SegformerForSemanticSegmentation(config)


def state_hash(network: nn.Module, about: str = "") -> str:
    """SHA-256 of a network's weights and buffers, and of a text before them."""
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _mask_logits(classes: Tensor, masks: Tensor, size: Sequence[int]) -> Tensor:
    """Semantic inference of MaskFormer: each query adds its mask to its classes.

    Args:
        classes: logits of each query's class, the last "no object", (B, Q, K + 1).
        masks: logits of each query's mask, (B, Q, h, w).
        size: H and W.

    Returns:
        Logarithms of the sums, (B, K, H, W).
    """
    probabilities = classes.float().softmax(dim=-1)[..., :-1]  # without "no object"
    masks = F.interpolate(masks.float(), list(size), mode="bilinear", align_corners=False)
    sums = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.sigmoid())
    return sums.clamp(min=1e-6).log()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
