"""Students: segmenters that learn from real pairs, from samples, or from both, and are tested.

    position --hash--> real pair | added pair --zoom, crop, mirror, colours--> batch --> student
    student --test--> counts of each block of photos

All students of an experiment differ in nothing but the pairs that they see: the same network with
the same first weights for a seed, the same number of steps, the same schedule, the same zoom, crop,
mirroring and colours at a position.

Shape legend:
    B  images in the batch      H, W  height and width      E  evaluation classes
    T  images that a student sees in training
"""

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from ecgan.data import transforms
from ecgan.data.datasets import Subset
from ecgan.data.loader import TripleDataset, ordered_batches, to_device, to_images
from ecgan.data.transforms import Sample
from ecgan.errors import UserError
from ecgan.evaluation.downstream.arms import Arm, Run, Source
from ecgan.evaluation.downstream.comparison import block_counts, blocks
from ecgan.evaluation.downstream.controls import (
    CopyPaste,
    Matched,
    Pair,
    Pairs,
    Real,
    SelfTrained,
    Unlabelled,
)
from ecgan.evaluation.sources import Samples
from ecgan.labels import Labels, LabelSpace
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.recipe.segmenters import DownstreamTraining
from ecgan.runtime.device import setup_worker, uploaded
from ecgan.runtime.executor import map_ahead
from ecgan.seeds import NumpyStream, numpy_generator
from ecgan.segmentation.loading import load_for_finetuning
from ecgan.segmentation.probe import Probe
from ecgan.segmentation.segmenter import Normalisation, require_finite_scores, segformer
from ecgan.segmentation.training import (
    VOID,
    Lesson,
    SegmenterOptimizer,
    fit,
    learning_rate_from_scratch,
    seeded,
)
from ecgan.segmentation.unet import UNet

MOST_ZOOM = 1.5  # a random window of 1/zoom of each side fills the picture
RECOLOURED = 0.8  # of all pictures
JITTER, HUE, GAMMA = 0.5, 0.1, 2.0  # brightness, contrast and saturation; hue; gamma and 1 / gamma
REGRESSED = 200  # first pictures of a student, from which a probe's regression is computed
_TEST_BATCH = 16
_AHEAD = 4  # batches that are prepared while one is learnt from
# Of fine-tuning: the encoder's, as SegFormer was (arXiv:2105.15203, Sec. 4.1); ten times that for
# the rest, which may start anew.
_FINE_RATES = 6e-5, 6e-4
_UNET_RATES = 1e-4, 1e-3  # of an encoder that knows ImageNet, and of the rest
_PROBE_RATE = 1e-3


@dataclass(frozen=True)
class StudentConfig:
    """Configuration of all students, small enough to be sent to another machine.

    Attributes:
        real: the training split, whole pictures at the size of the samples.
        parts: indices of its pairs in each part.
        samples: sets of samples for each part.
        test: pairs of the tested split.
        unlabelled: photos without labels.
        things: ids of the classes that copy-paste moves.
        space: class list.
        training: architecture and length of training.
        segmenter: segmenter to fine-tune, by path or name; None: one from scratch.
        flip: mirror half of the images.
        device: device of each worker.
        threads: torch's threads of each worker; None: as torch has them.
        loaders: threads of each worker that prepare pairs.
    """

    real: TripleDataset
    parts: Mapping[Subset, tuple[int, ...]]
    samples: Mapping[Subset, tuple[Samples, ...]]
    test: TripleDataset
    unlabelled: tuple[Path, ...]
    things: frozenset[int]
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
        return max(1, self.training.length // self.training.batch)


class Draws(NamedTuple):
    """Images that a student sees, position by position."""

    added: npt.NDArray[np.bool_]  # (T,): whether it is one of the added pairs, not a real one
    indices: npt.NDArray[np.int64]  # (T,): its index among the added pairs, or the real ones


def draws(
    seed: int, share: float, num_real: int, num_added: int, total: int, until: int | None = None
) -> Draws:
    """Draw real pairs and added ones.

    Position p shows an added pair if the first 64 bits of SHA-256 of "seed p", as a fraction of
    2^64, are below ``share``: so a student that sees more of them sees them in place of real pairs,
    and all else stays where it was. The k-th real pair is ``permutation(k // n)[k % n]`` of n, with
    a permutation of its own for every epoch; added pairs likewise.

    Args:
        seed: seed of the student.
        share: share of added pairs, 0 to 1.
        num_real: number of real pairs.
        num_added: number of added pairs.
        total: T.
        until: position from which all are real; None: T.
    """
    chance = [
        int.from_bytes(hashlib.sha256(f"{seed} {p}".encode()).digest()[:8], "big") / 2**64
        for p in range(total)
    ]
    added = np.asarray(chance) < share
    added[total if until is None else until :] = False
    indices = np.empty(total, np.int64)
    for kind, count in ((False, num_real), (True, num_added)):
        where = np.flatnonzero(added == kind)
        epochs = [
            numpy_generator(seed, NumpyStream.STUDENT_ORDER, int(kind), epoch).permutation(count)
            for epoch in range(-(-len(where) // count) if len(where) else 0)
        ]
        indices[where] = np.concatenate([*epochs, np.zeros(0, np.int64)])[: len(where)]
    return Draws(added, indices)


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


def recolour(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Brightness, contrast, saturation, hue and gamma of four pictures in five, as torchvision has.

    Every student sees it, whatever it learns from: without it, any generator that varies light
    would be worth what this gives for nothing.

    Args:
        image: (H, W, 3).
        rng: source of the draws.
    """
    brightness, contrast, saturation = 1 + rng.uniform(-JITTER, JITTER, 3)
    hue, gamma = rng.uniform(-HUE, HUE), GAMMA ** rng.uniform(-1, 1)
    changes: list[Callable[[Tensor], Tensor]] = [
        partial(functional.adjust_brightness, brightness_factor=brightness),
        partial(functional.adjust_contrast, contrast_factor=contrast),
        partial(functional.adjust_saturation, saturation_factor=saturation),
        partial(functional.adjust_hue, hue_factor=hue),
        partial(functional.adjust_gamma, gamma=gamma),
    ]
    order = rng.permutation(len(changes))
    if rng.random() >= RECOLOURED:
        return image
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)  # it may be a mirrored view
    for index in order.tolist():
        pixels = changes[index](pixels)
    return pixels.permute(1, 2, 0).numpy()


def without_borders(label: npt.NDArray[np.int64], pixels: int) -> npt.NDArray[np.int64]:
    """Label map whose pixels within a distance of another class are void.

    Args:
        label: (H, W).
        pixels: distance in rows or columns.
    """
    if not pixels:
        return label
    window = np.ones((2 * pixels + 1,) * 2, np.uint8)
    numbers = label.astype(np.float32)  # exact for every id; erode takes no int64
    highest, lowest = cv2.dilate(numbers, window), cv2.erode(numbers, window)
    return np.where(highest == lowest, label, VOID)


@dataclass(frozen=True)
class _Made:
    """Samples of several sets, one after the other."""

    sets: tuple[Samples, ...]
    lock: AbstractContextManager[Any]  # readers of shards are for one thread

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    def pair(self, index: int, rng: np.random.Generator) -> Pair:  # noqa: ARG002
        for samples in self.sets:
            if index < len(samples):
                scene = samples.scene(index, self.lock)
                return Pair(scene.image, scene.label)
            index -= len(samples)
        raise AssertionError(index)


class _Trained(NamedTuple):
    """A trained student."""

    network: nn.Module
    normalisation: Normalisation
    loss: float


class SegmenterTrainer:
    """Trains and tests students, one after the other, on one device.

    Args:
        config: configuration of all trainers.
    """

    def __init__(self, config: StudentConfig) -> None:
        self.config = config
        self.device = setup_worker(config.device, config.threads)
        self._lock = Lock()
        self._teachers: dict[tuple[Subset, int], _Trained] = {}  # kept from real only for this arm
        config.real.keep_in_memory()
        config.test.keep_in_memory()

    def __call__(self, run: Run) -> dict[str, Any]:
        """Train and test a student.

        Returns:
            miou, accuracy, iou of each class (None for one that neither occurs nor is read), the
            counts behind them for each block of test photos, the training loss over the last tenth
            of the steps, and seconds.

        Raises:
            UserError: a pair cannot be read, or the training diverged.
        """
        started = time.monotonic()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            network, normalisation, loss = trained = self._train(run)
        counts = self._test(run, network, normalisation)
        if run.arm.source is Source.NOTHING and self.config.unlabelled:
            self._teachers[run.part, run.seed] = trained._replace(network=network.cpu())
        scores, iou = agreement(counts)
        return {
            "miou": scores["miou"].value,
            "accuracy": scores["accuracy"].value,
            "iou": [x.value if math.isfinite(x.value) else None for x in iou],
            "blocks": block_counts(counts),
            "train_loss": loss,
            "seconds": round(time.monotonic() - started, 1),
        }

    def _train(self, run: Run) -> "_Trained":
        config, device = self.config, self.device
        added = self._added(run)
        torch.manual_seed(run.seed)  # dropout of a network that has any
        network, normalisation, rates = self._beginner(run.seed)
        network = network.to(device)

        def batches(steps: int) -> Generator[Lesson, None, None]:
            with closing(self._batches(run, added)) as prepared:
                for images, labels, weights in islice(prepared, steps):
                    yield Lesson(
                        normalised(uploaded(images, device), normalisation),
                        uploaded(labels, device),
                        uploaded(weights, device),
                    )

        if isinstance(network, Probe):
            first = batches(-(-REGRESSED // config.training.batch))
            network.regress((one.images, one.labels) for one in first)
        trained = [p for p in network.parameters() if p.requires_grad]
        optimizer = SegmenterOptimizer(_by_rate(network, trained, *rates), config.steps)
        final = fit(network, optimizer, batches(config.steps), mixed_precision=True)
        if not math.isfinite(final):
            raise UserError(f"{run}: the training diverged (loss {final}); {self._remedy}")
        return _Trained(network.eval(), normalisation, final)

    def _beginner(self, seed: int) -> tuple[nn.Module, Normalisation, tuple[float, float]]:
        """An untrained student, and the learning rates of its encoder and of the rest."""
        config = self.config
        names, training = config.space.names_for_evaluation, config.training
        if config.segmenter is not None:
            return *load_for_finetuning(config.segmenter, names, seed), _FINE_RATES
        match training.architecture:
            case "segformer":
                network = segformer(training.channels, names, seed)
                rate = learning_rate_from_scratch(training.channels)
                return network, Normalisation(), (rate, rate)
            case "probe":
                network, rates = seeded(seed, lambda: Probe(names)), (_PROBE_RATE, _PROBE_RATE)
            case "unet":
                network, rates = seeded(seed, lambda: UNet(names, pretrained=True)), _UNET_RATES
            case "scratch":
                network = seeded(seed, lambda: UNet(names, pretrained=False))
                rates = _UNET_RATES[1], _UNET_RATES[1]
        return network, Normalisation(), rates

    # What it learns from

    def _added(self, run: Run) -> Pairs:
        """What a run adds to the real pairs."""
        config, real = self.config, Real(self.config.real, self.config.parts[run.part])
        match run.arm.source:
            case Source.NOTHING:
                return _Made((), self._lock)
            case Source.COPY_PASTE:
                return CopyPaste(real, config.things)
            case Source.HISTOGRAM:
                return Matched(real, self._unlabelled)
            case Source.SELF_TRAINING:
                teacher = self._teachers.pop((run.part, run.seed), None)
                teacher = teacher or self._train(replace(run, arm=Arm(Source.NOTHING, 0)))
                network = teacher.network.to(self.device)
                return SelfTrained.of(
                    self._unlabelled,
                    config.space,
                    lambda image: self._probabilities(run, network, teacher.normalisation, image),
                )
            case Source.SAMPLES | Source.PRETRAIN | Source.SYNTHETIC:
                return _Made(config.samples.get(run.part, ()), self._lock)

    @cached_property
    def _unlabelled(self) -> Unlabelled:
        return Unlabelled.read(self.config.unlabelled, self.config.real.size)

    def _batches(
        self, run: Run, added: Pairs
    ) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """Images (B, 3, H, W), labels (B, H, W) and weights (B,), prepared ahead by threads."""
        config, training = self.config, self.config.training
        batch, total = training.batch, config.steps * training.batch
        real = Real(config.real, config.parts[run.part])
        until = round(training.mix_until * total) if run.arm.has_real else total
        plan = draws(run.seed, run.arm.share, len(real), len(added), total, until)

        def prepare(position: int) -> tuple[Tensor, Tensor, float]:
            is_added = bool(plan.added[position])
            rng = numpy_generator(run.seed, NumpyStream.STUDENT_PAIR, position)
            pair = (added if is_added else real).pair(int(plan.indices[position]), rng)
            rng = numpy_generator(run.seed, NumpyStream.STUDENT_CROP, position)
            image, label = augment(pair, rng, flip=config.flip)
            rng = numpy_generator(run.seed, NumpyStream.STUDENT_COLOUR, position)
            image = recolour(image, rng)
            known = label < config.space.num_evaluation_classes
            learnt = np.where(known, label.astype(np.int64), VOID)
            made = is_added and run.arm.needs_samples
            learnt = without_borders(learnt, training.border if made else 0)
            weight = training.sample_weight if made else 1.0
            # Copied: it may be a mirrored view
            return torch.from_numpy(image.copy()), torch.from_numpy(learnt), weight

        ready = map_ahead(prepare, range(total), threads=config.loaders, depth=batch * _AHEAD)
        with closing(ready):
            for _ in range(config.steps):
                images, labels, weights = zip(*islice(ready, batch), strict=True)
                stacked = torch.stack(images).permute(0, 3, 1, 2)
                yield stacked, torch.stack(labels), torch.tensor(weights)

    # What it is tested on

    @torch.inference_mode()
    def _test(
        self, run: Run, network: nn.Module, normalisation: Normalisation
    ) -> PerImageConfusion:
        """Predictions on real photos, float32, at the size of the samples."""
        space = self.config.space
        confusion = PerImageConfusion(space.num_evaluation_classes)
        block_of = blocks(self.config.test.keys)
        for batch in ordered_batches(self.config.test, _TEST_BATCH):
            assert batch.images is not None
            raw = batch.labels.numpy()
            labels = space.to_evaluation(cast(Labels, raw.astype(space.dtype)))
            images = to_device(batch, self.device).images
            assert images is not None
            logits = self._scores(run, network, normalisation, images, labels.shape[1:])
            found = logits.argmax(dim=1).cpu().numpy()
            for key, label, prediction in zip(batch.keys, labels, found, strict=True):
                confusion.add(key, block_of[key], label, prediction)
        return confusion

    @torch.inference_mode()
    def _probabilities(
        self,
        run: Run,
        network: nn.Module,
        normalisation: Normalisation,
        image: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.float32]:
        """What a student reads in a photo (H, W, 3): (K, H, W)."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(self.device)
        scores = self._scores(run, network, normalisation, pixels, image.shape[:2])
        return scores.softmax(1)[0].cpu().numpy()

    def _scores(
        self,
        run: Run,
        network: nn.Module,
        normalisation: Normalisation,
        images: Tensor,
        size: Sequence[int],
    ) -> Tensor:
        """Logits of images in bytes, (B, 3, H, W), at a size.

        Raises:
            UserError: they are not finite.
        """
        logits = network(pixel_values=normalised(images, normalisation)).logits
        scores = nn.functional.interpolate(
            logits, tuple(size), mode="bilinear", align_corners=False
        )
        require_finite_scores(scores, str(run), f"its training diverged; {self._remedy}")
        return scores

    @property
    def _remedy(self) -> str:
        place = self.config.segmenter
        if place is None:
            return "look at its pairs, or take another evaluate.downstream_training.architecture"
        return f"it was fine-tuned from --segmenter {place}: give another"


def _by_rate(
    network: nn.Module, trained: list[nn.Parameter], encoder: float, rest: float
) -> dict[float, list[nn.Parameter]]:
    """Trained parameters by their learning rate."""
    if encoder == rest:
        return {rest: trained}
    inner = getattr(network, "backbone", None) or getattr(network, "encoder", None)
    inner = inner or getattr(network, "base_model", network)
    own = {id(parameter) for parameter in inner.parameters()}
    others = [p for p in network.parameters() if id(p) not in own]
    return {encoder: list(inner.parameters())} | ({rest: others} if others else {})


def normalised(images: Tensor, normalisation: Normalisation) -> Tensor:
    """Images in bytes, (B, 3, H, W), as a network expects them."""
    both = torch.tensor([normalisation.mean, normalisation.std])
    mean, std = uploaded(both, images.device).view(2, 3, 1, 1)
    return ((to_images(images) + 1) / 2 - mean) / std
