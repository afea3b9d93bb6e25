"""G and D with their optimisers, and one step of both (Eqs. 8-10).

One pass of G a step: its pictures go, detached, into D's loss, and with their gradient into G's
terms, through the same D. Both players move at the end of the step, so the real pictures' features
are computed once, and a batch in parts (``train.accumulate``) adds up to the same step, but for
what looks at a whole batch: batch norm, Eq. 5 and the class means of Eq. 6 look at a part.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecgan import distributed
from ecgan.labels import LabelSpace
from ecgan.models.contrastive import EMBEDDING_DIM
from ecgan.models.discriminator import Discriminator
from ecgan.models.layers import channels_last
from ecgan.objective import (
    GeneratorSide,
    Inputs,
    Made,
    MemoryBank,
    Objective,
    build_discriminator,
    modules,
    terms,
)
from ecgan.profiling import measured
from ecgan.recipe import Recipe

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
        optimizer = torch.optim.Adam(network.parameters(), rate, BETAS)
        parallel = distributed.parallel(network, device, find_unused=find_unused)
        return cls(network, parallel, optimizer, rate)

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
    pictures_judged = {"adversarial", "feature_matching", "perceptual"} & set(terms(recipe))
    find_unused = not pictures_judged or recipe.losses.refined == 0
    return Players(
        Player.build(side, train.lr_generator, device, find_unused=find_unused),
        Player.build(discriminator, train.lr_discriminator, device) if discriminator else None,
    )


def build_bank(recipe: Recipe, space: LabelSpace, device: torch.device) -> MemoryBank | None:
    """The memory bank of Eq. 5, if the recipe has one."""
    losses = recipe.losses
    if losses.contrastive_bank == 0 or "Gc" not in modules(recipe):
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


def step(
    players: Players, objective: Objective, parts: Sequence[Inputs], factor: float
) -> dict[str, Tensor]:
    """One step of both players.

    Args:
        players: moved in place.
        objective: the terms.
        parts: this rank's batch, in one or more parts.
        factor: of both rates.

    Returns:
        Every term of G, unweighted, and D's loss; means over the parts.

    Raises:
        NonFiniteError: a term is inf or NaN; nothing has moved.
    """
    sides = [p for p in (players.generator, players.discriminator) if p is not None]
    for player in sides:
        player.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index, inputs in enumerate(parts):
        with ExitStack() as stack:
            if index < len(parts) - 1:
                for player in sides:
                    stack.enter_context(distributed.without_averaging(player.parallel))
            values = _add_gradients(players, objective, inputs, 1 / len(parts))
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(parts)
    with measured("finite gradients"):
        _require_finite_gradients(players, [key for inputs in parts for key in inputs.keys])
    with measured("optimizers"):
        for player in sides:
            player.move(factor)
    return sums


def _require_finite_gradients(players: Players, keys: Sequence[str]) -> None:
    """Finite terms can have gradients that are not, and weights once moved would stay so."""
    norms = {
        f"gradient of {name}": nn.utils.get_total_norm(
            [p.grad for p in player.network.parameters() if p.grad is not None]
        )
        for name, player in (("G", players.generator), ("D", players.discriminator))
        if player is not None
    }
    _require_finite(norms, keys)


def _add_gradients(
    players: Players, objective: Objective, inputs: Inputs, share: float
) -> dict[str, Tensor]:
    side, opponent = players.generator, players.discriminator
    noise = objective.noise(inputs.positions) if players.side.style_encoder is not None else None
    with measured("G forward"), objective.autocast():
        made: Made = side.parallel(inputs.S, inputs.labels, inputs.image, noise)
    values: dict[str, Tensor] = {}
    real_maps: dict[str, list[list[Tensor]]] = {}
    if opponent is not None:
        opponent.network.requires_grad_(True)
        with measured("D forward"):
            loss, real_maps = objective.discriminator_loss(opponent.parallel, inputs, made)
        values["discriminator"] = loss.detach()
        _require_finite(values, inputs.keys)
        with measured("D backward"):
            (share * loss).backward()
        opponent.network.requires_grad_(False)
    network = None if opponent is None else opponent.network
    of_generator = objective.generator_terms(network, inputs, made, real_maps)
    values |= {name: value.detach() for name, value in of_generator.items()}
    _require_finite(values, inputs.keys)
    with measured("G backward"):
        (share * objective.weighted(of_generator)).backward()
    if opponent is not None:
        opponent.network.requires_grad_(True)
    return values


def _require_finite(values: dict[str, Tensor], keys: Sequence[str]) -> None:
    stacked = torch.stack([value.float() for value in values.values()])
    if bool(stacked.isfinite().all()):  # one wait for the device, not one for each term
        return
    for name, value in zip(values, stacked.tolist(), strict=True):
        if not -float("inf") < value < float("inf"):
            raise NonFiniteError(name, value, keys)
