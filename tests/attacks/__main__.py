"""Try attacks and faults, print the table of docs/reliability.md.

python -m tests.attacks                        # everything; minutes
python -m tests.attacks --areas sets --seed 3  # other draws of one area
python -m tests.attacks --only "split ="       # those whose name holds a text, with output
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import pkgutil
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import ecgan
import ecgan_cli
from tests.attacks import areas, harness
from tests.attacks.world import World
from tests.helpers.ignored_signals import restore_signals

AREAS = tuple(sorted(m.name for m in pkgutil.iter_modules(areas.__path__)))
# What ecgan imports while it works
_WARM = ("pyarrow.parquet", "pyarrow.dataset", "transformers", "scipy.stats", "scipy.optimize")


def cases(
    names: Sequence[str], seed: int, share: float, world: World
) -> Iterator[harness.Try | harness.Fault]:
    """All tries of the areas, or a share of each, in an order that the seed decides."""
    for area in names:
        rng = random.Random(f"{seed} {area}")
        found = list(importlib.import_module(f"tests.attacks.areas.{area}").tries(rng, world))
        rng.shuffle(found)
        yield from found[: max(1, round(share * len(found)))]


def warm() -> None:
    """Import everything that a command may import: the processes of the tries are forked."""
    for package in (ecgan, ecgan_cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for name in _WARM:
        importlib.import_module(name)


def run_all(
    tries: Sequence[harness.Try | harness.Fault], root: Path, jobs: int, keep: bool
) -> list[harness.Outcome]:
    """Every try in a folder of its own, ``jobs`` at a time; each job is a process."""
    files = []
    children = []
    for job in range(jobs):
        files.append(root / f"outcomes-{job}.jsonl")
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        with files[-1].open("w") as lines:
            for index in range(job, len(tries), jobs):
                folder = root / f"{index:04d}"
                outcome = harness.run(tries[index], folder)
                lines.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
                lines.flush()
                if outcome.wrong:
                    print(f"{outcome.kind}: {outcome.name}: {'; '.join(outcome.wrong)}", flush=True)
                if not keep:
                    shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    for pid in children:
        _, status = os.waitpid(pid, 0)
        if status:
            print(f"a job ended with {os.waitstatus_to_exitcode(status)}", flush=True)
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [harness.Outcome(**json.loads(line)) for line in lines]


def table(outcomes: Sequence[harness.Outcome]) -> str:
    """Markdown: kinds, tries, held."""
    rows: dict[str, list[bool]] = collections.defaultdict(list)
    for outcome in outcomes:
        rows[outcome.kind].append(not outcome.wrong)
    lines = ["| kind | tries | held |", "|---|--:|--:|"]
    lines += [f"| {kind} | {len(held)} | {sum(held)} |" for kind, held in rows.items()]
    held = [h for row in rows.values() for h in row]
    return "\n".join([*lines, f"| all | {len(held)} | {sum(held)} |"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=AREAS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of each area's tries")
    parser.add_argument("--only", help="names that hold this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for what was tried, kept")
    arguments = parser.parse_args()
    restore_signals()
    sys.dont_write_bytecode = True  # the tries are watched for files that they write
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork: a child's sum waits for ever
    root = arguments.keep or Path(tempfile.mkdtemp(prefix="attacks-"))
    root = root.resolve()
    try:
        world = World(root / "world")
        tries = list(cases(arguments.areas, arguments.seed, arguments.share, world))
        if arguments.only:
            tries = [t for t in tries if arguments.only in t.name]
        if not tries:
            parser.error(f"no try holds {arguments.only!r} in its name")
        warm()
        outcomes = run_all(tries, root, arguments.jobs, bool(arguments.keep))
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    if arguments.only:
        for outcome in outcomes:
            print(f"--- {outcome.name}: exit {outcome.code}, {outcome.seconds:.1f} s")
            print(outcome.output)
    print(table(outcomes))
    slowest = max(outcomes, key=lambda o: o.seconds, default=None)
    if slowest is not None:
        print(f"\nslowest: {slowest.name}, {slowest.seconds:.0f} s")
    if len(outcomes) < len(tries):
        print(f"{len(tries) - len(outcomes)} tries have not run")
    return int(len(outcomes) < len(tries) or any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
