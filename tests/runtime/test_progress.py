"""A long step tells where it is, on a terminal and without one."""

import io
import sys
import time

import pytest

from ecgan.runtime import timing
from ecgan.runtime.timing import Progress, counted, duration


@pytest.fixture
def quick(monkeypatch):
    """Lines as after minutes."""
    monkeypatch.setattr(timing, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(timing, "LINE_SECONDS", 0.1)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_lines_come_at_the_start_meanwhile_and_at_the_end(quick, capsys):
    with Progress(10, "training", "image", show=True, done=2) as step:
        time.sleep(0.08)
        step.update(4, lambda: {"loss": 0.123456})
        time.sleep(0.2)
        step.update(4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 2 of 10 images"
    assert lines[1].startswith("training: 6 of 10 images (60%), ")
    assert " images/s, about 0 s left; loss 0.1235" in lines[1]
    assert lines[-1].startswith("training: 10 images after 0 s, ")


def test_a_line_comes_while_one_thing_takes_long(quick, capsys):
    with Progress(1, "evaluating", "image", show=True):
        time.sleep(0.5)
    assert capsys.readouterr().err.count("evaluating: 0 of 1 image\n") >= 2


def test_a_step_that_is_cut_short_says_where(quick, capsys):
    with Progress(10, "training", "image", show=True) as step:
        step.update(3)
        time.sleep(0.07)
    assert "training: ended at 3 of 10 images after 0 s" in capsys.readouterr().err


def test_a_short_step_has_no_lines(capsys):
    with Progress(10, "checking", "file", show=True) as step:
        step.update(10)
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet_and_reads_no_loss(quick, capsys):
    with Progress(10, "training", "image", show=False) as step:
        step.update(3, lambda: pytest.fail("a look may cost a wait for the GPU"))
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_losses(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, "training", "image", show=True) as step:
        step.update(10, lambda: {"discriminator": 1.5, "adversarial": -0.25})
    assert "discriminator=1.5, adversarial=-.25" in terminal.getvalue().replace("-0.25", "-.25")


def test_losses_are_looked_at_now_and_then(monkeypatch, quick, capsys):
    looked = []
    with Progress(1000, "training", "image", show=True) as step:
        for number in range(1000):
            step.update(1, lambda n=number: looked.append(n) or {"loss": n})
    assert looked == [0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"),
     (183_600, "2 d 3 h")],
)  # fmt: skip
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_numbers_have_their_plural():
    assert [counted(n, "image") for n in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
