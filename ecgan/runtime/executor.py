"""Run jobs on workers, in this process or on Ray; compute values ahead, in threads.

    jobs --> schedule (a job for each worker, retries, replacements) --> Done | Failed
                 |  ^
           start, send, end  answers, deaths
                 v  |
             Ray's actors

It knows nothing of images, networks or storage. A worker is any function: what it needs once
(weights on a GPU) it loads when it is made, what it needs each time comes with the job. Jobs and
results travel between machines, so they are small: numbers, paths, counts.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ecgan.errors import UserError
from ecgan.runtime.jobs import (
    Answer,
    Done,
    Failed,
    Fault,
    Job,
    Outcome,
    Refusal,
    Result,
    Value,
    Workers,
    attempt,
)
from ecgan.runtime.timing import say

if TYPE_CHECKING:
    from ecgan.runtime.ray_pool import RayPool

T = TypeVar("T")
R = TypeVar("R")

_END = object()
_TICK = 1.0  # seconds; the workers are looked after at least so often
_log = logging.getLogger(__name__)


def print_event(text: str) -> None:
    """Print a line about a worker above the progress bar."""
    say(text)


def run_jobs(
    make_worker: Callable[[int], Callable[[Job], Result]],
    jobs: Iterable[Job],
    workers: Workers,
    *,
    on_event: Callable[[str], None] = print_event,
) -> Generator[Outcome[Job, Result], None, None]:
    """Run every job once and yield what became of it, in the order of completion.

    A worker holds one job at a time. A UserError of a job fails it at once: it would come again.
    After any other exception, death or stall the worker is replaced (after a CUDA error its process
    is of no use) and the job goes to another. A worker is given up when it does not come up in
    time, fails to start ``attempts`` times in a row, or dies ``2 * attempts + 1`` times with no job
    finished in between; the others go on, and the run ends only when none is left.

    A worker in this process is not replaced, and an exception of ``make_worker`` is raised as it
    is.

    Close the generator (``contextlib.closing``) to end the workers early. They get further jobs
    only while the caller asks for outcomes, and live no longer than this process.

    Args:
        make_worker: called once in each worker, with its number, from 0; returns the function that
            does a job. A replacement has the number of the worker before it.
        jobs: taken one by one, as workers become free.
        workers: how many, and where.
        on_event: gets a line for the start of Ray, each retry, replacement and worker given up.

    Raises:
        UserError: the workers find no room, cannot be made or die again and again.
        StopRun: a job raised it.
        RuntimeError: ``make_worker`` fails everywhere; its traceback is a note.
    """
    if workers.in_process:
        work: Callable[[Job], Result] | None = None
        for job in jobs:
            work = work or make_worker(0)
            yield _do_here(work, job, workers.attempts, on_event)
        return
    from ecgan.runtime.ray_pool import RayPool  # one worker needs no Ray

    pool = RayPool(make_worker, workers, on_event)
    try:
        yield from _Schedule[Job, Result](pool, iter(jobs), workers, on_event).run()
    finally:
        pool.close()


def _do_here(
    work: Callable[[Job], Result], job: Job, attempts: int, tell: Callable[[str], None]
) -> Outcome[Job, Result]:
    for number in range(1, attempts + 1):
        match attempt(lambda: work(job)):
            case Value(value):
                return Done(job, value, number)
            case Refusal(stops=True) as refusal:
                raise refusal.error()
            case Refusal(message):
                return Failed(job, message, number)
            case Fault(reason, text):
                _log.info("%s: attempt %d of %d:\n%s", job, number, attempts, text)
                if number == attempts:
                    return Failed(job, reason, number)
                tell(f"{job}: {reason}; attempt {number + 1} of {attempts}")
    raise AssertionError


@dataclass(eq=False)
class _Task(Generic[Job]):
    """A job on its way."""

    job: Job
    attempts: int = 0  # that failed
    tried: set[int] = field(default_factory=set[int])  # numbers of the workers that failed at it


_Wait = tuple[Any, float | None]  # Ray's reference to an answer, and how many seconds it may take
_Life = Generator[_Wait | None, Any, None]  # None: wants a task


class _Schedule(Generic[Job, Result]):
    """Which worker does what, and what happens when it does not."""

    def __init__(
        self, pool: "RayPool", jobs: Iterator[Job], workers: Workers, tell: Callable[[str], None]
    ) -> None:
        self._pool, self._jobs, self._workers, self._tell = pool, jobs, workers, tell
        self._again: deque[_Task[Job]] = deque()  # jobs that wait for another worker
        self._outcomes: deque[Outcome[Job, Result]] = deque()
        self._lives: dict[int, _Life] = {i: self._live(i) for i in range(workers.count)}
        self._idle: set[int] = set()
        self._names: dict[int, str] = {}  # of the workers that have loaded what they need
        self._due: dict[int, tuple[Any, float]] = {}  # references to answers, and their deadlines
        self._last, self._most_deaths = Fault(""), 0
        self._failure: Exception | None = None

    def run(self) -> Generator[Outcome[Job, Result], None, None]:
        for index in range(self._workers.count):
            self._go_on(index, None)
        while True:
            if self._failure is None:
                self._assign()  # first, so that workers are busy while the caller is
            while self._outcomes:
                yield self._outcomes.popleft()
            if self._failure is not None:
                raise self._failure
            if not self._due:
                return
            self._collect()

    def _live(self, index: int) -> _Life:
        """One worker after the other in a place, one job after the other."""
        attempts, failed_starts, deaths = self._workers.attempts, 0, 0
        while failed_starts < attempts and deaths <= 2 * attempts:
            task: _Task[Job] = yield None
            if index not in self._names:  # it is started for a job, so that none is for nothing
                answer: Answer = yield self._pool.start(index), self._workers.start_timeout
                if isinstance(answer, Refusal):
                    self._failure = answer.error()
                    return
                if isinstance(answer, Fault):
                    self._end(index, answer)
                    self._tell(f"start of worker {index}: {answer.reason}")
                    self._again.appendleft(task)  # the job is not to blame
                    failed_starts += attempts if answer.late else 1
                    continue
                self._names[index], failed_starts = answer.value, 0
            answer = yield self._pool.send(index, task.job), self._workers.timeout
            deaths = deaths + answer.died if isinstance(answer, Fault) else 0
            self._settle(index, task, answer)
        del self._lives[index]
        self._most_deaths = max(self._most_deaths, deaths)
        if self._lives:
            self._tell(f"worker {index} is given up; {len(self._lives)} go on")

    def _go_on(self, index: int, value: "_Task[Job] | Answer | None") -> None:
        """Resume a worker's life, up to what it waits for next."""
        try:
            wait = self._lives[index].send(value)
        except StopIteration:
            return
        if wait is None:
            self._idle.add(index)
        else:
            reference, seconds = wait
            self._due[index] = reference, time.monotonic() + (seconds or math.inf)

    def _settle(self, index: int, task: _Task[Job], answer: Answer) -> None:
        """What becomes of a job, and of the worker that failed at it."""
        task.attempts += 1
        match answer:
            case Value(value):
                self._outcomes.append(Done(task.job, value, task.attempts))
            case Refusal(stops=True):
                self._failure = answer.error()
            case Refusal(message):
                self._outcomes.append(Failed(task.job, message, task.attempts))
            case Fault(reason):
                attempts, name = self._workers.attempts, self._names.get(index)
                self._end(index, answer)
                if task.attempts == attempts:
                    self._outcomes.append(Failed(task.job, reason, task.attempts))
                    return
                task.tried.add(index)
                self._again.append(task)
                self._tell(
                    f"{task.job} on {name}: {reason}; attempt {task.attempts + 1} of {attempts} "
                    "goes to another worker"
                )

    def _end(self, index: int, fault: Fault) -> None:
        self._pool.end(index)
        self._names.pop(index, None)
        self._last = fault
        _log.info("worker %d: %s\n%s", index, fault.reason, fault.traceback)

    def _assign(self) -> None:
        """A job for every idle worker, those that are up first."""
        for index in sorted(self._idle, key=lambda index: (index not in self._names, index)):
            task = self._next(index)
            if task is not None:
                self._idle.remove(index)
                self._go_on(index, task)
        if not self._lives and self._next(0) is not None:
            self._failure = self._none_left()

    def _next(self, index: int) -> _Task[Job] | None:
        """A job that failed elsewhere, or a new one.

        A job comes back to a worker that failed at it only when all that are left have: one broken
        GPU costs it one attempt, however long the others take to come up. A worker that fails fast
        must not hoard jobs meanwhile: with as many to be done again as workers, it gets no new one.
        """
        for task in self._again:
            if index not in task.tried or task.tried >= self._lives.keys():
                self._again.remove(task)
                return task
        if len(self._again) >= self._workers.count:
            return None
        return next((_Task(job) for job in self._jobs), None)

    def _collect(self) -> None:
        """Wait for something to happen, and go on with it."""
        left = min(deadline for _, deadline in self._due.values()) - time.monotonic()
        references = {index: reference for index, (reference, _) in self._due.items()}
        found = self._pool.wait(references, min(_TICK, max(0.0, left)))
        # Answers first: a caller that was slow to ask for more must not cost a worker its job.
        now = time.monotonic()
        late = {
            i: self._late(i) for i, (_, at) in self._due.items() if at <= now and i not in found
        }
        for index, answer in (found | late).items():
            del self._due[index]
            self._go_on(index, answer)

    def _late(self, index: int) -> Fault:
        workers = self._workers
        if index in self._names:
            return Fault(f"took more than {workers.timeout:g} s", died=True, late=True)
        reason = f"did not come up within {workers.start_timeout:g} s"
        return Fault(f"{reason}; {self._pool.why_not_up()}", died=True, late=True)

    def _none_left(self) -> Exception:
        fault, times = self._last, self._most_deaths
        if fault.traceback:
            error = RuntimeError(f"no worker could be made: {fault.reason}")
            error.add_note(f"In the worker:\n{fault.traceback}")
            return error
        text = f"no worker is left; the last one: {fault.reason}"
        if times:
            text += (
                f", {times} times in a row with no job finished in between. Too little memory is "
                "the most frequent cause: lower --workers or --batch"
            )
        return UserError(text)


# Threads of this process


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
