"""Ranks of ``train --nproc-per-node`` end with what started them, and say why in a sentence."""

import os
import signal
import time

import pytest

from ecgan import checkpoint
from ecgan.runtime.processes.table import descendants, end, processes
from tests.training.test_run import LIGHT, scenes, sets, start  # noqa: F401  fixture
from tests.training.test_signals import ENDLESS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

A_MINUTE = 60.0  # what docs/reliability.md promises; a second on an idle machine


def family(launcher):
    """Ids of torchrun and of the ranks below a launcher."""
    table = processes()
    below = descendants(launcher, table)
    torchrun = {pid for pid in below if "torchrun" in table[pid].command}
    return torchrun.pop(), sorted(pid for pid in below if " train " in table[pid].command)[-2:]


@pytest.fixture
def training(scenes, tmp_path):  # noqa: F811
    """A process that trains on two ranks, its run folder, and the ids of torchrun and ranks."""
    out = tmp_path / "run"
    process = start(
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--device", "cpu", "--quiet",
        "--nproc-per-node", "2", *sets((*LIGHT, *ENDLESS)),
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    torchrun, ranks = family(process.pid)
    yield process, out, torchrun, ranks
    for pid in (*ranks, torchrun, process.pid):
        end(pid)


@pytest.mark.parametrize("whom", ["launcher", "torchrun", "both", "stopped torchrun"])
def test_ranks_end_with_what_started_them(training, whom):
    process, out, torchrun, ranks = training
    if whom == "stopped torchrun":
        os.kill(torchrun, signal.SIGSTOP)
    if whom in {"torchrun", "both"}:
        end(torchrun)
    if whom != "torchrun":
        end(process.pid)
    deadline = time.monotonic() + A_MINUTE
    while {*ranks} & {pid for pid, one in processes().items() if not one.is_dead}:
        assert time.monotonic() < deadline, whom
        time.sleep(0.1)
    assert len(checkpoint.training_checkpoints(out)) == 1
    end(torchrun)  # a stopped one holds the pipe
    said = process.communicate()[0]
    assert "Traceback" not in said
    if whom == "torchrun":
        assert process.returncode == 1
        assert "torchrun was ended by SIGKILL" in said


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_reaches_the_ranks_once(training, number):
    process, out, _, ranks = training
    for _ in range(2):
        process.send_signal(number)
    said = process.communicate(timeout=A_MINUTE)[0]
    assert process.returncode == 130
    assert said.count("Interrupted; the same command resumes") == 1
    assert "Traceback" not in said
    assert not {*ranks} & {pid for pid, one in processes().items() if not one.is_dead}
    assert len(checkpoint.training_checkpoints(out)) == 1


def test_a_rank_that_is_killed_is_a_sentence(training):
    process, _, _, ranks = training
    end(ranks[1])
    said = process.communicate(timeout=A_MINUTE)[0]
    assert process.returncode == 1
    assert said.count("Error: ") == 1
    assert f"(process {ranks[1]}) was ended by SIGKILL, as happens where memory runs out" in said
    assert "Traceback" not in said
