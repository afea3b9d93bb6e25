"""Run parts one after the other, each in a process of its own, in the time that there is."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import ecgan
from ecgan.runtime.processes.signals import end_with_parent
from tests.benchmarks.device.results import LOG, Results

ROOT = Path(__file__).parents[3]
POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
END_SECONDS = 2.0  # of the whole, kept for what comes after the last part
LOG_BYTES = 8_000_000  # of the log, its end; half of what a file may have


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: of the part.
        title: in the results.
        call: ``module:function`` that the process calls with a :class:`~.child.Child`.
        share: of the time; what parts before it leave is its own too.
        minimum: seconds without which it is not begun.
    """

    name: str
    title: str
    call: str
    share: float
    minimum: float = 8.0


@dataclass(frozen=True)
class Run:
    """What every part is told."""

    device: str  # cuda or cpu
    small: bool
    out: str
    camvid: str | None = None


def measure(parts, run, seconds):
    """Run all parts that there is time for.

    Args:
        parts: in order of importance.
        run: what they are told.
        seconds: for all of them together.

    Returns:
        The results, which are on the disk already.
    """
    end = time.monotonic() + seconds - END_SECONDS
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "ecgan": ecgan.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round(seconds / 60, 2),
        "device": run.device,
        "sizes": "small: no targets" if run.small else "full",
        "data": "CamVid" if run.camvid else "toy scenes",
        "system": platform.platform(),
    }
    results = Results(out, about)
    waiting = list(parts)
    while waiting:
        limits = time_limits(waiting, parts, end - time.monotonic(), seconds)
        index = next((i for i, p in enumerate(waiting) if limits[i] >= p.minimum), None)
        if index is None:
            break
        run_part(waiting.pop(index), run, results, limits[index])
    left = max(0.0, end - time.monotonic())
    for part in waiting:
        results.begin(part.name, part.title, 0.0)
        results.end("left out", f"{left:.0f} s are left, and it takes {part.minimum:.0f} s")
    return results


def time_limits(waiting, parts, left, seconds):
    """Limit of each waiting part if it came next: what those behind it do not need is its own."""
    each = {part.name: part.share * seconds / sum(p.share for p in parts) for part in parts}
    all_waiting = sum(each[part.name] for part in waiting)
    return [max(0.0, left - (all_waiting - each[part.name])) for part in waiting]


def run_part(part, run, results, limit):
    """Run one part; what it finds, and how it ends, gets into the results."""
    results.begin(part.name, part.title, limit)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ecgan-device-") as folder:
        found = Figures(Path(folder) / "figures.jsonl")
        command = [
            *(sys.executable, "-m", "tests.benchmarks.device.child", part.call, str(found.path)),
            *(folder, str(limit), json.dumps(asdict(run))),
        ]
        with (Path(run.out) / LOG).open("ab") as log:
            log.write(f"\n== {part.title}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=end_with_parent(),  # noqa: PLW1509
            )  # fmt: skip
        try:
            in_time = watch(process, found, results, start + limit)
        finally:
            kill(process)
        found.into(results)
    shorten(Path(run.out) / LOG)
    seconds = time.monotonic() - start
    if not in_time:
        results.end("out of time", f"stopped; figures before that stand; {LOG} has more", seconds)
    elif found.left_out:
        results.end("left out", found.left_out, seconds)
    elif found.failure or process.returncode:
        reason = found.failure or f"the process ended with code {process.returncode}; see {LOG}"
        results.end("failed", reason, seconds)
    else:
        results.end("done", "", seconds)


def watch(process, found, results, end):
    """Pass on figures until the process ends, or False when its time is up."""
    while process.poll() is None:
        if time.monotonic() > end:
            return False
        found.into(results)
        time.sleep(POLL_SECONDS)
    return True


def kill(process):
    """End what is left of a process and of those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


class Figures:
    """The lines that a process writes, one for each figure; the last one says how it ended."""

    def __init__(self, path):
        self.path, self._read = path, 0
        self.failure = self.left_out = ""

    def into(self, results):
        """Pass on whole lines that are new."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            self.failure = line.get("failure", self.failure)
            self.left_out = line.get("left out", self.left_out)
        if figures := [line for line in lines if "value" in line]:
            results.add(figures)


def shorten(path):
    """Keep the end of a log that has grown too long."""
    if path.stat().st_size > LOG_BYTES:
        path.write_bytes(b"(the beginning is cut off)\n" + path.read_bytes()[-LOG_BYTES:])
