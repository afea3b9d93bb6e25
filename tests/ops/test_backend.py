"""Which implementation of an operation runs: plain torch or Triton."""

import logging

import pytest
import torch

from ecgan.errors import UserError
from ecgan.ops import backend

pytest.importorskip("triton")


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv("ECGAN_KERNELS", raising=False)
    monkeypatch.setattr(backend, "_failed", set())
    monkeypatch.setattr(backend, "_checked", set())


def fails(error):
    def run():
        raise error

    return run


def test_cpu_and_float64_go_to_plain_torch(fresh, monkeypatch):
    assert backend.implementation("x", torch.zeros(1)) == "torch"
    monkeypatch.setenv("ECGAN_KERNELS", "triton")
    assert backend.implementation("x", torch.zeros(1)) == "triton"
    assert backend.implementation("x", torch.zeros(1, dtype=torch.float64)) == "torch"
    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    monkeypatch.setenv("ECGAN_KERNELS", "auto")
    assert backend.implementation("x", torch.zeros(1)) == "triton"
    monkeypatch.setenv("ECGAN_KERNELS", "torch")
    assert backend.implementation("x", torch.zeros(1)) == "torch"


def test_an_unknown_choice_is_refused(fresh, monkeypatch):
    monkeypatch.setenv("ECGAN_KERNELS", "cuda")
    with pytest.raises(UserError, match="ECGAN_KERNELS=cuda: must be auto, torch or triton"):
        backend.implementation("x", torch.zeros(1))


def test_a_kernel_that_cannot_run_is_replaced_and_said_once(fresh, monkeypatch, caplog):
    from triton.runtime.errors import OutOfResources

    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    for error in (RuntimeError("no C compiler\nmore"), OutOfResources(1, 0, "shared memory")):
        calls = []
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert backend.run(
                    f"op {type(error).__name__}",
                    torch.zeros(1),
                    with_triton=lambda: calls.append(1) or fails(error)(),  # noqa: B023
                    with_torch=lambda: "torch",
                ) == "torch"  # fmt: skip
        assert len(calls) == 1
    first, second = caplog.messages
    assert first.startswith("op RuntimeError: the Triton kernel does not run here (no C compiler);")
    assert "shared memory" in second


def test_the_first_results_of_a_kernel_are_checked(fresh, monkeypatch, caplog):
    """Against plain torch, once; a wrong kernel is not used again."""
    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    x = torch.tensor([3.0, 4.0])
    calls = []

    def run(name, result, expected=(x, None)):
        return backend.run(
            name,
            x,
            with_triton=lambda: calls.append("triton") or result,
            with_torch=lambda: calls.append("torch") or expected,
        )

    right = (x * 1.001, None)
    assert run("right", right) is right
    assert run("right", right) is right
    assert calls == ["triton", "torch", "triton"]
    assert not caplog.messages

    calls.clear()
    for wrong in ((x * 1.1, None), (x, x), (x * torch.nan, None)):
        name = f"wrong {wrong}"
        assert run(name, wrong)[0] is x
        assert run(name, wrong)[0] is x
    assert calls == ["triton", "torch", "torch"] * 3
    assert len(caplog.messages) == 3
    assert "gives other results than plain torch here" in caplog.text

    calls.clear()
    unknown = (x * torch.nan, None)
    assert run("not finite", unknown, unknown) is unknown
    assert run("not finite", (x * 2, None))[0] is x  # nothing was known, so it is checked again


def test_a_kernel_is_not_checked_while_a_graph_is_recorded(fresh, monkeypatch):
    """Nothing can be read then; the next call outside is checked."""
    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    x, calls = torch.ones(1), []
    for capturing in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
        backend.run("op", x, with_triton=lambda: x, with_torch=lambda: calls.append(1) or x)
        assert len(calls) == (0 if capturing else 1)


def test_memory_that_the_check_lacks_stops_nothing(fresh, monkeypatch):
    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    monkeypatch.setattr(backend, "_agree", lambda *_: fails(torch.OutOfMemoryError("full"))())
    x = torch.ones(1)
    assert backend.run("op", x, with_triton=lambda: x, with_torch=lambda: -x) is x
    assert "op" not in backend._checked


def test_a_kernel_that_is_asked_for_fails_aloud(fresh, monkeypatch):
    monkeypatch.setenv("ECGAN_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="driver"):
        backend.run(
            "x", torch.zeros(1), with_triton=fails(RuntimeError("driver")), with_torch=lambda: 0
        )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ValueError("ours")])
def test_what_is_not_the_kernels_fault_is_not_hidden(fresh, monkeypatch, error):
    monkeypatch.setattr(backend, "_runs_triton", lambda device: True)
    with pytest.raises(type(error)):
        backend.run("x", torch.zeros(1), with_triton=fails(error), with_torch=lambda: 0)
    assert backend.implementation("x", torch.zeros(1)) == "triton"
