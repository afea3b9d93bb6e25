"""Jobs on workers here and on Ray: answered once, whatever happens to the workers."""

import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from ecgan.errors import UsageError, UserError
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import (
    Done,
    Failed,
    StopRun,
    Workers,
    resolve_workers,
    workers_on,
)

pytestmark = pytest.mark.timeout(120)  # what hangs is a failure here
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of 2 CPUs and a GPU that need not be there."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request):
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    return request.param


@pytest.fixture(params=[pytest.param("ray", marks=pytest.mark.slow)])
def pool(request, local_ray):
    return request.param


def workers(executor, **changes):
    here = executor == "here"
    return replace(Workers() if here else Workers(2, timeout=100, start_timeout=150), **changes)


# Workers for the tests. Each has a folder where it leaves word of what it did.


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

    def fail_slowly_at_first_place(self, job):
        time.sleep(0.1)
        if self.index == 0:
            while {index for index, _ in self.made} != {0, 1}:
                time.sleep(0.02)
            time.sleep(0.9)  # the other place is free long before
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


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def seconds_until_gone(pids, limit):
    start = time.monotonic()
    while any(map(is_alive, pids)):
        assert time.monotonic() - start < limit, f"still there: {[p for p in pids if is_alive(p)]}"
        time.sleep(0.02)
    return time.monotonic() - start


def by_job(outcomes):
    found = {outcome.job: outcome for outcome in outcomes}
    assert len(found) == len(outcomes), "a job was answered twice"
    return found


# Jobs that go well


def test_every_job_is_answered_once_by_workers_that_are_made_once(executor, tmp_path):
    make = Make("square", tmp_path)
    events = []
    outcomes = list(run_jobs(make, range(9), workers(executor), on_event=events.append))
    found = by_job(outcomes)
    assert {job: done.result[0] for job, done in found.items()} == {j: j**2 for j in range(9)}
    assert {done.attempts for done in outcomes} == {1}
    assert events == []
    count = workers(executor).count
    assert sorted(index for index, _ in make.made) == list(range(count))
    pids = {pid for _, pid in make.made}
    assert {done.result[1] for done in outcomes} <= pids
    assert (pids == {os.getpid()}) == (executor == "here")
    if executor != "here":
        seconds_until_gone(pids, 5)


@pytest.mark.parametrize("jobs", [[], ["alone"]], ids=["none", "one"])
def test_no_worker_is_made_for_nothing(executor, tmp_path, jobs):
    make = Make("raise_always", tmp_path)
    assert [outcome.result for outcome in run_jobs(make, jobs, workers(executor))] == jobs
    assert [index for index, _ in make.made] == [0] * len(jobs)


def test_jobs_are_taken_as_workers_become_free(executor, tmp_path):
    """Of endless jobs, no more are taken than are answered or at work."""
    taken = itertools.count()
    last = -1

    def jobs():
        nonlocal last
        while True:
            last = next(taken)
            yield last

    with closing(run_jobs(Make("square", tmp_path), jobs(), workers(executor))) as outcomes:
        for number, _ in enumerate(itertools.islice(outcomes, 30)):
            assert last - number <= 2 * workers(executor).count


def test_a_slow_caller_costs_no_worker_its_job(pool, tmp_path):
    make = Make("square", tmp_path)
    outcomes = []
    for outcome in run_jobs(make, range(7), workers(pool, timeout=0.5)):
        outcomes.append(outcome)
        time.sleep(0.7)
    assert [(type(o), o.attempts) for o in outcomes] == [(Done, 1)] * 7


# Jobs that fail


def test_after_an_exception_another_worker_does_the_job(executor, tmp_path):
    make, events = Make("raise_once", tmp_path), []
    asked = workers(executor, count=1)
    found = by_job(list(run_jobs(make, range(6), asked, on_event=events.append)))
    assert {job: done.attempts for job, done in found.items()} == dict.fromkeys(range(6), 1) | {
        3: 2
    }
    assert all(isinstance(done, Done) for done in found.values())
    (event,) = events
    assert "RuntimeError: CUDA error: an illegal address (test_executor.py:" in event
    assert "attempt 2 of 3" in event
    assert "TORCH_USE" not in event
    replaced = executor != "here"  # a CUDA error spoils its process
    assert [index for index, _ in make.made] == [0] * (1 + replaced)
    assert (found[3].result != found[2].result) == replaced


def test_a_job_that_always_fails_is_given_up_and_the_others_are_done(
    executor, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("ecgan"), "propagate", True)  # off in our command
    caplog.set_level("INFO", "ecgan.runtime.executor")
    found = by_job(list(run_jobs(Make("raise_always", tmp_path), range(6), workers(executor))))
    failed = found.pop(3)
    assert isinstance(failed, Failed)
    assert failed.attempts == 3
    assert failed.reason.startswith("ValueError: boom (test_executor.py:")
    assert caplog.text.count("ValueError: boom\nand more of it") == 3
    assert caplog.text.count("in raise_always") == 3
    assert {job: done.result for job, done in found.items()} == {j: j for j in (0, 1, 2, 4, 5)}


def test_the_number_of_attempts_is_the_callers(executor, tmp_path):
    make = Make("raise_always", tmp_path)
    (failed,) = run_jobs(make, [3], workers(executor, attempts=1))
    assert failed.attempts == 1
    assert len(make.made) == 1


def test_a_users_mistake_is_not_tried_again_and_costs_no_worker(executor, tmp_path):
    make, events = Make("refuse", tmp_path), []
    outcomes = list(run_jobs(make, range(6), workers(executor), on_event=events.append))
    failed = by_job(outcomes)[3]
    assert failed == Failed(3, "a.png:\n  row 3: no such class\n  row 4: no such class", 1)
    assert sum(isinstance(outcome, Done) for outcome in outcomes) == 5
    assert events == []
    assert len(make.made) == workers(executor).count


def test_a_result_that_cannot_travel_fails_its_job_alone(pool, tmp_path):
    found = by_job(list(run_jobs(Make("give_unpicklable", tmp_path), range(5), workers(pool))))
    assert "pickle" in found.pop(3).reason
    assert {job: done.result for job, done in found.items()} == {0: 0, 1: 1, 2: 2, 4: 4}


def test_a_job_can_stop_the_run(executor, tmp_path):
    make = Make("stop", tmp_path)
    jobs = iter(range(100))
    outcomes = []
    with pytest.raises(StopRun) as caught:
        outcomes.extend(run_jobs(make, jobs, workers(executor)))
    assert type(caught.value) is StopRun
    assert str(caught.value) == "disk full"
    assert caught.value.errno == 28
    assert next(jobs) < 10
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    if executor != "here":
        seconds_until_gone([pid for _, pid in make.made], 5)


def test_a_stop_is_raised_after_what_was_done_before_it(tmp_path):
    outcomes = []
    with pytest.raises(StopRun):
        outcomes.extend(run_jobs(Make("stop", tmp_path), range(100), workers("here")))
    assert [outcome.result for outcome in outcomes] == [0, 1, 2]


def test_errors_whose_pickle_cannot_be_read_keep_their_kind_and_message(pool, tmp_path):
    (failed,) = run_jobs(Make("refuse_oddly", tmp_path), [0], workers(pool))
    assert failed == Failed(0, "a.png: row 3", 1)
    with pytest.raises(StopRun, match=r"^disk full$"):
        list(run_jobs(Make("stop_oddly", tmp_path), [0], workers(pool)))


def test_a_user_error_survives_a_pickle():
    error = UserError("labels", ["a.png: 3 classes", "b.png: empty"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.title, copy.faults) == (str(error), error.title, error.faults)


# Workers that fail


def test_a_killed_worker_is_replaced_and_its_job_done(pool, tmp_path):
    make, events = Make("die_once", tmp_path), []
    asked = workers(pool, count=1)
    found = by_job(list(run_jobs(make, range(6), asked, on_event=events.append)))
    assert {job: done.attempts for job, done in found.items()} == dict.fromkeys(range(6), 1) | {
        3: 2
    }
    (event,) = events
    told = "killed, out of memory or crashed"
    assert event.startswith("3 on ")
    assert event.endswith(f"/{event.split(':')[0].split('/')[-1]}: worker died ({told}); attempt 2 "
                          "of 3 goes to another worker")  # fmt: skip
    assert [index for index, _ in make.made] == [0, 0]
    assert found[3].result == make.made[1][1] != found[2].result


def test_a_job_that_always_ends_its_worker_fails_and_the_others_are_done(pool, tmp_path):
    make = Make("exit_always", tmp_path)
    found = by_job(list(run_jobs(make, range(8), workers(pool, count=1, attempts=2))))
    for job in (0, 3, 6):  # more deaths than a place may have without a job done
        failed = found.pop(job)
        assert failed.reason.startswith("worker died (")
        assert failed.attempts == 2
    assert {job: done.result for job, done in found.items()} == {j: j for j in (1, 2, 4, 5, 7)}


def test_a_stalled_worker_is_replaced_and_its_job_done(pool, tmp_path):
    make, events = Make("stall_once", tmp_path), []
    start = time.monotonic()
    outcomes = list(run_jobs(make, range(6), workers(pool, timeout=1.5), on_event=events.append))
    assert {job: done.attempts for job, done in by_job(outcomes).items()}[3] == 2
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert "took more than 1.5 s" in events[0]
    assert time.monotonic() - start < 30
    seconds_until_gone([pid for _, pid in make.made], 5)


def test_a_job_goes_to_another_place_where_there_is_one(pool, tmp_path):
    """One broken GPU costs each of its jobs one attempt."""
    outcomes = list(
        run_jobs(Make("fail_slowly_at_first_place", tmp_path), range(12), workers(pool))
    )
    assert [outcome.result for outcome in outcomes] == [1] * 12
    assert {outcome.attempts for outcome in outcomes} == {1, 2}


def test_a_place_that_fails_fast_does_not_take_all_jobs_to_itself(pool, tmp_path):
    taken = itertools.count()
    jobs = iter(lambda: next(taken), None)
    make = Make("fail_fast_at_first_place", tmp_path)
    with closing(run_jobs(make, jobs, workers(pool, attempts=99))) as outcomes:
        for _ in itertools.islice(outcomes, 3):
            pass
    assert next(taken) <= 3 + 2 + 2  # done, at work, to be done again


def test_workers_that_die_without_end_end_the_run(pool, tmp_path):
    make, events = Make("die_always", tmp_path), []
    outcomes = []
    asked = workers(pool, attempts=1)
    with pytest.raises(UserError, match="no worker is left; the last one: worker died") as caught:
        outcomes.extend(run_jobs(make, itertools.count(), asked, on_event=events.append))
    assert "3 times in a row" in str(caught.value)
    assert [(type(o), o.attempts) for o in outcomes] == [(Failed, 1)] * 6
    assert len(make.made) == 6
    assert any("is given up; 1 go on" in event for event in events)


# Workers that do not start


def test_a_users_mistake_at_the_start_is_raised_at_once(executor, tmp_path):
    make = Make("refuse_start", tmp_path)
    with pytest.raises(UserError, match=r"^generator.safetensors: no such file$"):
        list(run_jobs(make, range(9), workers(executor)))
    assert len(make.made) <= workers(executor).count


def test_another_error_at_the_start_is_tried_again_then_raised(pool, tmp_path):
    make, events = Make("fail_start", tmp_path), []
    with pytest.raises(
        RuntimeError, match=r"no worker could be made: OSError: no weights"
    ) as caught:
        list(run_jobs(make, range(9), workers(pool, attempts=2), on_event=events.append))
    assert "in start_fail_start" in caught.value.__notes__[0]
    assert sorted(index for index, _ in make.made) == [0, 0, 1, 1]
    assert events[0].startswith("start of worker ")


def test_an_error_at_the_start_is_raised_as_it_is_here(tmp_path):
    with pytest.raises(OSError, match=r"^no weights$"):
        list(run_jobs(Make("fail_start", tmp_path), range(9), workers("here")))


def test_workers_that_die_at_the_start_end_the_run(pool, tmp_path):
    make = Make("die_at_start", tmp_path)
    with pytest.raises(UserError, match=r"no worker is left; the last one: worker died \("):
        list(run_jobs(make, range(9), workers(pool, count=1)))
    assert len(make.made) == 3


def test_the_other_workers_go_on_where_one_does_not_start(pool, tmp_path):
    make, events = Make("only_at_second_place", tmp_path), []
    outcomes = list(run_jobs(make, range(5), workers(pool), on_event=events.append))
    assert [(o.result, o.attempts) for o in outcomes] == [(1, 1)] * 5
    assert set(by_job(outcomes)) == set(range(5))
    assert Counter(index for index, _ in make.made)[0] <= 3


def test_a_start_that_takes_too_long_is_an_error(pool, tmp_path):
    make, start = Make("slow_start", tmp_path), time.monotonic()
    with pytest.raises(
        UserError, match="no worker is left; the last one: did not come up within 2 s"
    ):
        list(run_jobs(make, range(9), workers(pool, start_timeout=2)))
    assert time.monotonic() - start < 15
    assert len(make.made) <= 2  # no second chance: it had its time
    seconds_until_gone([pid for _, pid in make.made], 10)


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


# Ends


def test_closing_early_ends_the_workers(pool, tmp_path):
    make = Make("stall_second", tmp_path)
    outcomes = run_jobs(make, itertools.count(), workers(pool))
    assert {next(outcomes).result, next(outcomes).result} == {0, 1}  # now each has its second
    while len(list(tmp_path.glob("at-*"))) < 2:
        time.sleep(0.02)
    start = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start < 3
    assert len(make.made) == 2
    seconds_until_gone([pid for _, pid in make.made], 5)


# Whole drivers, in a process of their own


def drive(executor, method, folder, jobs="2"):
    """What a driver's process does: print the results of some jobs, on one worker."""
    asked, before = Workers(timeout=60 if executor == "ray" else None), signals_here()
    for outcome in run_jobs(Make(method, Path(folder)), range(int(jobs)), asked):
        print(outcome.result, flush=True)
    assert signals_here() == before
    if executor == "ray":
        assert not sys.modules["ray"].is_initialized()


def signals_here():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, [])


def driver(*arguments, **environment):
    code = f"from tests.runtime.test_executor import drive; drive(*{tuple(map(str, arguments))!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_worker(process, folder):
    """Wait until a worker is at a job; all processes below the driver."""
    while not list(folder.glob("at-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return below(process.pid)


def below(pid):
    """Process ids of all that descend from a process."""
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
    )
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in pairs if parent in new}
        found |= new
    return found


def title(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def test_one_worker_here_imports_no_ray(tmp_path):
    process = driver("here", "square", tmp_path)
    assert process.communicate()[0].startswith("(0, ")
    code = "import sys, ecgan.runtime.executor; sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_a_ray_cluster_of_its_own_is_quiet_and_gone_at_the_end(tmp_path):
    """Although a worker dies, which Ray likes to print, and its sockets find a long TMPDIR."""
    (deep := tmp_path / ("x" * 90)).mkdir()
    process = driver("ray", "talk", tmp_path, TMPDIR=str(deep))
    while process.poll() is None and not list(tmp_path.glob("tried-1")):
        time.sleep(0.02)
    started = below(process.pid)
    out, err = process.communicate()
    assert out == "True\nTrue\n"
    first, *deaths = err.splitlines()
    assert first == "starting Ray with 1 worker on this machine"
    assert [": worker died (" in line for line in deaths] == [True, True]
    assert process.returncode == 0
    assert started
    seconds_until_gone(started, 5)


@pytest.mark.slow
def test_workers_do_not_outlive_a_driver_that_is_killed(tmp_path):
    process = driver("ray", "stall", tmp_path)
    started = wait_for_worker(process, tmp_path)
    assert {pid for _, pid in Make("stall", tmp_path).made} <= started
    # Ray's two agents, which hold nothing, notice after a minute
    started = {pid for pid in started if "Agent" not in title(pid)}
    process.kill()
    process.wait()
    seconds_until_gone(started, 10)
    process.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_driver_and_workers(tmp_path):
    """As a terminal does it: to the whole group."""
    process = driver("ray", "stall", tmp_path)
    started = wait_for_worker(process, tmp_path)
    for pid in (process.pid, *(pid for _, pid in Make("stall", tmp_path).made)):
        os.kill(pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert err.count("KeyboardInterrupt") == 1
    assert err.count("Traceback") == 1
    seconds_until_gone(started, 5)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "auto", "nonsense"])
def test_a_ray_that_is_not_there_is_said_soon(tmp_path, address):
    """``auto`` looks at RAY_ADDRESS."""
    code = (
        "from ecgan.errors import UserError\n"
        "from ecgan.runtime.executor import run_jobs\n"
        "from ecgan.runtime.jobs import Workers\n"
        f"try: list(run_jobs(print, [1], Workers(address={address!r})))\n"
        "except UserError as error: print(error)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "localhost:1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"--ray-address {address}: ")
    assert time.monotonic() - start < 15
    named = {"auto": "nothing answers at localhost:1 (", "nonsense": "Invalid address"}
    assert named.get(address, "nothing answers at 127.0.0.1:1 (") in done.stdout
