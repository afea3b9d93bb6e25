"""A training that waits is never waited for: signals and failing loaders leave a checkpoint."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ecgan import checkpoint
from ecgan.errors import UserError
from ecgan.runtime.processes import ordered
from ecgan.runtime.processes import signals as module
from ecgan.runtime.processes.signals import DeferredSignals, interrupting
from ecgan.training.validation import Validation
from tests.helpers.mounts import with_shared_memory
from tests.training.test_run import (  # noqa: F401  fixtures
    LIGHT,
    _interrupt_after,
    assert_same_run,
    final_state,
    metrics,
    recipe,
    run,
    scenes,
    sets,
    start,
)

ENDLESS = (
    "train.images=100000", "train.checkpoint_every=100000", "train.preview_every=100000",
)  # fmt: skip


def _wait_for_sigterm():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(30)


def test_a_call_is_left_at_once_and_the_signal_is_known():
    with DeferredSignals() as signals:
        signals.defer()
        assert signals.at_once(lambda: 5) == 5
        begun = time.monotonic()
        assert signals.at_once(_wait_for_sigterm) is None
        assert signals.came
        assert time.monotonic() - begun < 10
        assert signals.at_once(lambda: 5) is None  # one that came before is as good


def test_a_noted_signal_waits_and_a_second_one_does_not():
    with DeferredSignals() as signals:
        signals.defer()
        signal.raise_signal(signal.SIGTERM)
        assert signals.came
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_before_there_is_anything_to_lose_a_signal_ends_the_training():
    with DeferredSignals() as signals, pytest.raises(KeyboardInterrupt):
        signals.at_once(_wait_for_sigterm)


def _once_written(path, act):
    """Do something once the file is there, from a thread."""

    def wait():
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def little_ahead(monkeypatch):
    """Pipes that hold no batch more than those that are waited for."""
    monkeypatch.setattr(ordered, "_PIPE_BYTES", 4096)


def _send_to_loaders(number):
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)


@pytest.mark.slow
def test_a_killed_loader_process_leaves_a_checkpoint_and_a_sentence(recipe, tmp_path, little_ahead):  # noqa: F811
    out = tmp_path / "run"
    _once_written(out / "metrics.jsonl", lambda: _send_to_loaders(signal.SIGKILL))
    with pytest.raises(UserError, match=r"was killed .*--set data\.workers=0"):
        run(recipe(*ENDLESS, "data.workers=2"), out)
    assert final_state(out)[1]["images_seen"] > 0
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_loader_processes_that_stand_still_leave_a_checkpoint(
    recipe, tmp_path, monkeypatch, little_ahead  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(ordered, "STALL_SECONDS", 2.0)
    out = tmp_path / "run"
    _once_written(out / "metrics.jsonl", lambda: _send_to_loaders(signal.SIGSTOP))
    with pytest.raises(UserError, match=r"gave nothing for 2 s: .*is stopped"):
        run(recipe(*ENDLESS, "data.workers=2"), out)
    assert final_state(out)[1]["images_seen"] > 0


@pytest.mark.slow
def test_sigterm_ends_a_training_that_waits_for_its_loader(recipe, tmp_path, little_ahead):  # noqa: F811
    out, sent = tmp_path / "run", []

    def stop_then_ask():
        _send_to_loaders(signal.SIGSTOP)
        time.sleep(4)  # what was loaded before is used up
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    _once_written(out / "metrics.jsonl", stop_then_ask)
    assert run(recipe(*ENDLESS, "data.workers=2"), out) == "interrupted"
    assert time.monotonic() - sent[0] < 10
    assert final_state(out)[1]["images_seen"] > 0


@pytest.mark.slow
def test_in_a_container_whose_64_mb_of_shared_memory_are_full(scenes, tmp_path):  # noqa: F811
    """Two loaders, of which one is killed; then again, and SIGTERM."""
    out = tmp_path / "run"
    arguments = (
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--device", "cpu",
        *sets((*LIGHT, *ENDLESS, "data.workers=2")),
    )  # fmt: skip
    fill = "{ cat /dev/zero > /dev/shm/full 2>/dev/null; true; }"
    inside = with_shared_memory("size=64m", fill)
    with start(*arguments, inside=inside) as process:
        _wait_for_images(out, process, 0)
        shared = Path(f"/proc/{process.pid}/root/dev/shm")
        about = os.statvfs(shared)
        assert about.f_blocks * about.f_frsize == 64 << 20
        assert about.f_bavail == 0
        loaders = _children(process.pid)
        assert len(loaders) == 2
        os.kill(loaders[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert f"loader process {loaders[0]} was killed (SIGKILL)" in output
    assert "--set data.workers=0" in output
    assert "Traceback" not in output
    seen = final_state(out)[1]["images_seen"]
    assert seen > 0
    with start(*arguments, inside=inside) as process:
        _wait_for_images(out, process, seen)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Interrupted; the same command resumes" in output
    assert final_state(out)[1]["images_seen"] > seen


def _wait_for_images(out, process, seen):
    """Wait until a training has noted more images."""
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or metrics(out)[-1]["images"] <= seen:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_signals_of_one_request_count_once(monkeypatch):
    """A terminal that closes sends SIGHUP twice, systemd SIGTERM and SIGHUP."""
    with DeferredSignals() as signals:
        signals.defer()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.came
        monkeypatch.setattr(module, "_ONE_ASKING", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_nohup_keeps_its_meaning():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with DeferredSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.came
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_python_drops_strikes_again(number):
    class Raises:
        def __del__(self):
            signal.raise_signal(number)

    def drop_one():
        Raises()  # Python prints and drops what a destructor raises
        time.sleep(10)

    with interrupting(), pytest.raises(KeyboardInterrupt):
        drop_one()


@pytest.mark.slow
def test_sigterm_cuts_a_score_short_which_is_made_when_the_run_goes_on(
    recipe, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    full = recipe("train.evaluate_every=4", "evaluate.judge=train")
    assert run(full, tmp_path / "whole") == "done"
    halves, whole_score = tmp_path / "halves", Validation.score

    def endless(_):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(600)

    monkeypatch.setattr(Validation, "score", endless)
    assert run(full, halves) == "interrupted"
    assert final_state(halves)[1]["images_seen"] == 4
    monkeypatch.setattr(Validation, "score", whole_score)
    assert run(full, halves) == "done"
    assert_same_run(tmp_path / "whole", halves)
    assert (halves / checkpoint.BEST).is_file()
