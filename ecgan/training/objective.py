"""Training objective, Eq. 10: each loss term of one batch, unweighted, and their weighted sum.

``Recipe.parts`` lists the terms with their weights; a weight of 0 removes a term, and the network
that only this term needs.

A batch has up to five pictures: the real image and edge and, with the weights of Eqs. 9 and 10, the
generated edge I'_e (1), the coarse I' (1) and the image (lambda), which is I'' or its fusion with
I_g. Without Gs there is no third one: I' is the output.

Shape legend:
    B  images in the batch      N  classes      H, W  height and width      R  pictures
    S  condition, (B, channels of S, H, W)      z  style, (B, 256)
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ecgan import losses
from ecgan.checkpoint import build_generator, build_style_encoder
from ecgan.labels import LabelSpace
from ecgan.models.contrastive import EMBEDDING_DIM, ContrastiveHead, MemoryBank
from ecgan.models.discriminators.diffaugment import diffaugment, draw
from ecgan.models.discriminators.patch import Discriminator
from ecgan.models.generator import STYLE_DIM, Generated, Generator
from ecgan.models.layers import channels_last
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.models.pretrained.frozen import PerceptualFeatures
from ecgan.models.style import StatisticsEncoder, StyleEncoder, reparameterise
from ecgan.recipe import Recipe
from ecgan.runtime import distributed
from ecgan.runtime.device import uploaded
from ecgan.runtime.timing import span
from ecgan.seeds import TorchStream, torch_generator
from ecgan.segmentation.segmenter import Segmenter
from ecgan.training.segmentation_terms import JudgedPair, SegmentationTerms


class Inputs(NamedTuple):
    """A batch of real images, edges and labels on the device."""

    keys: tuple[str, ...]
    positions: Tensor  # (B,), int64, on the CPU: where in the run's row of images
    labels: Tensor  # (B, H, W), int64
    S: Tensor
    image: Tensor  # (B, 3, H, W), in [-1, 1]
    edge: Tensor | None  # (B, 3, H, W), in [-1, 1]; None without Ge


class GeneratorOutput(NamedTuple):
    """Output of G and of the networks trained with it."""

    generated: Generated
    mu: Tensor | None  # of the style, (B, 256)
    log_var: Tensor | None
    embeddings: list[Tensor]  # of Gc, one for each tap, (B, 64, h, w)


class GeneratorSide(nn.Module):
    """All networks of G's optimiser, in one module with one forward pass, as DDP needs it.

    Args:
        recipe: recipe, which says which parts there are.
        space: the class list.
    """

    def __init__(self, recipe: Recipe, space: LabelSpace) -> None:
        super().__init__()
        self.generator: Generator = build_generator(recipe, space)
        self.generator.trunk.checkpointed = recipe.train.checkpointing
        self.generator.branches.edge_slope = recipe.losses.edge_slope
        self.style_encoder: StyleEncoder | StatisticsEncoder | None = build_style_encoder(recipe)
        self.ignore = space.ignore_index
        self.stride = recipe.losses.contrastive_stride
        self.taps = tuple(recipe.losses.contrastive_taps) if recipe.parts().contrastive else ()
        channels = self.generator.tap_channels
        self.heads = nn.ModuleList(ContrastiveHead(channels[tap][0]) for tap in self.taps)

    def forward(
        self, S: Tensor, labels: Tensor, image: Tensor, noise: Tensor | None
    ) -> GeneratorOutput:
        """Generate pictures; noise, (B, 256), draws the real image's style."""
        mu, log_var, z = None, None, noise if self.generator.style else None
        if self.style_encoder is not None:
            assert noise is not None
            mu, log_var = self.style_encoder(image)
            dtype = torch.promote_types(mu.dtype, torch.float32)
            z = reparameterise(mu.to(dtype), log_var.to(dtype), noise.to(dtype))
        generated = self.generator(S, labels, self.ignore, z)
        embeddings = []
        for tap, head in zip(self.taps, self.heads, strict=True):
            # a tap of the trunk is smaller than S already
            stride = max(1, self.stride // self.generator.tap_channels[tap][1])
            embeddings.append(head(generated.taps[tap], stride))
        return GeneratorOutput(generated, mu, log_var, embeddings)


def build_discriminator(recipe: Recipe, space: LabelSpace) -> Discriminator | None:
    """Freshly initialised D, if a term needs it."""
    if not recipe.parts().discriminator:
        return None
    num_conditions = space.num_conditions(boundary=recipe.data.instances)
    return Discriminator(num_conditions, recipe.model.width, recipe.model.spectral_norm)


def build_bank(recipe: Recipe, space: LabelSpace, device: torch.device) -> MemoryBank | None:
    """Empty memory bank of Eq. 5, if the recipe has one."""
    losses = recipe.losses
    if losses.contrastive_bank == 0 or not recipe.parts().contrastive:
        return None
    bank = MemoryBank(
        len(losses.contrastive_taps),
        space.num_classes,
        losses.contrastive_bank,
        EMBEDDING_DIM,
        recipe.train.seed,
    )
    return bank.to(device)


@dataclass
class Objective:
    """Loss terms of a training.

    Attributes:
        recipe: weights and settings.
        space: the class list.
        device: device of the networks.
        label_generator: frozen Gl of the similarity term, if any.
        perceptual_network: frozen network of the perceptual term, if any.
        feature_network: frozen network below the segmentation discriminator, if any.
        bank: memory bank of Eq. 5, if any.
    """

    recipe: Recipe
    space: LabelSpace
    device: torch.device
    label_generator: Segmenter | None = None
    perceptual_network: PerceptualFeatures | None = None
    bank: MemoryBank | None = None
    feature_network: EfficientNetLite0 | None = None

    def __post_init__(self) -> None:
        self.recipe = self.recipe.resolved(self.device.type)
        for frozen in (self.label_generator, self.perceptual_network, self.feature_network):
            if frozen is not None:
                channels_last(frozen)
        self.parts = self.recipe.parts()
        on_features = self.recipe.model.segmentation_discriminator == "features"
        assert self.feature_network is not None or not on_features, "no network for its features"
        self.weights, self.pictures = self.parts.terms, self.parts.pictures
        self.segmentation = (
            SegmentationTerms(self.recipe, self.space, self.feature_network, self.autocast)
            if self.parts.segmentation_discriminator
            else None
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast context of the networks; losses run outside of it."""
        if self.recipe.train.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def noise(self, positions: Tensor) -> Tensor:
        """Noise for the styles of a batch, (B, 256)."""
        seed = self.recipe.train.seed
        draws = [
            torch.randn(STYLE_DIM, generator=torch_generator(seed, TorchStream.STYLE, position))
            for position in positions.tolist()
        ]
        return uploaded(torch.stack(draws), self.device)

    def discriminator_loss(
        self, discriminator: nn.Module, inputs: Inputs, made: GeneratorOutput
    ) -> tuple[Tensor, dict[str, list[list[Tensor]]]]:
        """D's loss, Eqs. 8 and 9, on the detached pictures of G.

        Returns:
            The loss, and D's maps of the real pictures (by ``image``, ``edge``), detached, for
            feature matching.
        """
        real = self._real(inputs)
        fake = {name: picture.detach() for name, picture in self._fake(made).items()}
        maps = self._discriminate(discriminator, inputs, [*real.items(), *fake.items()])
        real_maps, fake_maps = maps[: len(real)], maps[len(real) :]
        by_name = dict(zip(fake, fake_maps, strict=True))
        total = torch.zeros((), device=self.device)
        for modality, of_real in zip(real, real_maps, strict=True):
            fakes = [
                (weight, _scores(by_name[name]))
                for name, weight in self.pictures.items()
                if (name == "edge") == (modality == "edge")
            ]
            total = total + losses.discriminator_loss(
                self.recipe.losses.adversarial_kind, _scores(of_real), fakes
            )
        detached = {
            modality: [[m.detach() for m in scale] for scale in of_real]
            for modality, of_real in zip(real, real_maps, strict=True)
        }
        return total, detached

    def generator_terms(
        self,
        discriminator: nn.Module | None,
        inputs: Inputs,
        made: GeneratorOutput,
        real_maps: dict[str, list[list[Tensor]]],
        segmented: tuple[nn.Module, JudgedPair] | None = None,
    ) -> dict[str, Tensor]:
        """Terms of Eq. 10 for G, unweighted.

        Args:
            discriminator: D, whose parameters need no gradient here.
            inputs: the batch.
            made: G's output, with gradient.
            real_maps: second output of ``discriminator_loss``.
            segmented: segmentation discriminator, likewise, and what it sees.
        """
        values: dict[str, Tensor] = {}
        if segmented is not None:
            with span("segmentation adversarial"):
                assert self.segmentation is not None
                values["segmentation_adversarial"] = self.segmentation.generator_term(*segmented)
        if discriminator is not None:
            with span("adversarial, matching"):
                values |= self._judged(discriminator, inputs, made, real_maps)
        measures: dict[str, Callable[[Inputs, GeneratorOutput], Tensor]] = {
            "perceptual": self._perceptual,
            "similarity": self._similarity,
            "contrastive": self._contrastive,
            "class_l1": self._class_l1,
            "kl": self._kl,
        }
        for name, measure in measures.items():
            if name in self.weights:
                with span(name):
                    values[name] = measure(inputs, made)
        return {name: values[name] for name in self.weights}

    def weighted(self, values: dict[str, Tensor], positions: Tensor) -> Tensor:
        """Weighted sum of the terms, Eq. 10, for the images at these positions of the training."""
        weights = dict(self.weights)
        if self.segmentation is not None:
            weights["segmentation_adversarial"] *= self.segmentation.ramp(int(positions[0]))
        return torch.stack([weights[name] * value for name, value in values.items()]).sum()

    def _judged(
        self,
        discriminator: nn.Module,
        inputs: Inputs,
        made: GeneratorOutput,
        real_maps: dict[str, list[list[Tensor]]],
    ) -> dict[str, Tensor]:
        """Adversarial and feature matching terms, from one pass through D."""
        fake = self._fake(made)
        maps = self._discriminate(discriminator, inputs, list(fake.items()))
        adversarial = matching = torch.zeros((), device=self.device)
        for name, of_fake in zip(fake, maps, strict=True):
            weight = self.pictures[name]
            adversarial = adversarial + weight * losses.generator_adversarial(
                self.recipe.losses.adversarial_kind, _scores(of_fake)
            )
            of_real = real_maps["edge" if name == "edge" else "image"]
            matching = matching + weight * losses.feature_matching(_inner(of_real), _inner(of_fake))
        values = {"adversarial": adversarial, "feature_matching": matching}
        return {name: value for name, value in values.items() if name in self.weights}

    def _perceptual(self, inputs: Inputs, made: GeneratorOutput) -> Tensor:
        network = self.perceptual_network
        assert network is not None
        real, fake = self._real(inputs), self._fake(made)
        with self.autocast():
            with torch.no_grad():
                of_real = dict(zip(real, _split(network, list(real.values())), strict=True))
            of_fake = dict(zip(fake, _split(network, list(fake.values())), strict=True))
        total = torch.zeros((), device=self.device)
        for name, features in of_fake.items():
            target = of_real["edge" if name == "edge" else "image"]
            term = losses.perceptual(target, features, network.weights)
            total = total + self.pictures[name] * term
        return total

    def _similarity(self, inputs: Inputs, made: GeneratorOutput) -> Tensor:
        """Eq. 3 for S' and S'', on every s-th pixel in each direction."""
        network = self.label_generator
        assert network is not None
        stride, ignore = self.recipe.losses.similarity_stride, self.space.ignore_index
        assert stride != "auto"
        height, width = inputs.labels.shape[1:]
        size = (max(1, height // stride), max(1, width // stride))
        labels = _nearest(inputs.labels, size)
        known = F.pad(network.known, (0, 1))[labels.clamp(max=network.num_classes)]
        labels = labels.masked_fill(~known, ignore)
        images = [made.generated.coarse]
        if self.parts.has_image:  # else it is the coarse one again
            images.append(made.generated.image)
        with self.autocast():
            probabilities = network.probabilities(torch.cat(images), size)
        if len(network.known_classes) < network.num_classes:  # others have no part in any a''
            probabilities = probabilities.index_select(1, network.known_classes)
        parts = probabilities.chunk(len(images))
        return torch.stack([losses.similarity_loss(p, labels, ignore) for p in parts]).sum()

    def _contrastive(self, inputs: Inputs, made: GeneratorOutput) -> Tensor:
        """Eq. 5, averaged over the taps: this rank's anchors among the pixels of all ranks."""
        ignore, rank = self.space.ignore_index, distributed.rank()
        total = torch.zeros((), device=self.device)
        additions: list[tuple[int, Tensor, Tensor]] = []
        for tap, own in enumerate(made.embeddings):
            labels = distributed.gather(_nearest(inputs.labels, own.shape[2:]))
            embeddings = distributed.gather(own)
            pixels = own.shape[0] * own.shape[2] * own.shape[3]
            bank, bank_classes = (None, None) if self.bank is None else self.bank.read(tap, ignore)
            total = total + losses.pixel_contrastive_loss(
                embeddings.permute(0, 2, 3, 1).flatten(0, 2),
                labels.flatten(),
                self.recipe.losses.temperature,
                anchors=slice(rank * pixels, (rank + 1) * pixels),
                bank=bank,
                bank_classes=bank_classes,
                ignore=ignore,
                reduce_sums=distributed.all_reduce_sum,
            )
            additions.append((tap, embeddings.detach(), labels))
        if self.bank is not None:
            positions = distributed.gather(inputs.positions)
            for tap, embeddings, labels in additions:
                self.bank.add(tap, embeddings, labels, positions)
        return total / len(made.embeddings)

    def _kl(self, _: Inputs, made: GeneratorOutput) -> Tensor:
        assert made.mu is not None
        assert made.log_var is not None
        return losses.kl_divergence(made.mu, made.log_var)

    def _class_l1(self, inputs: Inputs, made: GeneratorOutput) -> Tensor:
        assert made.generated.class_image is not None
        return losses.class_specific_l1(
            made.generated.class_image,
            inputs.image,
            inputs.labels,
            self.space.num_classes,
            self.space.ignore_index,
            mean=self.recipe.losses.class_l1_mean,
            reduce_sums=distributed.all_reduce_sum,
        )

    def _real(self, inputs: Inputs) -> dict[str, Tensor]:
        real = {"image": inputs.image}
        if inputs.edge is not None and "edge" in self.pictures:
            real["edge"] = inputs.edge
        return real

    def _fake(self, made: GeneratorOutput) -> dict[str, Tensor]:
        fake: dict[str, Tensor] = {}
        for name in self.pictures:
            picture: Tensor | None = getattr(made.generated, name)
            assert picture is not None
            fake[name] = picture
        return fake

    def _discriminate(
        self, discriminator: nn.Module, inputs: Inputs, named: Sequence[tuple[str, Tensor]]
    ) -> list[list[list[Tensor]]]:
        """D's maps, for each picture a list of scales of lists of maps; one pass for all."""
        S, shown = inputs.S, [picture for _, picture in named]
        if self.recipe.train.augment == "diffaugment":
            draws = draw(self.recipe.train.seed, inputs.positions.tolist())
            S = diffaugment(S, draws, colour=False)
            shown = [diffaugment(p, draws, colour=name != "edge") for name, p in named]
        with self.autocast():
            judged = discriminator(S, torch.cat(shown))
        parts = [[m.chunk(len(shown)) for m in scale] for scale in judged]
        return [
            [[chunks[index] for chunks in scale] for scale in parts] for index in range(len(shown))
        ]


def _split(network: nn.Module, images: Sequence[Tensor]) -> list[list[Tensor]]:
    """Feature maps of each batch of images, from one pass."""
    maps = [m.chunk(len(images)) for m in network(torch.cat(list(images)))]
    return [[chunks[index] for chunks in maps] for index in range(len(images))]


def _scores(maps: list[list[Tensor]]) -> list[Tensor]:
    return [scale[-1] for scale in maps]


def _inner(maps: list[list[Tensor]]) -> list[list[Tensor]]:
    return [scale[:-1] for scale in maps]


def _nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels, (B, H, W), resized to the nearest pixel."""
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    resized = F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")
    return resized[:, 0].long()
