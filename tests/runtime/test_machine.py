"""What the machine refuses is a sentence; streams can be closed, full or gone."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecgan.errors import UserError
from ecgan.runtime.files import writing
from ecgan.runtime.processes.machine import explained

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left.*make room"),
        (OSError(errno.EROFS, "Read-only file system", b"a"), "a: Read-only .*ECGAN_CACHE"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "x: No such file; mend that"),
        (OSError("what a library says"), "what a library says; mend that"),
        (MemoryError("Unable to allocate 1 TiB"), "out of memory .*1 TiB.*ulimit -v"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower the batch"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "make room"),
        (ImportError("libx.so: failed to map segment from shared object"), "address space"),
        (RuntimeError("Could not determine home directory."), "set HOME or ECGAN_CACHE"),
    ],
)
def test_what_the_machine_refuses_is_a_sentence(error, told):
    with pytest.raises(UserError, match=told), explained():
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), UserError("cannot allocate")]
)
def test_all_else_stays_as_it_is(error):
    with pytest.raises(type(error)) as raised, explained():
        raise error
    assert raised.value is error


def shell(line, **environment):
    return subprocess.run(
        ["bash", "-c", line.replace("ecgan ", f"{sys.executable} -m ecgan_cli ", 1)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", ["recipes list", "--help", "train --help"])
@pytest.mark.parametrize("where", [">/dev/full", ">&-", ">&- <&-"])
def test_output_that_cannot_be_written_is_a_sentence(words, where):
    done = shell(f"ecgan {words} {where}")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard output: cannot write: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_closed_stderr_and_names_that_an_encoding_lacks_are_no_fault():
    assert shell("ecgan recipes list 2>&- <&-").stdout.startswith("ablation-1")
    done = shell("ecgan recipes show 'ä\udcff\xff.yaml' 2>&1", PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.stdout
    assert done.returncode == 2


@pytest.mark.slow
def test_a_pipe_that_closes_is_quiet():
    done = shell("ecgan recipes list | head -0; exit ${PIPESTATUS[0]}")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_every_command_ends_on_a_signal(tmp_path, number):
    words = ["data", "toy", "--out", str(tmp_path / "toy"), "--num", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ecgan_cli", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.rglob("*.png")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.count("Interrupted") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "No space left on device; .*Make room"), (errno.EROFS, "Name a place")],
)
def test_what_cannot_be_written_is_named_with_its_own_remedy(number, told):
    with pytest.raises(UserError, match=rf"^a/b: cannot write: .*{told}"), writing(Path("a/b")):
        raise OSError(number, os.strerror(number))
