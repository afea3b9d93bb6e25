"""Between host and device without a wait, by way of pinned memory."""

import torch
from torch import Tensor


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
