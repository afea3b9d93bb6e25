"""Jobs on workers here and on Ray: answered once, whatever happens to the workers."""

import itertools
import logging
import os
import pickle
import time
from collections import Counter
from contextlib import closing

import pytest

from ecgan.errors import UserError
from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import (
    Done,
    Failed,
    StopRun,
)
from tests.helpers.jobs import Make, by_job, seconds_until_gone, workers

pytestmark = pytest.mark.timeout(120)  # what hangs is a failure here


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
    assert "RuntimeError: CUDA error: an illegal address (jobs.py:" in event
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
    assert failed.reason.startswith("ValueError: boom (jobs.py:")
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
    """One broken GPU costs each of its jobs one attempt, also while the others come up."""
    outcomes = list(
        run_jobs(Make("fail_until_the_other_is_up", tmp_path), range(12), workers(pool))
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
