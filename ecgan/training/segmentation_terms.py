"""Losses of the discriminator that segments, and the term that it gives G.

Shape legend:
    B  images in the batch      N  classes      H, W  height and width
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan import losses
from ecgan.labels import LabelSpace
from ecgan.models.discriminators.diffaugment import diffaugment, draw, moved_labels
from ecgan.models.discriminators.segmentation import (
    FeatureDiscriminator,
    UNetDiscriminator,
    frozen_maps,
)
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.recipe import Recipe
from ecgan.runtime import distributed
from ecgan.runtime.device import uploaded
from ecgan.seeds import TorchStream, torch_generator

# On frozen features
BALANCE_LIMITS = (0.2, 5.0)  # of a class's weight: a class of 0.1 % would weigh 90
SMOOTHING = 0.1  # of the targets for photos
RAMP = (0.05, 0.15)  # share of the training between which the weight of G's term rises from 0
MIN_CHANNELS = 24  # of the decoder

_NO_LIMITS = (0.0, float("inf"))
_OUTSIDE = -1  # label of pixels that augmentation moved in or cut out


class JudgedPair(NamedTuple):
    """Photos and generated images as the discriminator sees them, augmented alike."""

    real: list[Tensor]  # maps of the frozen network, (B, channels, h, w), or the photos alone
    fake: list[Tensor]  # with their gradient to the images
    labels: Tensor  # (B, H, W); ignore where unlabelled and where nothing is shown
    shown: Tensor  # pixels that show something, bool (B, H, W)
    weights: Tensor  # of the classes, (N,)
    positions: Sequence[int]  # of the images in the training


def build_segmentation_discriminator(
    recipe: Recipe, space: LabelSpace
) -> FeatureDiscriminator | UNetDiscriminator | None:
    """Freshly initialised discriminator of N + 1 classes, if the recipe has one."""
    if not recipe.parts().segmentation_discriminator:
        return None
    if recipe.model.segmentation_discriminator == "unet":
        return UNetDiscriminator(space.num_classes, recipe.model.width)
    return FeatureDiscriminator(space.num_classes, max(MIN_CHANNELS, recipe.model.width))


@dataclass(frozen=True)
class SegmentationTerms:
    """What the discriminator sees, its loss, and G's term.

    Attributes:
        recipe: settings of the training.
        space: the class list.
        network: the frozen network below it; None: it sees the pictures.
        autocast: context of the networks; losses run outside of it.
    """

    recipe: Recipe
    space: LabelSpace
    network: EfficientNetLite0 | None
    autocast: Callable[[], AbstractContextManager[object]]

    @torch.no_grad()
    def measure(self, discriminator: nn.Module, photos: Iterable[Tensor]) -> None:
        """Set the statistics of the frozen maps by batches of photos, (b, 3, H, W)."""
        if isinstance(discriminator, FeatureDiscriminator):
            discriminator.measure(self._maps(batch) for batch in photos)

    def pair(
        self, photos: Tensor, images: Tensor, labels: Tensor, positions: Sequence[int]
    ) -> JudgedPair:
        """Photos and generated images with the same draws of DiffAugment.

        A frozen network gets no hole: half a picture is outside of what it knows.

        Args:
            photos: (B, 3, H, W).
            images: generated from the same labels, with their gradient.
            labels: (B, H, W), int64.
            positions: where the images are in the training, B.
        """
        ignore = self.space.ignore_index
        shown = torch.ones_like(labels, dtype=torch.bool)
        if self.recipe.train.augment == "diffaugment":
            draws, hole = draw(self.recipe.train.seed, positions), self.network is None
            photos, images = (
                diffaugment(x, draws, colour=True, hole=hole) for x in (photos, images)
            )
            labels = moved_labels(labels, draws, _OUTSIDE, hole=hole)
            shown = labels != _OUTSIDE
            labels = labels.masked_fill(~shown, ignore)
        with self.autocast():
            with torch.no_grad():
                of_photos = self._maps(photos)
            of_images = self._maps(images)
        weights = losses.class_balance(
            labels,
            self.space.num_classes,
            ignore,
            limits=_NO_LIMITS if self.network is None else BALANCE_LIMITS,
            reduce_sums=distributed.all_reduce_sum,
        )
        return JudgedPair(of_photos, of_images, labels, shown, weights, positions)

    def discriminator_loss(
        self, discriminator: nn.Module, pair: JudgedPair
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator on photos and on the detached images of G.

        Returns:
            The loss, which is 0 while one on frozen features wins too easily; and what is logged:
            ``segmentation_discriminator`` (the loss as it is), ``segmentation_accuracy`` (share of
            the photos' labelled pixels that get their class) and ``called_made`` (share of
            generated pixels that are found out).
        """
        inputs = [torch.cat([x, y.detach()]) for x, y in zip(pair.real, pair.fake, strict=True)]
        weight = 0.0 if self.network is not None else self.recipe.losses.label_mix
        mask = self._label_mask(pair) if weight else None
        if mask is not None:
            mixtures = [torch.where(mask, *x.chunk(2)) for x in inputs]
            inputs = [torch.cat(parts) for parts in zip(inputs, mixtures, strict=True)]
        real, fake, *mixed = self._logits(discriminator, inputs, pair).split(len(pair.labels))
        smoothing = 0.0 if self.network is None else SMOOTHING
        loss = self._as_labelled(real, pair, smoothing) + losses.segmentation_made(
            fake, pair.shown, reduce_sums=distributed.all_reduce_sum
        )
        if mask is not None:
            loss = loss + weight * losses.label_mix(mixed[0], real, fake, mask)
        known = pair.labels != self.space.ignore_index
        right = (real.argmax(dim=1) == pair.labels) & known
        found_out = (fake.argmax(dim=1) == self.space.num_classes) & pair.shown
        counts = torch.stack([part.sum() for part in (right, known, found_out, pair.shown)])
        counts = distributed.mean_(counts.float()).clamp(min=1e-6)
        watched = {
            "segmentation_discriminator": loss.detach(),
            "segmentation_accuracy": counts[0] / counts[1],
            "called_made": counts[2] / counts[3],
        }
        network = distributed.without_parallel(discriminator)
        if isinstance(network, FeatureDiscriminator):
            loss = network.watch(watched["called_made"], self.recipe.train.batch) * loss
        return loss, watched

    def generator_term(self, discriminator: nn.Module, pair: JudgedPair) -> Tensor:
        """Class-balanced cross-entropy of the generated images with their labels."""
        return self._as_labelled(self._logits(discriminator, pair.fake, pair), pair, 0.0)

    def ramp(self, position: int) -> float:
        """Factor of G's term at a position of the training.

        On frozen features it is 0 at first, since the decoder knows nothing, and the paper's
        discriminator teaches G meanwhile.
        """
        if self.network is None:
            return 1.0
        first, last = RAMP
        batch, length = self.recipe.train.batch, self.recipe.train.images
        seen = position // batch * batch  # the same for all images of a step
        return min(1.0, max(0.0, (seen / length - first) / (last - first)))

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        return [pictures] if self.network is None else frozen_maps(self.network, pictures)

    def _logits(self, discriminator: nn.Module, maps: list[Tensor], pair: JudgedPair) -> Tensor:
        """Logits at the size of the labels, (R, N + 1, H, W)."""
        with self.autocast():
            logits: Tensor = discriminator(maps)
        size = pair.labels.shape[1:]
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def _as_labelled(self, logits: Tensor, pair: JudgedPair, smoothing: float) -> Tensor:
        return losses.segmentation_real(
            logits,
            pair.labels,
            pair.weights,
            self.space.ignore_index,
            smoothing=smoothing,
            reduce_sums=distributed.all_reduce_sum,
        )

    def _label_mask(self, pair: JudgedPair) -> Tensor:
        """Pixels that LabelMix takes from the photo: a coin for each class of each image."""
        num, seed = self.space.num_classes + 1, self.recipe.train.seed
        coins = [
            torch.rand(num, generator=torch_generator(seed, TorchStream.LABEL_MIX, position)) < 0.5
            for position in pair.positions
        ]
        classes = pair.labels.clamp(max=num - 1)  # unlabelled ones together
        taken = uploaded(torch.stack(coins), pair.labels.device)
        return taken.gather(1, classes.flatten(1)).view_as(classes)[:, None]
