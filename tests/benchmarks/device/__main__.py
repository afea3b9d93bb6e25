"""Measure everything on a GPU in some minutes, with nothing lost when the time runs out.

    python -m tests.benchmarks.device --out DIR --minutes 9 [--camvid DIR]
    python -m tests.benchmarks.device --out DIR --minutes 3 --device cpu --small    # proves itself

Each part is a process of its own with a time limit: tests, losses, sampling, training, the data-set
engine, and minutes of the recipe ``camvid`` with a sample of each test layout. Figures are written
to DIR/results.json and DIR/results.md as they come. A part that fails, runs out of time or lacks a
package is a line there, and the next one runs. DIR gets at most 8 files below 16 MB.
"""

import argparse
import os
import sys
from pathlib import Path

from tests.benchmarks.device.parts import PARTS
from tests.benchmarks.device.run import Run, measure


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="empty, or new")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--camvid", type=Path, metavar="DIR", help="default: toy scenes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; no targets")
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], help="these parts")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f"--out {out}: not empty; give another folder")
    if arguments.camvid is not None and not (arguments.camvid / "labels" / "test").is_dir():
        parser.error(f"--camvid {arguments.camvid}: no labels/test in it; give CamVid's folder")
    camvid = None if arguments.camvid is None else str(arguments.camvid.absolute())
    run = Run(arguments.device, arguments.small, str(out), camvid)
    parts = [p for p in PARTS if arguments.only is None or p.name in arguments.only]
    os.environ.pop("ECGAN_CAMVID", None)
    if camvid is not None:
        os.environ["ECGAN_CAMVID"] = camvid
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    results = measure(parts, run, 60 * arguments.minutes)
    print(results.markdown())
    sys.exit(0 if all(part["state"] == "done" for part in results.parts) else 1)


if __name__ == "__main__":
    main()
