"""Workers whose jobs go well, fail, stall and die; each leaves word in a folder of what it did."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ecgan.errors import UserError
from ecgan.runtime.jobs import (
    StopRun,
    Workers,
)
from ecgan.runtime.processes.table import is_there


def workers(executor, **changes):
    here = executor == "here"
    return replace(Workers() if here else Workers(2, timeout=100, start_timeout=150), **changes)


@dataclass(frozen=True)
class Make:
    """Makes the method of that name, and notes that it did."""

    method: str
    folder: Path

    def __call__(self, index):
        with (self.folder / "made").open("a") as file:
            file.write(f"{index} {os.getpid()}\n")
        start = getattr(self, f"start_{self.method}", None)
        if start is not None:
            start(index)
        self.__dict__["index"] = index
        return getattr(self, self.method)

    @property
    def made(self):
        """Index and process of each worker that was made, in order."""
        path = self.folder / "made"
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def first_time(self, job):
        try:
            (self.folder / f"tried-{job}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def square(self, job):
        return job**2, os.getpid()

    def raise_once(self, job):
        if job == 3 and self.first_time(job):
            raise RuntimeError("CUDA error: an illegal address\nCompile with TORCH_USE_CUDA_DSA")
        return os.getpid()

    def raise_always(self, job):
        if job == 3:
            raise ValueError("boom\nand more of it")
        return job

    def refuse(self, job):
        if job == 3:
            raise UserError("a.png", ["row 3: no such class", "row 4: no such class"])
        return job

    def refuse_oddly(self, job):
        raise OddRefusalError("a.png", 3)

    def stop(self, job):
        if job == 3:
            raise StopRun("disk full", 28)
        return job

    def stop_oddly(self, job):
        raise OddStop("disk", "full")

    def give_unpicklable(self, job):
        return threading.Lock() if job == 3 else job

    def die_once(self, job):
        if job == 3 and self.first_time(job):
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    def exit_always(self, job):
        if job % 3 == 0:
            os._exit(5)
        return job

    def die_always(self, job):
        os.kill(os.getpid(), signal.SIGKILL)

    def stall_once(self, job):
        if job == 3 and self.first_time(job):
            time.sleep(100)
        return os.getpid()

    def stall(self, job):
        (self.folder / f"at-{os.getpid()}").touch()
        time.sleep(100)

    def stall_second(self, job):
        return job if self.first_time(os.getpid()) else self.stall(job)

    def start_fail_until_the_other_is_up(self, index):
        if index == 1:
            time.sleep(4)  # the first place fails at many jobs meanwhile

    def fail_until_the_other_is_up(self, job):
        time.sleep(0.1)
        if self.index == 0:
            raise RuntimeError("this GPU is broken")
        return self.index

    def fail_fast_at_first_place(self, job):
        if self.index == 0:
            raise RuntimeError("this GPU is broken")
        time.sleep(1.5)
        return self.index

    def devices(self, job):
        return os.environ["CUDA_VISIBLE_DEVICES"]

    def talk(self, job):
        print("a job talks")
        if self.first_time(job):
            os.kill(os.getpid(), signal.SIGKILL)
        return "ray" in sys.modules

    def refuse_start(self, job): ...

    def start_refuse_start(self, index):
        raise UserError("generator.safetensors: no such file")

    def fail_start(self, job): ...

    def start_fail_start(self, index):
        raise OSError("no weights")

    def die_at_start(self, job): ...

    def start_die_at_start(self, index):
        os._exit(7)

    def start_only_at_second_place(self, index):
        if index == 0:
            raise OSError("this GPU is broken")

    def only_at_second_place(self, job):
        return self.index

    def slow_start(self, job): ...

    def start_slow_start(self, index):
        time.sleep(100)


class OddRefusalError(UserError):
    """Its pickle cannot be read: the constructor wants two arguments."""

    def __init__(self, file, row):
        super().__init__(f"{file}: row {row}")


class OddStop(StopRun):
    def __init__(self, what, how):
        super().__init__(f"{what} {how}")


def seconds_until_gone(pids, limit):
    start = time.monotonic()
    while any(map(is_there, pids)):
        assert time.monotonic() - start < limit, f"still there: {[p for p in pids if is_there(p)]}"
        time.sleep(0.02)
    return time.monotonic() - start


def by_job(outcomes):
    found = {outcome.job: outcome for outcome in outcomes}
    assert len(found) == len(outcomes), "a job was answered twice"
    return found
