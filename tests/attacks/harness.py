"""One attack: a command of ecgan on inputs of a stranger, watched while it runs.

A try is prepared in an empty folder of its own and runs in a process forked from one that has
everything imported, so that hundreds take minutes. The folder holds:

    work/      current folder of the command; what it may write is named by the try
    victim/    files that nobody should read, change or delete
    home/, cache/, tmp/    where the command may write
    executed   written by a payload that ran

Each area also tries its whole input, ``Expect.TAKEN``: an attack that is refused for a reason of
the test's own proves nothing.
"""

import contextlib
import enum
import hashlib
import json
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attacks import watch

SECRET = "8c1f-canary-of-the-victim"
TIME = 120.0  # seconds that a command may take
GRACE = 15.0  # seconds in which SIGTERM has to end it
MEMORY = 6 << 30  # bytes of address space beyond the parent's
LINE = 2000  # characters of a line of output, and
OUTPUT = 60_000  # of all of it: no message prints a value of any length
EXIT_CODES = range(5)

_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Expect(enum.Enum):
    """What is right."""

    REFUSED = "refused"  # an exit code other than 0, and a sentence
    EITHER = "either"  # harmless: refused in a sentence, or taken
    TAKEN = "taken"


@dataclass(frozen=True)
class Try:
    """A command line on prepared inputs.

    Attributes:
        kind: row of the table: "data sets", "checkpoints", ...
        name: what was done, so that one can find it again.
        prepare: writes the inputs below the try's folder; the words after ``ecgan``.
        expect: what is right.
        writes: paths that the command may write below work/.
        stdin: what is typed.
        environment: more of it.
        secrets: texts that must not be shown or stored.
        check: what else is wrong afterwards; gets the try's folder and the output.
    """

    kind: str
    name: str
    prepare: Callable[[Path], Sequence[object]]
    expect: Expect = Expect.REFUSED
    writes: Sequence[str] = ("out",)
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    check: Callable[[Path, str], Iterable[str]] | None = None


@dataclass(frozen=True)
class Fault:
    """Something that happens to a command; runs its own processes.

    Attributes:
        kind: row of the table.
        name: what was done.
        run: does it in an empty folder; what was wrong.
        limit: seconds that it may take.
    """

    kind: str
    name: str
    run: Callable[[Path], Iterable[str]]
    limit: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """What came out of a try.

    Attributes:
        kind: of the try.
        name: of the try.
        wrong: everything that was not held; empty where it held.
        code: exit code of the command, negative for a signal; None of a fault.
        output: the end of what was printed.
        seconds: that it took.
    """

    kind: str
    name: str
    wrong: tuple[str, ...]
    code: int | None
    output: str
    seconds: float


def marker(folder: Path) -> Path:
    """File that a payload writes where it runs."""
    return folder / "executed"


def run(case: Try | Fault, folder: Path) -> Outcome:
    """Run one in an empty folder."""
    start = time.monotonic()
    folder.mkdir(parents=True)
    if isinstance(case, Fault):
        wrong = _in_child(folder, case)
        return Outcome(case.kind, case.name, wrong, None, "", time.monotonic() - start)
    for name in ("work", "victim", "home", "cache", "tmp"):
        (folder / name).mkdir()
    for name in ("victim.txt", "000000.png", "train-000000.tar"):
        (folder / "victim" / name).write_text(SECRET)
    try:
        argv = [str(word) for word in case.prepare(folder)]
    except Exception:  # noqa: BLE001  the others are tried all the same
        seconds = time.monotonic() - start
        why = traceback.format_exc()[-2000:]
        return Outcome(case.kind, case.name, ("could not be prepared",), None, why, seconds)
    before = _snapshot(folder)
    code, hang = _command(case, argv, folder)
    output = (folder / "output").read_bytes().decode("utf-8", "backslashreplace")
    wrong = [*hang, *_faults(case, code, output), *_seen(folder)]
    wrong += _changes(before, _snapshot(folder), case.writes)
    wrong += _leaks(folder, case, output)
    if case.check is not None:
        wrong += case.check(folder, output)
    seconds = time.monotonic() - start
    return Outcome(case.kind, case.name, tuple(wrong), code, output[-3000:], seconds)


def _in_child(folder: Path, fault: Fault) -> tuple[str, ...]:
    """What a fault's function says, from a process of its own."""
    answer = folder.with_name(folder.name + ".json")
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            answer.write_text(json.dumps(list(fault.run(folder))))
        except BaseException:  # noqa: BLE001  the table says what happened
            answer.write_text(json.dumps([traceback.format_exc()[-2000:]]))
        finally:
            os._exit(0)
    _, late = _wait(pid, fault.limit)
    wrong = json.loads(answer.read_text()) if answer.exists() else ["no answer"]
    return (*late, *wrong)


def _command(case: Try, argv: Sequence[str], folder: Path) -> tuple[int, list[str]]:
    """Exit code of the command, negative for a signal, and how it hung."""
    (folder / "stdin").write_text(case.stdin)
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _child(case, argv, folder)
        except BaseException:  # noqa: BLE001  it is shown as users would see it
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return _wait(pid, TIME)


def _child(case: Try, argv: Sequence[str], folder: Path) -> int:
    os.setsid()
    os.chdir(folder / "work")
    for name, fd, flags in (("stdin", 0, os.O_RDONLY), ("output", 1, os.O_WRONLY | os.O_CREAT)):
        os.dup2(os.open(folder / name, flags, 0o600), fd)
    os.dup2(1, 2)
    os.environ |= {
        **dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(folder / "home")),
        "ECGAN_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        **case.environment,
    }
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch.start(folder, case.writes)
    from ecgan_cli.main import cli

    try:
        cli.main(list(argv), prog_name="ecgan")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _wait(pid: int, limit: float) -> tuple[int, list[str]]:
    """Wait for a process; SIGTERM after the limit, SIGKILL to its group after the grace."""
    for seconds, number in ((limit, signal.SIGTERM), (GRACE, signal.SIGKILL)):
        end = time.monotonic() + seconds
        pause = 0.002
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                hung = [] if number == signal.SIGTERM else [f"hung: {limit:.0f} s"]
                _kill_group(pid)
                return os.waitstatus_to_exitcode(status), hung
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        os.kill(pid, number)
    _kill_group(pid)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), [f"hung: {limit:.0f} s, and ignored SIGTERM"]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _seen(folder: Path) -> list[str]:
    seen = folder / "seen"
    if not seen.exists():
        return ["the command never started"]
    return sorted(set(seen.read_text().splitlines()))[:5]


def _faults(case: Try, code: int, output: str) -> Iterator[str]:
    """What is wrong with an exit code and the output."""
    if code not in EXIT_CODES:
        yield f"exit code {code}"
    elif code == 0 and case.expect is Expect.REFUSED:
        yield "taken"
    elif code != 0 and case.expect is Expect.TAKEN:
        yield "refused"
    if code != 0 and not output.strip():
        yield "no word"
    yield from _faults_of(output)


def _faults_of(output: str) -> Iterator[str]:
    """What is wrong with what was printed."""
    if "Traceback (most recent call last)" in output:
        yield "traceback: " + output.strip().splitlines()[-1][:200]
    if raw := _RAW.search(output):
        yield f"control character {raw.group()!r} in the output"
    if longest := max(map(len, output.splitlines()), default=0) // LINE:
        yield f"a line of {longest * LINE} characters and more"
    if len(output) > OUTPUT:
        yield f"{len(output)} characters printed"


def _snapshot(folder: Path) -> dict[str, str]:
    """Every file, link and folder of a try with its content; special files by their kind."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {path.readlink()}"
            elif path.is_file():
                found[key] = _digest(path)
            else:
                found[key] = "folder" if path.is_dir() else "special"
    return found


def _digest(path: Path) -> str:
    size = path.stat().st_size
    if size > 64 << 20:  # made to be large: its size stands for it
        return f"{size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _changes(
    before: Mapping[str, str], after: Mapping[str, str], writes: Sequence[str]
) -> Iterator[str]:
    """What changed outside the places that the command may write."""
    places = ("home", "cache", "tmp", *(f"work/{name}" for name in writes))
    ours = {"output", "stdin", "seen"}
    for name in sorted(before.keys() | after.keys()):
        if name in ours or any(name == p or name.startswith(p + "/") for p in places):
            continue
        if before.get(name) != after.get(name):
            verb = (
                "deleted" if name not in after else "written" if name not in before else "changed"
            )
            yield f"{verb}: {name}"


def _leaks(folder: Path, case: Try, output: str) -> Iterator[str]:
    """The victim's bytes, or a secret, in what was printed or written."""
    texts = [SECRET, *case.secrets]
    for text in texts:
        if text in output:
            yield f"printed: {text}"
    for place in ("cache", "home", *(f"work/{name}" for name in case.writes)):
        top = folder / place
        files = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in files:
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 64 << 20:
                data = path.read_bytes()
                for text in texts:
                    if text.encode() in data:
                        yield f"stored in {path.relative_to(folder)}: {text}"


def chosen(values: Sequence[Any], rng: random.Random, count: int) -> list[Any]:
    """``count`` of the values in a drawn order, all where there are fewer."""
    return rng.sample(list(values), min(count, len(values)))
