"""Profiling: spans of a training step, stage timers of generation, and the table of ``--profile``.

Training opens a :func:`span` around each part of a step, which ``torch.profiler`` records while it
runs. Generation works in threads, which that profiler does not follow, and names its bottleneck
after every call: each worker adds up the seconds of its stages.

    read, generate, judge    one thread of each worker, one after the other
    encode                   a pool of threads
    write                    the worker's own thread
"""

import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import record_function

STAGES = ("read", "generate", "judge", "encode", "write")
_ONE_THREAD = STAGES[:3]
_PREFIX = "ecgan: "  # torch's optimisers and DDP record spans of their own


def span(name: str) -> record_function:
    """Context of a named span, which ``torch.profiler`` records."""
    return record_function(_PREFIX + name)


def span_seconds(events: Iterable[FunctionEvent] | None) -> dict[str, float]:
    """Seconds of each :func:`span` in a profile, in order of appearance.

    On CUDA these are the seconds of the kernels launched within the span, whichever thread
    launched them: autograd has threads of its own. A span without kernels counts the host's time.
    """
    events = list(events or [])
    spans = [e for e in events if e.name.startswith(_PREFIX) and e.device_type.name == "CPU"]
    host, device = Counter[str](), Counter[str]()
    for one in spans:
        host[one.name] += one.time_range.elapsed_us()
    for event in events:
        # A span's own copy on the device covers kernels that are counted one by one
        kernels: list[Any] = event.kernels
        spent = sum(kernel.duration for kernel in kernels if kernel.name != event.name)
        if spent:
            start = event.time_range.start
            for one in spans:
                if one.time_range.start <= start <= one.time_range.end:
                    device[one.name] += spent
    return {name.removeprefix(_PREFIX): (device[name] or host[name]) / 1e6 for name in host}


def table(title: str, unit: str, count: int, seconds: Mapping[str, float], elapsed: float) -> str:
    """Table of a profile: milliseconds a unit and share of the elapsed time, for each part."""
    rows = [
        f"  {name:<22} {spent / count * 1e3:10.2f} {spent / elapsed:7.1%}"
        for name, spent in seconds.items()
    ]
    head = f"  {'':<22} {'ms/' + unit:>10} {'share':>7}"
    return "\n".join([title, head, *rows, f"  {'elapsed':<22} {elapsed / count * 1e3:10.2f}"])


class StageTimer:
    """Seconds that each stage was busy; of ``encode``, the sum over its threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    @contextmanager
    def measured(self, stage: str) -> Generator[None, None, None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - start


@dataclass
class StageSeconds:
    """Seconds of each stage, summed over shards and workers."""

    encoders: int = 1  # threads of each worker that encode
    workers: int = 1
    seconds: Counter[str] = field(default_factory=Counter[str])  # of encode, over all threads
    elapsed: float = 0.0  # seconds that the workers were busy
    samples: int = 0  # number that they made

    def add(self, seconds: Mapping[str, float], elapsed: float, samples: int) -> None:
        """Count a shard."""
        self.seconds.update(seconds)
        self.elapsed += elapsed
        self.samples += samples

    def busy(self) -> dict[str, float]:
        """Seconds that each stage was busy; ``encode``: mean over its threads."""
        return {n: self.seconds[n] / (self.encoders if n == "encode" else 1) for n in STAGES}

    def bottleneck(self) -> str:
        """The stage that the others wait for, in words; empty where nothing was made."""
        if not self.elapsed:
            return ""
        busy = self.busy()
        slowest = max(("encode", "write"), key=lambda name: busy[name])
        if busy[slowest] > sum(busy[name] for name in _ONE_THREAD):
            return f"{slowest} ({busy[slowest] / self.elapsed:.0%} busy)"
        slowest = max(_ONE_THREAD, key=lambda name: busy[name])
        return f"{slowest} ({busy[slowest] / self.elapsed:.0%} of the workers' time)"
