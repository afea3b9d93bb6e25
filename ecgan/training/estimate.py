"""What a training would be, without training: parts, terms, parameters, memory, steps, splits."""

import os

import torch
from torch import Tensor, nn

from ecgan.errors import UsageError
from ecgan.labels import LabelSpace
from ecgan.models.generator import STYLE_DIM
from ecgan.recipe import Recipe
from ecgan.training.objective import GeneratorSide, build_discriminator, modules, pictures, terms

MOST_AT_ONCE = 64  # images; a larger batch than this teaches no better
ADAM_COPIES = 4  # the weight, its gradient, Adam's two moments; float32


def parameters(recipe: Recipe, space: LabelSpace) -> dict[str, int]:
    """Parameters of each network that is trained, without allocating any."""
    with torch.device("meta"):
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
    networks: dict[str, nn.Module | None] = {
        "G": side.generator,
        "D": discriminator,
        "style encoder": side.style_encoder,
        "Gc": side.heads,
    }
    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in networks.items()
        if network is not None
    }
    return {name: count for name, count in counts.items() if count}


class Estimate:
    """Estimate of a rank's memory by images at a time; networks are built once, on meta.

    What the forward passes of G and D keep for their gradients is added up on the meta device.
    The frozen networks and class-specific heads are not in it: they depend on the labels and on
    weights that are not read yet.

    Args:
        recipe: what would be trained.
        space: its class list.
        bfloat16: what networks run in.
        trained: number of parameters, if it is known already.
    """

    def __init__(
        self, recipe: Recipe, space: LabelSpace, *, bfloat16: bool, trained: int | None = None
    ) -> None:
        model = recipe.model.model_copy(update={"class_specific": False, "output": "refined"})
        self.recipe = recipe.model_copy(update={"model": model})
        self.bfloat16 = bfloat16
        self.num_conditions = space.num_conditions(boundary=recipe.data.instances)
        self.trained = sum(parameters(recipe, space).values()) if trained is None else trained
        with torch.device("meta"):
            self.side = GeneratorSide(self.recipe, space)
            self.discriminator = build_discriminator(self.recipe, space)

    def of(self, images: int) -> int:
        """Bytes for a part of ``images`` images."""
        size = self.recipe.data.height, self.recipe.data.width
        with torch.device("meta"):
            S = torch.empty(images, self.num_conditions, *size)
            image = torch.empty(images, 3, *size)
            labels = torch.empty(images, *size, dtype=torch.int64)
            noise = torch.empty(images, STYLE_DIM)
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
            made = self.side(S, labels, image, noise)
            if self.discriminator is not None:
                # Of D's two passes, one at a time: real and generated pictures, then these alone
                fakes = [getattr(made.generated, name) for name in pictures(self.recipe)]
                self.discriminator(S, torch.cat([*fakes, image, image]))
        activations = kept.bytes // 2 if self.bfloat16 else kept.bytes
        return self.trained * 4 * (ADAM_COPIES + 1) + activations  # and once more for the average


def fitting_batch(
    recipe: Recipe, space: LabelSpace, *, device: torch.device, world: int, available: int
) -> int:
    """The largest batch, a power of two, that the estimate fits into a rank's memory.

    The estimate is linear in the images at a time. What it does not count (frozen networks,
    class-specific heads, the allocator's rest) is given as much again as an image takes, and a
    fifth of the memory stays free.

    Args:
        recipe: what would be trained.
        space: its class list.
        device: where; bfloat16 is that of its precision.
        world: number of ranks.
        available: bytes that are free on each.

    Raises:
        UserError: not even one image fits.
    """
    precision = recipe.train.precision
    bfloat16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    estimate = Estimate(recipe, space, bfloat16=bfloat16)
    one, two = estimate.of(1), estimate.of(2)
    each, fixed = two - one, 2 * one - two
    room = 0.8 * available - fixed
    at_once = int(room // (2 * each))
    if at_once < 1:
        raise UsageError(
            f"--batch auto: one image of {recipe.data.height} x {recipe.data.width} needs about "
            f"{(fixed + 2 * each) / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are free; lower "
            "data.height, data.width or model.width, or set train.checkpointing=3"
        )
    batch = 2 ** (min(at_once, MOST_AT_ONCE).bit_length() - 1)
    return batch * world * recipe.train.accumulate


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(
    recipe: Recipe,
    space: LabelSpace,
    *,
    device: torch.device,
    world: int,
    sizes: dict[str, int],
) -> str:
    """The lines that ``ecgan train --dry-run`` prints.

    Args:
        recipe: what would be trained.
        space: its class list.
        device: where.
        world: number of ranks.
        sizes: items of each split.
    """
    train, counts = recipe.train, parameters(recipe, space)
    part = train.batch // (world * train.accumulate)
    precision = train.precision
    bfloat16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    estimate = Estimate(recipe, space, bfloat16=bfloat16, trained=sum(counts.values()))
    memory = estimate.of(part)
    steps = -(-train.images // train.batch)
    lines = {
        "recipe": recipe.name,
        "device": f"{device}, {world} rank{'s' * (world > 1)}",
        "data": ", ".join(f"{name} {count}" for name, count in sizes.items()) + " images",
        "classes": f"{space.num_classes}, "
        f"{space.num_conditions(boundary=recipe.data.instances)} channels of condition",
        "size": f"{recipe.data.height} x {recipe.data.width}",
        "parts": ", ".join(modules(recipe)),
        "terms": ", ".join(f"{weight:g} {name}" for name, weight in terms(recipe).items())
        + (
            f"; similarity at stride {recipe.losses.similarity_stride}"
            if "similarity" in terms(recipe)
            else ""
        ),
        "parameters": ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()),
        "steps": f"{steps} of {train.batch} images ({part} at a time on a rank), "
        f"{steps * train.batch / max(1, sizes.get('train', 1)):.1f} epochs",
        "memory": f"about {memory / 2**30:.1f} GiB on each rank, frozen networks not counted",
    }
    return "\n".join(f"{name + ':':<12}{text}" for name, text in lines.items())


class _Kept:
    """Bytes kept for gradients, each tensor once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()
        self._alive: list[Tensor] = []  # an address means a tensor while it lives only

    def add(self, tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in self._seen:
            self._seen.add(key)
            self._alive.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor
