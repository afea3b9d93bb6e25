"""Where the time of a training step goes: named spans, which cost nothing unless they are measured.

On CUDA a span is the device's time, between two events; the host waits for them after the last
step only. ``load`` is what the host waited for the loader.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ecgan.runtime.timings import Clock

_clocks: list[Clock] = []  # the one that measures, if any


@contextmanager
def measured(name: str) -> Iterator[None]:
    """A span of this name, if anybody measures."""
    if not _clocks:
        yield
        return
    with _clocks[-1].measured(name):
        yield


@contextmanager
def measuring(clock: Clock) -> Iterator[None]:
    """Measure all spans in this block."""
    _clocks.append(clock)
    try:
        yield
    finally:
        _clocks.remove(clock)


@dataclass(frozen=True)
class StepProfile:
    """What steps of a training took.

    Attributes:
        device: its name.
        arithmetic: float32 or bfloat16.
        steps: that were measured.
        batch: images of a step, over all ranks.
        elapsed: seconds of all steps.
        seconds: of each span, over all steps.
        loader: images a second of the loader alone.
        flops: of a step, forward and backward, as it is computed here.
        ceiling: FLOP/s of a large matrix product.
        peak_bytes: of memory: allocated on CUDA, the process's own elsewhere.
    """

    device: str
    arithmetic: str
    steps: int
    batch: int
    elapsed: float
    seconds: Mapping[str, float]
    loader: float
    flops: float
    ceiling: float
    peak_bytes: int

    def table(self) -> str:
        """All of it, for a terminal."""
        each = self.elapsed / self.steps
        rest = max(0.0, self.elapsed - sum(self.seconds.values()))
        spans = {**self.seconds, "other": rest}
        rate = self.flops / each
        rows = [
            f"  {name:<22} {spent / self.steps * 1e3:10.1f} {spent / self.elapsed:7.1%}"
            for name, spent in sorted(spans.items(), key=lambda pair: -pair[1])
        ]
        return "\n".join(
            [
                f"profile of {self.steps} steps of {self.batch} images, {self.device}, "
                f"{self.arithmetic}",
                f"  {'span':<22} {'ms/step':>10} {'share':>7}",
                *rows,
                f"  {'elapsed':<22} {each * 1e3:10.1f}   {self.batch / each:.2f} images/s",
                f"loader alone: {self.loader:.1f} images/s",
                f"{self.flops / self.batch / 1e9:.1f} GFLOP an image, {rate / 1e9:.1f} GFLOP/s: "
                f"{rate / self.ceiling:.0%} of a large matrix product's "
                f"{self.ceiling / 1e9:.1f} GFLOP/s",
                f"peak memory: {self.peak_bytes / 1e6:.0f} MB",
            ]
        )


def wait(device: torch.device) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
