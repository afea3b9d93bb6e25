"""Profiling and progress: spans, stage timers, the table of ``--profile``, and how much is left.

Training opens a :func:`span` around each part of a step, which ``torch.profiler`` records while it
runs. Generation works in threads, which that profiler does not follow, and names its bottleneck
after every call: each worker adds up the seconds of its stages.

    read, generate, judge    one thread of each worker, one after the other
    encode                   a pool of threads
    write                    the worker's own thread
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from tqdm import tqdm

from ecgan.errors import printable

if TYPE_CHECKING:  # progress is told also where torch is not imported
    from torch.autograd.profiler_util import FunctionEvent
    from torch.profiler import record_function

STAGES = ("read", "generate", "judge", "encode", "write")
_ONE_THREAD = STAGES[:3]
_PREFIX = "ecgan: "  # torch's optimisers and DDP record spans of their own

LINE_SECONDS = 30.0  # between two lines
FIRST_SECONDS = 2.0  # a step that takes less has no lines
_READ_SECONDS = 5.0  # between two looks at the losses: a look may wait for the GPU
_IN_BAR = 4  # losses that a terminal's line has room for


def span(name: str) -> "record_function":
    """Context of a named span, which ``torch.profiler`` records."""
    from torch.profiler import record_function

    return record_function(_PREFIX + name)


def span_seconds(events: "Iterable[FunctionEvent] | None") -> dict[str, float]:
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


class Progress:
    """Progress of one step, on stderr; close it, or use it in a ``with``.

    Args:
        total: number of things to do.
        what: name of the step.
        unit: one thing; its plural has an s.
        show: False: no output at all.
        done: number of things that were done before.
    """

    def __init__(self, total: int, what: str, unit: str, *, show: bool, done: int = 0) -> None:
        self._total, self._what, self._unit = total, what, unit
        self._before = self._done = done
        self._losses: Mapping[str, float] = {}
        self._begun = self._read_at = time.monotonic()
        self._ended = threading.Event()
        self._bar = self._thread = None
        if show and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit)
        elif show:
            # Beside the work: a line comes also where one thing takes longer than the interval
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def update(
        self, count: int = 1, losses: Callable[[], Mapping[str, float]] | None = None
    ) -> None:
        """Count what was done.

        Args:
            count: things done since the last call.
            losses: gives the newest losses; called every few seconds, since it may wait for a GPU.
        """
        self._done += count
        now = time.monotonic()
        shown = self._bar is not None or self._thread is not None
        if (
            shown
            and losses is not None
            and (not self._losses or now - self._read_at > _READ_SECONDS)
        ):
            self._losses, self._read_at = losses() or self._losses, now
            if self._bar is not None:
                first = dict(list(self._losses.items())[:_IN_BAR])
                cast(Any, self._bar).set_postfix(first, refresh=False)
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """End the bar, or print the last line; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
        if self._thread is not None and not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            if time.monotonic() - self._begun >= FIRST_SECONDS:
                say(self._last_line())

    def line(self) -> str:
        """Where the step is: things done of all, losses, things per second, time left."""
        if self._done == self._before:
            return f"{self._what}: {self._done:,} of {counted(self._total, self._unit)}"
        rate = self._rate()
        left = (self._total - self._done) / rate
        return (
            f"{self._what}: {self._done:,} of {counted(self._total, self._unit)} "
            f"({self._done / max(1, self._total):.0%}), {rate:.3g} {self._unit}s/s, "
            f"about {duration(left)} left{self._loss_text()}"
        )

    def _last_line(self) -> str:
        elapsed = duration(time.monotonic() - self._begun)
        text = f"{counted(self._done, self._unit)} after {elapsed}"
        if self._done < self._total:
            text = f"ended at {self._done:,} of {counted(self._total, self._unit)} after {elapsed}"
        return f"{self._what}: {text}, {self._rate():.3g} {self._unit}s/s{self._loss_text()}"

    def _rate(self) -> float:
        return (self._done - self._before) / max(1e-9, time.monotonic() - self._begun)

    def _loss_text(self) -> str:
        return "".join(
            f"{'; ' if i == 0 else ', '}{name} {value:.4g}"
            for i, (name, value) in enumerate(self._losses.items())
        )

    def _print_lines(self) -> None:
        wait = FIRST_SECONDS
        while not self._ended.wait(wait):
            say(self.line())
            wait = LINE_SECONDS


def say(text: str) -> None:
    """Print a line to stderr, above a bar where there is one."""
    tqdm.write(printable(text), file=sys.stderr)
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds in words, to two units: ``45 s``, ``3 min 20 s``, ``5 h 10 min``, ``2 d 3 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    for size, unit, small, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {smaller}"
    return f"{whole // 60} min {whole % 60} s"


def counted(count: int, unit: str, units: str = "") -> str:
    """A number with its unit, in the plural unless it is one: ``1 image``, ``1,200 images``.

    Args:
        count: the number.
        unit: name of one.
        units: name of several; default: with an s.
    """
    return f"{count:,} {unit if count == 1 else units or f'{unit}s'}"
