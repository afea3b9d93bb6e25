"""Workers as actors of Ray, which starts on this machine or on a cluster; all that knows Ray.

Ray places and counts the actors, starts their processes, tells of their deaths and ends them with
the driver. Restarts and retries are the schedule's: Ray would try again on the very worker that
failed, without a word, what another worker can do or the user has to mend.
"""

import atexit
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read at import: what it hears of dead workers it prints to stdout, whatever log_to_driver says.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
import ray as _ray
from ray.exceptions import RayError, RayTaskError

from ecgan.errors import UserError
from ecgan.runtime.jobs import Answer, Fault, Workers, attempt, require_room
from ecgan.runtime.processes.table import is_there, let_keeper_end, processes, start_keeper

ray: Any = _ray  # its annotations are partial
# Ray's tells the head of the cluster of an exception first, and waits for it where it is gone
sys.excepthook = getattr(ray._private.worker, "normal_excepthook", sys.excepthook)
# Older versions tell every driver what later ones do with devices of workers that ask for none
warnings.filterwarnings("ignore", r"Tip: In future versions of Ray", FutureWarning)

_CONNECT = 5.0  # seconds for the head of a Ray cluster to accept a connection
_BASE = 25  # characters of the folder above Ray's
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
        self._own: _OwnRay | None = None
        self._head_is_gone = False
        try:
            if self._joined:
                self._own = _join_ray(workers, tell)
                self._restore_sigterm()
            self._head = _head_of(self._own)
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
        if (gone := self._head()) is not None:
            self._head_is_gone = True
            atexit.register(_leave)
            raise UserError(
                f"{gone}: what is finished is kept, and the same command makes the rest. Too "
                "little memory is the most frequent cause: lower --workers or --batch"
            )
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
            if not self._head_is_gone:  # it would be waited for
                for index in list(self._actors):
                    self.end(index)
        finally:
            if self._joined and not self._head_is_gone:
                ray.shutdown()
                self._restore_sigterm()
            if self._own is not None:
                self._own.remove()

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


def _leave() -> None:
    """End this process at its exit: Ray's library would wait for its head there, or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _OwnRay:
    """Ray's daemons of this machine alone, in a folder of their own, on the loopback interface.

    A keeper ends them and removes the folder when this process is gone, however it ended.
    """

    def __init__(self) -> None:
        # A socket's path has at most 107 characters, and Ray puts 75 of them below its folder
        base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        base = base if len(base) <= _BASE or not os.access("/tmp", os.W_OK) else "/tmp"  # noqa: S108
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="ecgan-ray-", dir=base)).resolve()
            self._keeper = start_keeper(
                self.folder,
                f"Error: process {os.getpid()} was killed, or ended by Ray, whose own processes "
                "were. What is finished is kept, and the same command makes the rest",
            )
        except OSError as error:
            raise UserError(
                f"{base}: Ray cannot put its sockets there ({error.strerror}); name another folder "
                "with RAY_TMPDIR, or use --workers 1"
            ) from error

    def init(self, **settings: Any) -> None:  # noqa: ANN401
        """Start the daemons."""
        constants = ray._private.ray_constants
        with _changed(constants, "ENABLE_RAY_CLUSTER", False):  # nobody joins: loopback will do
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _temp_dir=str(self.folder),
                **settings,
            )
        mine = {pid: one.command for pid, one in processes().items() if one.parent == os.getpid()}
        self._daemons = {
            name: pid
            for pid, command in mine.items()
            for name in ("gcs_server", "raylet")
            if command.split(" ")[0].endswith(f"/{name}")
        }

    def what_is_gone(self) -> str | None:
        """A sentence where a daemon has ended."""
        for name, pid in self._daemons.items():
            if not is_there(pid):
                return f"Ray's process {name} ({pid}) on this machine ended"
        return None

    def remove(self) -> None:
        """End the daemons, remove the folder."""
        let_keeper_end(self._keeper)


def _head_of(own: _OwnRay | None) -> Callable[[], str | None]:
    """What tells, in a sentence, that the head of the Ray cluster is gone."""
    if own is not None:
        return own.what_is_gone
    address = str(ray.get_runtime_context().gcs_address)
    host, _, port = address.rpartition(":")

    def what_is_gone() -> str | None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT).close()
        except OSError as error:
            return f"the head of the Ray cluster, {address}, does not answer ({error.strerror})"
        return None

    return what_is_gone


@contextmanager
def _changed(place: Any, name: str, value: object) -> Generator[None, None, None]:  # noqa: ANN401
    before = getattr(place, name, None)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _join_ray(workers: Workers, tell: Callable[[str], None]) -> _OwnRay | None:
    """Start a Ray cluster here, which is returned, or connect to one."""
    address = workers.address
    settings = {"log_to_driver": False, "logging_level": logging.ERROR}
    own, where, remedy = None, f"--ray-address {address}", ""
    try:
        if address in (None, "local"):
            where = "Ray does not start here"
            remedy = "; try again when this machine has less to do, or use --workers 1"
            number = f"{workers.count} worker" + "s" * (workers.count > 1)
            tell(f"starting Ray with {number} on this machine")
            own = _OwnRay()
            own.init(**settings)
        else:
            _require_reachable(address)
            # Ray would try for a quarter of an hour to talk to what is no Ray.
            os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
            ray.init(address, **settings)
    except BaseException as error:
        if own is not None:
            own.remove()
        # Of whatever kind: a start that takes too long is a bare Exception
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise UserError(f"{where}: {_root_cause(error).rstrip('.')}{remedy}") from error
        raise
    return own


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
