"""A training that waits is never waited for: signals and failing loaders leave a checkpoint."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from ecgan import checkpoint
from ecgan.errors import UserError
from ecgan.runtime.processes import ordered
from ecgan.runtime.processes.signals import DeferredSignals
from ecgan.training.validation import Validation
from tests.kills import processes
from tests.training.test_run import (  # noqa: F401  fixtures
    LIGHT,
    _interrupt_after,
    assert_same_run,
    final_state,
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


@pytest.mark.slow
def test_ranks_end_with_a_command_that_is_killed(scenes, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    process = start(
        "--recipe", "demo", "--data", str(scenes), "--out", str(out), "--device", "cpu",
        "--nproc-per-node", "2", *sets((*LIGHT, *ENDLESS)),
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while left := [p for p, (_, line) in processes().items() if str(out) in line]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert len(checkpoint.training_checkpoints(out)) == 1
