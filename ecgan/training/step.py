"""Training step of G and the discriminators (Eqs. 8-10), and the networks with their optimisers.

G runs once per step: its pictures go, detached, into D's loss and, with their gradient, through the
same D into G's terms. All networks are updated at the end of the step, so D's features of real
pictures are computed once. Gradients of micro-batches (``train.accumulate``) add up to the same
step, except for batch norm, Eq. 5 and the class means of Eq. 6, which see one micro-batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecgan.data.loader import Batch, to_device, to_images
from ecgan.errors import UserError, first_line
from ecgan.labels import LabelSpace
from ecgan.models.discriminators.patch import Discriminator
from ecgan.models.discriminators.segmentation import FeatureDiscriminator, UNetDiscriminator
from ecgan.models.encoder import BLOCK_WIDTHS
from ecgan.models.layers import channels_last, condition
from ecgan.models.pretrained.hed import Hed
from ecgan.recipe import Recipe
from ecgan.recipe.schema import Train
from ecgan.runtime import distributed
from ecgan.runtime.device import Download, is_out_of_memory
from ecgan.runtime.timing import span
from ecgan.runtime.torch_private import compile_failures
from ecgan.training.objective import (
    GeneratorOutput,
    GeneratorSide,
    Inputs,
    Objective,
    build_discriminator,
)
from ecgan.training.segmentation_terms import JudgedPair, build_segmentation_discriminator

BETAS = (0.0, 0.999)  # of Adam, as in the paper


class NonFiniteError(Exception):
    """A loss term or the norm of a gradient is inf or NaN.

    Attributes:
        term: name of the term.
        value: its value.
        keys: keys of the images of the batch, or of the micro-batch.
    """

    def __init__(self, term: str, value: float, keys: Sequence[str]) -> None:
        self.term, self.value, self.keys = term, value, keys
        super().__init__(f"{term} is {value}")


@dataclass
class TrainedNetwork:
    """A network with its optimiser.

    Attributes:
        parallel: the network, in DDP where there are several ranks.
        optimizer: Adam.
        rate: initial learning rate.
    """

    parallel: nn.Module
    optimizer: torch.optim.Adam
    rate: float

    @classmethod
    def build(
        cls, network: nn.Module, rate: float, device: torch.device, *, find_unused: bool = False
    ) -> "TrainedNetwork":
        """Put a network on the device and, with several ranks, in DDP."""
        network = network.to(device).train()
        channels_last(network)
        network = distributed.synchronised(network, device)
        fused = device.type in {"cpu", "cuda"}  # one pass over all weights: 3 times as fast
        optimizer = torch.optim.Adam(network.parameters(), rate, BETAS, fused=fused)
        return cls(distributed.parallel(network, device, find_unused=find_unused), optimizer, rate)

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        return distributed.without_parallel(self.parallel)

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Load a saved state, of a fused Adam or not: moments alone, its settings are our own."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})

    def refuse_other_optimizer(self, state: Mapping[str, Any], name: str) -> None:
        """Compare a saved state of Adam with the parameters.

        Raises:
            UserError: moments are missing, of other shapes, or not numbers.
        """
        (group,) = self.optimizer.param_groups
        shapes = [parameter.shape for parameter in group["params"]]
        moments = state.get("state")
        if not isinstance(moments, dict) or not (
            moments.keys() <= {*range(len(shapes))}
            and all(_are_moments(m, shapes[i]) for i, m in moments.items())
        ):
            raise UserError(f"{name}_optimizer.pt does not hold the moments of the parameters")

    def move(self, rate_factor: float) -> None:
        """Take one step of the optimiser."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_factor
        self.optimizer.step()


@dataclass
class TrainedNetworks:
    """G and the discriminators, each only where a term needs it."""

    generator: TrainedNetwork  # a GeneratorSide
    discriminator: TrainedNetwork | None
    segmentation_discriminator: TrainedNetwork | None = None

    @property
    def side(self) -> GeneratorSide:
        """G and what is trained with it."""
        assert isinstance(self.generator.network, GeneratorSide)
        return self.generator.network

    @property
    def by_name(self) -> dict[str, TrainedNetwork]:
        """Those that there are, under the names of their attributes."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: one for name, one in found.items() if one is not None}


def _are_moments(moments: object, shape: torch.Size) -> bool:
    """Whether these are Adam's moments of a parameter and its count of steps, all finite."""
    names = ("step", "exp_avg", "exp_avg_sq")
    if not isinstance(moments, dict) or moments.keys() != {*names}:
        return False
    tensors = [moments[name] for name in names]
    if not all(isinstance(x, (Tensor, float, int)) for x in tensors):
        return False
    step, mean, square = map(torch.as_tensor, tensors)
    return (
        (step.shape, mean.shape, square.shape) == ((), shape, shape)
        and not any(x.is_complex() for x in (step, mean, square))
        and all(bool(torch.isfinite(x).all()) for x in (step, mean, square))
        and bool((step >= 0).all() and (square >= 0).all())
    )


def build(recipe: Recipe, space: LabelSpace, device: torch.device) -> TrainedNetworks:
    """Freshly initialised networks, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
        segmenting = build_segmentation_discriminator(recipe, space)
    return join(recipe, side, discriminator, device, segmenting)


def join(
    recipe: Recipe,
    side: GeneratorSide,
    discriminator: Discriminator | None,
    device: torch.device,
    segmenting: FeatureDiscriminator | UNetDiscriminator | None = None,
) -> TrainedNetworks:
    """Put the networks on the device, with their optimisers; compile them if the recipe says so."""
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
    # A decoder on features that know photos learns as fast as G
    on_features = recipe.model.segmentation_discriminator == "features"
    rate = train.lr_generator if on_features else train.lr_discriminator
    find_unused = not pictures_judged or recipe.losses.refined == 0
    return TrainedNetworks(
        TrainedNetwork.build(side, train.lr_generator, device, find_unused=find_unused),
        TrainedNetwork.build(discriminator, train.lr_discriminator, device)
        if discriminator
        else None,
        TrainedNetwork.build(segmenting, rate, device) if segmenting else None,
    )


def micro_batches(
    batch: Batch, num: int, space: LabelSpace, device: torch.device, hed: Hed | None
) -> list[Inputs]:
    """Cut a batch into equal micro-batches on the device.

    Args:
        batch: the batch.
        num: number of micro-batches.
        space: the class list.
        device: device of the networks.
        hed: detector of the real edges, if they come from it.
    """
    size = len(batch.keys) // num
    parts: list[Inputs] = []
    for start in range(0, len(batch.keys), size):
        part = slice(start, start + size)
        optional = (batch.images, batch.edges, batch.boundary)
        found = Batch(
            batch.keys[part],
            batch.positions[part],
            batch.labels[part],
            *(None if x is None else x[part] for x in optional),
        )
        parts.append(_inputs(found, space, device, hed))
    return parts


def _inputs(batch: Batch, space: LabelSpace, device: torch.device, hed: Hed | None) -> Inputs:
    moved = to_device(batch, device)
    assert moved.images is not None
    image = to_images(moved.images)
    edge = None
    if hed is not None:
        with torch.no_grad():
            edge = hed(image) * 2 - 1
    elif moved.edges is not None:
        edge = to_images(moved.edges)
    return Inputs(
        keys=batch.keys,
        positions=batch.positions,
        labels=moved.labels.long(),
        S=condition(moved.labels, moved.boundary, space),
        image=image,
        edge=None if edge is None else edge.expand(-1, 3, -1, -1),
    )


@contextmanager
def explained_failures(train: Train, out: Path) -> Iterator[None]:
    """Say which settings help where a step runs out of memory or cannot be compiled."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise _too_large(train, out, error) from error
        if train.compile and isinstance(error, compile_failures()):
            raise UserError(
                f"{out}: train.compile: the networks cannot be compiled here "
                f"({first_line(error)}); add --set train.compile=false"
            ) from error
        raise


def _too_large(train: Train, out: Path, error: Exception) -> UserError:
    at_once = train.batch // distributed.world_size() // train.accumulate
    blocks = min(len(BLOCK_WIDTHS), train.checkpointing + 3)
    remedy = f"--set train.checkpointing={blocks}"
    if train.compile:  # not together
        remedy = f"--set train.compile=false {remedy}"
    return UserError(
        f"{out}: the memory does not suffice for {at_once} images at "
        f"once ({first_line(error)}). The checkpoint before is untouched. "
        f"{remedy} takes less, here too; in a new run also a lower train.batch or a higher "
        "train.accumulate"
    )


def rate_factor(recipe: Recipe, images_seen: int) -> float:
    """Learning rate schedule: 1, then linear to 0 over the last ``lr_decay`` of the training."""
    train = recipe.train
    decay = train.lr_decay * train.images
    return 1.0 if decay == 0 else min(1.0, max(0.0, (train.images - images_seen) / decay))


class StepValues:
    """Loss values of a step, on their way to the host; only ``read`` waits for them.

    Attributes:
        means: every term of G, unweighted, and D's loss; means over the micro-batches.
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
        """Terms, means over the micro-batches and over the ranks.

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
    trained: TrainedNetworks, objective: Objective, parts: Sequence[Inputs], factor: float
) -> StepValues:
    """Update G and D by one step, without waiting for the device.

    Args:
        trained: networks to update. They are unusable once a value of the result is not finite.
        objective: loss terms.
        parts: this rank's batch, in one or more micro-batches.
        factor: factor of both learning rates.
    """
    sides = list(trained.by_name.values())
    for one in sides:
        one.optimizer.zero_grad(set_to_none=True)
    values: list[dict[str, Tensor]] = []
    for index, inputs in enumerate(parts):
        with ExitStack() as stack:
            if index < len(parts) - 1:
                for one in sides:
                    stack.enter_context(distributed.without_averaging(one.parallel))
            values.append(_add_gradients(trained, objective, inputs, 1 / len(parts)))
    with span("norms"):
        norms = _norms_of_gradients(trained)
    with span("optimizers"):
        for one in sides:
            one.move(factor)
    return StepValues([inputs.keys for inputs in parts], values, norms)


_SYMBOLS = {"generator": "G", "discriminator": "D", "segmentation_discriminator": "D_seg"}


def _norms_of_gradients(trained: TrainedNetworks) -> dict[str, Tensor]:
    """Finite terms can have gradients that are not, and weights once moved stay so."""
    return {
        f"gradient of {_SYMBOLS[name]}": nn.utils.get_total_norm(
            [p.grad for p in one.network.parameters() if p.grad is not None]
        )
        for name, one in trained.by_name.items()
    }


def _add_gradients(
    trained: TrainedNetworks, objective: Objective, inputs: Inputs, share: float
) -> dict[str, Tensor]:
    side = trained.generator
    noise = objective.noise(inputs.positions) if objective.recipe.model.style else None
    with span("G forward"), objective.autocast():
        made: GeneratorOutput = side.parallel(inputs.S, inputs.labels, inputs.image, noise)
    values: dict[str, Tensor] = {}
    real_maps: dict[str, list[list[Tensor]]] = {}
    segmented: tuple[nn.Module, JudgedPair] | None = None
    opponent, critic = trained.discriminator, trained.segmentation_discriminator
    if opponent is not None:
        with span("D forward"):
            loss, real_maps = objective.discriminator_loss(opponent.parallel, inputs, made)
        values["discriminator"] = loss.detach()
        with span("D backward"):
            (share * loss).backward()
    if critic is not None and objective.segmentation is not None:
        terms, image = objective.segmentation, made.generated.image
        with span("frozen features"):
            pair = terms.pair(inputs.image, image, inputs.labels, inputs.positions.tolist())
        with span("D_seg forward"):
            loss, watched = terms.discriminator_loss(critic.parallel, pair)
        values |= watched
        with span("D_seg backward"):
            (share * loss).backward()
        segmented = critic.network, pair
    network = None if opponent is None else opponent.network
    with _frozen([network, None if critic is None else critic.network]):
        of_generator = objective.generator_terms(network, inputs, made, real_maps, segmented)
        values |= {name: value.detach() for name, value in of_generator.items()}
        with span("G backward"):
            (share * objective.weighted(of_generator, inputs.positions)).backward()
    return values


@contextmanager
def _frozen(networks: Sequence[nn.Module | None]) -> Iterator[None]:
    """Where gradients go through networks and not to their parameters."""
    for network in networks:
        if network is not None:
            network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            if network is not None:
                network.requires_grad_(True)
