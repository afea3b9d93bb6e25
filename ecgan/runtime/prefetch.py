"""Values computed ahead of their consumer, in threads of this process."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from itertools import islice, repeat
from typing import TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def prefetch(values: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Values of an iterable that runs in a thread of its own, up to ``depth`` ahead."""
    iterator = iter(values)
    ahead = map_ahead(lambda _: next(iterator, _END), repeat(None), threads=1, depth=depth)
    with closing(ahead):
        for value in ahead:
            if value is _END:
                return
            yield cast(T, value)


def map_ahead(
    function: Callable[[T], R], values: Iterable[T], *, threads: int, depth: int
) -> Generator[R, None, None]:
    """Results of a function in the order of its arguments, up to ``depth`` ahead of the caller.

    The threads are joined when the generator ends or is closed. They are no daemons: an interpreter
    that is torn down while a thread is inside torch ends with SIGABRT. An interrupt may strike
    anywhere, even before the join; then Python waits for the threads at its exit, and what is still
    queued does nothing, since the thread that asked for it has ended.
    """
    arguments, owner = iter(values), threading.current_thread()

    def call(value: T) -> R:
        if not owner.is_alive():
            raise CancelledError
        return function(value)

    pool = ThreadPoolExecutor(threads, "prefetch")
    try:
        due = deque(pool.submit(call, value) for value in islice(arguments, depth))
        while due:
            result = due.popleft().result()
            due.extend(pool.submit(call, value) for value in islice(arguments, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
