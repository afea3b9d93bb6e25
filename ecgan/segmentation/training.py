"""Training of segmenters on real pairs; each is kept in a folder named by its data and settings.

Shape legend:
    B  images in the batch      H, W  height and width      K  classes of the network
"""

import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan.data import loader
from ecgan.data.datasets import Item
from ecgan.data.decode import Encoding
from ecgan.data.files.images import Readable, sha256
from ecgan.data.files.photo_sets import Reading
from ecgan.data.loader import TripleDataset
from ecgan.errors import UserError
from ecgan.labels import Labels, LabelSpace
from ecgan.reading.documents import check_file
from ecgan.recipe import SegmenterTraining
from ecgan.runtime.files import writing
from ecgan.runtime.timing import Progress, counted, say
from ecgan.segmentation.loading import load_segmenter
from ecgan.segmentation.segmenter import (
    DESCRIPTION,
    Normalisation,
    Provenance,
    Segmenter,
    Sources,
    segformer,
)
from ecgan.segmentation.unet import UNET, UNet

_log = logging.getLogger(__name__)

ARCHITECTURES = {"segformer": "SegFormer, from scratch", "unet": UNET}
_VERSION = 3  # of the training
_END_BYTES = 16 << 10  # of a file that its stamp reads, from both ends
Network = TypeVar("Network", bound=nn.Module)
VOID = -100  # in training: pixels that are not learnt


def train_segmenter(  # noqa: PLR0913  what to learn from, and where
    pairs: TripleDataset,
    space: LabelSpace,
    settings: SegmenterTraining,
    cache: Path,
    device: torch.device | str = "cpu",
    *,
    role: str | None = None,
    evaluation: bool = False,
    workers: int = 0,
) -> Segmenter:
    """Train a segmenter on real pairs, or take the one of the same data and settings.

    One that is kept and damaged is trained anew, with a note.

    Args:
        pairs: real pairs; their size, crops and mirroring are used, their edges are not.
        space: the recipe's classes.
        settings: architecture and length of training.
        cache: folder of trained segmenters, each in a folder named by a hash of data and settings.
        device: device of the training and of the segmenter.
        role: purpose of the segmenter, to announce the training and show a progress bar; None: no
            output.
        evaluation: learn the evaluation ids.
        workers: loader processes.

    Raises:
        UserError: the training diverged, or the data cannot be read.
    """
    seed = pairs.seed if settings.seed is None else settings.seed
    pairs = replace(pairs, seed=seed, train=True, edges="none", boundary=False)
    names = space.names_for_evaluation if evaluation else space.names
    digest = _data_hash(pairs, space, settings, names, evaluation=evaluation)
    folder = _folder(cache, settings, digest)
    kept = _kept(folder, space, digest, device, evaluation=evaluation)
    if kept is not None:
        return kept
    torch.device(device)  # a wrong name fails before the work
    if role is not None:
        length = f"{counted(settings.images, 'image')} ({settings.images / len(pairs):.1f} epochs)"
        say(f"training the {role}: {length}, once; kept in {folder}")
    # A run that trains it and one that finds it continue with the same random state.
    with torch.random.fork_rng(devices=[]):
        network, rate = new_network(settings, names, pairs.seed)
        ids = torch.from_numpy(_training_ids(space, evaluation=evaluation))
        batches = loader.batches(pairs, 0, settings.batch, workers=workers)
        loss = _learn(network.to(device), rate, batches, ids, settings, role)
    segmenter = Segmenter(
        network.cpu(),
        range(len(names)),
        names,
        normalisation=Normalisation(),
        provenance=Provenance(
            "trained",
            ARCHITECTURES[settings.architecture],
            settings.channels if settings.architecture == "segformer" else 0,
            settings.images,
            digest,
            loss,
        ),
        evaluation=evaluation,
        sources=Sources.of(pairs.items),
    )
    segmenter.save(folder)
    return load_segmenter(folder, space, device=device, evaluation=evaluation)


def _kept(
    folder: Path, space: LabelSpace, digest: str, device: torch.device | str, *, evaluation: bool
) -> Segmenter | None:
    """The segmenter in a folder of the cache; a damaged one is removed, with a note."""
    if not folder.exists():
        return None
    try:
        found = load_segmenter(folder, space, device=device, evaluation=evaluation)
        _refuse_another(found, digest)
    except UserError as error:
        say(f"a segmenter in the cache is damaged and trained anew: {error}")
        with writing(folder):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
            else:
                folder.unlink()
        return None
    return found


def _refuse_another(found: Segmenter, digest: str) -> None:
    """Refuse what :func:`train_segmenter` did not write for these pairs and settings."""
    about = found.provenance
    if (
        about.kind != "trained"
        or about.data not in {digest, ""}
        or found.class_map != tuple(range(found.num_classes))
    ):
        raise UserError(f"{found.loaded_from}: a segmenter of other classes, data or settings")


def learning_rate_from_scratch(channels: int) -> float:
    """AdamW's learning rate for a SegFormer of this width with random weights."""
    # Measured from scratch on CamVid and toy scenes: with clipped gradients 2e-3 is best at width
    # 32 and 4e-3 at width 16; without, half of that is, and learns less.
    return min(4e-3, 2e-3 * 32 / channels)


class Lesson(NamedTuple):
    """Batch that a network learns from."""

    images: Tensor  # as the network expects them, (B, 3, H, W)
    labels: Tensor  # 0 to K - 1 or VOID, int64, (B, H, W)
    weights: Tensor | None = None  # of the images in the loss, (B,); None: 1


def pixel_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy, mean over the labelled pixels of a batch; 0 where there are none.

    Args:
        logits: (B, K, h, w); brought to the size of the labels.
        labels: 0 to K - 1 or VOID, int64, (B, H, W).
        weights: of the images, (B,): of each of their pixels, in the sum and in what it is divided
            by; None: 1.
    """
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    known = labels != VOID
    if weights is None:
        total = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="sum")
        return total / known.sum().clamp(min=1)  # the mean would be 0 / 0
    losses = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").sum((1, 2))
    return (weights * losses).sum() / (weights * known.sum((1, 2))).sum().clamp(min=1e-6)


class SegmenterOptimizer:
    """AdamW with gradient clipping, linear warm-up over a tenth of the steps and linear decay to 0.

    Args:
        parameters: trained parameters, by their peak learning rate.
        steps: number of steps.
    """

    def __init__(self, parameters: Mapping[float, Iterable[nn.Parameter]], steps: int) -> None:
        groups = [{"params": list(those), "lr": rate} for rate, those in parameters.items()]
        self._parameters = [
            p for group in groups for p in cast("list[nn.Parameter]", group["params"])
        ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps),
        )

    def step(self, loss: Tensor) -> None:
        """Backward pass and optimiser step."""
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()


def file_stamps(items: Sequence[Item]) -> list[tuple[str | int, ...]]:
    """Content and reading of the label maps and photos of pairs, for a cache key.

    Of a label map all bytes count, for a corrected one may differ in a few; of a photo its size and
    both ends.
    """
    return [
        (
            item.key,
            *_stamp(item.label, whole=True),
            *(_stamp(item.image) if item.image else ()),
            *_reading_stamp(item.reading),
        )
        for item in items
    ]


def _reading_stamp(reading: Reading) -> tuple[str, ...]:
    """How files are read; empty for the plain way, so that the keys of before stay."""
    plain = Reading(Encoding.INDEX)
    return () if reading == plain else (repr(astuple(reading)),)


def _stamp(file: Readable, *, whole: bool = False) -> tuple[int, str]:
    """Size and hash of the first and last 16 KiB: content, and cheap for gigabytes of photos.

    Together they are all of a file of up to 32 KiB; a larger one is hashed throughout if ``whole``.
    """
    if not isinstance(file, Path):  # in a shard
        content = file.read_bytes()
        if whole and len(content) > 2 * _END_BYTES:
            return len(content), hashlib.sha256(content).hexdigest()
        ends = content[:_END_BYTES] + content[-_END_BYTES:]
        return len(content), hashlib.sha256(ends).hexdigest()
    check_file(file)
    size = file.stat().st_size
    if whole and size > 2 * _END_BYTES:
        return size, sha256(file)
    with file.open("rb") as opened:
        ends = opened.read(_END_BYTES)
        opened.seek(max(0, size - _END_BYTES))
        ends += opened.read()
    return size, hashlib.sha256(ends).hexdigest()


def _folder(cache: Path, settings: SegmenterTraining, digest: str) -> Path:
    old = cache / f"segformer-{digest[:16]}"  # the name of every architecture in version 0.1
    if (old / DESCRIPTION).is_file():
        return old
    return cache / f"{settings.architecture}-{digest[:16]}"


def new_network(
    settings: SegmenterTraining, names: Sequence[str], seed: int
) -> tuple[nn.Module, float]:
    """Untrained network, and AdamW's learning rate for it."""
    if settings.architecture == "unet":
        return seeded(seed, lambda: UNet(names, pretrained=True)), 1e-3
    network = segformer(settings.channels, names, seed)
    return network, learning_rate_from_scratch(settings.channels)


def seeded(seed: int, build: Callable[[], Network]) -> Network:
    """A network whose weights are drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def fit(
    network: nn.Module,
    optimizer: SegmenterOptimizer,
    batches: Iterable[Lesson],
    *,
    mixed_precision: bool = False,
    on_step: Callable[[Tensor], None] = lambda _: None,
) -> float:
    """Train a network with :func:`pixel_loss`, a step for each batch.

    Args:
        network: network to train, on its device.
        optimizer: optimiser of its parameters.
        batches: on the device of the network.
        mixed_precision: run the network in bfloat16 autocast on CUDA.
        on_step: called with the loss of each step, still on its device.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    network.train()
    losses: list[Tensor] = []
    for batch in batches:
        kind = batch.images.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=mixed_precision and kind == "cuda"):
            logits = network(pixel_values=batch.images).logits
        loss = pixel_loss(logits.float(), batch.labels, batch.weights)
        optimizer.step(loss)
        losses.append(loss.detach())
        on_step(losses[-1])
    return float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())


def _learn(
    network: nn.Module,
    rate: float,
    batches: Iterable[loader.Batch],
    ids: Tensor,
    settings: SegmenterTraining,
    role: str | None,
) -> float:
    """Train on endless batches of real pairs, with a progress bar where there is a role.

    ``ids`` is the table from :func:`_training_ids`. Returns the loss, as :func:`fit`.
    """
    device = next(network.parameters()).device
    steps, ids = max(1, settings.images // settings.batch), ids.to(device)
    bar = Progress(steps * settings.batch, f"training the {role}", "image", show=role is not None)

    def shown() -> Iterator[Lesson]:
        for batch in itertools.islice(batches, steps):
            moved = loader.to_device(batch, device)
            assert moved.images is not None
            yield Lesson(loader.to_images(moved.images), ids[moved.labels.long()])

    def count(loss: Tensor) -> None:
        bar.update(settings.batch, lambda: {"loss": loss.item()})

    optimizer = SegmenterOptimizer({rate: network.parameters()}, steps)
    with bar:
        final = fit(network, optimizer, shown(), on_step=count)
    if not np.isfinite(final):
        raise UserError(
            f"training the segmenter diverged (loss {final}); check the labels and the photos with "
            "`ecgan data inspect`, or set model.label_generator: off or a path"
        )
    _log.info("segmenter: %d images, final training loss %.3f", settings.images, final)
    return final


def _training_ids(space: LabelSpace, *, evaluation: bool) -> np.ndarray:
    """Table from ids in label maps to ids to learn: input or evaluation ids, or void."""
    ids = np.arange(space.ignore_index + 1, dtype=space.dtype)
    if evaluation:
        ids[: space.num_classes] = space.to_evaluation(cast(Labels, ids[: space.num_classes]))
    table = ids.astype(np.int64)
    table[space.num_classes :] = VOID
    table[table == space.ignore_index] = VOID
    return table


def _data_hash(
    pairs: TripleDataset,
    space: LabelSpace,
    settings: SegmenterTraining,
    names: Sequence[str],
    *,
    evaluation: bool,
) -> str:
    """SHA-256 of everything that decides the weights."""
    own: dict[str, Any] = {
        "width": settings.channels,
        "images": settings.images,
        "batch": settings.batch,
        "seed": pairs.seed,
        "evaluation": evaluation,
        "names": list(names),
    }
    if settings.architecture != "segformer":  # hashed as before there was another
        own["architecture"] = settings.architecture
    document = {
        "version": _VERSION,
        "files": file_stamps(pairs.items),
        "space": space.identity(),
        "dataset": pairs.dataset,
        "size": pairs.size,
        "resize_to": pairs.size_before_crop,
        "flip": pairs.flip,
        "settings": own,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
