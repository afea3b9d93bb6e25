"""Work in processes: in order, of any size, and never a wait for a process that gives nothing."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from ecgan.errors import UserError
from ecgan.runtime.processes import ordered
from tests.helpers.mounts import with_shared_memory

SIZE = 300_000  # bytes, more than a pipe holds


def work(task):
    """An array of SIZE bytes and one of two dimensions, both of the task's number."""
    return {"task": task}, [np.full(SIZE, task % 251, np.uint8), np.full((2, 3), -task, np.int32)]


def stop_itself(task):
    """The third task is never done."""
    if task == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return task, []


def raise_at_three(task):
    assert task != 3, "no three"
    return task, []


@pytest.fixture
def one_second(monkeypatch):
    monkeypatch.setattr(ordered, "STALL_SECONDS", 1.0)


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_the_tasks_and_whole(processes):
    found = list(ordered.in_processes(work, range(5, 40, 3), processes))
    assert [head["task"] for head, _ in found] == list(range(5, 40, 3))
    for head, (long, flat) in found:
        assert torch.equal(long, torch.full((SIZE,), head["task"] % 251, dtype=torch.uint8))
        assert torch.equal(flat, torch.full((2, 3), -head["task"], dtype=torch.int32))
    assert active_children() == []


def test_processes_end_with_the_generator_however_many_tasks_are_left():
    with closing(ordered.in_processes(work, range(sys.maxsize), 2)) as found:
        next(found)
        assert len(active_children()) == 2
    assert active_children() == []


def test_a_process_that_is_killed_is_named_with_the_remedy():
    found = ordered.in_processes(work, range(100), 2, ahead=1)
    next(found)
    victim = active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=rf"{victim.pid} was killed .* --set data\.workers=0"):
        list(found)
    assert active_children() == []


def test_a_process_that_stands_still_is_named_and_not_waited_for(one_second):
    found = ordered.in_processes(stop_itself, range(10), 2)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"is stopped \(SIGSTOP\).* --set data\.workers=0"):
        list(found)
    assert time.monotonic() - begun < 10
    assert active_children() == []


def test_a_fault_of_ours_in_a_process_ends_the_work(capfd):
    with pytest.raises(UserError, match="ended with exit code 1"):
        list(ordered.in_processes(raise_at_three, range(10), 2))
    assert "no three" in capfd.readouterr().err


def test_a_machine_without_processes_left_is_told(monkeypatch):
    def refuse(_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.Process.start", refuse)
    with pytest.raises(UserError, match=r"process 1 of 2 did not start: .*unavailable"):
        next(ordered.in_processes(work, range(10), 2))


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=100k", "ro"])
def test_shared_memory_is_not_needed(options):
    """In a mount namespace of its own, with a /dev/shm that holds nothing."""
    script = """
from tests.runtime import test_ordered
test_ordered.test_results_come_in_the_order_of_the_tasks_and_whole(2)
"""
    command = [*with_shared_memory(options), sys.executable, "-c", script]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
