"""Sampling: the generator as it is trained against its form for sampling.

    python -m tests.benchmarks.bench_sampling                                   # small, for a CPU
    python -m tests.benchmarks.bench_sampling --width 64 --size 256 512 --styles 1 5 --layouts 8 \\
        --classes 35 --device cuda --compile --scaling

The baseline is the straightforward way, in the same process: the modules as training leaves them,
spectral norm and all, float32, no gradient, one style of every layout after the other. What stands
below it:

* **inference**: the inference form, dense, with fixed shapes; bfloat16 on CUDA.
* **lookups**: the same, its modulation maps made once for each neighbourhood.
* **recorded**: the same, compiled, as CUDA graphs (``--compile`` on CUDA).

All take turns, and on a CPU their time is the thread's CPU time on one thread, so that another
program's load does little harm. Layouts are CamVid's where ECGAN_CAMVID names its folder, scenes of
``ecgan.demo.toy`` elsewhere. Bytes are made, but not encoded or written.
"""

import argparse
import os
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ecgan.data import transforms
from ecgan.demo import toy
from ecgan.models.generator import Generator
from ecgan.models.inference import InferenceGenerator
from ecgan.models.layers import channels_last
from ecgan.ops.onehot_conv import one_hot
from ecgan.runtime.device import compiled
from ecgan.sampling.cuda_graphs import RecordedPass
from ecgan.sampling.sampler import to_bytes
from tests.benchmarks.common import ceilings, device_name, flops, machine, seconds


@dataclass(frozen=True)
class Case:
    """One pass: how large the generator is, and how much goes through it."""

    width: int
    size: tuple[int, int]  # height, width
    classes: int
    layouts: int
    styles: int

    @property
    def samples(self):
        return self.layouts * self.styles


def generator(case):
    height, width = case.size
    six = height % 64 == 0 and width % 64 == 0 and width > height
    made = Generator(
        num_classes=case.classes, num_conditions=case.classes + 1, height=height, width_px=width,
        channels=case.width, upsamplings=6 if six else 5, style=True, class_specific=False,
    )  # fmt: skip
    for name, value in made.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    channels_last(made)
    return made.eval()


def read_labels(case):
    """Real label maps at the size of the case; classes that it lacks are unlabelled."""
    root = os.environ.get("ECGAN_CAMVID")
    if root is None:
        found = [toy.draw_scene(seed, *case.size)[1] for seed in range(case.layouts)]
    else:
        paths = sorted(Path(root, "labels", "val").glob("*.png"))
        found = [np.asarray(Image.open(paths[i % len(paths)])) for i in range(case.layouts)]
    labels = np.stack([transforms.resize_nearest(label, case.size) for label in found])
    labels = torch.from_numpy(labels).long()
    return labels.where(labels < case.classes, case.classes)


def forms(case, device, names):
    """What there is to measure: name, type, a function that makes the bytes of a pass, eager."""
    labels, z = read_labels(case).to(device), torch.randn(case.layouts, case.styles, 256).to(device)
    plain = generator(case).to(device)
    S = one_hot(labels, case.classes, case.classes, unknown=True)
    S = S.contiguous(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def baseline():
        for k in range(case.styles):
            made = plain(S, labels, case.classes, z[:, k])
            bytes_of(made.image[:, None], made.edge[:, None])

    for name in names:
        if name == "baseline":
            yield name, torch.float32, baseline, baseline
            continue
        lookups = name == "lookups"
        own = InferenceGenerator(plain, boundary=False, lookups=lookups).to(device, dtype)

        def eager(own=own):
            return bytes_of(*own.sample(own.prepare(labels, None), z))

        yield name, dtype, recorded(own, labels, z) if name == "recorded" else eager, eager


def recorded(own, labels, z):
    """The pass of a generator, compiled and recorded."""

    def draw(shared, styles):
        return bytes_of(*own.sample(shared, styles))

    pool = torch.cuda.graph_pool_handle()
    graphs = RecordedPass(compiled(own.prepare), compiled(draw), labels, None, z, pool)

    def replay():
        graphs.share(labels, None)
        return graphs.draw(z)

    return replay


def bytes_of(images, edges):
    return to_bytes(images.permute(0, 1, 3, 4, 2)), to_bytes(edges.mean(dim=2))


def measure(case, device, repeats, names=("baseline", "inference", "lookups")):
    """Name -> type, median seconds of a pass, its operations; all in turns."""
    with torch.no_grad():
        found = list(forms(case, device, names))
        counted = {name: flops(eager) for name, _, _, eager in found}
    taken = {name: [] for name in names}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, _, call, _ in found:
                spent = seconds(call, device)
                if repeat:  # the first one warms up
                    taken[name].append(spent)
    return {
        name: (dtype, statistics.median(taken[name]), counted[name]) for name, dtype, *_ in found
    }


def print_table(case, measured, limits):
    height, width = case.size
    print(
        f"\nwidth {case.width}, {width}x{height}, {case.classes} classes, {case.layouts} layouts x "
        f"{case.styles} styles\n"
        f"  {'form':<10} {'ms/sample':>10} {'samples/s':>10} {'speed':>6} {'GFLOP/sample':>13} "
        f"{'GFLOP/s':>9} {'of ceiling':>10}"
    )
    _, reference, _ = measured["baseline"]
    for name, (dtype, spent, operations) in measured.items():
        rate = operations / spent
        print(
            f"  {name:<10} {spent / case.samples * 1e3:10.2f} {case.samples / spent:10.2f} "
            f"{reference / spent:6.2f} {operations / case.samples / 1e9:13.2f} {rate / 1e9:9.1f} "
            f"{rate / limits[dtype]:10.0%}",
            flush=True,
        )


def variants(case):
    """The case with one number changed at a time."""
    height, width = case.size
    for factor in (0.5, 2):
        yield replace(case, size=(int(height * factor), int(width * factor)))
    for classes in (35, 150):
        yield replace(case, classes=classes)
    for layouts in (2, 4, 8):
        yield replace(case, layouts=layouts)
    for styles in (2, 5, 10):
        yield replace(case, styles=styles)


def print_scaling(case, device, repeats):
    print(
        f"\nms/sample     {'size':>9} {'classes':>8} {'layouts':>8} {'styles':>7} {'baseline':>9} "
        f"{'inference':>9} {'lookups':>9}"
    )
    for variant in [case, *variants(case)]:
        measured = measure(variant, device, repeats)
        each = [spent / variant.samples * 1e3 for _, spent, _ in measured.values()]
        height, width = variant.size
        print(
            f"              {f'{width}x{height}':>9} {variant.classes:8} {variant.layouts:8} "
            f"{variant.styles:7} " + " ".join(f"{one:9.2f}" for one in each),
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 256), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--layouts", type=int, default=1)
    parser.add_argument("--styles", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--scaling", action="store_true", help="one number changed at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    layouts = "CamVid" if "ECGAN_CAMVID" in os.environ else "toy scenes"
    limits, ceiling = ceilings(device)
    print(f"{machine()}, torch {torch.__version__}, on {device_name(device)}")
    print(f"{layouts}; median of {arguments.repeats}; {ceiling}")
    names = ("baseline", "inference", "lookups")
    names += ("recorded",) * (arguments.compile and device.type == "cuda")
    base = Case(arguments.width, tuple(arguments.size), arguments.classes, arguments.layouts, 1)
    for styles in arguments.styles:
        case = replace(base, styles=styles)
        measured = measure(case, device, arguments.repeats, names)
        print_table(case, measured, limits)
    if arguments.scaling:
        print_scaling(base, device, arguments.repeats)


if __name__ == "__main__":
    main()
