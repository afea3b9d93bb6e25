"""Progress of a long step: a bar on a terminal, lines where there is none (nohup, SLURM, CI)."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines
FIRST_SECONDS = 2.0  # a step that takes less has no lines
_READ_SECONDS = 5.0  # between two looks at the losses: a look may wait for the GPU
_IN_BAR = 4  # losses that a terminal's line has room for


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
                self._bar.set_postfix(first, refresh=False)
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
            return f"{self._what}: {self._done:,} of {_counted(self._total, self._unit)}"
        rate = self._rate()
        left = (self._total - self._done) / rate
        return (
            f"{self._what}: {self._done:,} of {_counted(self._total, self._unit)} "
            f"({self._done / max(1, self._total):.0%}), {rate:.3g} {self._unit}s/s, "
            f"about {duration(left)} left{self._loss_text()}"
        )

    def _last_line(self) -> str:
        elapsed = duration(time.monotonic() - self._begun)
        text = f"{_counted(self._done, self._unit)} after {elapsed}"
        if self._done < self._total:
            text = f"ended at {self._done:,} of {_counted(self._total, self._unit)} after {elapsed}"
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
    tqdm.write(text, file=sys.stderr)
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


def _counted(count: int, unit: str) -> str:
    return f"{count:,} {unit}{'s' * (count != 1)}"
