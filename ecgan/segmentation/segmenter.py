"""Segmenters: loaded from transformers, or trained here on real pairs.

One network in several roles: label generator Gl (Sec. 3.2), through which the gradient flows to
the generated images; judge of generated data sets; downstream student. It is frozen in all of them.

Shape legend:
    B  images in the batch      H, W  height and width
    N  classes of the recipe (input or evaluation ids)      K  classes of the network
"""

import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ecgan.data import loader
from ecgan.data.datasets import Item
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.models.pretrained import Frozen
from ecgan.runtime.files import sha256, whole_folder, writing
from ecgan.segmentation.unet import UNet

_log = logging.getLogger(__name__)

Architecture = Literal["segformer", "unet"]
_ARCHITECTURES: dict[Architecture, str] = {
    "segformer": "SegFormer, from scratch",
    "unet": "U-Net on EfficientNet-Lite1 (ImageNet)",
}
_OWN_FILE = "segmenter.json"  # beside config.json and model.safetensors, in folders that we write
_UNMAPPED = -1
_END_BYTES = 16 << 10  # of a file that its hash looks at, from both ends
VOID = -100  # in training: pixels that teach nothing
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Names that data sets give to one class; the first word of each row is arbitrary.
_SYNONYMS = (
    ("pavement", "sidewalk"),
    ("tree", "vegetation", "trees"),
    ("person", "pedestrian", "people"),
    ("rider", "bicyclist", "cyclist"),
    ("bicycle", "bike"),
    ("motorcycle", "motorbike", "minibike"),
    ("sign", "traffic sign", "signsymbol", "signboard", "street sign"),
    ("pole", "column pole"),
    ("car", "auto", "automobile"),
    ("airplane", "plane", "aeroplane"),
    ("sofa", "couch"),
    ("terrain", "grass"),
    ("building", "edifice"),
    ("television", "tv", "tv monitor", "television receiver"),
)


@dataclass(frozen=True)
class Provenance:
    """Where a segmenter comes from, for reports.

    Attributes:
        kind: ``trained`` here, or ``loaded``.
        source: folder or hub name; of a trained one, its architecture.
        width: channels of the first stage; 0 for a loaded one.
        images: images seen in training; 0 for a loaded one.
        data: hash of the data that it was trained on and of the settings; empty for a loaded one.
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
    """The pairs that a segmenter learnt from; empty where that is not known.

    Attributes:
        keys: of the pairs.
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
        network: a model of transformers for semantic or for universal segmentation.
        class_map: for each of the network's K classes the class of the recipe; -1 for none.
        names: of the recipe's classes, N.
        normalisation: what the network expects.
        provenance: for reports.
        evaluation: the classes are evaluation ids, not input ids.
        task: tokens of the task's name for a OneFormer, (1, length).
        sources: the pairs that it learnt from.
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
    ) -> None:
        super().__init__()
        self.network = network
        self.class_map = tuple(class_map)
        self.names = tuple(names)
        self.normalisation = normalisation
        self.provenance = provenance
        self.evaluation = evaluation
        self.sources = sources
        mapped = [index for index, target in enumerate(class_map) if target != _UNMAPPED]
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
        return self._digest(json.dumps([self.class_map, self.names]))

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights alone: the same network, whatever its classes are called."""
        return self._digest("")

    def _digest(self, about: str) -> str:
        digest = hashlib.sha256(about.encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a report has to say about this segmenter."""
        return {
            **asdict(self.provenance),
            "hash": self.hash,
            "weights": self.weights_hash,
            "classes": "evaluation" if self.evaluation else "input",
            "unknown": [
                n for n, known in zip(self.names, self.known.tolist(), strict=True) if not known
            ],
        }

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

        Args:
            images: what to look at.
            size: h and w; default: those of the images.
        """
        logits = self.logits(images, size)
        own = logits.index_select(1, self._mapped).softmax(dim=1)
        if self.class_map == tuple(range(self.num_classes)):
            return own
        shape = (len(images), self.num_classes, *own.shape[2:])
        return own.new_zeros(shape).index_add(1, self._targets, own)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], (B, 3, H, W) -> the most probable class, int64, (B, H, W)."""
        return self.probabilities(images).argmax(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.probabilities(images)

    def save(self, folder: Path) -> None:
        """Write a folder for :func:`load_segmenter` and for transformers; all or nothing.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        try:
            with writing(folder), whole_folder(folder) as partial:
                self._write(partial)
        except UserError:
            if not (folder / _OWN_FILE).is_file():  # else another process was faster
                raise

    def _write(self, folder: Path) -> None:
        if isinstance(self.network, UNet):
            config = {"model_type": "ecgan-unet", "id2label": self.network.config.id2label}
            _write_json(folder / "config.json", config)
            weights = {k: v.contiguous() for k, v in self.network.state_dict().items()}
            safetensors.torch.save_file(weights, folder / "model.safetensors")
        else:
            with _quiet_transformers():
                cast(Any, self.network).save_pretrained(folder)
        mean, std = self.normalisation.mean, self.normalisation.std
        _write_json(
            folder / "preprocessor_config.json",
            {
                "image_processor_type": "SegformerImageProcessor",
                "image_mean": mean,
                "image_std": std,
                "do_resize": False,
            },
        )
        own = {
            "class_map": self.class_map,
            "names": self.names,
            "evaluation": self.evaluation,
            "provenance": asdict(self.provenance),
            "task": None if self._task is None else self._task.tolist(),
            "sources": self.sources.to_json(),
        }
        _write_json(folder / _OWN_FILE, own)


def load_segmenter(
    path_or_name: str | Path,
    space: LabelSpace,
    class_map: Mapping[int, int] | None = None,
    device: torch.device | str = "cpu",
    *,
    evaluation: bool = False,
) -> Segmenter:
    """Load a segmenter of transformers.

    Args:
        path_or_name: a local folder, or a name on the Hugging Face hub; a name is looked up in the
            local cache first.
        space: the recipe's classes.
        class_map: the network's class -> class of the recipe; default: the map that our own
            folders carry, else by name.
        device: where it goes.
        evaluation: map to evaluation ids instead of input ids.

    Raises:
        UserError: not found, not a segmenter, or classes that cannot be mapped.
    """
    names = space.names_for_evaluation if evaluation else space.names
    folder = _local_folder(str(path_or_name))
    source = str(path_or_name)
    own = _own_description(folder)
    network = _load_unet(folder, source, own) or _load_network(folder, source)
    own_names = [str(name) for _, name in sorted(_id_to_label(network).items())]
    if class_map is not None:
        targets = _explicit_map(class_map, len(own_names), len(names), source)
    elif own is not None and tuple(own["names"]) == names:
        targets = [int(target) for target in own["class_map"]]
    else:
        targets = map_by_name(own_names, names, source)
    provenance, sources = Provenance("loaded", source), Sources()
    if own is not None:
        provenance = Provenance(**own["provenance"])
        if "sources" in own:  # not in folders of earlier versions
            sources = Sources.from_json(own["sources"])
    segmenter = Segmenter(
        network,
        targets,
        names,
        normalisation=_normalisation(folder),
        provenance=provenance,
        evaluation=evaluation,
        task=_task_tokens(network, folder, own),
        sources=sources,
    )
    return segmenter.to(device)


def map_by_name(own_names: Sequence[str], names: Sequence[str], source: str) -> list[int]:
    """For each of a network's classes, the recipe's class of that name; -1 where there is none.

    Case, punctuation and plural forms of writing ("traffic-light", "traffic_light") do not matter;
    of several names with commas between ("building, edifice") each counts; common synonyms do, too,
    where the very name is missing.

    Raises:
        UserError: no class has a partner.
    """
    if len(own_names) == len(names) and all(re.fullmatch(r"LABEL_\d+", own) for own in own_names):
        return list(range(len(names)))  # transformers' names for classes that have none
    exact = {
        word: index for index, name in reversed([*enumerate(names)]) for word in _spellings(name)
    }
    synonyms = {
        word: exact[present]
        for row in _SYNONYMS
        for present in reversed(row)
        if present in exact
        for word in row
    }
    meanings = synonyms | exact
    targets = [
        next((meanings[word] for word in _spellings(own) if word in meanings), _UNMAPPED)
        for own in own_names
    ]
    if all(target == _UNMAPPED for target in targets):
        raise UserError(
            f"{source}: none of its {len(own_names)} classes ({_some(own_names)}) is named like "
            f"one of the recipe's {len(names)} ({_some(names)}); a label generator "
            "is mapped by number with model.label_generator_map, {its class: class of the recipe}; "
            "for a judge, name its classes so in its config.json (id2label)"
        )
    return targets


def train_segmenter(  # noqa: PLR0913  the settings that the cache's hash covers, and where to train
    dataset: TripleDataset,
    space: LabelSpace,
    *,
    height: int,
    width_px: int,
    width: int,
    images: int,
    batch: int = 8,
    seed: int,
    cache: Path,
    device: torch.device | str = "cpu",
    evaluation: bool = False,
    progress: bool = True,
    workers: int = 0,
    architecture: Architecture = "segformer",
) -> Segmenter:
    """Train a segmenter on real pairs, or take the one of the same data and settings.

    Args:
        dataset: real pairs; its crops and mirroring are used, its edges are not.
        space: the recipe's classes.
        height: of the images.
        width_px: width of the images, in pixels.
        width: channels of SegFormer's first stage; 32 is SegFormer-B0. A multiple of 8.
        images: length of training, in images seen.
        batch: images a step.
        seed: of the weights and of the order of the data.
        cache: folder of trained segmenters, named by a hash of data and settings.
        device: where to train and where the segmenter goes.
        evaluation: learn the evaluation ids.
        progress: show a progress bar.
        workers: loader processes.
        architecture: a SegFormer from scratch, or a U-Net whose encoder starts from ImageNet.

    Raises:
        UserError: the training diverged, or the data cannot be read.
    """
    pairs = TripleDataset(
        dataset.items,
        dataset.space,
        dataset.dataset,
        height=height,
        width=width_px,
        resize_to=dataset.resize_to if dataset.size == (height, width_px) else None,
        flip=dataset.flip,
        seed=seed,
        edges="none",
    )
    names = space.names_for_evaluation if evaluation else space.names
    settings = _Settings(width, images, batch, seed, evaluation, tuple(names), architecture)
    name = _data_hash(pairs, space, settings)
    folder = trained_folder(cache, name)
    if not (folder / _OWN_FILE).is_file():
        torch.device(device)  # a wrong name fails before the work
        # A run that trains it and one that finds it go on with the same random state.
        with torch.random.fork_rng(devices=[]):
            network, loss = _fit(pairs, space, settings, device, workers=workers, progress=progress)
        source = _ARCHITECTURES[architecture]
        shown = width if architecture == "segformer" else 0
        provenance = Provenance("trained", source, shown, images, name, loss)
        segmenter = Segmenter(
            network.cpu(),
            range(len(names)),
            names,
            normalisation=Normalisation(),
            provenance=provenance,
            evaluation=evaluation,
            sources=Sources.of(pairs.items),
        )
        segmenter.save(folder)
    return load_segmenter(folder, space, device=device, evaluation=evaluation)


def trained_folder(cache: Path, data: str) -> Path:
    """Where :func:`train_segmenter` keeps the segmenter whose ``Provenance.data`` this is."""
    return cache / f"segformer-{data[:16]}"


@dataclass(frozen=True)
class _Settings:
    width: int
    images: int
    batch: int
    seed: int
    evaluation: bool
    names: tuple[str, ...]
    architecture: Architecture = "segformer"


def segformer(width: int, names: Sequence[str], seed: int) -> nn.Module:
    """A SegFormer with random weights: B0 at width 32, all widths in proportion."""
    config = transformers.SegformerConfig(
        hidden_sizes=[width * channels // 32 for channels in (32, 64, 160, 256)],
        decoder_hidden_size=8 * width,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        # Regularisation for fine-tuning on ImageNet's weights; from scratch it costs accuracy.
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # weights are drawn on the CPU; CUDA's stays
        return transformers.SegformerForSemanticSegmentation(config)


def _fit(
    pairs: TripleDataset,
    space: LabelSpace,
    settings: _Settings,
    device: torch.device | str,
    *,
    workers: int,
    progress: bool,
) -> tuple[nn.Module, float]:
    """Minimise :func:`pixel_loss`, as :class:`Descent` says."""
    network, rate = _beginner(settings)
    network = network.to(device).train()
    steps = max(1, settings.images // settings.batch)
    descent = Descent({rate: network.parameters()}, steps)
    ids = torch.from_numpy(_training_ids(space, evaluation=settings.evaluation)).to(device)
    losses: list[Tensor] = []
    endless = loader.batches(pairs, 0, settings.batch, workers=workers)
    bar = tqdm(
        total=steps * settings.batch, unit="image", desc="segmenter", disable=not progress or None
    )
    with bar:
        for batch in itertools.islice(endless, steps):
            batch = loader.to_device(batch, device)  # noqa: PLW2901
            assert batch.images is not None
            labels = ids[batch.labels.long()]  # (B, H, W)
            logits = network(loader.to_images(batch.images)).logits
            loss = pixel_loss(logits, labels)
            descent.step(loss)
            losses.append(loss.detach())
            bar.update(settings.batch)
    final = float(torch.stack(losses[-max(1, steps // 10) :]).mean())
    if not np.isfinite(final):
        raise UserError(
            f"training the segmenter diverged (loss {final}); check the labels and the photos with "
            "`ecgan data inspect`, or set model.label_generator: off or a path"
        )
    _log.info("segmenter: %d images, final training loss %.3f", settings.images, final)
    return network, final


def _beginner(settings: _Settings) -> tuple[nn.Module, float]:
    """A network that has not seen the pairs, and AdamW's rate for it."""
    if settings.architecture == "unet":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            return UNet(settings.names, pretrained=True), 1e-3
    network = segformer(settings.width, settings.names, settings.seed)
    return network, scratch_rate(settings.width)


def scratch_rate(width: int) -> float:
    """AdamW's rate for a SegFormer of this width with random weights."""
    # Measured from scratch on CamVid and toy scenes: with clipped gradients 2e-3 is best at width
    # 32 and 4e-3 at width 16; without, half of that is, and learns less.
    return min(4e-3, 2e-3 * 32 / width)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, mean over the labelled pixels of a batch; 0 where there are none.

    Args:
        logits: (B, K, h, w); brought to the size of the labels.
        labels: 0 to K - 1 or VOID, int64, (B, H, W).
    """
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)  # the mean would be 0 / 0


class Descent:
    """AdamW, clipped gradients; the rate rises over a tenth of the steps and falls linearly to 0.

    Args:
        parameters: what is trained, by the highest rate that it gets.
        steps: that there will be.
    """

    def __init__(self, parameters: Mapping[float, Iterable[nn.Parameter]], steps: int) -> None:
        groups = [{"params": list(those), "lr": rate} for rate, those in parameters.items()]
        self._parameters = [
            p for group in groups for p in cast("list[nn.Parameter]", group["params"])
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _rate(step, steps)
        )

    def step(self, loss: Tensor) -> None:
        """Go down the gradient of the loss."""
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()


def load_beginner(
    path_or_name: str | Path, names: Sequence[str], seed: int
) -> tuple[nn.Module, Normalisation]:
    """A network of transformers, or one of ours, to fine-tune; with what it expects of images.

    A head of another number of classes is drawn anew; one of the same number is kept, whatever its
    classes are called.

    Args:
        path_or_name: as for :func:`load_segmenter`.
        names: of the classes to learn.
        seed: of a new head.

    Raises:
        UserError: not found, or no network that gives logits of each pixel.
    """
    folder, source = _local_folder(str(path_or_name)), str(path_or_name)
    unet = _load_unet(folder, source, _own_description(folder))
    if unet is not None:
        if len(unet.config.id2label) != len(names):
            raise UserError(
                f"{source}: has {len(unet.config.id2label)} classes, expected {len(names)}; give "
                "one that was trained on these classes"
            )
        return unet, _normalisation(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) not in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            raise UserError(
                f"{source}: a {config.model_type} gives no logits of each pixel; expected "
                "SegFormer, UperNet, BEiT, DPT or the like"
            )
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = transformers.AutoModelForSemanticSegmentation.from_pretrained(
                folder, config=config, local_files_only=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be loaded as a segmenter: {error}") from None
    return cast(nn.Module, network).float(), _normalisation(folder)


def weights_hash(path_or_name: str | Path) -> str:
    """SHA-256 of the files that :func:`load_beginner` reads.

    Raises:
        UserError: not found.
    """
    folder = _local_folder(str(path_or_name))
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin"})
    return hashlib.sha256(repr([(p.name, sha256(p)) for p in files]).encode()).hexdigest()


def sources_of(path_or_name: str | Path) -> Sources | None:
    """What the segmenter in a folder of ours learnt from; None where that is not known."""
    own = _own_description(_local_folder(str(path_or_name)))
    return Sources.from_json(own["sources"]) if own is not None and "sources" in own else None


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps)


def _training_ids(space: LabelSpace, *, evaluation: bool) -> np.ndarray:
    """Table from ids in label maps to what is learnt: input or evaluation ids, or void."""
    ids = np.arange(space.ignore_index + 1, dtype=space.dtype)
    if evaluation:
        ids[: space.num_classes] = space.to_evaluation(cast(Labels, ids[: space.num_classes]))
    table = ids.astype(np.int64)
    table[space.num_classes :] = VOID
    table[table == space.ignore_index] = VOID
    return table


def _data_hash(pairs: TripleDataset, space: LabelSpace, settings: _Settings) -> str:
    """Of everything that decides the weights."""
    document = {
        "version": 3,  # of _fit
        "files": stamps(pairs.items),
        "space": space.to_json(),
        "dataset": pairs.dataset,
        "size": pairs.size,
        "resize_to": pairs.resize_to,
        "flip": pairs.flip,
        "settings": asdict(settings),
    }
    if settings.architecture == "segformer":  # hashed as before there was another
        del document["settings"]["architecture"]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def stamps(items: Sequence[Item]) -> list[tuple[str | int, ...]]:
    """Of the label maps and photos of pairs, for a hash; files by their size and both ends."""
    return [
        (item.key, *_stamp(item.label), *(_stamp(item.image) if item.image else ()))
        for item in items
    ]


def _stamp(path: Path) -> tuple[int, str]:
    """Size and hash of the first and last 16 KiB: content, and cheap for gigabytes of photos."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_END_BYTES)
        file.seek(max(0, size - _END_BYTES))
        ends += file.read()
    return size, hashlib.sha256(ends).hexdigest()


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


def _task_tokens(network: nn.Module, folder: Path, own: dict[str, Any] | None) -> Tensor | None:
    """OneFormer is told its task in words."""
    config = cast(Any, network).config
    if config.model_type != "oneformer":
        return None
    if own is not None:
        return torch.tensor(own["task"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(
        "the task is semantic",
        padding="max_length",
        truncation=True,
        max_length=config.task_seq_len,
        return_tensors="pt",
    )
    return cast(Any, tokens)["input_ids"]


def _local_folder(path_or_name: str) -> Path:
    """The folder itself, or the hub's files in the local cache, fetched if need be.

    Raises:
        UserError: neither a folder nor a model of the hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    folder = Path(path_or_name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: has no config.json; expected a model saved by transformers")
        return folder
    files = ["*.json", "*.safetensors", "*.txt", "*.bin"]
    complaint = (
        f"segmenter {path_or_name!r}: neither a local folder nor a model that the Hugging Face hub "
        "could give"
    )
    try:
        try:
            return Path(
                snapshot_download(path_or_name, allow_patterns=files, local_files_only=True)
            )
        except OSError:  # not in the cache
            _log.info("fetching %s from the Hugging Face hub", path_or_name)
            return Path(snapshot_download(path_or_name, allow_patterns=files))
    except HFValidationError:
        raise UserError(f"{complaint}: no such folder") from None
    except Exception as error:  # noqa: BLE001  the hub's, httpx's and the system's, by the dozen
        raise UserError(
            f"{complaint} ({type(error).__name__}); offline, give a folder with config.json and "
            "model.safetensors, or train one: model.label_generator: train, evaluate.judge: train"
        ) from None


def _load_unet(folder: Path, source: str, own: dict[str, Any] | None) -> UNet | None:
    """A U-Net that :meth:`Segmenter.save` wrote; None for a folder of transformers."""
    if own is None or own["provenance"]["source"] != _ARCHITECTURES["unet"]:
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = [name for _, name in sorted((int(k), v) for k, v in config["id2label"].items())]
        with torch.random.fork_rng(devices=[]):
            network = UNet(names, pretrained=False)
        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be loaded as a segmenter: {error}") from None
    return network


def _load_network(folder: Path, source: str) -> nn.Module:
    """The model in a folder, by what its config.json says.

    Raises:
        UserError: no model for segmentation, or files that do not fit together.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(config) in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            kind: Any = transformers.AutoModelForSemanticSegmentation
        elif type(config) in transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING:
            kind = transformers.AutoModelForUniversalSegmentation
        else:
            raise UserError(
                f"{source}: a {config.model_type} is not a model for semantic segmentation; "
                "expected SegFormer, UperNet, MaskFormer, Mask2Former, OneFormer or the like"
            )
        with _quiet_transformers(), torch.random.fork_rng(devices=[]):
            network, found = kind.from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{source}: cannot be loaded as a segmenter: {error}") from None
    missing = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if missing:  # transformers draws them at random
        raise UserError(
            f"{source}: its weights lack {missing[0]} ({len(missing)} in all): an encoder without "
            "a segmentation head? Give a model that was trained for segmentation"
        )
    return network.float()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and advice from transformers: what matters is checked here."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _id_to_label(network: nn.Module) -> dict[int, str]:
    return cast(Any, network).config.id2label


def _own_description(folder: Path) -> dict[str, Any] | None:
    path = folder / _OWN_FILE
    if not path.is_file():
        return None
    return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))


def _normalisation(folder: Path) -> Normalisation:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return Normalisation(_IMAGENET_MEAN, _IMAGENET_STD)
    config = json.loads(path.read_text(encoding="utf-8"))
    return Normalisation(
        tuple(config.get("image_mean") or _IMAGENET_MEAN),
        tuple(config.get("image_std") or _IMAGENET_STD),
    )


def _explicit_map(
    class_map: Mapping[int, int], num_own: int, num_classes: int, source: str
) -> list[int]:
    faults = [
        f"class {own}: the network has 0-{num_own - 1}"
        for own in class_map
        if not 0 <= own < num_own
    ]
    faults += [
        f"class {own} -> {target}: the recipe has 0-{num_classes - 1}"
        for own, target in class_map.items()
        if not 0 <= target < num_classes
    ]
    if not class_map:
        faults.append("it is empty")
    if faults:
        raise UserError(f"class map of {source}", faults)
    return [class_map.get(own, _UNMAPPED) for own in range(num_own)]


def _spellings(name: str) -> list[str]:
    """The whole name and its parts between commas, semicolons or slashes; lower case, spaces."""
    words = [name, *re.split(r"[,;/]", name)]
    spellings = (re.sub(r"[^a-z0-9]+", " ", word.lower()).strip() for word in words)
    return [word for word in dict.fromkeys(spellings) if word]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
