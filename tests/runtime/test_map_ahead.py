"""Values that are computed ahead in threads."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import pytest

from ecgan.runtime.executor import map_ahead, prefetch


def test_values_come_ahead_in_order_and_errors_after_them():
    taken = []

    def values():
        for i in range(3):
            taken.append(i)
            yield i
        raise ValueError("the generator broke")

    found = []
    with pytest.raises(ValueError, match="the generator broke"):
        found.extend(prefetch(values(), 8))
    assert found == taken == [0, 1, 2]


def test_no_more_is_made_ahead_than_asked_and_closing_stops_it():
    taken = []

    def values():
        for i in itertools.count():
            taken.append(i)
            yield i

    ahead = prefetch(values(), 2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(taken) <= 5
    ahead.close()
    assert not any(t.name.startswith("prefetch") for t in threading.enumerate())


def test_results_of_several_threads_come_in_the_order_of_the_arguments():
    def square(value):
        time.sleep(0.02 if value % 2 else 0)
        return value**2, threading.current_thread().name

    results = list(map_ahead(square, range(20), threads=3, depth=4))
    assert [result for result, _ in results] == [i**2 for i in range(20)]
    assert 1 < len({name for _, name in results}) <= 3


@pytest.mark.slow
def test_an_iterator_that_is_never_closed_does_not_keep_or_break_the_interpreter():
    """Its thread is inside torch when the program ends, as after an interrupt."""
    code = (
        "import itertools, torch\n"
        "from ecgan.runtime.executor import prefetch\n"
        "a = torch.ones(400, 400)\n"
        "kept = prefetch((a @ a for _ in itertools.count()), 1000)\n"
        "next(kept)\n"
        "raise KeyboardInterrupt\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, text=True, check=False
    )
    assert done.returncode == -signal.SIGINT, done.stderr
    assert "Fatal" not in done.stderr
