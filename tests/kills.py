"""Kill ``ecgan augment`` with SIGKILL at random moments, run it again, and compare every byte.

    python -m tests.kills --kills 100       # a table, for the README; about half an hour

Real processes of the real command with a tiny real generator. A **kill** hits the driver, a worker
or both. When the driver survives, it has to replace the worker; when it does not, the same command
is started again. Moments are drawn at random, and some wait for what is rare: a shard that is half
written, one that has its name but no commit record, a record that is being written.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ecgan.data.packed import sample_sets as dataset
from ecgan.runtime.processes.table import descendants, processes
from tests.helpers.data_sets import contents
from tests.helpers.tiny import make_generator

TARGETS = ("driver", "worker", "both")
WORKERS = {"here": 1, "ray": 2}
MOMENTS = ("any time", "while a shard is written", "after its rename", "while it is committed")
STYLES, PER_SHARD, LAYOUTS = 120, 10, 5
SHARDS = STYLES * LAYOUTS // PER_SHARD
PATIENCE = 300.0  # seconds that a run may take
RARE = 2.0  # seconds that a rare moment is waited for; then any time will do


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, or two at once.

    Attributes:
        executor: one worker in the driver's process (here), or two on Ray (ray).
        target: who was killed.
        moment: what was waited for.
        seen: what the folder showed afterwards.
        commits: shards that were committed then.
    """

    executor: str
    target: str
    moment: str
    seen: str
    commits: int

    @property
    def is_midway(self) -> bool:
        """Whether it came between the first and the last commit."""
        return 0 < self.commits < SHARDS


def write_layouts(folder):
    for i in range(LAYOUTS):
        label = np.random.default_rng(i).integers(0, 3, (4, 8), dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(label, np.ones((8, 8), np.uint8))).save(folder / f"{i}.png")
    return folder


def command(generator, layouts, out, executor):
    words = [sys.executable, "-m", "ecgan_cli", "augment", "--checkpoint", generator]
    words += ["--labels", layouts, "--n-styles", STYLES, "--samples-per-shard", PER_SHARD]
    words += ["--out", out, "--device", "cpu", "--workers", WORKERS[executor], "-q"]
    return [str(word) for word in words]


def start(words):
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def workers_of(driver):
    """Processes that make shards for a driver."""
    table = processes()
    lines = {pid: table[pid].command for pid in descendants(driver, table)}
    return sorted(
        pid for pid, line in lines.items() if line.startswith("ray::") and "Actor" in line
    )


def commits(out):
    return len(list((out / ".ecgan/shards").glob("*.json")))


def has_come(out, moment):
    """Whether the folder shows that a moment has come."""
    partial = [p.name for p in (out / ".ecgan/tmp").glob("*")]
    if moment == "while a shard is written":
        return any(".tar." in name for name in partial)
    if moment == "while it is committed":
        return any(".json." in name for name in partial)
    named = {p.stem.rpartition("-")[2] for p in (out / "data").glob("*.tar")}
    committed = {p.stem for p in (out / ".ecgan/shards").glob("*.json")}
    return bool(named - committed)


def looked_at(out):
    """What the folder shows after a kill, in a word."""
    if has_come(out, "after its rename"):
        return "a shard without its record"
    if has_come(out, "while it is committed"):
        return "half a record"
    if has_come(out, "while a shard is written"):
        return "half a shard"
    return "whole files only"


def wait_for(driver, out, moment, *, begun):
    """Wait until a moment has come, or the driver has ended."""
    end, first = time.monotonic() + PATIENCE, commits(out)
    while driver.poll() is None and time.monotonic() < end:
        if not begun or commits(out) > first:
            break
        time.sleep(0.01)
    end = time.monotonic() + RARE
    while driver.poll() is None and time.monotonic() < end and moment != "any time":
        if has_come(out, moment):
            return


def kill_once(driver, out, rng, executor, target, moment):
    """Wait for a moment, then kill; None where the run ended before."""
    begun = rng.random() < 0.8  # most kills come after the first commit of this start
    wait_for(driver, out, moment, begun=begun)
    if moment == "any time":
        time.sleep(rng.random() * (0.5 if begun else 8.0))
    victims = [driver.pid] if target in {"driver", "both"} else []
    if target in {"worker", "both"}:
        victims += rng.sample(workers := workers_of(driver.pid), min(1, len(workers)))
    if driver.poll() is not None or not victims:
        return None
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return None
    return Kill(executor, target, moment, looked_at(out), commits(out))


def torment(words, out, rng, executor, count):
    """Kill a data set's making ``count`` times, then let it come to its end."""
    kills = []
    driver = start(words)
    while len(kills) < count:
        target = rng.choice(TARGETS) if WORKERS[executor] > 1 else "driver"
        moment = rng.choice(MOMENTS)
        kill = kill_once(driver, out, rng, executor, target, moment)
        if kill is not None:
            kills.append(kill)
        if target != "worker" or kill is None:
            if driver.wait(PATIENCE) == 0:
                break  # it was done before the next kill
            driver = start(words)
    if driver.poll() is None or driver.returncode != 0:
        message = driver.communicate(timeout=PATIENCE)[1]
        if driver.returncode != 0:
            again = start(words)
            message = again.communicate(timeout=PATIENCE)[1]
            assert again.returncode == 0, message
    return kills


def check(out, undisturbed):
    """Raise where the finished data set differs in anything from an undisturbed one."""
    keys = [sample.key for sample in dataset.read(out)]
    expected = {f"{i}-s{k:03d}" for i in range(LAYOUTS) for k in range(STYLES)}
    assert len(keys) == len(expected), "duplicate or missing keys"
    assert set(keys) == expected
    assert contents(out) == undisturbed
    assert not (out / ".ecgan/tmp").exists()


def run(folder, num_kills, *, seed=0, kills_of_a_set=5, ray_share=0.5, say=lambda *_: None):
    """Torment data sets until there were so many kills; every one is finished and compared."""
    rng = random.Random(seed)
    generator = make_generator(folder / "run" / "generator.safetensors")
    layouts = write_layouts(folder / "layouts")
    calm = folder / "undisturbed"
    process = start(command(generator, layouts, calm, "here"))
    message = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, message
    undisturbed = contents(calm)
    kills = []
    while len(kills) < num_kills:
        executor = (
            "ray" if sum(k.executor == "ray" for k in kills) < ray_share * len(kills) else "here"
        )
        out = folder / f"{executor}-{len(kills)}"
        words = command(generator, layouts, out, executor)
        own = torment(words, out, rng, executor, min(kills_of_a_set, num_kills - len(kills)))
        check(out, undisturbed)
        shutil.rmtree(out)
        kills += own
        say(f"{len(kills)} kills; the last {len(own)} with {executor}: identical to the byte", own)
    return kills


def table(kills):
    """Markdown: who was killed when, and what was found."""
    counts = collections.Counter((k.executor, k.target) for k in kills)
    lines = ["| killed | one process | Ray, 2 workers |", "|---|---:|---:|"]
    for target in TARGETS:
        cells = " | ".join(str(counts[executor, target]) for executor in WORKERS)
        lines.append(f"| {target} | {cells} |")
    seen = collections.Counter(kill.seen for kill in kills)
    found = ", ".join(f"{what}: {count}" for what, count in seen.most_common())
    midway = sum(kill.is_midway for kill in kills)
    lines.append(
        f"\nFound after the kill: {found}. Between first and last commit: {midway} of {len(kills)}."
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"), help="a line for each")
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text, own):
        print(text, flush=True)
        with options.log.open("a") as file:
            file.writelines(json.dumps(asdict(kill)) + "\n" for kill in own)

    with tempfile.TemporaryDirectory() as folder:
        kills = run(Path(folder), options.kills, seed=options.seed, say=say)
    print(table(kills))
    print(f"{len(kills)} kills, all finished sets identical, {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
