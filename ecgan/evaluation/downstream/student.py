"""Students: segmenters that learn from real pairs, from samples, or from both, and are tested.

    position --hash--> real pair | sample --zoom, crop, mirror--> batch --> student --test--> mIoU

All students of an experiment differ in nothing but the pairs that they see: the same network with
the same first weights for a seed, the same number of steps, the same schedule, the same zoom, crop
and mirroring at a position.

Shape legend:
    B  images in the batch      H, W  height and width      E  evaluation classes
    T  images that a student sees in training
"""

import hashlib
import math
import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ecgan.data import transforms
from ecgan.data.loader import TripleDataset, ordered_batches, to_device, to_images
from ecgan.data.transforms import Sample
from ecgan.errors import UserError
from ecgan.evaluation.sources import Photos, Samples
from ecgan.labels import Labels, LabelSpace
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.recipe_schema import DownstreamTraining
from ecgan.runtime.device import setup_worker, uploaded
from ecgan.runtime.executor import map_ahead
from ecgan.seeds import NumpyStream, numpy_generator
from ecgan.segmentation.loading import load_for_finetuning
from ecgan.segmentation.segmenter import Normalisation
from ecgan.segmentation.training import (
    VOID,
    SegmenterOptimizer,
    fit,
    new_network,
)

MOST_ZOOM = 1.5  # a random window of 1/zoom of each side fills the picture
_TEST_BATCH = 16
_AHEAD = 4  # batches that are prepared while one is learnt from
# Of fine-tuning: the encoder's, as SegFormer was (arXiv:2105.15203, Sec. 4.1); ten times that for
# the rest, which may start anew.
_FINE_RATES = 6e-5, 6e-4


@dataclass(frozen=True)
class Run:
    """A job: the training and test of one student.

    Attributes:
        fraction: fraction of the real pairs.
        mix: samples for each real pair; None: samples only.
        seed: seed of the weights and of all draws.
    """

    fraction: float
    mix: float | None
    seed: int

    @property
    def share(self) -> float:
        """Share of samples among what the student sees, r / (1 + r)."""
        return 1.0 if self.mix is None else self.mix / (1 + self.mix)

    @property
    def name(self) -> str:
        """Training data of the student, in words."""
        part = "" if self.fraction == 1 else f" ({self.fraction * 100:g} %)"
        if self.mix is None:
            return f"synthetic only{part}"
        return f"real{part} + {self.mix:g}x synthetic" if self.mix else f"real only{part}"

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of all students, small enough to be sent to another machine.

    Attributes:
        real: the training split, whole pictures at the size of the samples.
        parts: indices of its pairs in each fraction.
        samples: sets of samples for each fraction.
        test: pairs of the tested split.
        space: class list.
        training: architecture and length of training.
        segmenter: segmenter to fine-tune, by path or name; None: one from scratch.
        flip: mirror half of the images.
        device: device of each worker.
        threads: torch's threads of each worker; None: as torch has them.
        loaders: threads of each worker that prepare pairs.
    """

    real: TripleDataset
    parts: Mapping[float, tuple[int, ...]]
    samples: Mapping[float, tuple[Samples, ...]]
    test: TripleDataset
    space: LabelSpace
    training: DownstreamTraining
    segmenter: str | None
    flip: bool
    device: str
    threads: int | None = None
    loaders: int = 1

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return max(1, self.training.images // self.training.batch)


class Pair(NamedTuple):
    """An image with its label map."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    label: Labels  # (H, W), evaluation ids


class Draws(NamedTuple):
    """Images that a student sees, position by position."""

    synthetic: npt.NDArray[np.bool_]  # (T,): whether it is a sample, not a real pair
    indices: npt.NDArray[np.int64]  # (T,): its index among the samples, or the real pairs


def draws(seed: int, share: float, num_real: int, num_synthetic: int, total: int) -> Draws:
    """Draw real pairs and samples.

    Position p shows a sample if the first 64 bits of SHA-256 of "seed p", as a fraction of 2^64,
    are below ``share``: so a student that sees more samples sees them in place of real pairs, and
    all else stays where it was. The k-th real pair is ``permutation(k // n)[k % n]`` of n, every
    epoch with a permutation of its own; samples likewise.

    Args:
        seed: seed of the student.
        share: share of samples, 0 to 1.
        num_real: number of real pairs.
        num_synthetic: number of samples.
        total: T.
    """
    chance = [
        int.from_bytes(hashlib.sha256(f"{seed} {p}".encode()).digest()[:8], "big") / 2**64
        for p in range(total)
    ]
    synthetic = np.asarray(chance) < share
    indices = np.empty(total, np.int64)
    for kind, count in ((False, num_real), (True, num_synthetic)):
        where = np.flatnonzero(synthetic == kind)
        epochs = [
            numpy_generator(seed, NumpyStream.STUDENT_ORDER, int(kind), epoch).permutation(count)
            for epoch in range(-(-len(where) // count) if len(where) else 0)
        ]
        indices[where] = np.concatenate([*epochs, np.zeros(0, np.int64)])[: len(where)]
    return Draws(synthetic, indices)


def augment(pair: Pair, rng: np.random.Generator, *, flip: bool) -> Pair:
    """Zoom into a random window, by up to MOST_ZOOM, and mirror every other image.

    Args:
        pair: image and label map; the result has their size.
        rng: source of the draws.
        flip: mirror every other image; else none.
    """
    size = pair.label.shape[0], pair.label.shape[1]
    zoom = rng.uniform(1, MOST_ZOOM)
    window = round(size[0] / zoom), round(size[1] / zoom)
    sample = Sample("pair", pair.label, pair.image)
    seen = transforms.resize(transforms.cut(sample, window, flip=flip, edges="none", rng=rng), size)
    assert seen.image is not None
    return Pair(seen.image, seen.label)


class SegmenterTrainer:
    """Trains and tests students, one after the other, on one device.

    Args:
        config: configuration of all trainers.
    """

    def __init__(self, config: StudentConfig) -> None:
        self.config = config
        self.device = setup_worker(config.device, config.threads)
        self._lock = Lock()  # readers of shards are for one thread
        config.real.keep_in_memory()
        config.test.keep_in_memory()

    def __call__(self, run: Run) -> dict[str, Any]:
        """Train and test a student.

        Returns:
            miou, accuracy, iou of each class (None for one that neither occurs nor is read), the
            training loss over the last tenth of the steps, and seconds.

        Raises:
            UserError: a pair cannot be read, or the training diverged.
        """
        started = time.monotonic()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(run.seed)  # dropout of a network that has any
            network, normalisation, loss = self._train(run)
        scores, iou = agreement(self._test(network, normalisation))
        return {
            "miou": scores["miou"].value,
            "accuracy": scores["accuracy"].value,
            "iou": [x.value if math.isfinite(x.value) else None for x in iou],
            "train_loss": loss,
            "seconds": round(time.monotonic() - started, 1),
        }

    def _train(self, run: Run) -> tuple[nn.Module, Normalisation, float]:
        config, device = self.config, self.device
        network, normalisation, rates = self._beginner(run.seed)
        network = network.to(device)
        optimizer = SegmenterOptimizer(_by_rate(network, *rates), config.steps)
        with closing(self._batches(run)) as batches:
            final = fit(
                network,
                optimizer,
                (
                    (_normalised(uploaded(images, device), normalisation), uploaded(labels, device))
                    for images, labels in batches
                ),
                mixed_precision=True,
            )
        if not math.isfinite(final):
            raise UserError(f"{run}: the training diverged (loss {final})")
        return network.eval(), normalisation, final

    def _beginner(self, seed: int) -> tuple[nn.Module, Normalisation, tuple[float, float]]:
        """An untrained student, and the learning rates of its encoder and of the rest."""
        config = self.config
        names = config.space.names_for_evaluation
        if config.segmenter is None:
            network, rate = new_network(config.training, names, seed)
            return network, Normalisation(), (rate, rate)
        return *load_for_finetuning(config.segmenter, names, seed), _FINE_RATES

    # What it learns from

    def _batches(self, run: Run) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Images (B, 3, H, W) and labels (B, H, W) of each step, prepared ahead by threads."""
        config, batch = self.config, self.config.training.batch
        total = config.steps * batch
        sets = config.samples.get(run.fraction, ())
        real = Photos(config.real, config.parts[run.fraction])
        plan = draws(run.seed, run.share, len(real), sum(map(len, sets)), total)

        def prepare(position: int) -> tuple[Tensor, Tensor]:
            index = int(plan.indices[position])
            if plan.synthetic[position]:
                pair = self._sample(sets, index)
            else:
                (photo,) = real.scenes(index, index + 1)
                pair = Pair(photo.image, photo.label)
            rng = numpy_generator(run.seed, NumpyStream.STUDENT_CROP, position)
            image, label = augment(pair, rng, flip=config.flip)
            known = label < config.space.num_evaluation_classes
            learnt = np.where(known, label.astype(np.int64), VOID)
            return torch.from_numpy(image.copy()), torch.from_numpy(learnt)  # maybe a mirrored view

        ready = map_ahead(prepare, range(total), threads=config.loaders, depth=batch * _AHEAD)
        with closing(ready):
            for _ in range(config.steps):
                pairs = islice(ready, batch)
                images, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
                yield images.permute(0, 3, 1, 2), labels

    def _sample(self, sets: tuple[Samples, ...], index: int) -> Pair:
        for samples in sets:
            if index < len(samples):
                scene = samples.scene(index, self._lock)
                return Pair(scene.image, scene.label)
            index -= len(samples)
        raise AssertionError(index)

    # What it is tested on

    @torch.inference_mode()
    def _test(self, network: nn.Module, normalisation: Normalisation) -> PerImageConfusion:
        """Predictions on real photos, float32, at the size of the samples."""
        space = self.config.space
        confusion = PerImageConfusion(space.num_evaluation_classes)
        for batch in ordered_batches(self.config.test, _TEST_BATCH):
            assert batch.images is not None
            raw = batch.labels.numpy()
            labels = space.to_evaluation(cast(Labels, raw.astype(space.dtype)))
            inputs = _normalised(to_device(batch, self.device).images, normalisation)
            logits = network(pixel_values=inputs).logits
            logits = nn.functional.interpolate(
                logits, labels.shape[1:], mode="bilinear", align_corners=False
            )
            found = logits.argmax(dim=1).cpu().numpy()
            for key, label, prediction in zip(batch.keys, labels, found, strict=True):
                confusion.add(key, key, label, prediction)
        return confusion


def _by_rate(network: nn.Module, encoder: float, rest: float) -> dict[float, list[nn.Parameter]]:
    """Parameters by their learning rate."""
    if encoder == rest:
        return {rest: list(network.parameters())}
    inner = getattr(network, "backbone", None) or getattr(network, "encoder", None)
    inner = inner or getattr(network, "base_model", network)
    own = {id(parameter) for parameter in inner.parameters()}
    others = [p for p in network.parameters() if id(p) not in own]
    return {encoder: list(inner.parameters())} | ({rest: others} if others else {})


def _normalised(images: Tensor | None, normalisation: Normalisation) -> Tensor:
    """Images in bytes, (B, 3, H, W), as a network expects them."""
    assert images is not None
    both = torch.tensor([normalisation.mean, normalisation.std])
    mean, std = uploaded(both, images.device).view(2, 3, 1, 1)
    return ((to_images(images) + 1) / 2 - mean) / std
