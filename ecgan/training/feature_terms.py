"""Losses of the feature discriminator D_F and the term that it gives G.

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
from ecgan.models.discriminators.features import STAGES, FeatureDiscriminator, magnified
from ecgan.models.pretrained.efficientnet_lite import LITE0_TAPS, EfficientNetLite0
from ecgan.recipe import Recipe
from ecgan.runtime import distributed

BALANCE_LIMITS = (0.2, 5.0)  # of a class's weight: a class of 0.1 % would weigh 90
SMOOTHING = 0.1  # of the targets for photos
RAMP = (0.05, 0.15)  # share of the training between which the weight of G's term rises from 0
MIN_CHANNELS = 24  # of the decoder
_OUTSIDE = -1  # label of pixels that augmentation moved in


class FeatureView(NamedTuple):
    """Photos and generated images as D_F sees them, augmented alike."""

    real: list[Tensor]  # maps of the frozen network, (B, channels, h, w)
    fake: list[Tensor]  # with their gradient to the images
    labels: Tensor  # (B, H, W); ignore where unlabelled and where nothing is shown
    shown: Tensor  # pixels that show something, bool (B, H, W)
    weights: Tensor  # of the classes, (N,)


def build_feature_discriminator(recipe: Recipe, space: LabelSpace) -> FeatureDiscriminator | None:
    """Freshly initialised D_F, if the recipe has it."""
    if not recipe.parts().feature_discriminator:
        return None
    return FeatureDiscriminator(space.num_classes, max(MIN_CHANNELS, recipe.model.width))


@dataclass(frozen=True)
class FeatureTerms:
    """What D_F sees, its loss, and G's term.

    Attributes:
        recipe: settings of the training.
        space: the class list.
        network: the frozen network below D_F.
        autocast: context of the networks; losses run outside of it.
    """

    recipe: Recipe
    space: LabelSpace
    network: EfficientNetLite0
    autocast: Callable[[], AbstractContextManager[object]]

    @torch.no_grad()
    def measure(self, discriminator: nn.Module, photos: Iterable[Tensor]) -> None:
        """Set D_F's statistics by batches of photos, (b, 3, H, W)."""
        assert isinstance(discriminator, FeatureDiscriminator)
        discriminator.measure(self._maps(batch) for batch in photos)

    def view(
        self, photos: Tensor, images: Tensor, labels: Tensor, positions: Sequence[int]
    ) -> FeatureView:
        """Photos and generated images with the same colours and shifts of DiffAugment.

        There is no hole: half a picture is outside of what the frozen network knows.

        Args:
            photos: (B, 3, H, W).
            images: generated from the same labels, with their gradient.
            labels: (B, H, W), int64.
            positions: where the images are in the training, B.
        """
        ignore = self.space.ignore_index
        shown = torch.ones_like(labels, dtype=torch.bool)
        if self.recipe.train.augment == "diffaugment":
            draws = draw(self.recipe.train.seed, positions)
            photos, images = (
                diffaugment(x, draws, colour=True, hole=False) for x in (photos, images)
            )
            labels = moved_labels(labels, draws, _OUTSIDE)
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
            limits=BALANCE_LIMITS,
            reduce_sums=distributed.all_reduce_sum,
        )
        return FeatureView(of_photos, of_images, labels, shown, weights)

    def discriminator_loss(
        self, discriminator: nn.Module, view: FeatureView
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of D_F on photos and on the detached images of G.

        Returns:
            The loss, 0 while D_F wins too easily; and what is logged: ``feature_discriminator``
            (the loss as it is), ``feature_accuracy`` (share of the photos' labelled pixels that get
            their class) and ``called_made`` (share of generated pixels that are found out).
        """
        together = [torch.cat([x, y.detach()]) for x, y in zip(view.real, view.fake, strict=True)]
        real, fake = self._logits(discriminator, together, view).chunk(2)
        loss = self._as_labelled(real, view, SMOOTHING) + losses.segmentation_made(
            fake, view.shown, reduce_sums=distributed.all_reduce_sum
        )
        known = view.labels != self.space.ignore_index
        right = (real.argmax(dim=1) == view.labels) & known
        found_out = (fake.argmax(dim=1) == self.space.num_classes) & view.shown
        share = distributed.mean_(found_out.sum() / view.shown.sum().clamp(min=1))
        watched = {
            "feature_discriminator": loss.detach(),
            "feature_accuracy": right.sum() / known.sum().clamp(min=1),
            "called_made": share,
        }
        network = distributed.without_parallel(discriminator)
        assert isinstance(network, FeatureDiscriminator)
        return network.watch(share, self.recipe.train.batch) * loss, watched

    def generator_term(self, discriminator: nn.Module, view: FeatureView) -> Tensor:
        """Class-balanced cross-entropy of the generated images with their labels."""
        return self._as_labelled(self._logits(discriminator, view.fake, view), view, 0.0)

    def ramp(self, position: int) -> float:
        """Factor of G's term at a position of the training; 0 at first, since D_F knows nothing."""
        first, last = RAMP
        batch, length = self.recipe.train.batch, self.recipe.train.images
        seen = position // batch * batch  # the same for all images of a step
        return min(1.0, max(0.0, (seen / length - first) / (last - first)))

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        maps = dict(zip(LITE0_TAPS, self.network(magnified(pictures)), strict=True))
        return [maps[stage] for stage in STAGES]

    def _logits(self, discriminator: nn.Module, maps: list[Tensor], view: FeatureView) -> Tensor:
        """Logits at the size of the labels, (R, N + 1, H, W)."""
        with self.autocast():
            logits: Tensor = discriminator(maps)
        size = view.labels.shape[1:]
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def _as_labelled(self, logits: Tensor, view: FeatureView, smoothing: float) -> Tensor:
        return losses.segmentation_real(
            logits,
            view.labels,
            view.weights,
            self.space.ignore_index,
            smoothing=smoothing,
            reduce_sums=distributed.all_reduce_sum,
        )
