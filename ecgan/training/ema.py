"""Exponential moving average (EMA) of the generator, which samples and evaluation use.

The decay follows from a half-life in images, so it does not depend on the batch size, and it is
ramped up from the start, so short runs do not keep their first weights (at a constant 0.999, 1,250
steps keep 29 % of them).

Batch norm's running statistics belong to the weights in training, not to their average; copied,
they give broken pictures. So they are estimated again, over the first training layouts in key
order, before the average is shown, scored or written; and so is the prior of the styles, over their
photos. Nothing here changes the training itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ecgan import checkpoint
from ecgan.checkpoint import InheritedTraining, build_generator, build_style_encoder
from ecgan.data.loader import Batch, TripleDataset, ordered_batches, to_device, to_images
from ecgan.labels import LabelSpace
from ecgan.models.generator import STYLE_DIM, Generator
from ecgan.models.layers import channels_last, condition
from ecgan.models.style import StylePrior
from ecgan.recipe import Recipe
from ecgan.runtime.torch_private import AnyBatchNorm
from ecgan.seeds import TorchStream, torch_generator
from ecgan.segmentation.segmenter import Segmenter
from ecgan.training.objective import GeneratorSide

RAMP = 0.05  # half-life as a share of the images seen so far, until it reaches the full one
NUM_LAYOUTS = 512  # over which statistics are estimated
LAYOUTS_AT_ONCE = 8  # at most, whatever the batch of all ranks: one of them estimates, in float32


def decay(batch: int, images_seen: int, half_life: int, ramp: float = RAMP) -> float:
    """Share of the average that stays after a step: 0.5 ** (batch / min(half_life, ramp * seen)).

    Args:
        batch: images of this step, over all ranks.
        images_seen: images of all steps, including this one.
        half_life: images after which an old weight counts half; 0: no average.
        ramp: bound of the half-life, as a share of ``images_seen``.
    """
    effective = min(half_life, ramp * images_seen)
    return 0.5 ** (batch / effective) if effective > 0 else 0.0


def even_batch(items: int, batch: int) -> int:
    """The size nearest to ``batch`` that leaves no last batch of one, which has no variance."""
    sizes = [size for size in range(2, LAYOUTS_AT_ONCE + 1) if items % size != 1]
    if batch == 1 or items % batch != 1 or not sizes:
        return batch
    return min(sizes, key=lambda size: abs(size - batch))


class EMA:
    """Exponential moving average of a network's weights, in a second network in evaluation mode.

    Args:
        module: the second network, neither converted for several ranks nor compiled: it runs on one
            rank at a time, where a synchronised batch norm would wait for ever.
        half_life: images after which an old weight counts half; 0: it has the newest weights.

    Attributes:
        module: the second network.
        half_life: as given.
    """

    def __init__(self, module: nn.Module, half_life: int) -> None:
        self.module = module.eval().requires_grad_(requires_grad=False)
        channels_last(self.module)  # as the trained one: else each weight is followed by itself
        self.half_life = half_life

    @torch.no_grad()
    def update(self, trained: nn.Module, *, batch: int, images_seen: int) -> None:
        """Follow one step; buffers (spectral norm's vectors, batch statistics) are copied.

        Args:
            trained: the network in training, converted or not.
            batch: images of the step, over all ranks.
            images_seen: images of all steps, including this one.
        """
        follow = get_ema_multi_avg_fn(decay(batch, images_seen, self.half_life))
        parameters, averages = (
            dict(trained.named_parameters()),
            dict(self.module.named_parameters()),
        )
        followed = [parameters[name].to(average.dtype) for name, average in averages.items()]
        follow(list(averages.values()), followed, None)
        buffers = dict(trained.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])


@torch.no_grad()
def reestimate_statistics(
    generator: Generator, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> None:
    """Replace running means and variances by their average over batches.

    The generator's weights, spectral norm's vectors, the mode and the state of every random
    generator do not change. All batches have the same weight, also a smaller last one.

    Args:
        generator: the generator; its trunk holds all of its batch norms.
        batches: condition S, (B, channels of S, H, W), and style z, (B, 256), or None without.
    """
    norms = [module for module in generator.modules() if isinstance(module, AnyBatchNorm)]
    with _measuring(generator, norms):
        seen = False
        for S, z in batches:
            generator.trunk(S, z)
            seen = True
        assert seen, "no batch to estimate statistics from"


@contextmanager
def _measuring(generator: Generator, norms: list[AnyBatchNorm]) -> Iterator[None]:
    """Only the norms in training mode, from nothing, in a cumulative average (momentum None)."""
    modes = {module: module.training for module in generator.modules()}
    momenta = [norm.momentum for norm in norms]
    generator.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


class AveragedGenerator:
    """Moving average of G and of the style encoder, with batch statistics of its own.

    Its batch norms are ordinary ones, because it runs on one rank.

    Args:
        recipe: the run's recipe.
        space: the class list.
        train_set: layouts for the statistics.
        device: device of the networks.
        label_generator: label generator, named in the generator file.

    Attributes:
        earlier_keys: keys of pairs that the run learnt from before they were taken out.
        photos_alone: photos without label maps that the run learns from too.
        unlabelled: SHA-256 of these, and of those that were taken out.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: LabelSpace,
        train_set: TripleDataset,
        device: torch.device,
        label_generator: Segmenter | None = None,
    ) -> None:
        self.recipe, self.space, self.device = recipe, space, device
        self.earlier_keys: frozenset[str] = frozenset()
        self.photos_alone: TripleDataset | None = None
        self.unlabelled: frozenset[str] = frozenset()
        self._label_generator = None if label_generator is None else label_generator.describe()
        self.train_set = train_set
        networks: dict[str, nn.Module] = {"generator": build_generator(recipe, space)}
        style_encoder = build_style_encoder(recipe)
        if style_encoder is not None:
            networks["style_encoder"] = style_encoder
        self._ema = EMA(nn.ModuleDict(networks).to(device), recipe.train.ema_images)
        self._layouts: list[Batch] | None = None
        self._is_estimated = False  # the statistics are those of the weights
        self._style_prior: StylePrior | None = None

    @property
    def networks(self) -> nn.ModuleDict:
        """``generator`` and, with a style, ``style_encoder``."""
        return cast("nn.ModuleDict", self._ema.module)

    @property
    def generator(self) -> Generator:
        """G with statistics of its own weights."""
        generator = cast("Generator", self.networks["generator"])
        if not self._is_estimated:
            reestimate_statistics(generator, self._conditions())
            self._is_estimated = True
        return generator

    @property
    def _style_encoder(self) -> nn.Module | None:
        return dict(self.networks.items()).get("style_encoder")

    @property
    def style_prior(self) -> StylePrior | None:
        """Prior fitted to the styles of the first :meth:`photos`; None without a style."""
        encoder = self._style_encoder
        if self._style_prior is None and encoder is not None:
            with torch.no_grad():
                prior = StylePrior.fitted(encoder(batch) for batch in self.photos(NUM_LAYOUTS))
            self._style_prior = prior.to(self.device)
        return self._style_prior

    def start(self, side: GeneratorSide) -> None:
        """Copy the weights in training."""
        self.networks.load_state_dict(self._averaged_part(side).state_dict())
        self._is_estimated, self._style_prior = False, None

    def update(self, side: GeneratorSide, images_seen: int) -> None:
        """Follow a step of the training that ended at ``images_seen``."""
        batch = self.recipe.train.batch
        self._ema.update(self._averaged_part(side), batch=batch, images_seen=images_seen)
        self._is_estimated, self._style_prior = False, None

    def save(
        self, path: Path, images_seen: int, inherited: Sequence[InheritedTraining] = ()
    ) -> None:
        """Write ``generator.safetensors``; for ``inherited`` see :func:`checkpoint.inheritance`."""
        checkpoint.save_generator(
            path,
            self.generator,
            self.recipe,
            self.space,
            style_encoder=self._style_encoder,
            style_prior=self.style_prior,
            seen_keys={*self.train_set.keys, *self.earlier_keys},
            inherited=inherited,
            label_generator=self._label_generator,
            unlabelled=self.unlabelled,
            images_seen=images_seen,
        )

    def styles(self, stream: TorchStream, numbers: Sequence[int]) -> Tensor | None:
        """Styles drawn by number, (B, 256), from the recipe's prior; None without a style."""
        if not self.recipe.model.style:
            return None
        seed = self.recipe.train.seed
        draws = [
            torch.randn(STYLE_DIM, generator=torch_generator(seed, stream, n)) for n in numbers
        ]
        return self.styles_of(torch.stack(draws))

    def styles_of(self, noise: Tensor) -> Tensor:
        """Styles of noise, (B, 256), under the recipe's prior, as samples get them."""
        noise, sampling = noise.to(self.device), self.recipe.sampling
        if sampling.style_prior == "normal":
            return noise
        assert self.style_prior is not None
        return self.style_prior(noise, sampling.style_temperature)

    def _averaged_part(self, side: GeneratorSide) -> nn.ModuleDict:
        return nn.ModuleDict({name: getattr(side, name) for name in self.networks})

    def _conditions(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first training layouts, each with its own style."""
        if self._layouts is None:
            # once, and without the photos: bytes of a few hundred layouts are small
            self._layouts = [b._replace(images=None, edges=None) for b in self._ordered()]
        for batch in self._layouts:
            z = self.styles(TorchStream.STATISTICS, batch.positions.tolist())
            moved = to_device(batch, self.device)
            yield condition(moved.labels, moved.boundary, self.space), z

    def photos(self, limit: int) -> Iterator[Tensor]:
        """Batches of the first training photos in key order, (b, 3, H, W) in [-1, 1].

        First those of pairs, then as many of those without label maps.
        """
        for dataset in filter(None, (self.train_set, self.photos_alone)):
            for batch in self._ordered(limit, dataset):
                moved = to_device(batch, self.device)
                assert moved.images is not None
                yield to_images(moved.images)

    def _ordered(
        self, limit: int = NUM_LAYOUTS, dataset: TripleDataset | None = None
    ) -> Iterator[Batch]:
        """Pairs of the first training layouts in key order."""
        dataset = dataset or self.train_set
        return ordered_batches(
            dataset,
            even_batch(min(limit, len(dataset)), min(self.recipe.train.batch, LAYOUTS_AT_ONCE)),
            workers=self.recipe.data.workers,
            limit=limit,
        )
