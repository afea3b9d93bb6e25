"""Workers that cannot be are refused before anything starts; Ray's words are put in a few."""

import os
import socket
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from ecgan.errors import UsageError, UserError
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import (
    Workers,
    resolve_workers,
    workers_on,
)
from tests.helpers.jobs import Make, by_job, workers

pytestmark = pytest.mark.timeout(120)  # what hangs is a failure here


# What is refused before anything starts


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--workers 0: must be at least 1"),
        ({"gpus_per_worker": -1, "device": "cuda"}, "--gpus-per-worker -1: must be a fraction"),
        ({"gpus_per_worker": 1.5, "device": "cuda"}, "--gpus-per-worker 1.5: must be a fraction"),
        ({"gpus_per_worker": 0.5}, "this machine has no CUDA device; leave it out, or name"),
        ({"count": 3}, "3 workers, each with 1 CPU, need more than this machine has: 2 CPUs and "
         "2 GPUs, room for 2. Lower --workers"),
        ({"count": 2, "gpus_per_worker": 2, "device": "cuda"},
         r"each with 1 CPU and 2 GPUs, .* room for 1\."),
        ({"count": 2, "device": "cuda:1"}, "--device cuda:1: Ray gives each worker its GPU; use"),
    ],
)  # fmt: skip
def test_workers_that_cannot_be_are_refused(two_gpus, options, message):
    with pytest.raises(UsageError, match=message):
        resolve_workers(**{"device": "cpu"} | options)


def test_one_worker_is_here_and_all_else_on_ray(two_gpus):
    assert resolve_workers("cpu") == Workers()
    assert resolve_workers("cuda:1") == Workers(1, 1, "cuda:1")
    assert resolve_workers("cuda") == Workers(2, 1, "cuda", timeout=3600)
    assert resolve_workers("cuda", gpus_per_worker=2) == Workers(1, 2, "cuda:0")
    assert resolve_workers("cuda", 2, 0.5, timeout=9) == Workers(2, 0.5, "cuda", timeout=9)
    assert resolve_workers("cpu", 2) == Workers(2, timeout=3600)
    assert resolve_workers("cpu", timeout=5) == Workers(timeout=5)
    assert resolve_workers("cpu", 9, 0.5, "a:1") == Workers(9, 0.5, "cuda", "a:1", timeout=3600)
    assert resolve_workers("cpu").in_process
    assert not any(
        w.in_process
        for w in (
            resolve_workers("cpu", timeout=5),
            resolve_workers("cpu", 2),
            Workers(address="a"),
        )
    )


def test_where_there_is_no_ray_one_worker_does(monkeypatch):
    monkeypatch.setattr("ecgan.runtime.jobs.find_spec", lambda _: None)
    assert resolve_workers("cpu", 1).in_process
    for options in ({"count": 2}, {"ray_address": "auto"}, {"timeout": 5}):
        with pytest.raises(UsageError, match=r"Ray, which is not installed; .*--workers 1 alone"):
            resolve_workers(**{"device": "cpu"} | options)


@pytest.mark.parametrize(
    ("ray_says", "told"),
    [
        ("The actor died unexpectedly.\nWorker exits with an exit code 4.", "exit code 4"),
        ("1 worker(s) were killed due to the node running low on memory. More",
         "ended by Ray for want of memory"),
        ("The actor died because its node has died. Node Id: 12ab", "with its node"),
        ("Worker exit detail: Worker unexpectedly exits with a connection error code 2. End",
         "killed, out of memory or crashed"),
        ("The actor died because of an error\n  File x\nImportError: no ecgan\n",
         "ImportError: no ecgan"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_rays_explanations_are_put_in_a_few_words(ray_says, told):
    ray_pool = pytest.importorskip("ecgan.runtime.ray_pool")
    assert ray_pool.why_dead(RuntimeError(ray_says)) == f"worker died ({told})"


def test_the_head_of_a_cluster_that_does_not_answer_is_named(monkeypatch):
    ray_pool = pytest.importorskip("ecgan.runtime.ray_pool")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        context = SimpleNamespace(gcs_address=address)
        monkeypatch.setattr(ray_pool.ray, "get_runtime_context", lambda: context)
        head = ray_pool._head_of(None)
        assert head() is None
    told = f"the head of the Ray cluster, {address}, does not answer (Connection refused)"
    assert head() == told


def test_a_ray_that_does_not_start_says_what_to_do_and_leaves_nothing(monkeypatch, tmp_path):
    ray_pool = pytest.importorskip("ecgan.runtime.ray_pool")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def init(*_, **__):
        raise Exception("The current node timed out during startup.")  # noqa: TRY002  as Ray does

    monkeypatch.setattr(ray_pool.ray, "init", init)
    with pytest.raises(UserError, match=r"timed out during startup; try again .* --workers 1$"):
        ray_pool._join_ray(Workers(2), tell=lambda _: None)
    until = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "each", "room"),
    [(1, 0.6, 1), (2, 0.6, 2), (1, 0.1, 10), (1, 1 / 3, 3), (8, 1, 8), (8, 3, 2), (0.5, 0.5, 0)],
)
def test_a_fraction_of_a_gpu_is_not_spread_over_gpus(gpus, each, room):
    assert workers_on(gpus, each) == room


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 3}, r"3 workers, each with 1 CPU, .* this Ray cluster has: 2 CPUs and 1 GPUs"),
        (
            {"gpus_each": 1},
            r"2 workers, each with 1 CPU and 1 GPUs, .* room for 1\. Lower --workers",
        ),
        ({"gpus_each": 0.6}, r"2 workers, each with 1 CPU and 0\.6 GPUs, .* --gpus-per-worker"),
    ],
    ids=["cpus", "gpus", "unpackable"],
)
def test_what_a_ray_cluster_cannot_hold_is_refused(local_ray, tmp_path, changes, message):
    make, start = Make("square", tmp_path), time.monotonic()
    with pytest.raises(UserError, match=message):
        list(run_jobs(make, range(3), workers("ray", **changes)))
    assert make.made == []
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_fractions_share_a_gpu(local_ray, tmp_path):
    outcomes = list(run_jobs(Make("devices", tmp_path), range(3), workers("ray", gpus_each=0.5)))
    assert [outcome.result for outcome in outcomes] == ["0"] * 3


@pytest.mark.slow
def test_a_ray_cluster_that_others_use_is_an_error_not_a_hang(local_ray, tmp_path):
    with holding(local_ray, num_cpus=2):
        with pytest.raises(UserError) as caught:
            list(run_jobs(Make("square", tmp_path), range(3), workers("ray", start_timeout=2)))
        assert "did not come up within 2 s; each needs 1 CPU and 0 GPUs" in str(caught.value)
        assert "free in this Ray cluster are now 0 CPUs and 1 GPUs" in str(caught.value)


@pytest.mark.slow
def test_a_ray_cluster_that_others_use_in_part_serves_with_the_rest(local_ray, tmp_path):
    make, events = Make("raise_always", tmp_path), []
    with holding(local_ray, num_cpus=1):
        outcomes = run_jobs(
            make, [0, 1, 2], workers("ray", start_timeout=30), on_event=events.append
        )
        assert set(by_job(list(outcomes))) == {0, 1, 2}
    assert len(make.made) == 1
    assert any("is given up; 1 go on" in event for event in events)


class holding:  # noqa: N801
    """Somebody else's actor, with CPUs of the cluster."""

    def __init__(self, ray, num_cpus):
        self.ray = ray
        self.actor = ray.remote(num_cpus=num_cpus)(_Nothing).remote()

    def __enter__(self):
        self.ray.get(self.actor.nothing.remote())

    def __exit__(self, *_):
        self.ray.kill(self.actor)
        for _ in range(100):  # the next test needs the CPUs
            if self.ray.available_resources().get("CPU") == 2:
                return
            time.sleep(0.1)
        raise AssertionError


class _Nothing:
    def nothing(self): ...
