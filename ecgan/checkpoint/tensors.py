"""Tensors in safetensors files: what the header says is compared before anything is allocated."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ecgan.errors import UserError, first_line
from ecgan.reading.documents import check_file

_PICKLES = {b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}  # first bytes
_FLOATS = {"F16", "BF16", "F32", "F64"}
_MOST_FAULTS = 5  # in one message


class Kind(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    is_float: bool
    dtype: str  # as messages name it


class TensorFile:
    """An open safetensors file.

    Attributes:
        path: the file.
        metadata: texts in its header.
        kinds: what its header says of each tensor.
    """

    def __init__(self, path: Path, opened: Any) -> None:  # noqa: ANN401  safetensors has no types
        self.path, self._file = path, opened
        self.metadata: dict[str, str] = opened.metadata() or {}
        self.kinds = {name: self._kind(name) for name in opened.keys()}  # noqa: SIM118

    def read(self) -> dict[str, Tensor]:
        """All tensors.

        Raises:
            UserError: a value is NaN or infinite.
        """
        tensors: dict[str, Tensor] = {name: self._file.get_tensor(name) for name in self.kinds}
        refuse_not_finite(tensors, str(self.path))
        return tensors

    def _kind(self, name: str) -> Kind:
        part = self._file.get_slice(name)
        dtype = str(part.get_dtype())
        return Kind(tuple(part.get_shape()), dtype in _FLOATS, dtype)


@contextmanager
def opened(path: Path) -> Generator[TensorFile, None, None]:
    """Open a safetensors file; nothing but its header is read yet.

    Raises:
        UserError: no such file, no regular one, a truncated one, or a pickle.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    if start in _PICKLES:
        raise UserError(
            f"{path}: a pickle (.pth, .pt), which can run code when it is read; "
            "ecgan reads safetensors only, as generator.safetensors of a run"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield TensorFile(path, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({first_line(error)}); it may be truncated: "
            "copy it again"
        ) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: as :func:`opened`, or a value is NaN or infinite.
    """
    with opened(path) as file:
        return file.read()


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """What a header would say of tensors, which may be on the meta device."""
    return {
        name: Kind(tuple(x.shape), x.is_floating_point(), str(x.dtype).removeprefix("torch."))
        for name, x in tensors.items()
    }


def refuse_misfits(found: Mapping[str, Kind], expected: Mapping[str, Kind], title: str) -> None:
    """Compare tensors with those of a network.

    Args:
        found: what there is, by name.
        expected: what there must be.
        title: of the message.

    Raises:
        UserError: some are missing, not known, or of another shape or kind of number.
    """
    faults = [
        *(f"{name}: missing" for name in expected if name not in found),
        *(f"{name}: not known" for name in found if name not in expected),
    ]
    for name, own in expected.items():
        if name in found and found[name].shape != own.shape:
            faults.append(f"{name}: {_shown(found[name].shape)}, expected {_shown(own.shape)}")
        elif name in found and found[name].is_float != own.is_float:
            faults.append(f"{name}: {found[name].dtype}, expected {own.dtype}")
    if faults:
        raise UserError(title, _listed(faults))


def refuse_not_finite(tensors: Mapping[str, Tensor], title: str) -> None:
    """Refuse values that make every picture black, and every prediction that of one class.

    Raises:
        UserError: a tensor has NaN or infinity, or a variance below 0.
    """
    faults: list[str] = []
    for name, x in tensors.items():
        if not bool(torch.isfinite(x).all()):
            value = "NaN" if bool(torch.isnan(x).any()) else "an infinite value"
            faults.append(
                f"{name}: {value}: its training diverged, or the file is damaged; copy it again, "
                "or give another"
            )
        elif name.endswith("running_var") and bool((x < 0).any()):
            faults.append(f"{name}: a variance below 0; copy it again")
    if faults:
        raise UserError(title, _listed(faults))


@contextmanager
def shapes_alone(title: str) -> Generator[None, None, None]:
    """Where networks are built as shapes, without memory, however large they are.

    Raises:
        UserError: a tensor would have more elements than can be counted.
    """
    try:
        with torch.device("meta"), torch.no_grad(), NoDraws():
            yield
    except (RuntimeError, OverflowError, TypeError) as error:  # TypeError: beyond 64 bits
        raise UserError(
            f"{title}: it asks for networks that no machine holds ({first_line(error)}); lower "
            "model.width, data.height and data.width"
        ) from error


class NoDraws(TorchFunctionMode):
    """Leave out what computes first weights: it takes long on the meta device and gives nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]  # nn.init names its argument
        return func(*args, **kwargs)


_DRAWS = {
    Tensor.normal_,
    Tensor.uniform_,
    functional.normalize,
    nn.init.kaiming_uniform_,
    nn.init.uniform_,
}


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network that was built by :func:`shapes_alone` its values, on the CPU.

    Args:
        network: the network; all that it holds is in its state.
        tensors: its state, whose shapes :func:`refuse_misfits` has compared.
    """
    own = network.state_dict()
    held = [*network.parameters(), *network.buffers()]
    assert len(held) == len(own), "a buffer that is not in the state would have no values"
    # Copies: what is read is a part of the file, mapped into memory, and the file may change
    copies = {name: x.to(own[name].dtype, copy=True) for name, x in tensors.items()}
    network.load_state_dict(copies, assign=True)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU, none sharing memory, as safetensors wants them."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def with_prefix(names: Iterable[str], prefix: str) -> list[str]:
    """Names that begin with it."""
    return [name for name in names if name.startswith(prefix)]


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def _listed(faults: Sequence[str]) -> list[str]:
    if len(faults) <= _MOST_FAULTS + 1:
        return [*faults]
    return [*faults[:_MOST_FAULTS], f"and {len(faults) - _MOST_FAULTS} more"]
