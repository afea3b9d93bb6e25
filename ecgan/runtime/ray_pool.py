"""Workers as actors of Ray, which starts on this machine or on a cluster; all that knows Ray.

Ray places and counts the actors, starts their processes, tells of their deaths and ends them with
the driver. Restarts and retries are the schedule's: Ray would try again on the very worker that
failed, without a word, what another worker can do or the user has to mend.
"""

import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any

# Read at import: what it hears of dead workers it prints to stdout, whatever log_to_driver says.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray as _ray
from ray.exceptions import RayError, RayTaskError

from ecgan.errors import UserError
from ecgan.runtime.jobs import Answer, Fault, Workers, attempt, require_room

ray: Any = _ray  # its annotations are partial

_CONNECT = 5.0  # seconds for the head of a Ray cluster to accept a connection
_OBJECT_STORE = 100 * 2**20  # bytes; Ray's least is 75 MiB, and only the worker's recipe lies there


class RayPool:
    """Actors by number, each with a CPU and its GPUs.

    Args:
        make_worker: what :func:`ecgan.runtime.executor.run_jobs` was given.
        workers: how many, and where.
        tell: gets a line before Ray starts.

    Raises:
        UserError: Ray cannot start or is not there, or the workers find no room.
    """

    def __init__(
        self, make_worker: Callable[[int], Any], workers: Workers, tell: Callable[[str], None]
    ) -> None:
        self._each = f"1 CPU and {workers.gpus_each:g} GPUs"
        self._actors: dict[int, Any] = {}
        self._sigterm = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
        self._joined = not ray.is_initialized()
        try:
            if self._joined:
                _join_ray(workers, tell)
                self._restore_sigterm()
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            room = [(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
            require_room(workers, "this Ray cluster", room)
            self._make_worker = ray.put(make_worker)
            self._actor = ray.remote(num_cpus=1, num_gpus=workers.gpus_each)(_Actor)
        except BaseException:
            self.close()
            raise

    def start(self, index: int) -> Any:  # noqa: ANN401  Ray's reference to an answer
        """Start a worker: its name is the answer."""
        self._actors[index] = actor = self._actor.remote()
        return actor.start.remote(self._make_worker, index)

    def send(self, index: int, job: object) -> Any:  # noqa: ANN401
        """Give a worker a job: what comes of it is the answer."""
        return self._actors[index].run.remote(job)

    def wait(self, references: Mapping[int, Any], timeout: float) -> dict[int, Answer]:
        """Answers and deaths that are there, at the latest after the timeout in seconds."""
        asked = list(references.values())
        ray.wait(asked, num_returns=1, timeout=timeout)
        there, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        return {i: _answer(reference) for i, reference in references.items() if reference in there}

    def end(self, index: int) -> None:
        """End a worker, whatever it does."""
        ray.kill(self._actors.pop(index))

    def close(self) -> None:
        """End all workers, and Ray where it was started or joined for them."""
        try:
            for index in list(self._actors):
                self.end(index)
        finally:
            if self._joined:
                ray.shutdown()
                self._restore_sigterm()

    def why_not_up(self) -> str:
        """Advice for workers that do not come up."""
        free = ray.available_resources()
        return (
            f"each needs {self._each}, and free in this Ray cluster are now {free.get('CPU', 0):g} "
            f"CPUs and {free.get('GPU', 0):g} GPUs. Lower --workers or --gpus-per-worker, wait for "
            "others to end, or add nodes"
        )

    def _restore_sigterm(self) -> None:
        """Take out Ray's own handler, which ends the driver on the spot."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._sigterm)


class _Actor:
    """A worker in a process of its own: makes its function once, then does jobs."""

    _work: Callable[[Any], Any]

    def start(self, make_worker: Callable[[int], Callable[[Any], Any]], index: int) -> Answer:
        def make() -> str:
            self._work = make_worker(index)
            return f"{socket.gethostname()}/{os.getpid()}"

        return attempt(make)

    def run(self, job: object) -> Answer:
        return attempt(lambda: self._work(job))


def _answer(reference: Any) -> Answer:  # noqa: ANN401
    try:
        return ray.get(reference)
    except RayTaskError as error:  # what cannot travel: a result, or the worker's module
        return Fault(str(error).strip().splitlines()[-1], str(error))
    except RayError as error:
        return Fault(why_dead(error), died=True)


def why_dead(error: Exception) -> str:
    """Ray's page of guesses in a few words."""
    text = str(error)
    if code := re.search(r"exit code (\d+)", text):
        return f"worker died (exit code {code[1]})"
    for hint, told in (
        ("low on memory", "ended by Ray for want of memory"),
        ("node has died", "with its node"),
        ("connection error", "killed, out of memory or crashed"),
    ):
        if hint in text:
            return f"worker died ({told})"
    return f"worker died ({(text.strip() or type(error).__name__).splitlines()[-1]})"


# Ray itself


def _join_ray(workers: Workers, tell: Callable[[str], None]) -> None:
    """Start a Ray cluster here, or connect to one."""
    address = workers.address
    where, settings = f"--ray-address {address}", {}
    if address in (None, "local"):
        number = f"{workers.count} worker" + "s" * (workers.count > 1)
        tell(f"starting Ray with {number} on this machine")
        where = "Ray does not start here"
        if len(tempfile.gettempdir()) > 40:  # a socket's path in it has at most 107 characters
            os.environ.setdefault("RAY_TMPDIR", "/tmp")  # noqa: S108
        settings = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _require_reachable(address)
        # Ray would try for a quarter of an hour to talk to what is no Ray.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (OSError, RuntimeError, ValueError) as error:
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
