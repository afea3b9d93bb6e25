"""Processes of this machine: who is there, who descends from whom, and what outlives its owner.

The standard library alone: :func:`start_keeper` runs this file as a program of its own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_DONE = b"done"


class Process(NamedTuple):
    """A process as ``/proc`` shows it."""

    parent: int
    command: str  # its words, joined by spaces
    is_dead: bool  # ended, and not yet waited for by its parent


def processes() -> dict[int, Process]:
    """Processes by id; empty where there is no ``/proc``."""
    found: dict[int, Process] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone
            state, parent = (
                (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            )
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            command = words.decode(errors="replace").strip()
            found[int(entry.name)] = Process(int(parent), command, state in "ZX")
    return found


def descendants(pid: int, table: dict[int, Process] | None = None) -> set[int]:
    """Living processes that descend from one."""
    table = processes() if table is None else table
    found, new = set[int](), {pid}
    while new:
        new = {child for child, one in table.items() if one.parent in new} - found
        found |= new
    return {child for child in found if not table[child].is_dead}


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    return exists(pid) and state_of(pid) not in {"Z", "X"}


def exists(pid: int) -> bool:
    """Whether a process has this number, one that has ended and waits for its parent, too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def state_of(pid: int) -> str:
    """Letter of a process's state, as ``ps`` shows it; empty where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def end(pid: int) -> None:
    """End a process at once; nothing where it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# What Ray starts for a process: gone when it is gone


def start_keeper(folder: Path, sentence: str) -> "subprocess.Popen[bytes]":
    """Start a process that cleans up when this one is gone, however it ended.

    It ends the processes of Ray that work in a folder, and removes it. Where nobody called
    :func:`let_keeper_end`, it says on stderr that the command is gone.

    Args:
        folder: absolute, of this process alone.
        sentence: that it says then.
    """
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", __file__, str(folder), sentence],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # signals of the terminal are not for it
    )


def let_keeper_end(keeper: "subprocess.Popen[bytes]") -> None:
    """Have a keeper clean up now, and wait until it has."""
    with suppress(OSError):  # it was killed
        keeper.communicate(_DONE)


def clean_up(folder: Path, seconds: float = 10.0) -> None:
    """End the processes of Ray that work in a folder; remove it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        users = [pid for pid, one in processes().items() if _uses(pid, one, str(folder))]
        if not users:
            break
        for pid in users:
            end(pid)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _uses(pid: int, one: Process, folder: str) -> bool:
    """Whether a process is one of Ray's in a folder: neither its owner nor a reader of its logs."""
    is_ray = one.command.startswith("ray::") or "/ray/" in one.command.replace(folder, "")
    if not is_ray or one.is_dead or pid in {os.getpid(), os.getppid()}:
        return False
    files: list[str] = []
    with suppress(OSError):  # gone, or of another user
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                files.append(str(entry.readlink()))
    return folder in one.command or any(file.startswith(f"{folder}/") for file in files)


if __name__ == "__main__":
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)
    _said = sys.stdin.buffer.read()  # ends when the process that started this one is gone
    clean_up(Path(sys.argv[1]))
    if _said != _DONE:
        with suppress(OSError):
            os.write(2, f"{sys.argv[2]}\n".encode())
