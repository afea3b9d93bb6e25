"""Where the time of making samples goes, and how much of it is arithmetic.

    read, condition, generate, copy, judge    one thread of each worker, one after the other
    encode                                    threads of its own
    write                                     the worker's own thread

On CUDA, ``condition``, ``generate`` and ``copy`` are the device's time, and run while the thread
reads and judges.
"""

import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

STAGES = ("read", "condition", "generate", "copy", "judge", "encode", "write")
"""read: label maps, and varying them. condition: what the styles of a layout share. generate: G for
every style. copy: pictures from the device. judge: the label filter."""
MAKING = STAGES[:5]
NETWORK = ("condition", "generate")


@dataclass
class Timings:
    """Seconds that each stage was busy; of ``encode``, the sum over its threads."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    elapsed: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Seconds of stages that were measured elsewhere."""
        with self._lock:
            for stage, spent in seconds.items():
                self.seconds[stage] += spent


class Clock:
    """Seconds of stages: of the device where it is CUDA, which works behind the program."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        if self._on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._spans.append((stage, start, end))
            return
        begin = time.perf_counter()
        yield
        spent = time.perf_counter() - begin
        self._seconds[stage] = self._seconds.get(stage, 0.0) + spent

    def wait(self) -> None:
        """Until everything that was measured is done."""
        for _, _, end in self._spans:
            end.synchronize()

    def seconds(self) -> dict[str, float]:
        """Of each stage; call it after :meth:`wait`."""
        total = dict(self._seconds)
        for stage, start, end in self._spans:
            total[stage] = total.get(stage, 0.0) + start.elapsed_time(end) / 1e3
        return total


class Profile(NamedTuple):
    """What a worker's device can do, and what a sample asks of it."""

    device: str
    arithmetic: str  # float32 or bfloat16
    ceiling: float  # FLOP/s of a large matrix product, in this arithmetic, on as many threads
    flops: float  # of G for a sample, as it is computed here
    peak_bytes: int  # of memory: allocated on CUDA, the process's own elsewhere


@dataclass
class Spent:
    """Where the workers' time went.

    Attributes:
        seconds: each stage was busy, over all workers; of ``encode``, over all its threads.
        elapsed: the workers were busy.
        encoders: threads of each worker that encode.
        workers: how many there were.
        samples: that they made.
        profile: of a worker, its peak memory that of the one that took most; None without
            ``--profile``.
    """

    encoders: int = 1
    workers: int = 1
    seconds: Counter[str] = field(default_factory=Counter[str])
    elapsed: float = 0.0
    samples: int = 0
    profile: Profile | None = None

    def add(
        self, seconds: Mapping[str, float], elapsed: float, samples: int, profile: Profile | None
    ) -> None:
        """Count a shard."""
        self.seconds.update(seconds)
        self.elapsed += elapsed
        self.samples += samples
        if profile is not None:
            most = max(profile.peak_bytes, 0 if self.profile is None else self.profile.peak_bytes)
            self.profile = profile._replace(peak_bytes=most)

    def shares(self) -> dict[str, float]:
        """How busy what does each stage was, 0 to 1; samples are made by one thread."""
        if not self.elapsed:
            return {}
        found = {name: self.seconds[name] / self.elapsed for name in STAGES}
        found["encode"] /= self.encoders
        return found

    def bottleneck(self) -> str:
        """The stage that the others wait for, in words."""
        shares = self.shares()
        if not shares:
            return ""
        slowest = max(("encode", "write"), key=lambda name: shares[name])
        if shares[slowest] > sum(shares[name] for name in MAKING):
            return f"{slowest} ({shares[slowest]:.0%} busy)"
        slowest = max(MAKING, key=lambda name: shares[name])
        return f"{slowest} ({shares[slowest]:.0%} of the workers' time)"

    def table(self) -> str:
        """All that ``--profile`` says; empty where nothing was made or measured."""
        if self.profile is None or not self.samples:
            return ""
        profile, shares = self.profile, self.shares()
        each = self.elapsed / self.samples
        flop_rate = profile.flops * self.samples / sum(self.seconds[name] for name in NETWORK)
        threads = f", {self.encoders} encoding threads each" if self.encoders > 1 else ""
        rows = [
            f"  {name:<10} {self.seconds[name] / self.samples * 1e3:9.2f} {shares[name]:7.1%}"
            for name in STAGES
        ]
        return "\n".join(
            [
                f"profile of {self.samples} samples, {self.workers} worker(s){threads}, "
                f"{profile.device}",
                f"  {'stage':<10} {'ms/sample':>9} {'busy':>7}",
                *rows,
                f"  {'elapsed':<10} {each * 1e3:9.2f}   {self.workers / each:.2f} samples/s",
                f"G: {profile.flops / 1e9:.2f} GFLOP a sample, {flop_rate / 1e9:.1f} GFLOP/s while "
                f"it runs: {flop_rate / profile.ceiling:.0%} of a large matrix product's "
                f"{profile.ceiling / 1e9:.1f} GFLOP/s ({profile.arithmetic})",
                f"peak memory: {profile.peak_bytes / 1e6:.0f} MB",
                f"bottleneck: {self.bottleneck()}",
            ]
        )


def matrix_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the fastest of some; of one thread on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    # Of a CPU this thread's own time, in which other programs have no part
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    seconds: list[float] = []
    for _ in range(6):
        start = clock()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return 2 * side**3 / min(seconds)


def device_name(device: torch.device) -> str:
    """The GPU's name, or what the CPU can do."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: allocated on a CUDA device, resident of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux
