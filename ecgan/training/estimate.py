"""Dry run and profile of a training: its parts, memory and steps, and where its time goes."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from ecgan import checkpoint
from ecgan.checkpoint.tensors import shapes_alone
from ecgan.data.files.photo_sets import Reading
from ecgan.data.loader import Batch
from ecgan.labels import LabelSpace
from ecgan.models.generator import STYLE_DIM
from ecgan.recipe import Recipe, class_list_file
from ecgan.runtime.device import choose_device, memory_of
from ecgan.runtime.timing import counted, duration, span, span_seconds, table
from ecgan.training import run
from ecgan.training.loop import speed
from ecgan.training.loop.banner import epochs
from ecgan.training.loop.data_files import reading_text
from ecgan.training.loop.fit import batches_of, train_step
from ecgan.training.loop.state import TrainingState
from ecgan.training.networks import (
    Frozen,
    build_networks,
    named_label_generator,
    read_named,
    untrained_label_generator,
    warm_start,
)
from ecgan.training.objective import (
    GeneratorSide,
    Objective,
    build_bank,
    build_discriminator,
)
from ecgan.training.segmentation_terms import build_segmentation_discriminator

ALONE = "without label maps"
ADAM_COPIES = 4  # the weight, its gradient, Adam's two moments; float32


def parameters(recipe: Recipe, space: LabelSpace) -> dict[str, int]:
    """Parameters of each network that is trained."""
    with shapes_alone("the recipe"):
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
        segmenting = build_segmentation_discriminator(recipe, space)
    networks: dict[str, nn.Module | None] = {
        "G": side.generator,
        "D": discriminator,
        "D_seg": segmenting,
        "style encoder": side.style_encoder,
        "Gc": side.heads,
    }
    counts = {
        name: sum(p.numel() for p in network.parameters())
        for name, network in networks.items()
        if network is not None
    }
    return {name: count for name, count in counts.items() if count}


def memory(recipe: Recipe, space: LabelSpace, images: int, trained: int) -> int:
    """Estimate the bytes that a rank needs for a pass over ``images`` images, on the meta device.

    The weights of G and D with Adam's copies and the average, and what their forward passes keep
    for the gradients. The frozen networks and class-specific heads are not in it: they depend on
    the labels and on weights that are not read yet.

    Args:
        recipe: what would be trained.
        space: its class list.
        images: number of images at a time on a rank.
        trained: number of parameters.
    """
    model = recipe.model.model_copy(update={"class_specific": False, "output": "refined"})
    recipe = recipe.model_copy(update={"model": model})
    size = recipe.data.height, recipe.data.width
    kept = _Kept()
    with shapes_alone("the recipe"):
        side, discriminator = GeneratorSide(recipe, space), build_discriminator(recipe, space)
    with torch.device("meta"):
        S = torch.empty(images, space.num_conditions(boundary=recipe.data.instances), *size)
        image = torch.empty(images, 3, *size)
        labels = torch.empty(images, *size, dtype=torch.int64)
        noise = torch.empty(images, STYLE_DIM)
    with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        made = side(S, labels, image, noise)
        if discriminator is not None:
            # Of D's two passes, one at a time: real and generated pictures, then these alone
            fakes = [getattr(made.generated, name) for name in recipe.parts().pictures]
            discriminator(S, torch.cat([*fakes, image, image]))
    activations = kept.bytes // 2 if recipe.train.precision == "bfloat16" else kept.bytes
    return trained * 4 * (ADAM_COPIES + 1) + activations  # and once more for the average


def dry_run(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "auto",
    num_processes: int = 1,
    init: Path | None = None,
    accept_changed_data: bool = False,
    quiet: bool = False,
) -> str:
    """Parameters, memory, steps and splits of a training, which writes nothing.

    Args:
        recipe: what would be trained.
        out: run folder.
        device: auto, cpu, cuda or cuda:N.
        num_processes: ranks.
        init: a generator to start from.
        accept_changed_data: do not refuse files that are not those that the run learnt from.
        quiet: no progress bar.

    Raises:
        UserError: what :func:`run.run` would refuse.
    """
    own_device = choose_device(device)
    job = run.check(
        recipe,
        out,
        device=own_device,
        num_processes=num_processes,
        accept_changed_data=accept_changed_data,
        quiet=quiet,
    )
    recipe, space = job.recipe, job.space
    frozen = read_named(recipe, space, job.train_set, own_device)
    text = describe(
        recipe,
        space,
        frozen,
        device=own_device,
        world=num_processes,
        sizes={"train": len(job.train_set), "validation": len(job.validation_set)}
        | ({ALONE: len(job.unlabelled)} if job.unlabelled else {}),
        reading=job.train_set.items[0].reading,
    )
    if init is None:
        return text
    side = GeneratorSide(recipe, space)
    source = checkpoint.load_generator(init)
    taken = warm_start(side.generator, side.style_encoder, recipe, space, source)
    return "\n".join([text, f"{'init:':<12}{init}", *(f"{'':12}{x}" for x in taken.lines())])


def describe(
    recipe: Recipe,
    space: LabelSpace,
    frozen: Frozen,
    *,
    device: torch.device,
    world: int,
    sizes: dict[str, int],
    reading: Reading,
) -> str:
    """The lines that ``ecgan train --dry-run`` prints.

    Args:
        recipe: what would be trained.
        space: its class list.
        frozen: networks that it does not train.
        device: where.
        world: number of ranks.
        sizes: items of each split.
        reading: how their files are read.
    """
    train, parts, counts = recipe.train, recipe.parts(), parameters(recipe, space)
    path = class_list_file(recipe.data)
    part = train.batch // (world * train.accumulate)
    weights = sum(counts.values())
    gib = memory(recipe, space, part, weights) / 2**30
    time_told = speed.told(
        recipe,
        space,
        frozen,
        images=train.images,
        weights=weights,
        device=device,
        world=world,
    )
    steps = -(-train.images // train.batch)
    lines = {
        "recipe": recipe.name,
        "device": f"{device}, {world} rank{'s' * (world > 1)}",
        "data": ", ".join(f"{name} {counted(size, 'image')}" for name, size in sizes.items()),
        "read as": reading_text(reading),
        "classes": f"{space.num_classes}{f' of {path}' if path else ''}, "
        f"{space.num_conditions(boundary=recipe.data.instances)} channels of condition",
        "size": f"{recipe.data.height} x {recipe.data.width}",
        "parts": ", ".join(parts.names),
        "terms": ", ".join(f"{weight:g} {name}" for name, weight in parts.terms.items())
        + (
            f"; similarity at stride {recipe.losses.similarity_stride}"
            if parts.label_generator
            else ""
        ),
        "parameters": ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()),
        "steps": f"{steps:,} of {counted(train.batch, 'image')} ({part} at a time on a rank), "
        f"{epochs(steps * train.batch, sizes.get('train', 1), sizes.get(ALONE, 0))}",
        "time": f"{time_told}; --profile 3{f' --batch {train.batch // world}' * (world > 1)} "
        "instead of --dry-run measures it, and so do the first steps of a training",
        "memory": f"about {gib:.1f} GiB on each rank, frozen networks not counted"
        f"{_too_little(gib, device)}",
    }
    return "\n".join(f"{name + ':':<12}{text}" for name, text in lines.items())


def _too_little(gib: float, device: torch.device) -> str:
    """A remark where a device has less memory than that."""
    has = memory_of(device) / 2**30
    if gib <= has:
        return ""
    return (
        f"; {device} has {has:.1f} GiB: raise train.accumulate or train.checkpointing, or lower "
        "the size or train.batch"
    )


class _Kept:
    """Bytes kept for gradients, each tensor once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no id comes again

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            self.bytes += storage.nbytes()
        return tensor


_WARM_UP_STEPS = 2  # of a profile


def profile(recipe: Recipe, *, steps: int, device: str = "auto", init: Path | None = None) -> str:
    """Where the time of training goes, from some steps of it; nothing is kept.

    A label generator that would be trained first has random weights here: the same arithmetic.

    Args:
        recipe: what would be trained.
        steps: that are measured, after two that warm up.
        device: auto, cpu, cuda or cuda:N.
        init: a generator to start from.

    Raises:
        UserError: what :func:`run.run` would refuse.
    """
    own_device = choose_device(device, current=True)
    with tempfile.TemporaryDirectory(prefix="ecgan-") as folder:
        out = Path(folder) / "run"
        job = run.check(recipe, out, device=own_device, init=init, quiet=True, read_files=False)
    recipe, space = job.recipe, job.space
    networks = build_networks(recipe, space, own_device, init)
    segmenter = named_label_generator(
        recipe, space, job.train_set, own_device
    ) or untrained_label_generator(recipe, space, own_device)
    bank = build_bank(recipe, space, own_device)
    perceptual, features = networks.perceptual_network, networks.feature_network
    objective = Objective(recipe, space, own_device, segmenter, perceptual, bank, features)
    return _profiled(run.start(job, networks, objective), steps)


def _profiled(state: TrainingState, steps: int) -> str:
    device, batch = state.job.device, state.job.recipe.train.batch
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler greets on stderr
    with closing(batches_of(state)) as found:
        for _ in range(_WARM_UP_STEPS):
            _one_step(state, found)
        with torch.profiler.profile(activities=activities) as profiler:
            _synchronise(device)
            start = time.perf_counter()
            for _ in range(steps):
                _one_step(state, found)
            _synchronise(device)
            elapsed = time.perf_counter() - start
    seconds = span_seconds(profiler.events())
    seconds["other"] = max(0.0, elapsed - sum(seconds.values()))
    seconds = dict(sorted(seconds.items(), key=lambda pair: -pair[1]))
    slowest, most = next(iter(seconds.items()))
    title = f"{counted(steps, 'step')} of {counted(batch, 'image')} on {device}, "
    title += f"{batch * steps / elapsed:.2f} images/s"
    length = -(-state.job.recipe.train.images // batch)
    whole = (
        f"{duration(length * elapsed / steps)} for the {counted(length, 'step')} of the training"
    )
    return (
        f"{table(title, 'step', steps, seconds, elapsed)}\n"
        f"bottleneck: {slowest} ({most / elapsed:.0%} of a step)\n"
        f"time: about {whole}, as measured"
    )


def _one_step(state: TrainingState, found: Iterator[Batch]) -> None:
    with span("load"):
        batch = next(found)
    train_step(state, batch)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
