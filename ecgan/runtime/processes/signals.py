"""Signals of a training, and what tells its processes that the one that started them is gone."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class DeferredSignals:
    """Ctrl-C and SIGTERM: at once during the set-up, where nothing is lost afterwards.

    Attributes:
        came: a signal came after :meth:`defer`.
    """

    def __init__(self) -> None:
        self.came = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "DeferredSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
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
            self._deferred = False
            return call()
        except KeyboardInterrupt:
            if not was_deferred:
                raise
            self.came = True
            return None
        finally:
            self._deferred = was_deferred

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._deferred or self.came:  # a second one does not wait
            raise KeyboardInterrupt
        self.came = True


def end_with_parent() -> Callable[[], None] | None:
    """For ``preexec_fn``: SIGTERM comes when the parent is gone; None where the system cannot."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: the new process must do next to nothing

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


def watch_parent(then: Callable[[], None]) -> None:
    """Call a function, from a thread, when the parent of this process is gone."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(1)
        then()

    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
