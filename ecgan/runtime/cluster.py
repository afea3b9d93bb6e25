"""Run jobs on workers: in this process, in processes of this machine, or on a Ray cluster.

    jobs --> schedule (a job for each worker, retries, replacements) --> Done | Failed
                 |  ^
           start, send, end  answers, deaths
                 v  |
               pool: processes | Ray actors

The only module that knows Ray, and it imports Ray only where a Ray cluster is asked for. It knows
nothing of images, networks or storage. A worker is any function: what it needs once (weights on a
GPU) it loads when it is made, what it needs each time comes with the job. Jobs and results travel
between machines as pickles of our own processes, so they are small: numbers, paths, counts.
"""

import ctypes
import logging
import math
import multiprocessing
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from ecgan.errors import UsageError, UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Executor = Literal["inline", "processes", "ray"]

_TICK = 1.0  # seconds; a pool is looked after at least so often
_GRACE = 1.0  # seconds from SIGTERM to SIGKILL
_CONNECT = 5.0  # seconds for the head of a Ray cluster to accept a connection
_OBJECT_STORE = 100 * 2**20  # bytes; Ray's least is 75 MiB, and only the worker's recipe lies there


@dataclass(frozen=True)
class Workers:
    """How many workers, and where.

    Attributes:
        executor: ``inline`` (this process), ``processes`` (of this machine) or ``ray``.
        count: workers; 1 inline.
        gpus_each: GPUs of a worker. A fraction shares a GPU; above 1 whole numbers only. Ray gives
            them out; processes choose theirs by their index, and nobody counts them here.
        address: of a Ray cluster, as Ray takes it; ``auto`` looks into RAY_ADDRESS and at this
            machine; None starts a cluster here. A Ray that this process has joined already is used
            and left as it is.
        attempts: of a job, each on another worker where possible.
        timeout: seconds that a job may take before its worker is taken for stalled; None: any
            time. None inline.
        start_timeout: seconds for a worker to come up, its model loaded.
    """

    executor: Executor
    count: int
    gpus_each: float = 0
    address: str | None = None
    attempts: int = 3
    timeout: float | None = None
    start_timeout: float = 300


@dataclass(frozen=True)
class Done(Generic[Job, Result]):
    """A job that is done.

    Attributes:
        job: as it was given.
        result: what the worker returned.
        attempts: that it took, the last included.
        worker: that did it, as host/pid.
    """

    job: Job
    result: Result
    attempts: int
    worker: str


@dataclass(frozen=True)
class Failed(Generic[Job]):
    """A job that failed for good.

    Attributes:
        job: as it was given.
        reason: of the last attempt, a sentence; a UserError's own message.
        attempts: that were made.
        traceback: of the last attempt, for a log; empty for a UserError or a dead worker.
    """

    job: Job
    reason: str
    attempts: int
    traceback: str = ""


class StopRun(Exception):  # noqa: N818  # like StopIteration: a request rather than a mistake
    """A job raises it to end the whole run, say on a full disk; the caller gets it as it is.

    Arguments and attributes survive the way from the worker, as far as a pickle keeps them.
    """


Outcome = Done[Job, Result] | Failed[Job]


def require(workers: Workers) -> None:
    """Refuse what cannot work, as far as it can be known before anything is started.

    Raises:
        UserError: numbers out of range, no Ray, or more than this machine has. A cluster elsewhere
            is checked when the run starts.
    """
    if workers.count < 1:
        raise UsageError(f"--workers {workers.count}: must be at least 1")
    if workers.gpus_each < 0 or (workers.gpus_each > 1 and workers.gpus_each % 1):
        raise UsageError(
            f"--gpus-per-worker {workers.gpus_each:g}: must be 0, a fraction of a GPU or a whole "
            "number of GPUs"
        )
    assert workers.attempts >= 1
    if workers.executor == "inline":
        assert workers.count == 1
        assert workers.timeout is None, "nobody is there to end this process"
        return
    if workers.executor == "processes":
        return  # their caller chooses the devices, and has counted them
    if find_spec("ray") is None:
        raise UsageError("--executor ray: Ray is not installed; pip install ray")
    if _starts_ray(workers):
        cpus, gpus = os.cpu_count(), _gpus_here()
        most = [(cpus or math.inf, math.inf if gpus is None else gpus)]
        _require_room(workers, "this machine", most)


def run_jobs(
    make_worker: Callable[[int], Callable[[Job], Result]],
    jobs: Iterable[Job],
    workers: Workers,
    *,
    on_event: Callable[[str], None] | None = None,
) -> Generator[Outcome[Job, Result], None, None]:
    """Run every job once and yield what became of it, in the order of completion.

    A worker holds one job at a time. A UserError of a job fails it at once: it would come again.
    After any other exception, death or stall the worker is replaced (after a CUDA error its process
    is of no use) and the job goes to another. A worker's place is given up when it does not come up
    in time, fails to start ``attempts`` times in a row, or dies ``2 * attempts + 1`` times with no
    job finished in between; the others go on, and the run ends only when none is left.

    Inline there is one worker, which is not replaced, and an exception of ``make_worker`` is raised
    as it is.

    Close the generator (``contextlib.closing``) to end the workers early. They get further jobs
    only while the caller asks for outcomes, and live no longer than the thread that does.

    Args:
        make_worker: called once in each worker, with the index of its place, from 0; returns the
            function that does a job. A replacement has the index of the worker before it.
        jobs: taken one by one, as workers become free.
        workers: how many, and where.
        on_event: gets a line for each retry, replacement and place that is given up.

    Raises:
        UserError: the workers find no room, cannot be made or die again and again.
        StopRun: a job raised it.
        RuntimeError: ``make_worker`` fails everywhere; its traceback is a note.
    """
    require(workers)
    tell = on_event or (lambda _: None)
    if workers.executor == "inline":
        return _run_inline(make_worker, jobs, workers.attempts, tell)
    return _run_on_pool(make_worker, jobs, workers, tell)


# What goes from worker to driver


@dataclass(frozen=True)
class _Value:
    value: Any  # of a start: the worker's name; of a job in a pool: the pickled result


@dataclass(frozen=True)
class _Refusal:
    error: UserError | StopRun


@dataclass(frozen=True)
class _Fault:
    """Any other end of a start or a job.

    Attributes:
        reason: a sentence without the worker's name.
        traceback: of an exception.
        died: the worker is gone, or as good as.
    """

    reason: str
    traceback: str = ""
    died: bool = False


_Answer = _Value | _Refusal | _Fault


def _attempt(call: Callable[[], Any]) -> _Answer:
    try:
        return _Value(call())
    except (UserError, StopRun) as error:
        return _Refusal(error)
    except Exception as error:  # noqa: BLE001  # what others' code raises is a result here
        return _Fault(_reason(error), "".join(traceback.format_exception(error)))


def _reason(error: Exception) -> str:
    """Type, first line of the message and place: torch says the rest in the lines below."""
    name, message = type(error).__name__, _first_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return (f"{name}: {message}" if message else name) + place


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


class _Worker:
    """Runs in a worker: makes the function once, then does jobs. Bytes in, bytes out.

    No exception leaves it, so neither Ray nor a pipe has to carry one that cannot be pickled.
    """

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def start(self, make_worker: bytes, index: int) -> bytes:
        def make() -> str:
            self._work = pickle.loads(make_worker)(index)  # noqa: S301  # from our driver
            return _own_name()

        return _dump(_attempt(make))

    def run(self, job: bytes) -> bytes:
        work = self._work
        assert work is not None
        return _dump(_attempt(lambda: pickle.dumps(work(pickle.loads(job)))))  # noqa: S301


def _own_name() -> str:
    return f"{socket.gethostname()}/{os.getpid()}"


def _dump(answer: _Answer) -> bytes:
    try:
        data = pickle.dumps(answer)
        pickle.loads(data)  # noqa: S301  # an exception with arguments of its own fails only here
    except (TypeError, AttributeError, pickle.PickleError):
        assert isinstance(answer, _Refusal)
        kind = StopRun if isinstance(answer.error, StopRun) else UserError
        return pickle.dumps(_Refusal(kind(str(answer.error))))
    return data


def _load(data: bytes) -> _Answer:
    return pickle.loads(data)  # noqa: S301  # from our worker


# In this process


def _run_inline(
    make_worker: Callable[[int], Callable[[Job], Result]],
    jobs: Iterable[Job],
    attempts: int,
    tell: Callable[[str], None],
) -> Generator[Outcome[Job, Result], None, None]:
    work: Callable[[Job], Result] | None = None
    for job in jobs:
        work = work or make_worker(0)
        yield _do_inline(work, job, attempts, tell)


def _do_inline(
    work: Callable[[Job], Result], job: Job, attempts: int, tell: Callable[[str], None]
) -> Outcome[Job, Result]:
    for attempt in range(1, attempts + 1):
        match _attempt(lambda: work(job)):
            case _Value(value):
                return Done(job, value, attempt, _own_name())
            case _Refusal(UserError() as error) if not isinstance(error, StopRun):
                return Failed(job, str(error), attempt)
            case _Refusal(error):
                raise error
            case _Fault(reason, text) if attempt == attempts:
                return Failed(job, reason, attempt, text)
            case _Fault(reason):
                tell(f"{job}: {reason}; attempt {attempt + 1} of {attempts}")
    raise AssertionError


# The schedule, whatever the pool


class _Pool(Protocol):
    """Workers by index. A worker that is started or sent a job answers once, or dies."""

    def start(self, index: int) -> None: ...

    def send(self, index: int, job: bytes) -> None: ...

    def wait(self, timeout: float) -> dict[int, _Answer]:
        """Answers and deaths that are there, at the latest after the timeout in seconds."""
        ...

    def end(self, index: int) -> None: ...

    def close(self) -> None:
        """End all that is left."""
        ...

    def why_not_up(self) -> str:
        """What a user may do about workers that do not come up."""
        ...


@dataclass(eq=False)
class _Task(Generic[Job]):
    """A job on its way."""

    job: Job
    attempts: int = 0  # that failed
    tried: set[int] = field(default_factory=set)  # indices of the workers that failed at it


@dataclass(eq=False)
class _Place(Generic[Job]):
    """Where one worker after the other may live."""

    index: int
    task: _Task[Job] | None = None  # a worker is started for a job, so that none is for nothing
    started: bool = False
    name: str = ""  # once the worker is up
    deadline: float = math.inf
    failed_starts: int = 0  # in a row
    deaths: int = 0  # with no job finished in between
    given_up: bool = False

    def clear(self) -> None:
        self.task, self.started, self.name, self.deadline = None, False, "", math.inf


def _run_on_pool(
    make_worker: Callable[[int], Callable[[Job], Result]],
    jobs: Iterable[Job],
    workers: Workers,
    tell: Callable[[str], None],
) -> Generator[Outcome[Job, Result], None, None]:
    recipe = pickle.dumps(make_worker)
    pool = _Processes(recipe) if workers.executor == "processes" else _Ray(recipe, workers)
    try:
        yield from _Schedule[Job, Result](pool, iter(jobs), workers, tell).run()
    finally:
        pool.close()


class _Schedule(Generic[Job, Result]):
    """Which worker does what, and what happens when it does not."""

    def __init__(
        self, pool: _Pool, jobs: Iterator[Job], workers: Workers, tell: Callable[[str], None]
    ) -> None:
        self._pool = pool
        self._jobs = jobs
        self._workers = workers
        self._tell = tell
        self._places = [_Place[Job](index) for index in range(workers.count)]
        self._again: deque[_Task[Job]] = deque()  # jobs that wait for another worker
        self._last = _Fault("")
        self._failure: Exception | None = None

    def run(self) -> Generator[Outcome[Job, Result], None, None]:
        outcomes: list[Outcome[Job, Result]] = []
        while True:
            if self._failure is None:
                self._assign()  # first, so that workers are busy while the caller is
            yield from outcomes
            if self._failure is not None:
                raise self._failure
            if all(place.task is None for place in self._places):
                return
            outcomes = self._collect()

    def _assign(self) -> None:
        """Give every free place a job, those with a worker first."""
        for place in sorted(self._places, key=lambda place: not place.name):
            if place.task is not None or place.given_up:
                continue
            place.task = self._next(place.index)
            if place.task is not None and place.started:
                self._send(place, place.task)
            elif place.task is not None:
                self._pool.start(place.index)
                place.started = True
                place.deadline = time.monotonic() + self._workers.start_timeout
        if all(place.given_up for place in self._places) and self._next(0) is not None:
            self._failure = self._none_left()

    def _next(self, index: int) -> _Task[Job] | None:
        """A job that failed elsewhere, a new one, or, last, one that failed here.

        A place that fails fast must not hoard jobs while the others are busy: when there are as
        many to be done again as workers, the oldest comes first, wherever it failed.
        """
        for task in self._again:
            if index not in task.tried or len(self._again) >= self._workers.count:
                self._again.remove(task)
                return task
        for job in self._jobs:
            return _Task(job)
        return self._again.popleft() if self._again else None

    def _send(self, place: _Place[Job], task: _Task[Job]) -> None:
        self._pool.send(place.index, pickle.dumps(task.job))
        place.deadline = time.monotonic() + (self._workers.timeout or math.inf)

    def _collect(self) -> list[Outcome[Job, Result]]:
        """Wait for something to happen, and deal with it."""
        deadline = min(place.deadline for place in self._places)
        timeout = min(_TICK, max(0.0, deadline - time.monotonic()))
        answers = self._pool.wait(timeout)
        found = [self._deal_with(self._places[i], answer) for i, answer in answers.items()]
        # Answers first: a caller that was slow to ask for more must not cost a worker its job.
        now = time.monotonic()
        overdue = [place for place in self._places if place.deadline <= now]
        found += [self._fault(place, self._stalled(place)) for place in overdue]
        return [outcome for outcome in found if outcome is not None]

    def _deal_with(self, place: _Place[Job], answer: _Answer) -> Outcome[Job, Result] | None:
        task = place.task
        if isinstance(answer, _Fault):
            return self._fault(place, answer)
        assert task is not None
        if isinstance(answer, _Refusal):
            if isinstance(answer.error, StopRun) or not place.name:
                self._failure = answer.error
                return None
            place.task, place.deadline, place.deaths = None, math.inf, 0
            return Failed(task.job, str(answer.error), task.attempts + 1)
        if not place.name:
            place.name, place.failed_starts = answer.value, 0
            self._send(place, task)
            return None
        place.task, place.deadline, place.deaths = None, math.inf, 0
        result = pickle.loads(answer.value)  # noqa: S301  # from our worker
        return Done(task.job, result, task.attempts + 1, place.name)

    def _stalled(self, place: _Place[Job]) -> _Fault:
        if place.name:
            return _Fault(f"took more than {self._workers.timeout:g} s", died=True)
        place.given_up = True  # it had its time
        reason = f"did not come up within {self._workers.start_timeout:g} s"
        return _Fault(f"{reason}; {self._pool.why_not_up()}", died=True)

    def _fault(self, place: _Place[Job], fault: _Fault) -> Failed[Job] | None:
        """End the worker and find out what becomes of its job and its place."""
        self._pool.end(place.index)
        task, name, self._last = place.task, place.name, fault
        place.clear()
        if not name:
            assert task is not None
            self._again.appendleft(task)  # the job is not to blame
            place.failed_starts += 1
            self._tell(f"start of worker {place.index}: {fault.reason}")
        place.deaths += bool(name) and fault.died
        self._give_up_if_hopeless(place)
        if not name or task is None:
            return None
        task.attempts += 1
        task.tried.add(place.index)
        if task.attempts >= self._workers.attempts:
            return Failed(task.job, fault.reason, task.attempts, fault.traceback)
        self._again.append(task)
        self._tell(
            f"{task.job} on {name}: {fault.reason}; attempt {task.attempts + 1} of "
            f"{self._workers.attempts} goes to another worker"
        )
        return None

    def _give_up_if_hopeless(self, place: _Place[Job]) -> None:
        attempts = self._workers.attempts
        place.given_up |= place.failed_starts >= attempts or place.deaths > 2 * attempts
        left = sum(not place.given_up for place in self._places)
        if place.given_up and left:
            self._tell(f"worker {place.index} is given up; {left} go on")

    def _none_left(self) -> Exception:
        fault = self._last
        if fault.traceback:
            error = RuntimeError(f"no worker could be made: {fault.reason}")
            error.add_note(f"In the worker:\n{fault.traceback}")
            return error
        times = max(place.deaths for place in self._places)
        if not times:
            return UserError(f"no worker is left; the last one: {fault.reason}")
        return UserError(
            f"no worker is left; the last one: {fault.reason}, {times} times in a row with no job "
            "finished in between. Signal 9 often means too little memory: lower --workers or "
            "--batch"
        )


# Processes of this machine


class _Processes:
    """Spawned processes, each behind a pipe. One that dies disturbs no other."""

    def __init__(self, make_worker: bytes) -> None:
        self._make_worker = make_worker
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, tuple[SpawnProcess, Connection]] = {}
        # The first start would start it, and unblock SIGINT on the way.
        resource_tracker.ensure_running()

    def start(self, index: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._make_worker, index, os.getpid()), daemon=True
        )
        with _without_interrupts(), theirs:
            process.start()
            self._running[index] = process, ours

    def send(self, index: int, job: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: wait() tells
            self._running[index][1].send_bytes(job)

    def wait(self, timeout: float) -> dict[int, _Answer]:
        connection.wait(
            [item for process, pipe in self._running.values() for item in (process.sentinel, pipe)],
            timeout,
        )
        found = {index: _answer(*worker) for index, worker in self._running.items()}
        return {index: answer for index, answer in found.items() if answer is not None}

    def end(self, index: int) -> None:
        _end([self._running.pop(index)])

    def close(self) -> None:
        _end(list(self._running.values()))
        self._running.clear()

    def why_not_up(self) -> str:
        return "lower --workers, or see what keeps its files or its GPU"


def _answer(process: SpawnProcess, pipe: Connection) -> _Answer | None:
    with suppress(EOFError, OSError):  # closed, perhaps in the middle of a message
        if pipe.poll():
            return _load(pipe.recv_bytes())
        if process.exitcode is None:
            return None
    process.join(_GRACE)
    code = process.exitcode or 0
    return _Fault(
        f"worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})", died=True
    )


def _end(workers: list[tuple[SpawnProcess, Connection]]) -> None:
    """SIGTERM to all, SIGKILL to those still there; no waiting for what even that cannot end."""
    for process, _ in workers:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process, pipe in workers:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join(_GRACE)
        pipe.close()


def _serve(pipe: Connection, make_worker: bytes, index: int, driver: int) -> None:
    """Life of a process: answer until the driver ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the driver
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with(driver)
    os.dup2(2, 1)  # what jobs print must not mix with the driver's output
    worker = _Worker()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the driver is gone
        pipe.send_bytes(worker.start(make_worker, index))
        while True:
            pipe.send_bytes(worker.run(pipe.recv_bytes()))


def _die_with(driver: int) -> None:
    """End this process when the driver ends, even by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(driver,), daemon=True).start()
    if os.getppid() != driver:  # it has ended meanwhile
        os._exit(1)


def _watch(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(_TICK)
    os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep SIGINT waiting: a process that is being started inherits that, and is not lost."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Ray


class _Ray:
    """Actors of a Ray cluster, each with a CPU and its GPUs. Ray retries and restarts nothing."""

    def __init__(self, make_worker: bytes, workers: Workers) -> None:
        self._ray = ray = _import_ray()
        self._each = f"1 CPU and {workers.gpus_each:g} GPUs"
        self._actors: dict[int, Any] = {}
        self._due: dict[int, Any] = {}  # references to answers that are to come
        self._sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        self._joined = not ray.is_initialized()
        try:
            if self._joined:
                _join_ray(workers.address)
                self._restore_sigterm()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            room = [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
            _require_room(workers, "this Ray cluster", room)
            self._make_worker = ray.put(make_worker)
            self._actor = ray.remote(
                num_cpus=1, num_gpus=workers.gpus_each, max_restarts=0, max_task_retries=0
            )(_Worker)
        except BaseException:
            self.close()
            raise

    def start(self, index: int) -> None:
        self._actors[index] = actor = self._actor.remote()
        self._due[index] = actor.start.remote(self._make_worker, index)

    def send(self, index: int, job: bytes) -> None:
        self._due[index] = self._actors[index].run.remote(job)

    def wait(self, timeout: float) -> dict[int, _Answer]:
        due = {reference: index for index, reference in self._due.items()}
        self._ray.wait(list(due), num_returns=1, timeout=timeout)
        there, _ = self._ray.wait(list(due), num_returns=len(due), timeout=0)
        return {due[reference]: self._answer(due[reference]) for reference in there}

    def _answer(self, index: int) -> _Answer:
        from ray.exceptions import RayError

        try:
            return _load(self._ray.get(self._due.pop(index)))
        except RayError as error:
            return _Fault(_why_dead(error), died=True)

    def end(self, index: int) -> None:
        self._due.pop(index, None)
        self._ray.kill(self._actors.pop(index))

    def close(self) -> None:
        try:
            for index in list(self._actors):
                self.end(index)
        finally:
            if self._joined:
                self._ray.shutdown()
                self._restore_sigterm()

    def _restore_sigterm(self) -> None:
        """Ray puts its own handler there, which ends the driver on the spot."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._sigterm)

    def why_not_up(self) -> str:
        free = self._ray.available_resources()
        return (
            f"each needs {self._each}, and free in this Ray cluster are now {free.get('CPU', 0):g} "
            f"CPUs and {free.get('GPU', 0):g} GPUs. Lower --workers or --gpus-per-worker, wait for "
            "others to end, or add nodes"
        )


def _starts_ray(workers: Workers) -> bool:
    """Whether the run would start a Ray cluster of its own."""
    ray = sys.modules.get("ray")
    return workers.address in (None, "local") and not (ray and ray.is_initialized())


def _import_ray() -> Any:  # noqa: ANN401  # a module
    # Ray prints what it hears of dead workers to stdout, whatever log_to_driver says.
    with _environment(RAY_DEDUP_LOGS_SKIP_REGEX="."):
        import ray
    return ray


def _join_ray(address: str | None) -> None:
    """Start a Ray cluster here, or connect to one.

    Raises:
        UserError: none is there, or Ray cannot start.
    """
    import ray

    where, settings, patience = f"--ray-address {address}", {}, {}
    if address in (None, "local"):
        where = "Ray does not start here"
        settings = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _require_reachable(address)
        # Ray would try for a quarter of an hour to talk to what is no Ray.
        patience = {"RAY_gcs_server_port_wait_time_s": "1"}
    try:
        with _environment(RAY_USAGE_STATS_ENABLED="0", **patience):
            ray.init(
                address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"{where}: {_root_cause(error)}") from error


def _root_cause(error: BaseException) -> str:
    """What Ray has to say, out of chains of exceptions and tracebacks inside of messages."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback (" in text else " ".join(text.split())


def _require_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself tries for minutes."""
    found = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    host, _, port = found.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():  # auto, or nonsense; Ray says so at once
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray-address {address}: nothing answers at {found} ({error}); give HOST:PORT of the "
            "head of a running cluster, or leave the option out to start one here"
        ) from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that are set for a while, where the user has not set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _why_dead(error: Exception) -> str:
    """Ray's page of guesses in a few words."""
    text = str(error)
    if code := re.search(r"exit code (\d+)", text):
        return f"worker died (exit code {code[1]})"
    if "low on memory" in text:
        return "worker died (ended by Ray for want of memory)"
    if "node has died" in text:
        return "worker died (with its node)"
    if "connection error" in text:
        return "worker died (killed, out of memory or crashed)"
    *_, last_line = (text.strip() or type(error).__name__).splitlines()
    return f"worker died ({last_line})"


# Room


def _require_room(workers: Workers, where: str, machines: list[tuple[float, float]]) -> None:
    """Refuse more workers than fit: Ray would wait for ever.

    Args:
        workers: how many, with how many GPUs each.
        where: the machines are, for the message.
        machines: CPUs and GPUs of each. Workers are not spread over machines, nor is a fraction of
            a GPU over GPUs.
    """
    each = workers.gpus_each
    most = workers.count
    room = sum(int(min(most, cpus, _workers_on(gpus, each))) for cpus, gpus in machines)
    if most <= room:
        return
    cpus, gpus = (sum(numbers) for numbers in zip(*machines, strict=True))
    there = " and ".join(
        f"{number:g} {name}"
        for number, name in ((cpus, "CPUs"), (gpus, "GPUs"))
        if number < math.inf
    )
    holds = " and ".join(["1 CPU"] * (cpus < math.inf) + [f"{each:g} GPUs"] * (each > 0))
    raise UserError(
        f"{most} workers, each with {holds}, need more than {where} has: {there}, room for {room}. "
        f"Lower --workers or --gpus-per-worker, or add nodes"
    )


def _workers_on(gpus: float, each: float) -> float:
    """How many workers fit on the GPUs of one machine."""
    rounding = 1e-6  # 0.1 and 1/3 are no binary fractions
    if each == 0 or gpus == math.inf:
        return math.inf
    if each >= 1:
        return gpus // each
    return math.floor(gpus) * math.floor(1 / each + rounding)


def _gpus_here() -> int | None:
    """GPUs of this machine, as far as can be told without their library; None: unknown."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()]) or None
