"""Devices: which one, copies to and from it without a wait, threads, and compiled functions."""

import os
import platform
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ecgan.errors import UsageError, UserError
from ecgan.runtime import torch_private

COMPILED_SHAPES = 64  # that may be compiled in one process; torch's own limit is 8


def choose_device(name: str, *, current: bool = False) -> torch.device:
    """The device of this process: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Args:
        name: as above.
        current: make a GPU the one on which this process's kernels and events are.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
        index = int(name.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
        require_gpus(index + 1)
        if current:
            torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return device


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device; of a CPU, those of the machine."""
    if device.type == "cuda":
        return cast("Any", torch.cuda).get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_beyond_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what cannot fit, before the attempt takes the machine down.

    Args:
        needed: bytes that it takes at least.
        device: where.
        what: what it is, for the message.
        remedy: what to change, for the message.

    Raises:
        UserError: the device has less.
    """
    has = memory_of(device)
    if needed > has:
        raise UserError(
            f"{what} takes at least {needed / 2**30:,.1f} GiB, and {device} has "
            f"{has / 2**30:,.1f} GiB; {remedy}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by CUDA, or by the system, which torch only tells in words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def count_gpus() -> int:
    """How many GPUs torch sees here."""
    return torch.cuda.device_count()


def require_gpus(needed: int) -> None:
    """Check that this machine has so many GPUs.

    Raises:
        UserError: it has fewer.
    """
    there = count_gpus()
    if needed > there:
        raise UserError(
            f"{needed} GPUs are asked for, but torch sees {there}; lower --nproc-per-node or "
            "--device, or set CUDA_VISIBLE_DEVICES"
        )


def setup_worker(device: str, threads: int | None) -> torch.device:
    """In a worker: its device, with so many threads for this process; None leaves them be."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(device)


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """Sums in one order, whatever the number of cores: samples are the same to the byte."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Copies by way of pinned memory


def uploaded(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; the host goes on while it is copied."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def downloading(x: Tensor) -> Tensor:
    """Where a tensor will be on the CPU, once the device has got there; torch reuses the memory."""
    if x.device.type != "cuda":
        return x.cpu()
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)


class Download:
    """A tensor on its way to the CPU; the host goes on until it wants it."""

    def __init__(self, x: Tensor) -> None:
        self._host = downloading(x)
        self._event = torch.cuda.Event() if x.device.type == "cuda" else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(x.device))

    def wait(self) -> Tensor:
        """The tensor, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


# Compiled functions


def compiled(function: Callable[..., Any], *, backend: str = "inductor") -> Callable[..., Any]:
    """A function of fixed shapes, compiled at its first call; the same sums in every run.

    Args:
        function: without a branch or loop that depends on values.
        backend: name that torch.compile knows; ``eager`` compiles nothing and checks that all can
            be traced.
    """
    # Kernels are not chosen by how fast they happened to be. Early versions of torch do not know
    # the option; they choose so only where max_autotune is set
    known = backend == "inductor" and torch_private.has_deterministic_inductor()
    made: Callable[..., Any] = torch.compile(
        function,
        fullgraph=True,
        dynamic=False,
        backend=backend,
        options={"deterministic": True} if known else {},
    )

    def call(*inputs: Any) -> Any:  # noqa: ANN401
        with torch_private.recompile_limit(COMPILED_SHAPES):
            return made(*inputs)

    return call


compile_failures = torch_private.compile_failures


def processor_name(device: torch.device) -> str:
    """Name of the processor: other ones add up in another order."""
    if device.type != "cuda":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "cuda"
