"""Signals that ask a command to end, and processes that end with the one that started them."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from ecgan.runtime.processes.table import descendants, end, is_there

_Result = TypeVar("_Result")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>
_LAUNCHER = "ECGAN_LAUNCHER"  # process id of the command that started torchrun
GRACE = 60.0  # seconds to write a checkpoint once the launcher is gone
_ONE_ASKING = 1.0  # seconds between signals that are one request


def asking() -> tuple[signal.Signals, ...]:
    """Signals that ask to end: Ctrl-C, SIGTERM, and SIGHUP unless nohup made it ignored."""
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return tuple(found)


@contextmanager
def interrupting() -> Generator[None, None, None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as Ctrl-C does.

    An interrupt that strikes in a destructor or a callback, where Python drops exceptions, strikes
    again a moment later: the first signal counts. Outside of the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first = _First()

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if first.sees(number):
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in asking()}
    hook, sys.unraisablehook = sys.unraisablehook, _strike_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


class _First:
    """Tells a request to end from what belongs to the same one.

    A terminal that closes sends SIGHUP twice, systemd SIGTERM and SIGHUP. Ctrl-C is always new.
    """

    def __init__(self) -> None:
        self.since: float | None = None

    def sees(self, number: int) -> bool:
        """Whether a signal that came now is a request of its own."""
        now = time.monotonic()
        same = self.since is not None and now - self.since < _ONE_ASKING
        if same and number != signal.SIGINT and not _dropped.is_set():
            return False
        _dropped.clear()
        self.since = now if self.since is None else self.since
        return True


_dropped = threading.Event()  # an interrupt was raised where Python drops exceptions


def _strike_again(unraisable: Any) -> None:  # noqa: ANN401
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    _dropped.set()
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


class DeferredSignals:
    """Ctrl-C, SIGTERM and SIGHUP: at once during the set-up, where nothing is lost afterwards.

    Attributes:
        came: a signal came.
    """

    def __init__(self) -> None:
        self.came = False
        self._first = _First()
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        for number in asking():
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on only note the first signal."""
        self._deferred = True

    def at_once(self, call: Callable[[], _Result]) -> _Result | None:
        """What a call returns; None where a signal came, which ends the call at once.

        For a call that may take long and changes nothing that cannot be made again. Before
        :meth:`defer` the signal ends the training, as everywhere.
        """
        was_deferred = self._deferred
        if self.came:
            return None
        try:
            try:
                self._deferred = False
                return call()
            finally:
                self._deferred = was_deferred
        except KeyboardInterrupt:
            self._deferred = was_deferred  # it may have struck just before it was set
            if not was_deferred:
                raise
            return None

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._first.sees(number):
            return
        again, self.came = self.came, True
        if again or not self._deferred:  # a second one does not wait
            raise KeyboardInterrupt


# Processes that end with the one that started them


def end_with_parent() -> Callable[[], None] | None:
    """For ``preexec_fn``: SIGTERM comes when the parent is gone; None where the system cannot."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: the new process must do next to nothing

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


def watch_parent(then: Callable[[], None], *others: int) -> None:
    """Call a function, from a thread, when the parent of this process, or another one, is gone."""

    def watch(parent: int) -> None:
        while os.getppid() == parent and all(map(is_there, others)):
            time.sleep(0.5)
        then()

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()


def adopt_orphans() -> dict[str, str]:
    """Let processes that a child leaves behind become children of this one, where Linux does it.

    Returns:
        Environment of the child, by which they know this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return {_LAUNCHER: str(os.getpid())}


def wait_for_orphans(seconds: float) -> None:
    """Wait for the processes that a child left behind; end them when they take longer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            for pid in descendants(os.getpid()):
                end(pid)
        if not done:
            time.sleep(0.05)


def is_launched_by_ecgan() -> bool:
    """Whether this is a rank of ``ecgan train --nproc-per-node``."""
    return _LAUNCHER in os.environ


_followed = False


def end_with_launcher() -> None:
    """End this rank when torchrun, or the command that started it, is gone; once a process.

    SIGTERM lets it write a checkpoint; a minute later, or where it hangs, SIGKILL ends it. The
    kernel sends the first SIGTERM; a thread that looks at the parents sends it where the kernel
    does not, or where they were gone before it was asked to.
    """
    global _followed  # noqa: PLW0603  a property of the process
    if _followed:
        return
    _followed = True
    launcher = int(os.environ.get(_LAUNCHER, "0"))
    if ask := end_with_parent():
        ask()

    def give_up() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    if os.getppid() in {1, launcher}:  # torchrun is gone already
        threading.Thread(target=give_up, daemon=True).start()
    else:
        watch_parent(give_up, *([launcher] if launcher else []))
