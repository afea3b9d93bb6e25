"""Work in processes of this machine, its results in order: what loads the batches of a training.

    process k: tasks k, k + n, ... --> pipe k --> thread: receives in turns --> queue --> caller

Arrays come through pipes into the memory that the caller gets, which may be page-locked. There is
no shared memory, semaphore or socket in it, so that it works where ``/dev/shm`` is small, full or
read-only, as in containers; and a process that died or stands still is noticed, not waited for.
"""

import atexit
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ecgan.errors import UserError
from ecgan.runtime.processes.signals import asking, watch_parent
from ecgan.runtime.processes.table import state_of

STALL_SECONDS = 45.0  # without a result, after which a process is taken to stand still
_POLL_SECONDS = 0.5
_PIPE_BYTES = 2**20  # the most that an ordinary user may ask for
_REMEDY = (
    "The same command goes on from the last checkpoint; with --set data.workers=0 it loads without "
    "these processes"
)

Packed = tuple[object, Sequence["np.ndarray"]]  # anything small, and the arrays


class Worker(Protocol):
    """What the processes do; pickled where processes are not forked."""

    def __call__(self, task: Any) -> Packed: ...  # noqa: ANN401


def in_processes(
    work: Worker,
    tasks: range,
    processes: int,
    *,
    ahead: int = 4,
    pin: bool = False,
    start: Callable[[], None] | None = None,
) -> Generator[tuple[Any, list[Tensor]], None, None]:
    """Results of tasks in their order.

    Args:
        work: what a process does with a task.
        tasks: all tasks; may be as good as endless.
        processes: number of processes, above 0.
        ahead: results a process that are kept ready.
        pin: receive into page-locked memory.
        start: called once in each process.

    Raises:
        UserError: a process could not be started, was ended, or stands still.
    """
    pool = _Pool(work, tasks, processes, ahead=ahead, pin=pin, start=start)
    # multiprocessing would wait at exit for processes that a traceback still holds
    atexit.register(pool.stop)
    try:
        for _ in tasks:
            yield pool.next()
    finally:
        pool.stop()
        atexit.unregister(pool.stop)


class _Pool:
    def __init__(
        self,
        work: Worker,
        tasks: range,
        processes: int,
        *,
        ahead: int,
        pin: bool,
        start: Callable[[], None] | None,
    ) -> None:
        self._found = queue.Queue[tuple[Any, list[Tensor]]](ahead * processes)
        self._stopped = threading.Event()
        self._lost: int | None = None  # number of the process whose pipe ended too early
        self._processes: list[multiprocessing.Process] = []
        self._pipes: list[Connection[Any, Any]] = []
        try:
            for number in range(processes):
                self._start(work, tasks[number::processes], start)
        except OSError as error:
            self.stop()
            raise UserError(
                f"loader process {len(self._processes) + 1} of {processes} did not start: "
                f"{error.strerror}; lower data.workers. {_REMEDY}"
            ) from error
        gpu = torch.cuda.current_device() if pin else None
        turns = len(tasks)
        self._thread = threading.Thread(target=self._receive, args=(turns, gpu), daemon=True)
        self._thread.start()

    def _start(self, work: Worker, tasks: range, start: Callable[[], None] | None) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        self._pipes.append(reader)
        with writer:  # its copy here must be gone, or the pipe would not end with the process
            _widen(writer)
            process = multiprocessing.Process(
                target=_serve, args=(work, tasks, writer, start), daemon=True
            )
            process.start()
        self._processes.append(process)

    def next(self) -> tuple[Any, list[Tensor]]:
        """The next result; waits for it."""
        waited = 0.0  # not by the clock: this process may have been stopped, too
        while waited < STALL_SECONDS:
            try:
                return self._found.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                waited += _POLL_SECONDS
            if self._lost is not None and self._found.empty():
                raise UserError(_cause_of_death(self._processes[self._lost]))
        raise UserError(
            f"the loader processes gave nothing for {STALL_SECONDS:.0f} s"
            f"{_standing_still(self._processes)}. {_REMEDY}"
        )

    def stop(self) -> None:
        """End the processes at once: they hold nothing that would be lost."""
        self._stopped.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        if hasattr(self, "_thread"):
            self._thread.join()  # the pipes have ended
        for pipe in self._pipes:
            pipe.close()

    def _receive(self, turns: int, gpu: int | None) -> None:
        if gpu is not None:
            torch.cuda.set_device(gpu)  # page-locked memory belongs to a device
        for turn in range(turns):
            number = turn % len(self._pipes)
            try:
                result = _read(self._pipes[number], pin=gpu is not None)
            except (EOFError, OSError):
                self._lost = number
                return
            while not self._stopped.is_set():
                with suppress(queue.Full):
                    self._found.put(result, timeout=_POLL_SECONDS)
                    break
            else:
                return


def _serve(
    work: Worker, tasks: range, writer: "Connection[Any, Any]", start: Callable[[], None] | None
) -> None:
    """Run a process."""
    # An interrupt reaches the whole process group. The training process writes a checkpoint then,
    # and must not lose its loader before; this one is ended by it, or ends when it is gone.
    for number in asking():
        signal.signal(number, signal.SIG_IGN)
    watch_parent(lambda: os._exit(1))  # pipes may be held by siblings, which end the same way
    torch.set_num_threads(1)  # threads of the parent did not survive a fork
    if start is not None:
        start()
    with writer, suppress(BrokenPipeError):
        for task in tasks:
            head, arrays = work(task)
            solid = [np.ascontiguousarray(array) for array in arrays]
            writer.send((head, [(a.dtype.str, a.shape) for a in solid]))
            for array in solid:
                writer.send_bytes(array.reshape(-1).view(np.uint8).data)


def _read(pipe: "Connection[Any, Any]", *, pin: bool) -> tuple[Any, list[Tensor]]:
    head, layouts = pipe.recv()
    tensors: list[Tensor] = []
    for dtype, shape in layouts:
        kind = cast(Any, torch).from_numpy(np.empty(0, dtype)).dtype
        tensor = torch.empty(shape, dtype=kind, pin_memory=pin)
        pipe.recv_bytes_into(tensor.numpy().reshape(-1).view(np.uint8))
        tensors.append(tensor)
    return head, tensors


def _widen(writer: "Connection[Any, Any]") -> None:
    """Let a pipe hold more than 64 KB, where the system can."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _cause_of_death(process: multiprocessing.Process) -> str:
    process.join(timeout=5)  # its pipe ends a moment before it does
    code = process.exitcode
    if code == -signal.SIGKILL:
        return (
            f"loader process {process.pid} was killed (SIGKILL), as happens where memory runs out; "
            f"lower data.workers or the size of the images. {_REMEDY}"
        )
    if code is not None and code < 0:
        return f"loader process {process.pid} was ended by {signal.Signals(-code).name}. {_REMEDY}"
    return f"loader process {process.pid} ended with exit code {code}. {_REMEDY}"


def _standing_still(processes: Sequence[multiprocessing.Process]) -> str:
    """Which processes are stopped or wait for a disk, where the system tells."""
    states = {"T": "is stopped (SIGSTOP)", "t": "is stopped", "D": "waits for a disk"}
    told: list[str] = []
    for process in processes:
        state = states.get(state_of(process.pid or 0))
        told += [f"process {process.pid} {state}"] if state else []
    return f": {', '.join(told)}" if told else "; a disk that does not answer, or too few CPUs"
