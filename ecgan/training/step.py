"""G and D with their optimisers, and one step of both (Eqs. 8-10).

One pass of G a step: its pictures go, detached, into D's loss, and with their gradient into G's
terms, through the same D. Both players move at the end of the step, so the real pictures' features
are computed once, and a batch in parts (``train.accumulate``) adds up to the same step, but for
what looks at a whole batch: batch norm, Eq. 5 and the class means of Eq. 6 look at a part.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecgan.labels import LabelSpace
from ecgan.models.contrastive import EMBEDDING_DIM
from ecgan.models.discriminator import Discriminator
from ecgan.models.layers import channels_last
from ecgan.recipe import Recipe
from ecgan.runtime import distributed
from ecgan.runtime.device import Download
from ecgan.runtime.timing import span
from ecgan.training.objective import (
    GeneratorSide,
    Inputs,
    Made,
    MemoryBank,
    Objective,
    build_discriminator,
)

BETAS = (0.0, 0.999)  # of Adam, as in the paper


class NonFiniteError(Exception):
    """A term is inf or NaN.

    Attributes:
        term: its name.
        value: its value.
        keys: of the samples of the batch, or of the part of it.
    """

    def __init__(self, term: str, value: float, keys: Sequence[str]) -> None:
        self.term, self.value, self.keys = term, value, keys
        super().__init__(f"{term} is {value}")


@dataclass
class Player:
    """A network, the same in DDP, and its optimiser."""

    network: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Adam
    rate: float

    @classmethod
    def build(
        cls, network: nn.Module, rate: float, device: torch.device, *, find_unused: bool = False
    ) -> "Player":
        """Put a network on the device and, with several ranks, in DDP."""
        network = network.to(device).train()
        channels_last(network)
        network = distributed.synchronised(network, device)
        fused = device.type in {"cpu", "cuda"}  # one pass over all weights: 3 times as fast
        optimizer = torch.optim.Adam(network.parameters(), rate, BETAS, fused=fused)
        parallel = distributed.parallel(network, device, find_unused=find_unused)
        return cls(network, parallel, optimizer, rate)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, whatever form of Adam it is of."""
        fused = self.optimizer.defaults["fused"]
        groups = [group | {"fused": fused} for group in state["param_groups"]]
        self.optimizer.load_state_dict(state | {"param_groups": groups})

    def move(self, rate_factor: float) -> None:
        """One step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_factor
        self.optimizer.step()


@dataclass
class Players:
    """Both sides; D only where a term needs it."""

    generator: Player  # of a GeneratorSide
    discriminator: Player | None

    @property
    def side(self) -> GeneratorSide:
        """G and what is trained with it."""
        assert isinstance(self.generator.network, GeneratorSide)
        return self.generator.network


def build(recipe: Recipe, space: LabelSpace, device: torch.device) -> Players:
    """Networks with the weights that the seed gives, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
    return join(recipe, side, discriminator, device)


def join(
    recipe: Recipe, side: GeneratorSide, discriminator: Discriminator | None, device: torch.device
) -> Players:
    """Networks with their optimisers, on the device."""
    if recipe.train.compile:
        # G sees one size, D two: real and generated pictures, and generated ones alone
        side.generator.compile(dynamic=False)
        if discriminator is not None:
            discriminator.compile(dynamic=False)
    train = recipe.train
    # Weights of 0 can leave a part of G without any term; DDP has to look for it then.
    pictures_judged = {
        "adversarial",
        "feature_matching",
        "perceptual",
    } & recipe.parts().terms.keys()
    find_unused = not pictures_judged or recipe.losses.refined == 0
    return Players(
        Player.build(side, train.lr_generator, device, find_unused=find_unused),
        Player.build(discriminator, train.lr_discriminator, device) if discriminator else None,
    )


def build_bank(recipe: Recipe, space: LabelSpace, device: torch.device) -> MemoryBank | None:
    """The memory bank of Eq. 5, if the recipe has one."""
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


def rate_factor(recipe: Recipe, images_seen: int) -> float:
    """Adam's rate against its start: constant, then linear to zero over the last ``lr_decay``."""
    train = recipe.train
    decay = train.lr_decay * train.images
    return 1.0 if decay == 0 else min(1.0, max(0.0, (train.images - images_seen) / decay))


class StepValues:
    """What a step measured, on its way to the host: who reads it waits for it, nobody else.

    Attributes:
        means: every term of G, unweighted, and D's loss; means over the parts.
    """

    def __init__(
        self,
        keys: Sequence[Sequence[str]],
        parts: Sequence[Mapping[str, Tensor]],
        norms: Mapping[str, Tensor],
    ) -> None:
        self.means = {
            name: torch.stack([values[name] for values in parts]).mean(dim=0) for name in parts[0]
        }
        of_ranks = distributed.mean_(_stacked(self.means))
        every_key = [key for part in keys for key in part]
        self._checked = [
            *((name, part) for part, values in zip(keys, parts, strict=True) for name in values),
            *((name, every_key) for name in norms),
        ]
        self._numbers = Download(torch.cat([of_ranks, *map(_stacked, parts), _stacked(norms)]))

    def read(self) -> dict[str, float]:
        """The terms, means over the parts and over the ranks.

        Raises:
            NonFiniteError: a term of this rank, or the norm of a gradient, is inf or NaN.
        """
        numbers = self._numbers.wait().tolist()
        size = len(self.means)
        for (name, keys), value in zip(self._checked, numbers[size:], strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(name, value, keys)
        return dict(zip(self.means, numbers[:size], strict=True))


def _stacked(values: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.float() for value in values.values()])


def step(
    players: Players, objective: Objective, parts: Sequence[Inputs], factor: float
) -> StepValues:
    """One step of both players, which nothing here waits for: what it returns must be read.

    Args:
        players: moved in place. Where a value is not finite they are no good any more.
        objective: the terms.
        parts: this rank's batch, in one or more parts.
        factor: of both rates.
    """
    sides = [p for p in (players.generator, players.discriminator) if p is not None]
    for player in sides:
        player.optimizer.zero_grad(set_to_none=True)
    values: list[dict[str, Tensor]] = []
    for index, inputs in enumerate(parts):
        with ExitStack() as stack:
            if index < len(parts) - 1:
                for player in sides:
                    stack.enter_context(distributed.without_averaging(player.parallel))
            values.append(_add_gradients(players, objective, inputs, 1 / len(parts)))
    with span("norms"):
        norms = _norms_of_gradients(players)
    with span("optimizers"):
        for player in sides:
            player.move(factor)
    return StepValues([inputs.keys for inputs in parts], values, norms)


def _norms_of_gradients(players: Players) -> dict[str, Tensor]:
    """Finite terms can have gradients that are not, and weights once moved stay so."""
    return {
        f"gradient of {name}": nn.utils.get_total_norm(
            [p.grad for p in player.network.parameters() if p.grad is not None]
        )
        for name, player in (("G", players.generator), ("D", players.discriminator))
        if player is not None
    }


def _add_gradients(
    players: Players, objective: Objective, inputs: Inputs, share: float
) -> dict[str, Tensor]:
    side, opponent = players.generator, players.discriminator
    noise = objective.noise(inputs.positions) if players.side.style_encoder is not None else None
    with span("G forward"), objective.autocast():
        made: Made = side.parallel(inputs.S, inputs.labels, inputs.image, noise)
    values: dict[str, Tensor] = {}
    real_maps: dict[str, list[list[Tensor]]] = {}
    if opponent is not None:
        opponent.network.requires_grad_(True)
        with span("D forward"):
            loss, real_maps = objective.discriminator_loss(opponent.parallel, inputs, made)
        values["discriminator"] = loss.detach()
        with span("D backward"):
            (share * loss).backward()
        opponent.network.requires_grad_(False)
    network = None if opponent is None else opponent.network
    of_generator = objective.generator_terms(network, inputs, made, real_maps)
    values |= {name: value.detach() for name, value in of_generator.items()}
    with span("G backward"):
        (share * objective.weighted(of_generator)).backward()
    if opponent is not None:
        opponent.network.requires_grad_(True)
    return values
