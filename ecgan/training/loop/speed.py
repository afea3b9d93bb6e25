"""Roughly how long a training takes, before its first step: work counted, rates measured.

Networks run forward on the meta device, where tensors have shapes and no values; each operation has
its arithmetic, as torch's flop counter knows it, and the bytes that it reads and writes. The
gradient of a pass costs as much again for its input and once more for its weights. On the device
that would train, a convolution, an addition and the smallest operation are timed, a fraction of a
second in all. An operation then takes the sum of the three: its arithmetic, its bytes, its launch.

Loading, previews and scores are not in it.

Shape legend:
    B  images in the batch      N  classes      H, W  height and width      M  pixels in pairs
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry

from ecgan.checkpoint.tensors import shapes_alone
from ecgan.errors import first_line
from ecgan.labels import LabelSpace
from ecgan.models.class_specific import HIDDEN
from ecgan.models.contrastive import EMBEDDING_DIM
from ecgan.models.discriminators.segmentation import frozen_maps
from ecgan.models.generator import STYLE_DIM
from ecgan.models.pretrained.efficientnet_lite import EfficientNetLite0
from ecgan.recipe import Recipe
from ecgan.runtime.timing import duration
from ecgan.runtime.torch_private import DispatchMode
from ecgan.segmentation.segmenter import Segmenter
from ecgan.training.networks import Frozen
from ecgan.training.objective import GeneratorSide, build_discriminator
from ecgan.training.segmentation_terms import build_segmentation_discriminator

_MOST_SECONDS = 0.1  # of a measurement, after a first call
_TRAINED, _THROUGH, _FORWARD = 3, 2, 1  # passes: all gradients, those of the input, none
_FLOAT = 4  # bytes
_SIDE = 64  # of the convolution's pictures
_IMAGES, _LARGE = {"cpu": 2, "cuda": 64}, {"cpu": 1 << 22, "cuda": 1 << 26}  # that are timed

_Call = Callable[[Any, Tensor], Any]


def _forward(network: nn.Module, pictures: Tensor) -> object:
    return network(pictures)


class Operation(NamedTuple):
    """Work of an operation."""

    flops: float
    bytes: float
    times: float = 1


class Rates(NamedTuple):
    """What a device does in a second."""

    flops: float  # of a convolution and its gradients, in the training's precision
    bytes: float  # read and written
    seconds: float  # of the smallest operation

    def seconds_of(self, work: Sequence[Operation]) -> float:
        """Seconds of some work."""
        return sum(
            one.times * (one.flops / self.flops + one.bytes / self.bytes + self.seconds)
            for one in work
        )


def seconds_of_step(
    recipe: Recipe,
    space: LabelSpace,
    frozen: Frozen,
    *,
    weights: int,
    device: torch.device,
    world: int,
) -> float:
    """Roughly the seconds of a step of a training; nothing is trained, and no memory is needed.

    Args:
        recipe: what would be trained, resolved for the device.
        space: its class list.
        frozen: networks that it does not train, on any device; they are left as they are.
        weights: number of those that it trains.
        device: where it would be trained.
        world: number of ranks.

    Raises:
        NotImplementedError: a network does not run on shapes alone.
    """
    train = recipe.train
    work = work_of_pass(recipe, space, frozen, train.batch // (world * train.accumulate), world)
    is_half = train.precision == "bfloat16"
    rates = measure(device, torch.bfloat16 if is_half else torch.float32, 2 * recipe.model.width)
    if is_half:  # what autocast lets be half as large
        work = [one._replace(bytes=one.bytes / 2) for one in work]
    moved = Operation(0, _ADAM_BYTES * weights)
    return train.accumulate * rates.seconds_of(work) + rates.seconds_of([moved])


_ADAM_BYTES = 14 * _FLOAT  # of a weight: itself, gradient, moments, average, each read and written


def told(
    recipe: Recipe,
    space: LabelSpace,
    frozen: Frozen,
    *,
    images: int,
    weights: int,
    device: torch.device,
    world: int,
) -> str:
    """``roughly 2 h, up to twice that (0.9 images/s, estimated)``; or why that is not known.

    Args:
        recipe: what would be trained, resolved for the device.
        space: its class list.
        frozen: networks that it does not train.
        images: that are left of it.
        weights: number of those that it trains.
        device: where it would be trained.
        world: number of ranks.
    """
    try:
        seconds = seconds_of_step(
            recipe, space, frozen, weights=weights, device=device, world=world
        )
    except NotImplementedError as error:
        return f"not known: a frozen network cannot be counted without its numbers ({error})"
    batch = recipe.train.batch
    whole = -(-images // batch) * seconds
    unit = next((unit for unit in (3600, 60) if whole > 10 * unit), 1)  # no false precision
    return (
        f"roughly {duration(round(whole / unit) * unit)}, up to twice that "
        f"({batch / seconds:.2g} images/s, estimated)"
    )


def work_of_pass(
    recipe: Recipe, space: LabelSpace, frozen: Frozen, images: int, world: int = 1
) -> list[Operation]:
    """Operations of a pass over some images, forward and backward, on one rank."""
    pictures = recipe.parts().pictures
    num_fakes, num_real = len(pictures), 1 + ("edge" in pictures)
    counted = _Counter(recipe, space, images)
    found = counted.generator()
    found += counted.discriminator(_TRAINED * (num_real + num_fakes) + _THROUGH * num_fakes)
    found += counted.segmentation_discriminator(frozen.features)
    if (network := frozen.perceptual) is not None:
        found += counted.frozen(network, _FORWARD * num_real + _THROUGH * num_fakes)
    if (network := frozen.hed) is not None:
        found += counted.frozen(network, _FORWARD)
    if (network := frozen.segmenter) is not None:
        num_judged = 1 + ("image" in pictures)
        found += counted.frozen(network, _THROUGH * num_judged, Segmenter.logits)
        stride = recipe.losses.similarity_stride
        assert stride != "auto"
        pixels = max(1, counted.height // stride) * max(1, counted.width // stride)
        found.append(_pairs(pixels, pixels, space.num_classes, num_judged * images))
    if recipe.parts().contrastive:
        found += counted.contrast(world)
    if recipe.parts().class_specific:
        found += counted.heads()
    return found


def measure(device: torch.device, dtype: torch.dtype, channels: int) -> Rates:
    """Time a convolution with its gradients, an addition and the smallest operation on a device.

    Args:
        device: where.
        dtype: precision of the convolution.
        channels: of the convolution: few take longer for the same arithmetic.
    """
    images, numbers = _IMAGES[device.type], _LARGE[device.type]
    image = torch.randn(images, channels, _SIDE, _SIDE, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
    weight = weight.to(memory_format=torch.channels_last).requires_grad_()
    large, small = torch.zeros(numbers, device=device), torch.zeros(1, device=device)

    def convolve() -> None:
        made = F.conv2d(image, weight, padding=1)
        torch.autograd.grad(made, (image, weight), made.detach())

    flops = _TRAINED * 2 * 9 * channels**2 * images * _SIDE**2
    return Rates(
        flops / _time(convolve, device),
        2 * _FLOAT * numbers / _time(lambda: large + 1, device),
        _time(lambda: small + 1, device),
    )


def _time(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: of three means over some calls the least, since others use the CPU too."""

    def seconds_of(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds_of(1)
    number = max(1, min(1000, int(_MOST_SECONDS / 3 / max(1e-7, seconds_of(3) / 3))))
    return min(seconds_of(number) for _ in range(3)) / number


def _pairs(rows: int, columns: int, length: int, times: float) -> Operation:
    """Value and gradient of a term over all pairs: two products, and a few numbers of each pair."""
    pairs = rows * columns
    return Operation(4 * pairs * length, 4 * _FLOAT * pairs, times)


class _Counter:
    """Operations of the parts of a pass over B images."""

    def __init__(self, recipe: Recipe, space: LabelSpace, images: int) -> None:
        # Heads and pairs depend on values; their work is known
        model = recipe.model.model_copy(
            update={"class_specific": False, "output": "refined", "contrastive": False}
        )
        self.recipe, self.space, self.images = recipe, space, images
        self.plain = recipe.model_copy(update={"model": model})
        self.height, self.width = recipe.data.height, recipe.data.width
        self.channels = space.num_conditions(boundary=recipe.data.instances)

    def generator(self) -> list[Operation]:
        with shapes_alone("the recipe"):
            side = GeneratorSide(self.plain, self.space)
            labels = torch.empty(self.images, self.height, self.width, dtype=torch.int64)
            noise = torch.empty(self.images, STYLE_DIM)
            return _passes(
                lambda: side(self._maps(self.channels), labels, self._maps(3), noise), _TRAINED
            )

    def discriminator(self, passes: int) -> list[Operation]:
        with shapes_alone("the recipe"):
            network = build_discriminator(self.recipe, self.space)
            if network is None:
                return []
            return _passes(lambda: network(self._maps(self.channels), self._maps(3)), passes)

    def segmentation_discriminator(self, features: EfficientNetLite0 | None) -> list[Operation]:
        """It is trained on photos and images, and judges the images once more."""
        with shapes_alone("the recipe"):
            network = build_segmentation_discriminator(self.recipe, self.space)
        if network is None:
            return []
        found: list[Operation] = []
        maps = [self._maps(3)]
        if features is not None:
            pictures = maps[0]
            maps, work = _recorded(lambda: _on_shapes(features, frozen_maps, pictures))
            found += _times(work, _FORWARD + _THROUGH)
        return found + _passes(lambda: network(maps), 2 * _TRAINED + _THROUGH)

    def contrast(self, world: int) -> list[Operation]:
        """Eq. 5: the heads, and all pairs of a rank's pixels with those of all ranks."""
        losses = self.recipe.losses
        found: list[Operation] = []
        with shapes_alone("the recipe"):
            side = GeneratorSide(self.recipe, self.space)
        for tap, head in zip(side.taps, side.heads, strict=True):
            channels, smaller = side.generator.tap_channels[tap]
            size = self.height // smaller, self.width // smaller
            stride = max(1, losses.contrastive_stride // smaller)
            features = torch.empty(self.images, channels, *size, device="meta")
            found += _passes(lambda head=head, x=features, s=stride: head(x, s), _TRAINED)
            pixels = self.images * (size[0] // stride) * (size[1] // stride)
            others = pixels * world + losses.contrastive_bank * self.space.num_classes
            found.append(_pairs(pixels, others, EMBEDDING_DIM, 1))
        return found

    def heads(self) -> list[Operation]:
        """Eqs. 6-7: at each pixel the kernels of its class, 3 x 3 as rows of a matrix product."""
        pixels = self.images * self.height * self.width
        width = self.recipe.model.width
        return [
            Operation(2 * 9 * pixels * given * made, 2 * 9 * _FLOAT * pixels * made, _TRAINED)
            for given, made in ((width, HIDDEN), (HIDDEN, 3))
        ]

    def frozen(self, network: nn.Module, passes: int, call: _Call = _forward) -> list[Operation]:
        """Operations of a network that has weights, on shapes alone."""
        return _passes(lambda: _on_shapes(network, call, self._maps(3)), passes)

    def _maps(self, channels: int) -> Tensor:
        return torch.empty(self.images, channels, self.height, self.width, device="meta")


class _Called(nn.Module):
    """A network and how it is called, as one module."""

    def __init__(self, network: nn.Module, call: _Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, pictures: Tensor) -> Any:  # noqa: ANN401
        return self.call(self.network, pictures)


def _on_shapes(network: nn.Module, call: _Call, pictures: Tensor) -> Any:  # noqa: ANN401
    """What a network makes of pictures, with shapes in place of its weights.

    Raises:
        NotImplementedError: it looks at numbers.
    """
    called = _Called(network, call)
    values = [*called.named_parameters(), *called.named_buffers()]
    shapes = {name: torch.empty_like(value, device="meta") for name, value in values}
    try:
        return functional_call(called, shapes, (pictures,))
    except (RuntimeError, TypeError, ValueError) as error:
        raise NotImplementedError(first_line(error)) from error


def _passes(call: Callable[[], object], passes: int) -> list[Operation]:
    """Operations of a call, so many times."""
    return _times(_recorded(call)[1], passes)


def _recorded(call: Callable[[], Any]) -> tuple[Any, list[Operation]]:
    """What a call makes, and its operations."""
    with torch.no_grad(), _Recorder() as recorder:
        made = call()
    return made, recorder.found


def _times(work: Sequence[Operation], passes: int) -> list[Operation]:
    return [one._replace(times=passes) for one in work]


class _Recorder(DispatchMode):
    """Work of each operation that runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  torch's own
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        made = func(*args, **kwargs)
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=made)
            self.found.append(Operation(flops, _bytes_of([args, list(kwargs.values()), made])))
        return made


def _bytes_of(values: object) -> int:
    if isinstance(values, Tensor):
        return values.nbytes
    if isinstance(values, (tuple, list)):
        return sum(map(_bytes_of, cast(Sequence[object], values)))
    return 0
