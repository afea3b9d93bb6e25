"""Faults of the machine: processes killed and stopped, disks full and read-only, streams closed.

Each fault strikes a real process of the command, which has to end in one sentence with an exit code
other than 0, without a traceback and without waiting for ever; then the same command, undisturbed,
has to come to its end. What needs file systems of its own is left out, with a note, where nobody
may mount them (``unshare -rm``).
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from ecgan.runtime.processes.table import descendants, end, processes
from tests.attacks.harness import Fault
from tests.attacks.world import _TRAIN, World

KIND = "faults"
PATIENCE = 240.0  # seconds that a command may take on a busy machine
GONE = 15.0  # seconds in which what a killed command started has to be gone
ROOT = Path(__file__).parents[3]
_ENDLESS = ("--set", "train.images=100000", "--set", "train.checkpoint_every=100000")
_SHORT = ("--set", "train.images=24")
# Loader processes whose pipes hold next to nothing: the training waits for them at once
_LITTLE_AHEAD = (
    "from ecgan.runtime.processes import ordered; ordered._PIPE_BYTES = 4096; "
    "from ecgan_cli.main import cli; cli(prog_name='ecgan')"
)
# A server of one byte a second, and the bound of a minute as one of three seconds
_DRIPPING = """
import dataclasses, http.server, threading, time
from ecgan.models.pretrained import fetching, weights
from ecgan_cli.main import cli
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while True:
            self.wfile.write(b"x")
            time.sleep(1)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_address[1]}/file"
fetching.SPAN = 3
weights.KNOWN["vgg19"] = dataclasses.replace(weights.VGG19, address=address, size=10**6)
cli(["weights", "fetch", "vgg19", "-q"], prog_name="ecgan")
"""
_MOUNTED = {
    "read-only out": "mount --bind {out} {out} && mount -o remount,ro,bind {out} && ",
    "full disk": "mount -t tmpfs -o size=8k tmpfs {out} && ",
    "no /dev/shm": "mount -t tmpfs -o ro,size=4k tmpfs /dev/shm && ",
    "read-only home": "mount -t tmpfs -o ro,size=4k tmpfs {home} && export HOME={home} && ",
}
_PLAIN = {
    "out in /proc": "",
    "no home": "unset HOME XDG_CACHE_HOME USER LOGNAME; ",
    "little address space": "ulimit -v 700000; ",
    "closed streams": "",
    "full stdout": "",
}


@dataclass(frozen=True)
class Work:
    """A command: its words, given the folder it writes, and a pattern that shows it is at work."""

    name: str
    words: Callable[[Path], Sequence[object]]
    begun: str

    def struck(self, out: Path) -> list[object]:
        """The words while a fault strikes: a training does not end by itself then."""
        return [*self.words(out), *(_ENDLESS if self.name.startswith("train") else ())]

    def again(self, out: Path) -> list[object]:
        """The same command to its end; a training makes two steps more than it has made."""
        words = list(self.words(out))
        if self.name.startswith("train"):
            states = [json.loads(p.read_text()) for p in (out / "run").rglob("state.json")]
            seen = max((state["images_seen"] for state in states), default=0)
            words += ["--set", f"train.images={seen + 4}"]
        return words


def commands(world: World) -> list[Work]:
    """The commands that faults strike; their inputs are made now."""
    data, generator = world.data, world.generator
    samples, segmenter = world.samples("webdataset"), world.segmenter
    sets = [word for key, value in _TRAIN.items() for word in ("--set", f"{key}={value}")]

    def train(out: Path, *more: object) -> list[object]:
        words = ["train", "--recipe", "demo", "--data", data, "--out", out / "run", *sets]
        return [*words, "--device", "cpu", "-q", *more]

    def augment(out: Path, *more: object) -> list[object]:
        words = ["augment", "--checkpoint", generator, "--labels", data / "labels/train"]
        words += ["--n-styles", 40, "--samples-per-shard", 5, "--out", out / "set"]
        return [*words, "--device", "cpu", "-q", *more]

    def evaluate(out: Path) -> list[object]:
        words = ["evaluate", "--samples", samples, "--reference", data, "--split", "train"]
        words += ["--set", f"evaluate.judge={segmenter}", "--out", out / "report"]
        return [*words, "--device", "cpu", "-q"]

    def convert(out: Path) -> list[object]:
        return ["data", "convert", samples, out / "set", "--format", "parquet", "-q"]

    def cache(out: Path) -> list[object]:
        words = ["data", "cache", "--recipe", "demo", "--data", data, "--out", out / "copy"]
        return [*words, "--threads", 1]

    def toy(out: Path) -> list[object]:
        return ["data", "toy", "--out", out / "toy", "--num", 20]

    return [
        Work("train", partial(train), "run/metrics.jsonl"),
        Work("train with loader processes", lambda out: train(out, "--set", "data.workers=2"),
             "run/metrics.jsonl"),
        Work("augment", partial(augment), "set/.ecgan/shards/*"),
        Work("evaluate", evaluate, "report*"),
        Work("convert", convert, "set/data*"),
        Work("data cache", cache, "copy/*"),
        Work("data toy", toy, "*"),
    ]  # fmt: skip


def caching(world: World) -> Iterator[Work]:
    """Further commands that keep results of their own."""
    samples, segmenter, data = world.samples("webdataset"), world.segmenter, world.data

    def filtered(out: Path) -> list[object]:
        words = ["augment", "--checkpoint", world.generator, "--labels", data / "labels/val"]
        words += ["--filter", segmenter, "--data", data, "--overwrite", "--out", out / "set"]
        return [*words, "--device", "cpu", "-q"]

    def downstream(out: Path) -> list[object]:
        words = ["downstream", "--samples", samples, "--reference", data, "--mix", "0"]
        words += ["--segmenter", segmenter, "--seeds", 1, "--out", out / "report"]
        short = ("images=2", "batch=2")
        sets = [w for s in short for w in ("--set", f"evaluate.downstream_training.{s}")]
        return [*words, *sets, "--device", "cpu", "-q"]

    yield Work("augment --filter", filtered, "set/data*")
    yield Work("downstream", downstream, "report*")


def tries(rng: random.Random, world: World) -> Iterator[Fault]:
    """At least 60 faults; the seed draws moments."""
    works = commands(world)
    places = [*_PLAIN, *(_MOUNTED if can_mount() else ())]
    if not can_mount():
        print("faults: no `unshare -rm` here: full and read-only disks are left out", flush=True)
    for work in works:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            moment = rng.random()
            yield Fault(KIND, f"{work.name}: {number.name}", partial(_signal, work, number, moment))
        for place in places:
            yield Fault(KIND, f"{work.name}: {place}", partial(_machine, work, place))
        if can_mount():
            share = rng.uniform(0.2, 0.8)
            yield Fault(KIND, f"{work.name}: disk that fills", partial(_filling, work, share))
    yield from _of_trainings(*works[:2])
    for work in (works[0], works[3], works[5], *caching(world)):
        yield Fault(KIND, f"{work.name}: damaged caches", partial(_caches, work, rng.random()))
    yield Fault(KIND, "weights fetch: a byte a second", _dripping)
    for daemon in ("gcs_server", "raylet", "driver"):
        yield Fault(KIND, f"Ray: {daemon} killed", partial(_ray, works[2], daemon))


def _of_trainings(train: Work, loader: Work) -> Iterator[Fault]:
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
        for moment in ("at its start", "at work"):
            name = f"a loader process {moment}: {number.name}"
            yield Fault(KIND, name, partial(_loader, loader, number, moment))
    name = "loader processes: SIGSTOP, then SIGTERM to train"
    yield Fault(KIND, name, partial(_loader, loader, signal.SIGSTOP, "at work", asked=True))
    for work in (train, loader):
        for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGHUP):
            name = f"{work.name}: SIGSTOP, {number.name}"
            yield Fault(KIND, name, partial(_stopped, work, number))


def _start(words: Sequence[object], folder: Path, before: str = "", after: str = "") -> "Run":
    """Start a command in a shell, with what the shell does before, and its redirections."""
    return _start_line(f"{before}exec {_line(words)} {after}", folder)


def _line(words: Sequence[object], *program: str) -> str:
    program = program or ("-m", "ecgan_cli")
    return shlex.join(str(word) for word in (sys.executable, *program, *words))


@dataclass(frozen=True)
class Run:
    """A command that runs."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Exit code; None where it hangs, which ends it."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return None

    def said(self) -> str:
        """What was printed."""
        return self.log.read_text(errors="replace")


def _wrong(run: Run, code: int | None, codes: Sequence[int], *, silent: bool = False) -> list[str]:
    """What is wrong with how a command ended."""
    said = run.said()
    wrong = [] if code in codes else [f"exit code {code}, not of {list(codes)}: {said[-300:]}"]
    if "Traceback" in said or "Fatal Python error" in said:
        wrong.append(f"traceback: {said[-600:]}")
    if code not in {0, *map(int.__neg__, (9, 15, 1, 2))} and not said.strip() and not silent:
        wrong.append("no word")
    return wrong


def _unnamed(run: Run, place: object) -> list[str]:
    """What is wrong with a sentence about a place that cannot be written."""
    said = run.said()
    return [] if str(place) in said else [f"{place} is not named: {said[-300:]}"]


def _rerun(words: Sequence[object], folder: Path) -> list[str]:
    """What is wrong with the same command, undisturbed."""
    run = _start(words, folder)
    code = run.wait()
    return [] if code == 0 else [f"the rerun ended with {code}: {run.said()[-300:]}"]


def _wait_until(run: Run, seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while run.process.poll() is None and not seen() and time.monotonic() < deadline:
        time.sleep(0.02)


def _signal(work: Work, number: signal.Signals, moment: float, folder: Path) -> list[str]:
    """A signal at a drawn moment: while it starts, or after its first file."""
    out = folder / "out"
    out.mkdir()
    run = _start(work.struck(out), folder)
    if moment < 0.3:
        time.sleep(0.5 + 10 * moment)
    else:
        _wait_until(run, lambda: list(out.glob(work.begun)))
        time.sleep(moment - 0.3)
    below = descendants(run.process.pid)
    if run.process.poll() is None:
        run.process.send_signal(number)
    code = run.wait(60)
    # 0: it was done before; a signal while Python itself starts ends it as the system does
    wrong = _wrong(run, code, (0, 130, -number))
    wrong += _left(below)
    return wrong if code == 0 else wrong + _rerun(work.again(out), folder)


@cache
def can_mount() -> bool:
    """Whether file systems can be mounted in a namespace of one's own."""
    line = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(line, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _machine(work: Work, what: str, folder: Path) -> list[str]:
    """A place or a stream that fails from the first moment on."""
    out, home = folder / "out", folder / "home"
    out.mkdir()
    home.mkdir()
    after = {"closed streams": ">&- <&-", "full stdout": ">/dev/full"}.get(what, "")
    fails = what in {"read-only out", "full disk", "out in /proc"}
    target = Path("/proc/ecgan") if what == "out in /proc" else out
    words = work.words(target)
    if what in _MOUNTED:
        inner = shlex.quote(f"{_MOUNTED[what].format(out=out, home=home)}exec {_line(words)}")
        run = _start_line(f"exec unshare -rm bash -c {inner}", folder)
    else:
        run = _start(words, folder, _PLAIN[what], after)
    code = run.wait()
    wrong = _wrong(run, code, (1, 2, 3) if fails else (0, 1))
    if fails:
        wrong += _unnamed(run, target)
    if what == "read-only out" and "make room" in run.said().lower():
        wrong.append("the remedy is for a full disk")
    if code == 0:  # done, as what needs little memory is in little address space
        return wrong
    if after and work.name in {"data toy", "convert"}:  # done, and they refuse what is there
        whole = {"data toy": "toy/classes.json", "convert": "set/manifest.json"}[work.name]
        return wrong if (out / whole).is_file() else [*wrong, f"{whole} was not kept"]
    return wrong + _rerun(work.words(out), folder)


def _filling(work: Work, share: float, folder: Path) -> list[str]:
    """A disk with a share of the room that the command needs; then there is more room."""
    out = folder / "out"
    out.mkdir()
    free = folder / "free"
    free.mkdir()
    if wrong := _rerun(work.words(free), folder):
        return wrong
    files = [path for path in free.rglob("*") if path.is_file()]
    size = int(share * sum(-(-path.stat().st_size // 4096) for path in files)) * 4096
    command = _line(work.words(out))
    inner = (
        f"mount -t tmpfs -o size={size} tmpfs {out} && {command}; code=$?; df {out} >{folder}/df; "
        f"mount -o remount,size=512m {out} && {command} >{folder}/again 2>&1; echo $code $? "
        f">{folder}/codes"
    )
    run = _start_line(f"exec unshare -rm bash -c {shlex.quote(inner)}", folder)
    if run.wait(2 * PATIENCE) is None:
        return [f"hung: {run.said()[-300:]}"]
    code, again = map(int, (folder / "codes").read_text().split())
    wrong = _wrong(run, code, (1, 3)) + _unnamed(run, out)
    if again:
        said = (folder / "again").read_text(errors="replace")
        wrong.append(f"with more room it ended with {again}: {said[-300:]}")
    return wrong


def _start_line(line: str, folder: Path) -> Run:
    """Start a line of the shell that runs the command by itself."""
    log = folder / f"log-{len(list(folder.glob('log-*')))}"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "ECGAN_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", line],
            stdout=file, stderr=file, env=environment, cwd=folder, start_new_session=True,
        )  # fmt: skip
    return Run(process, log)


def _loader(
    work: Work, number: signal.Signals, moment: str, folder: Path, *, asked: bool = False
) -> list[str]:
    """A signal to all loader processes: SIGTERM is not for them, all else ends the training.

    Args:
        asked: the training gets SIGTERM while it waits for them.
    """
    out = folder / "out"
    out.mkdir()
    ends = number == signal.SIGTERM
    words = [*work.words(out), *_SHORT] if ends else work.struck(out)
    run = _start_line(f"exec {_line(words, '-c', _LITTLE_AHEAD)}", folder)
    is_early = moment == "at its start"
    _wait_until(run, lambda: is_early or list(out.glob(work.begun)))
    _wait_until(run, lambda: len(descendants(run.process.pid)) >= 2)
    loaders = descendants(run.process.pid)
    wrong = [] if len(loaders) >= 2 else ["no loader processes were seen"]
    for pid in loaders:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    if asked:
        time.sleep(15)  # what was loaded before is used up
        run.process.send_signal(signal.SIGTERM)
    code = run.wait(30 if asked else PATIENCE)
    wrong += _wrong(run, code, (130,) if asked else (0,) if ends else (1,))
    if number == signal.SIGSTOP and not asked and "is stopped (SIGSTOP)" not in run.said():
        wrong.append(f"does not name what is stopped: {run.said()[-300:]}")
    wrong += _left(loaders)
    return wrong if code == 0 else wrong + _rerun(work.again(out), folder)


def _stopped(work: Work, number: signal.Signals, folder: Path) -> list[str]:
    """A training is stopped, asked to end or not, and goes on."""
    out = folder / "out"
    out.mkdir()
    goes_on = number == signal.SIGCONT
    run = _start([*work.words(out), *_SHORT] if goes_on else work.struck(out), folder)
    _wait_until(run, lambda: list(out.glob(work.begun)))
    below = descendants(run.process.pid)
    for one in (signal.SIGSTOP, number, signal.SIGCONT):
        run.process.send_signal(one)
        time.sleep(3 if one == signal.SIGSTOP else 0.2)
    code = run.wait(PATIENCE if goes_on else 60)
    wrong = _wrong(run, code, (0,) if goes_on else (130,)) + _left(below)
    return wrong if goes_on else wrong + _rerun(work.again(out), folder)


def _dripping(folder: Path) -> list[str]:
    """A server that sends something, and would for ever."""
    line = f"TORCH_HOME={folder}/torch exec {_line((), '-c', _DRIPPING)}"
    run = _start_line(line, folder)
    wrong = _wrong(run, run.wait(90), (1,))
    if "kB a second for 3 s" not in run.said():
        wrong.append(f"another reason: {run.said()[-300:]}")
    left = [path for path in folder.glob("torch/**/*") if path.is_file()]
    return [*wrong, *(f"left: {path}" for path in left)]


_KEPT = ("label-check.json", "contents.json", "losses-*.json", "run-*.json", "*.npz")
_DAMAGES = (b"", b"[]", b'{"mean": NaN}', b"[" * 100_000, b"\xff\xfe")


def _caches(work: Work, draw: float, folder: Path) -> list[str]:
    """What a command keeps for the next one is damaged; it is made anew."""
    out = folder / "out"
    out.mkdir()
    if wrong := _rerun(work.words(out), folder):
        return wrong
    kept = [path for name in _KEPT for path in folder.rglob(name)]
    for number, path in enumerate(kept):
        whole, choice = path.read_bytes(), int(draw * 100) + number
        torn = whole[: int(draw * len(whole))]
        path.write_bytes([*_DAMAGES, torn][choice % (len(_DAMAGES) + 1)])
    run = _start(work.again(out), folder)
    wrong = _wrong(run, run.wait(), (0,))
    return wrong if kept else [*wrong, "keeps nothing"]


def _left(below: set[int]) -> list[str]:
    """Processes that outlived what started them; they are ended."""
    deadline = time.monotonic() + GONE
    while left := below & {pid for pid, one in processes().items() if not one.is_dead}:
        if time.monotonic() > deadline:
            for pid in left:
                end(pid)
            return [f"processes left: {sorted(left)}"]
        time.sleep(0.1)
    return []


def _ray(work: Work, whom: str, folder: Path) -> list[str]:
    """A daemon of Ray, or the command that started it, is killed."""
    out = folder / "out"
    out.mkdir()
    words = [*work.words(out), "--workers", 2]
    run = _start(words, folder)
    _wait_until(run, lambda: list(out.glob(work.begun)))
    below = descendants(run.process.pid)
    table = {pid: one for pid, one in processes().items() if pid in below}
    victims = [pid for pid, one in table.items() if one.command.split(" ")[0].endswith(f"/{whom}")]
    folders = set(
        re.findall(r"/[^\s=]*ecgan-ray-[^/\s]+", " ".join(c.command for c in table.values()))
    )
    struck = [run.process.pid] if whom == "driver" else victims
    for pid in struck:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = run.wait(60)
    wrong = _wrong(run, code, (-9,) if whom == "driver" else (1,)) + _left(below)
    if not struck or not folders:
        wrong.append(f"no process of Ray was seen: {sorted(one.command for one in table.values())}")
    wrong += [f"left: {path}" for path in folders if Path(path).exists()]
    return wrong + _rerun(words, folder)
