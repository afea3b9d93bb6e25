"""The training loader alone: images/s of reading, resizing, edges and batches.

    python -m tests.benchmarks.bench_loader                                     # small
    python -m tests.benchmarks.bench_loader --size 256 512 --toy 1024 2048 --workers 1 2 4 8 \\
        --scaling                                                # photos as large as Cityscapes'

The baseline, in the same process, is the straightforward way: for each image read label and photo
at their full size, resize, mirror, find the edges, one after the other; no processes, nothing kept.
Every form makes the same batches of the same positions, which is checked:

* **in memory**: no processes, resized samples kept from the first epoch (``data.workers=0``, where
  the set is small enough); it is measured from its second epoch on.
* **workers n**: n loader processes (``data.workers``).
* **copy**: the baseline on the set that ``ecgan data cache`` wrote, resized already; and with
  processes.

Forms take turns, each with processes of its own that are up and have nothing in store when the
clock starts. Seconds are those of the wall, since several processes work, so other programs' load
shows; "CPU ms", of all processes together, where Linux tells it, is nearly free of it. Files are in
the system's cache after the first turn: "MB/s" is of files that are decoded, not of a disk.

The photos are CamVid's where ECGAN_CAMVID names its folder, scenes of ``ecgan.demo.toy`` elsewhere
or with ``--toy``.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch

from ecgan.data import datasets, transforms
from ecgan.data.loader import TripleDataset, batches, collate
from ecgan.data.resized_copy import Source, write_resized_copy
from ecgan.data.transforms import Sample
from ecgan.demo import toy
from ecgan.recipe import label_space, load_recipe
from ecgan.training import run as train
from tests.benchmarks.common import machine

SCENES = 40  # of a toy set
PREFETCHED = 4  # batches that a loader process makes ahead
CHECKED = 4  # batches that are compared


@dataclass(frozen=True)
class Form:
    """One way to load."""

    dataset: TripleDataset
    workers: int | None  # None: one sample after the other, nothing kept
    start: int = 0  # images seen before

    def batches(self, batch):
        if self.workers is not None:
            return batches(self.dataset, self.start, batch, workers=self.workers)
        return self.one_by_one(batch)

    def one_by_one(self, batch):
        for first in itertools.count(self.start, batch):
            positions = range(first, first + batch)
            yield collate([self.dataset.load(p) for p in positions], positions)

    def file_bytes(self, positions):
        """Bytes of the files that these positions are read from."""
        items = [self.dataset.items[self.dataset.index(p)] for p in positions]
        paths = [path for item in items for path in (item.label, item.image) if path]
        return sum(path.stat().st_size for path in paths)


# Data


def sets_of(root, size):
    """What ``ecgan train`` would train on, and what it would validate with."""
    recipe = load_recipe(
        "camvid",
        [f"data.root={json.dumps(str(root))}", f"data.height={size[0]}", f"data.width={size[1]}"],
    )
    return train.build_sets(recipe, label_space(recipe.data))


def write_copy(root, size, out):
    """What ``ecgan data cache`` writes; seconds. Without val, training would hold out a tenth."""
    start = time.perf_counter()
    sets = sets_of(root, size)
    dataset = sets[0]
    source = Source(
        dataset.dataset, root, dataset.space, "train", dataset.size_before_crop, dataset.size, False
    )
    write_resized_copy(source, out, threads=os.cpu_count() or 1)
    return time.perf_counter() - start


def forms(root, size, batch, workers, copy):
    """Name -> form; the copy is written if it is not there."""
    seconds = write_copy(root, size, copy)

    def dataset_of(place):
        return sets_of(place, size)[0]

    kept = dataset_of(root)
    epoch = -(-len(kept) // batch) * batch
    found = {"baseline": Form(dataset_of(root), None), "in memory": Form(kept, 0, epoch)}
    found |= {f"workers {n}": Form(dataset_of(root), n) for n in workers}
    found["copy"] = Form(dataset_of(copy), None)
    found |= {f"copy, workers {n}": Form(dataset_of(copy), n) for n in workers}
    return found, seconds


# Measurements


def differing(found, batch):
    """Names of the forms whose batches are not those of the baseline."""
    expected = first_batches(found["baseline"], batch)
    return [name for name, form in found.items() if not same(first_batches(form, batch), expected)]


def first_batches(form, batch):
    with closing(Form(form.dataset, form.workers).batches(batch)) as loaded:
        return list(itertools.islice(loaded, CHECKED))


def same(ones, others):
    return all(
        a is b or (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
        for one, other in zip(ones, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@dataclass(frozen=True)
class Measured:
    """What an image takes: medians."""

    seconds: float
    cpu_seconds: float  # of all processes
    file_bytes: float


def measure(found, batch, images, repeats):
    """Name -> Measured, all in turns."""
    count = max(1, images // batch)
    taken = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, form in found.items():
            spent = turn(form, batch, count)
            if repeat:  # the first one reads from the disk
                taken[name].append(spent)
    positions = range(count * batch)
    read = {n: 0 if n == "in memory" else f.file_bytes(positions) for n, f in found.items()}
    medians = {n: map(statistics.median, zip(*each, strict=True)) for n, each in taken.items()}
    return {
        name: Measured(*(x / len(positions) for x in (*medians[name], read[name])))
        for name in found
    }


def turn(form, batch, count):
    """Seconds, and those of all CPUs, that some batches take."""
    if form.workers == 0 and not form.dataset._cache:  # an epoch fills the memory
        with closing(batches(form.dataset, 0, batch, workers=0)) as loaded:
            for _ in range(form.start // batch):
                next(loaded)
    with closing(form.batches(batch)) as loaded:
        for _ in range(PREFETCHED * (form.workers or 0) + 1):
            next(loaded)
        start, cpu_start = time.perf_counter(), cpu_seconds()
        for _ in range(count):
            next(loaded)
        return time.perf_counter() - start, cpu_seconds() - cpu_start


def cpu_seconds():
    """Of this process and its children that live."""
    if sys.platform != "linux":
        return float("nan")
    # A process's clock is named after its id (clock_getcpuclockid, which Python does not have)
    clocks = [~child.pid << 3 | 2 for child in multiprocessing.active_children()]
    return time.process_time() + sum(time.clock_gettime(clock) for clock in clocks)


def parts(form, batch, images):
    """Stage of the baseline -> milliseconds of this thread for an image."""
    dataset, spent = form.dataset, Counter()

    def timed(stage, call, *arguments, **named):
        start = time.thread_time()
        result = call(*arguments, **named)
        spent[stage] += (time.thread_time() - start) / images * 1e3
        return result

    for first in range(0, images, batch):
        samples = []
        for position in range(first, first + batch):
            item = dataset.items[dataset.index(position)]
            label = timed("label", datasets.read_label, item, dataset.space, dataset.dataset)
            image = timed("photo", datasets.read_image, item)
            sample = Sample(item.key, label, image=image)
            sample = timed("resize", transforms.resize, sample, dataset.size_before_crop)
            rng = np.random.default_rng(position)
            samples.append(
                timed("mirror, edges", transforms.cut, sample, dataset.size, flip=True, rng=rng)
            )
        timed("batch", collate, samples, range(first, first + batch))
    return spent


# Tables


def print_table(measured):
    print(f"  {'form':<17} {'ms/image':>9} {'images/s':>9} {'speed':>6} {'CPU ms':>7} {'MB/s':>7}")
    reference = measured["baseline"].seconds
    for name, one in measured.items():
        rate = f"{one.file_bytes / one.seconds / 1e6:.1f}" if one.file_bytes else ""
        print(
            f"  {name:<17} {one.seconds * 1e3:9.2f} {1 / one.seconds:9.1f} "
            f"{reference / one.seconds:6.2f} {one.cpu_seconds * 1e3:7.2f} {rate:>7}",
            flush=True,
        )


def print_scaling(root, sizes, batch, workers, images, repeats):
    names = ["baseline", "in memory", *(f"workers {n}" for n in workers)]
    names += ["copy", *(f"copy, workers {n}" for n in workers)]
    print("\nscaling" + f"{'size':>12}" + "".join(f"{name:>17}" for name in names))
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found, _ = forms(root, size, batch, workers, Path(folder) / "copy")
            measured = measure(found, batch, images, repeats)
        rates = "".join(f"{1 / measured[name].seconds:17.1f}" for name in names)
        cpu = "".join(f"{measured[name].cpu_seconds * 1e3:17.2f}" for name in names)
        print(f"images/s {f'{size[1]}x{size[0]}':>10}{rates}\nCPU ms {'':>12}{cpu}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 256), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=160, help="that a turn loads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--toy", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"),
        help="toy scenes of this size, even where there is CamVid",
    )  # fmt: skip
    parser.add_argument("--scaling", action="store_true", help="against the size of the output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as in a loader process
    with tempfile.TemporaryDirectory() as folder:
        root, source = Path(os.environ.get("ECGAN_CAMVID", folder)), "CamVid"
        if arguments.toy or "ECGAN_CAMVID" not in os.environ:
            root, drawn = Path(folder) / "toy", arguments.toy or (512, 1024)
            toy.write_toy(root, SCENES, 0, *drawn)
            source = "toy scenes"
        run(root, source, Path(folder) / "copy", arguments)


def run(root, source, copy, arguments):
    size, batch, images = tuple(arguments.size), arguments.batch, arguments.images
    found, seconds_of_copy = forms(root, size, batch, arguments.workers, copy)
    dataset = found["baseline"].dataset
    height, width = datasets.read_image(dataset.items[0]).shape[:2]
    print(machine())
    print(
        f"torch {torch.__version__}, OpenCV {cv2.__version__}, Pillow {PIL.__version__}; median of "
        f"{arguments.repeats} x {images} images"
    )
    print(
        f"\n{source}, {len(dataset)} photos of {width}x{height}, to {size[1]}x{size[0]}, batch "
        f"{batch}; the copy took {seconds_of_copy:.1f} s to write"
    )
    print_table(measure(found, batch, images, arguments.repeats))
    stages = parts(found["baseline"], batch, images // batch * batch)
    total = sum(stages.values())
    print(
        "  of the baseline: "
        + ", ".join(f"{name} {each:.2f} ms ({each / total:.0%})" for name, each in stages.items())
    )
    wrong = differing(found, batch)
    print(
        f"  {CHECKED * batch} images of every form are "
        + (f"NOT the baseline's: {', '.join(wrong)}" if wrong else "equal, bit by bit")
    )
    if arguments.scaling:
        sizes = [(int(size[0] * f), int(size[1] * f)) for f in (0.5, 1, 2)]
        print_scaling(root, sizes, batch, arguments.workers, images, arguments.repeats)


if __name__ == "__main__":
    main()
