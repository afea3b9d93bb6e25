"""Whole drivers in processes of their own: what they print, and what they leave behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ecgan.runtime.executor import run_jobs
from ecgan.runtime.jobs import (
    Workers,
)
from tests.helpers.jobs import Make, seconds_until_gone

pytestmark = pytest.mark.timeout(120)  # what hangs is a failure here
ROOT = Path(__file__).parents[2]


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
    code = f"from tests.runtime.test_drivers import drive; drive(*{tuple(map(str, arguments))!r})"
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


def ray_folders():
    return set(Path(tempfile.gettempdir()).glob("ecgan-ray-*"))


def listening(pids):
    """Addresses where processes listen, as /proc/net writes them."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            sockets |= {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {words[1].split(":")[0] for words in lines
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets}  # fmt: skip


@pytest.mark.slow
def test_nothing_of_ray_outlives_a_driver_that_is_killed_nor_listens_elsewhere(tmp_path):
    before = ray_folders()
    process = driver("ray", "stall", tmp_path)
    started = wait_for_worker(process, tmp_path)
    assert {pid for _, pid in Make("stall", tmp_path).made} <= started
    assert len(ray_folders() - before) == 1
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", f"{0:024}01000000"}
    assert listening(started)
    assert listening(started) <= loopback
    process.kill()
    process.wait()
    seconds_until_gone(started, 10)
    _, err = process.communicate()
    assert err.splitlines()[1:] == [
        f"Error: process {process.pid} was killed, or ended by Ray, whose own processes were. What "
        "is finished is kept, and the same command makes the rest"
    ]
    assert ray_folders() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_daemon_of_ray_that_dies_is_a_sentence(tmp_path, name):
    before = ray_folders()
    process = driver("ray", "stall", tmp_path)
    started = wait_for_worker(process, tmp_path)
    (daemon,) = (p for p in started if title(p).split("\0")[0].endswith(f"/{name}"))
    begun = time.monotonic()
    os.kill(daemon, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 20
    assert process.returncode == 1
    assert f"Ray's process {name} ({daemon}) on this machine ended: what is finished is kept" in err
    seconds_until_gone(started, 10)
    assert ray_folders() == before


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
