"""Float32 on purpose: the losses' arithmetic, whatever the networks around them run in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def to_exact(x: Tensor) -> Tensor:
    """Float32 for half precision; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Matrix products in full precision: no autocast, no TF32.

    1 - a'' of Eq. 3 and the exponentials of Eq. 5 magnify what either would round away.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
