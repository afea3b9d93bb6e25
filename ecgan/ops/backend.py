"""Choice of an operation's implementation: plain torch (any device) or Triton (CUDA).

Both compute the same definition. ``ECGAN_KERNELS`` chooses: ``auto`` (default) takes Triton on
NVIDIA GPUs from Ampere on and plain torch elsewhere; ``torch`` and ``triton`` force one of them.
Under ``auto``, an operation whose kernel cannot be built or launched here (no C compiler, a driver
that is too old) says so once and runs in plain torch from then on. So does one whose first results
in this process differ from plain torch's: a kernel is only as right as the compiler and the card
that it meets.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from ecgan.errors import UserError, first_line

_log = logging.getLogger(__name__)

Implementation = Literal["torch", "triton"]
Result = TypeVar("Result")

_failed: set[str] = set()  # operations whose kernel cannot be used in this process
_checked: set[str] = set()  # operations whose kernel gave what plain torch gives

TOLERANCE = 0.05
"""Part of the norm by which a kernel may differ: far above what rounding does to the hardest
inputs, far below what a mistake does."""


def implementation(operation: str, x: torch.Tensor) -> Implementation:
    """Implementation of an operation for x.

    Float64 is for reference values: it always goes to plain torch.
    """
    wanted = _wanted()
    if x.dtype == torch.float64:
        return "torch"
    if wanted == "auto":
        return "triton" if operation not in _failed and _runs_triton(x.device) else "torch"
    return wanted


def run(
    operation: str,
    x: torch.Tensor,
    *,
    with_triton: Callable[[], Result],
    with_torch: Callable[[], Result],
) -> Result:
    """The operation on x, in the implementation that takes it.

    Args:
        operation: its name, for the warning.
        x: input whose device and type decide.
        with_triton: may fail, and then must have changed nothing.
        with_torch: the same in plain torch.
    """
    if implementation(operation, x) == "torch":
        return with_torch()
    if _wanted() == "triton":
        return with_triton()
    result = _attempt(operation, with_triton)
    if result is None:
        return with_torch()
    return result if operation in _checked else _first_result(operation, result, with_torch)


def _attempt(operation: str, with_triton: Callable[[], Result]) -> Result | None:
    """The kernel's result; None if it does not run on this machine."""
    try:
        return with_triton()
    except torch.OutOfMemoryError:
        raise
    except _failures() as error:
        _replace(operation, f"does not run here ({first_line(error)})")
        return None


def _first_result(operation: str, result: Result, with_torch: Callable[[], Result]) -> Result:
    """The kernel's result if it is that of plain torch, else plain torch's."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return result  # nothing can be read before the graph runs; the warm-up was checked
    try:
        expected = with_torch()
        finite = all(bool(tensor.isfinite().all()) for tensor in _tensors(expected))
        agree = finite and _agree(result, expected)
    except torch.OutOfMemoryError:  # there will be other calls
        return result
    if finite and not agree:
        _replace(operation, "gives other results than plain torch here")
        return expected
    if finite:
        _checked.add(operation)
    return result


def _replace(operation: str, why: str) -> None:
    _failed.add(operation)
    _log.warning(
        "%s: the Triton kernel %s; plain torch takes its place, slower. ECGAN_KERNELS=triton uses "
        "the kernel in any case, ECGAN_KERNELS=torch silences this",
        operation,
        why,
    )


def _agree(result: object, expected: object) -> bool:
    """True where tensors, or tuples of tensors, are the same up to rounding."""
    own, others = _tensors(result), _tensors(expected)
    return len(own) == len(others) and all(
        bool((x.double() - y.double()).norm() <= TOLERANCE * y.double().norm() + 1e-6)
        for x, y in zip(own, others, strict=True)
    )


def _tensors(result: object) -> list[torch.Tensor]:
    parts = result if isinstance(result, tuple) else (result,)
    return [part.detach() for part in parts if isinstance(part, torch.Tensor)]


def _failures() -> tuple[type[Exception], ...]:
    """Exceptions of a kernel that cannot be built or launched on this machine."""
    found = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
    triton = sys.modules.get("triton")
    return found if triton is None else (*found, triton.errors.TritonError)


def _wanted() -> Literal["auto", "torch", "triton"]:
    wanted = os.environ.get("ECGAN_KERNELS") or "auto"
    if wanted not in ("auto", "torch", "triton"):
        raise UserError(f"ECGAN_KERNELS={wanted}: must be auto, torch or triton")
    return wanted


def _runs_triton(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and importlib.util.find_spec("triton") is not None
    )
