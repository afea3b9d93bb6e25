"""The average of a network over training, which samples and evaluation use.

Weights are averaged exponentially; the decay follows from a half-life in images, so that it does
not depend on the batch size, and it is ramped up from the start, so that short runs do not carry
their first weights along (at a constant 0.999, 1,250 steps leave 29 % of them).

Averaged weights do not go with anybody's batch statistics: ``reestimate_statistics`` measures them.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ecgan.models.generator import Generator
from ecgan.models.layers import channels_last
from ecgan.runtime.torch_private import AnyBatchNorm

RAMP = 0.05
"""Half-life as a share of the images seen so far, until that reaches the full half-life."""


def decay(batch: int, images_seen: int, half_life: int, ramp: float = RAMP) -> float:
    """How much of the average stays after a step: 0.5 ** (batch / min(half_life, ramp * seen)).

    Args:
        batch: images of this step, over all ranks.
        images_seen: images of all steps, this one included.
        half_life: images after which an old weight counts half; 0 for no average.
        ramp: bounds the half-life by this share of ``images_seen``.
    """
    effective = min(half_life, ramp * images_seen)
    return 0.5 ** (batch / effective) if effective > 0 else 0.0


class Average:
    """A second copy of a network, always in evaluation mode, that follows the one in training.

    Make it before the network is converted for several ranks or compiled: the copy is used on one
    rank at a time, and a batch norm that waits for the others would wait for ever.

    Attributes:
        module: the copy.
        half_life: images after which an old weight counts half; 0: the copy is the latest weights.
    """

    def __init__(self, module: nn.Module, half_life: int) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
        channels_last(self.module)  # as the trained one: else each weight is followed by itself
        self.half_life = half_life

    @torch.no_grad()
    def update(self, trained: nn.Module, *, batch: int, images_seen: int) -> None:
        """Follow one step. Buffers (vectors of spectral norm, batch statistics) are copied.

        Args:
            trained: the network in training, as it was given at first or converted since.
            batch: images of the step, over all ranks.
            images_seen: images of all steps, this one included.
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

    def state_dict(self) -> dict[str, Any]:
        """Of the copy; the half-life belongs to the recipe."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` gave."""
        self.module.load_state_dict(state)


@torch.no_grad()
def reestimate_statistics(
    generator: Generator, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> None:
    """Replace running means and variances by their average over batches.

    The generator's weights, its vectors of spectral norm, its mode and the state of every random
    generator stay as they are. Batches of one size weigh alike; so does a smaller last one.

    Args:
        generator: its trunk holds all of its batch norms.
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
