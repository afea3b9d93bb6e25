"""A training step on a CPU against threads, and what they do while they wait for each other.

    python -m tests.benchmarks.bench_threads                    # a quiet machine, then a busy one
    python -m tests.benchmarks.bench_threads --busy 3 --steps 5 --rounds 3

Each setting has a process of its own, since OpenMP reads its variables once, when torch is loaded.
They take turns, a few steps each, so that the load that others cause is the same for all of them;
the others sleep meanwhile. Times are of the clock: what a user waits for. --busy adds so many
processes that compute without end. The step is a small one of a laptop: width 16, batch 2, 64 x 96.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from tests.benchmarks.common import machine, versions

SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, as OpenMP comes": {"OMP_NUM_THREADS": "2"},
    "2 threads, OMP_WAIT_POLICY=passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
    **{
        f"2 threads, GOMP_SPINCOUNT={count}": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": count}
        for count in ("1000", "5000", "20000", "60000")
    },
}
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BATCH = 2


def child():
    """Take as many steps as each line of stdin says; answer with their seconds."""
    import torch

    from tests.benchmarks.bench_training import Case, forms

    case = Case(16, (64, 96), 11, BATCH, 4, 32, "efficientnet_lite0")
    (step,) = forms(case, torch.device("cpu"), ("ours",)).values()
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        taken = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
        print(json.dumps(taken), flush=True)


def start(settings):
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--child"], env=inherited | settings, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def ask(process, steps):
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def measure(processes, busy, rounds, steps):
    """Setting -> seconds of each step, all in turns, beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        taken = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                taken[name] += ask(process, steps)
            print(f"  {len(next(iter(taken.values())))} steps each", file=sys.stderr, flush=True)
        return taken
    finally:
        for one in others:
            one.kill()
            one.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 3], help="processes beside it")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="of each turn")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    print(f"{machine()}; {versions()}; batch {BATCH}")
    processes = {name: start(settings) for name, settings in SETTINGS.items()}
    try:
        for name, process in processes.items():
            if process.stdout.readline() != "ready\n":
                sys.exit(f"{name}: the process ended")
        for busy in arguments.busy:
            taken = measure(processes, busy, arguments.rounds, arguments.steps)
            print(f"\n{busy} busy processes beside it, load {os.getloadavg()[0]:.1f}")
            for name, seconds in taken.items():
                median, slowest = statistics.median(seconds), max(seconds)
                print(
                    f"  {name:<36} {BATCH / median:6.2f} images/s; slowest step "
                    f"{BATCH / slowest:6.2f}",
                    flush=True,
                )
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
