"""Jobs and their workers: how many and where, what becomes of a job, what a worker answers."""

import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from ecgan.errors import UsageError, UserError, shown

Job = TypeVar("Job")
Result = TypeVar("Result")

_MOST = 10_000  # workers, and GPUs of each
_TIMEOUT = 3600.0  # seconds for a job on Ray


# How many workers, and where


@dataclass(frozen=True)
class Workers:
    """How many workers, and where.

    One runs in this process. More than one, one on a cluster, and one that can be timed out (nobody
    could end this process) run on Ray.
    """

    count: int = 1
    gpus_each: float = 0  # which Ray gives out; a fraction shares a GPU, above 1 whole numbers only
    device: str = "cpu"  # or cuda, in this process also cuda:N
    # Ray cluster, as Ray takes it; "auto" looks into RAY_ADDRESS and at this machine; None starts
    # one here. A Ray that this process has joined already is used as it is.
    address: str | None = None
    attempts: int = 3  # number of times that a job is tried, each on another worker if possible
    timeout: float | None = None  # seconds of a job, before its worker is replaced; None: any time
    start_timeout: float = 300  # seconds for a worker to come up, its model loaded

    @property
    def in_process(self) -> bool:
        """Whether this process does the work."""
        return self.count == 1 and self.address is None and self.timeout is None


def resolve_workers(
    device: str,
    count: int | None = None,
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    timeout: float | None = None,
) -> Workers:
    """The workers that a command's options ask for.

    Args:
        device: auto, cpu, cuda or cuda:N.
        count: their number; None: one for each GPU, or one.
        gpus_per_worker: GPUs of each, a fraction shares one; None: 1 on CUDA.
        ray_address: address of a Ray cluster; None: this machine.
        timeout: seconds for a job; None: an hour on Ray, any time in this process.

    Raises:
        UsageError: numbers out of range, no such device, no Ray, or more than this machine has. A
            cluster elsewhere is checked when the run starts.
    """
    from ecgan.runtime.device import choose_device, count_gpus

    chosen, gpus = choose_device(device), count_gpus()
    each, on_cluster = gpus_per_worker, ray_address is not None
    on_cuda = chosen.type == "cuda" or (each is not None and on_cluster)
    if each is not None and not on_cuda:
        raise UsageError(
            f"--gpus-per-worker {each:g}: this machine has no CUDA device; "
            "leave it out, or name a cluster that has GPUs with --ray-address"
        )
    if each is not None and not (0 < each <= _MOST and (each <= 1 or each % 1 == 0)):
        raise UsageError(
            f"--gpus-per-worker {each:g}: must be a fraction of a GPU or a whole number of GPUs"
        )
    gpus_each, has_number = (each or 1.0) if on_cuda else 0.0, ":" in device
    if count is None:
        count = max(1, int(gpus / gpus_each)) if on_cuda and not has_number else 1
    if not 1 <= count <= _MOST:
        limit = "at least 1" if count < 1 else f"at most {_MOST}"
        raise UsageError(f"--workers {shown(count)}: must be {limit}")
    workers = Workers(count, gpus_each, str(chosen), ray_address, timeout=timeout)
    if workers.in_process:
        return workers
    _require_ray(workers, device, gpus)
    where = "cuda" if on_cuda else "cpu"
    return replace(workers, device=where, timeout=timeout or _TIMEOUT)


def _require_ray(workers: Workers, device: str, gpus: int) -> None:
    """Check that the workers can run on Ray, as far as it can be known before it starts."""
    if ":" in device:
        raise UsageError(
            f"--device {device}: Ray gives each worker its GPU; use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among GPUs"
        )
    if find_spec("ray") is None:
        raise UsageError(
            f"--workers {workers.count}: more than one worker, --ray-address and --shard-timeout "
            "need Ray, which is not installed; pip install ray (there is none for Python 3.14 or "
            "later, nor for some systems), or use --workers 1 alone"
        )
    ray = sys.modules.get("ray")
    if workers.address in {None, "local"} and not (ray and ray.is_initialized()):
        require_room(workers, "this machine", [(os.cpu_count() or math.inf, gpus)])


def require_room(workers: Workers, where: str, machines: Sequence[tuple[float, float]]) -> None:
    """Refuse more workers than fit on machines with so many CPUs and GPUs: Ray would wait for ever.

    Workers are not spread over machines, nor is a fraction of a GPU over GPUs.
    """
    most, each = workers.count, workers.gpus_each
    room = sum(int(min(most, cpus, workers_on(gpus, each))) for cpus, gpus in machines)
    if most <= room:
        return
    cpus, gpus = (sum(numbers) for numbers in zip(*machines, strict=True))
    holds = "1 CPU" + (f" and {each:g} GPUs" if each else "")
    raise UsageError(
        f"{most} workers, each with {holds}, need more than {where} has: {cpus:g} CPUs and "
        f"{gpus:g} GPUs, room for {room}. Lower --workers or --gpus-per-worker, or add nodes"
    )


def workers_on(gpus: float, each: float) -> float:
    """How many workers fit on the GPUs of one machine."""
    rounding = 1e-6  # 0.1 and 1/3 are no binary fractions
    if each == 0:
        return math.inf
    return gpus // each if each >= 1 else math.floor(gpus) * math.floor(1 / each + rounding)


# What becomes of a job


@dataclass(frozen=True)
class Done(Generic[Job, Result]):
    """A job that is done, with what the worker returned, after so many attempts."""

    job: Job
    result: Result
    attempts: int


@dataclass(frozen=True)
class Failed(Generic[Job]):
    """A job that failed for good, with a sentence about the last attempt."""

    job: Job
    reason: str
    attempts: int


Outcome = Done[Job, Result] | Failed[Job]


class StopRun(Exception):  # noqa: N818  # like StopIteration: a request rather than a mistake
    """A job raises it to end the whole run; the caller gets it, with the system's error number."""

    def __init__(self, reason: str, errno: int | None = None) -> None:
        self.reason, self.errno = reason, errno
        super().__init__(reason, errno)

    def __str__(self) -> str:
        return self.reason


# What a worker answers: plain data, since not every exception can travel


@dataclass(frozen=True)
class Value:
    """The end as it should be of a start (the worker's name) or of a job (its result)."""

    value: Any


@dataclass(frozen=True)
class Refusal:
    """A UserError or a StopRun, which would come again."""

    message: str
    stops: bool = False
    errno: int | None = None

    def error(self) -> UserError | StopRun:
        """The error, for the caller."""
        return StopRun(self.message, self.errno) if self.stops else UserError(self.message)


@dataclass(frozen=True)
class Fault:
    """Any other end of a start or a job."""

    reason: str  # a sentence without the worker's name
    traceback: str = ""  # of an exception
    died: bool = False  # whether the worker is gone, or as good as
    late: bool = False  # whether it took too long


Answer = Value | Refusal | Fault


def attempt(call: Callable[[], Any]) -> Answer:
    """What comes of a call; no exception leaves it."""
    try:
        return Value(call())
    except UserError as error:
        return Refusal(str(error))
    except StopRun as error:
        return Refusal(error.reason, True, error.errno)
    except Exception as error:  # noqa: BLE001  # what others' code raises is a result here
        return Fault(_reason(error), "".join(traceback.format_exception(error)))


def _reason(error: Exception) -> str:
    """Type, first line of the message and place: torch says the rest in the lines below."""
    name = type(error).__name__
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return (f"{name}: {message}" if message else name) + place
