"""A whole training step: what ``ecgan train`` runs against the straightforward way.

    python -m tests.benchmarks.bench_training                          # small, for a CPU
    python -m tests.benchmarks.bench_training --compile --scaling
    python -m tests.benchmarks.bench_training --width 64 --size 256 512 --classes 35 --batch 4 \\
        --device cuda --similarity-stride 4 --compile --scaling

The recipe is ``camvid`` with every term of Eq. 10: adversarial, feature matching, perceptual, Eqs.
3, 5 and 6, KL; without its discriminator that segments, unless ``--small-data`` adds it, which has
no baseline. A step is both players' losses, gradients and optimisers; no loader, no average. The
baseline, in the same process and from the same weights, is the step as one would write it at first:

* eager, float32, weights and layouts not channels last, Adam as torch makes it by default;
* the pairs of Eqs. 3 and 5 as whole matrices, with autograd; a branch on the full map for each
  class (Eqs. 6 and 7), masked as the definition says;
* D and G take turns, each with a pass of G of its own, and G's turn judges the real pictures again.

The networks' layers are ours in it, so what D saves by looking once at a layout that several
pictures share is in both. It is left out where its matrices do not fit into half of the memory.

* **ours**: the step of ``ecgan train``, float32.
* **bfloat16**: the same under autocast (``train.precision``).
* **compiled**: G and D compiled (``train.compile``), float32 on a CPU, bfloat16 on CUDA.

Before anything is timed, terms and gradients are compared on the same weights. Forms take turns; on
a CPU their time is the thread's CPU time on one thread, so that another program's load does little
harm. Peak memory is what the allocator gave: networks, Adam's moments, and the most that a step
added. GFLOP are those of each form's own arithmetic (not of Triton's kernels, which the counter
does not see), so a form that computes more than it must is also credited with more.

The label generator has random weights, which cost the same; ``--label-generator 0`` leaves it out,
``--perceptual none`` the pretrained network.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ecgan.data import transforms
from ecgan.data.loader import collate, to_device, to_images
from ecgan.data.transforms import Sample
from ecgan.demo import toy
from ecgan.models.layers import condition
from ecgan.recipe import label_space, load_recipe
from ecgan.runtime.timing import span_seconds
from ecgan.runtime.torch_private import TorchSpectralNorm
from ecgan.training import networks
from ecgan.training import step as steps
from ecgan.training.objective import Inputs, Objective
from tests.benchmarks.common import (
    ceilings,
    device_name,
    flops,
    machine,
    peak_bytes,
    seconds,
    versions,
)
from tests.benchmarks.naive_training import make_plain, naive_bytes, naive_step


@dataclass(frozen=True)
class Case:
    """How large the networks are, and how much goes through them."""

    width: int
    size: tuple[int, int]  # height, width
    classes: int
    batch: int
    similarity_stride: int | str
    label_generator: int  # width of its first stage; 0: none
    perceptual: str
    small_data: bool = False  # with the recipe's second discriminator, which segments

    def recipe(self, device, precision, *, compile=False):  # noqa: A002
        height, width = self.size
        found = load_recipe(
            "camvid",
            [
                f"data.height={height}", f"data.width={width}",
                f"data.classes={[str(n) for n in range(self.classes)]}",
                f"model.width={self.width}", f"train.batch={self.batch}",
                f"model.segmentation_discriminator={'features' if self.small_data else 'off'}",
                f"model.label_generator={'train' if self.label_generator else 'off'}",
                f"model.label_generator_training.channels={self.label_generator or 32}",
                f"losses.perceptual_network={self.perceptual}",
                f"losses.similarity_stride={self.similarity_stride}",
                f"train.precision={precision}", f"train.compile={compile}",
            ],
        )  # fmt: skip
        return found.resolved(device.type)


# What there is to measure


@dataclass(frozen=True)
class Form:
    """One way to take a step."""

    dtype: torch.dtype
    trained: steps.TrainedNetworks
    objective: Objective
    inputs: Inputs
    step: Callable[..., Any]

    @classmethod
    def build(cls, case, device, pairs, precision, *, naive=False, compile=False):  # noqa: A002
        recipe = case.recipe(device, precision, compile=compile)
        space = label_space(recipe.data)
        perceptual = networks.perceptual_network(recipe, device)
        objective = Objective(
            recipe,
            space,
            device,
            networks.untrained_label_generator(recipe, space, device),
            perceptual,
            feature_network=networks.feature_network(recipe, perceptual, device),
        )
        both = steps.build(recipe, space, device)
        inputs = to_inputs(pairs, space, device)
        if naive:
            make_plain(both, objective)
            inputs = inputs._replace(S=inputs.S.contiguous())
        bfloat16 = recipe.train.precision == "bfloat16"
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        return cls(dtype, both, objective, inputs, naive_step if naive else steps.step)

    def __call__(self, factor=1.0):
        return self.step(self.trained, self.objective, [self.inputs], factor)

    @property
    def sides(self):
        return tuple(self.trained.by_name.values())

    def held(self):
        """Bytes of networks and of Adam's moments."""
        networks = [side.network for side in self.sides]
        objective = self.objective
        networks += [objective.label_generator, objective.perceptual_network]
        networks += [objective.feature_network]
        tensors = {id(t): t for n in networks if n is not None for t in tensors_of(n)}
        found = list(tensors.values())  # the perceptual network may be the feature network
        for side in self.sides:
            found += [t for state in side.optimizer.state.values() for t in state.values()]
        return sum(t.nbytes for t in found)


def tensors_of(network):
    return (*network.parameters(), *network.buffers())


def read_pairs(case):
    """Photos, edges and labels as the loader gives them: CamVid's, or toy scenes."""
    root = os.environ.get("ECGAN_CAMVID")
    samples = []
    paths = [] if root is None else sorted(Path(root, "labels", "train").glob("*.png"))
    for index in range(case.batch):
        if root is None:
            image, label = toy.draw_scene(index, *case.size)
        else:
            path = paths[index * 7 % len(paths)]  # neighbours are frames of one drive
            label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            image = cv2.imread(str(Path(root, "images", "train", f"{path.stem}.jpg")))
            image = image[:, :, ::-1]
        sample = Sample(str(index), label, image=np.ascontiguousarray(image))
        sample = transforms.cut(transforms.resize(sample, case.size), case.size)
        samples.append(replace(sample, label=varieties(sample.label, case.classes, index)))
    return collate(samples, range(case.batch))


def varieties(label, classes, seed):
    """With many classes, each of the scene's 11 comes in kinds, another one in every patch."""
    height, width = label.shape
    kinds = np.random.default_rng(seed).integers(max(1, classes // 11), size=(4, 4))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    found = label.astype(np.int64) + 11 * kinds[rows[:, None], columns]
    return np.where((label < 11) & (found < classes), found, 255).astype(np.uint8)


def to_inputs(pairs, space, device):
    moved = to_device(pairs, device)
    return Inputs(
        keys=pairs.keys,
        positions=pairs.positions,
        labels=moved.labels.long(),
        S=condition(moved.labels, None, space),
        image=to_images(moved.images),
        edge=to_images(moved.edges).expand(-1, 3, -1, -1),
    )


def free_bytes(device):
    """Memory that is free on a device: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def forms(case, device, names=("baseline", "ours", "bfloat16")):
    """Name -> form; the baseline is None where it does not fit."""
    pairs = read_pairs(case)
    options = {
        "baseline": {"precision": "float32", "naive": True},
        "ours": {"precision": "float32"},
        "bfloat16": {"precision": "bfloat16"},
        "compiled": {"precision": "auto", "compile": True},
    }
    matrices = naive_bytes(case, case.recipe(device, "float32"))
    fits = not case.small_data and matrices < free_bytes(device) / 2
    return {
        name: Form.build(case, device, pairs, **options[name])
        if name != "baseline" or fits
        else None
        for name in names
    }


# Whether they compute the same


def differences(found):
    """What -> largest difference of a term from ours, relative error of the gradient.

    The baseline passes G twice, and spectral norms move on with each pass: it is compared with them
    held still. A new network magnifies rounding: the last digit of the photos is the measure.
    """
    ours, baseline, result = found["ours"], found["baseline"], {}
    with still(ours):
        expected = evaluated(ours)
        if baseline is not None:
            own_networks = replace(ours, step=naive_step)
            result["baseline's step, our networks"] = differ(evaluated(own_networks), expected)
            with still(baseline):
                result["baseline"] = differ(evaluated(baseline), expected)
        noise = torch.randn_like(ours.inputs.image) * torch.finfo(torch.float32).eps
        photos = ours.inputs._replace(image=ours.inputs.image * (1 + noise))
        result["ours, last digit of photos"] = differ(
            evaluated(replace(ours, inputs=photos)), expected
        )
    expected = evaluated(ours)
    others = [name for name in found if name not in {"baseline", "ours"}]
    return result | {name: differ(evaluated(found[name]), expected) for name in others}


def evaluated(form):
    """Terms and gradients of a step of length zero."""
    values = form(0.0)
    values = values if isinstance(values, dict) else values.means
    gradients = [p.grad for side in form.sides for p in side.network.parameters()]
    return values, torch.cat([g.flatten() for g in gradients if g is not None])


def differ(one, reference):
    (values, gradient), (expected, exact) = one, reference
    most = max(float((values[n] - v).abs() / v.abs().clamp(min=1)) for n, v in expected.items())
    return most, float((gradient - exact).norm() / exact.norm())


@contextmanager
def still(form):
    norms = [m for s in form.sides for m in s.network.modules() if isinstance(m, TorchSpectralNorm)]
    for norm in norms:
        norm.train(False)
    try:
        yield
    finally:
        for norm in norms:
            norm.train(True)


# Measurements


@dataclass(frozen=True)
class Measured:
    """What a form's step takes."""

    dtype: torch.dtype
    seconds: float
    peak: int  # bytes
    operations: int


def measure(found, device, repeats):
    """Name -> Measured, all in turns."""
    there = {name: form for name, form in found.items() if form is not None}
    for form in there.values():
        form()  # warms up, compiles
    counted = {name: flops(form) for name, form in there.items() if name != "compiled"}
    if "compiled" in there:  # the counter looks at single operations, which are those of ours
        counted["compiled"] = counted.get("ours", 0)
    peaks = {name: form.held() + added(form, device) for name, form in there.items()}
    taken = {name: [] for name in there}
    for _ in range(repeats):
        for name, form in there.items():
            taken[name].append(seconds(form, device))
    return {
        name: Measured(form.dtype, statistics.median(taken[name]), peaks[name], counted[name])
        for name, form in there.items()
    }


def added(form, device):
    """Bytes that a step takes at most beside what the form holds."""
    for side in form.sides:
        side.optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        return peak_bytes(form, device)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        form()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


def spans(form, device):
    """Where the time of one step goes, in words, largest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        form()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = sorted(span_seconds(profiler.events()).items(), key=lambda pair: -pair[1])
    total = sum(spent for _, spent in found)
    return ", ".join(f"{name} {spent / total:.0%}" for name, spent in found)


def print_table(case, found, measured, limits):
    height, width = case.size
    recipe = found["ours"].objective.recipe
    parts = recipe.parts()
    print(
        f"\nwidth {case.width}, {width}x{height}, {case.classes} classes, batch {case.batch}; "
        f"{', '.join(f'{weight:g} {name}' for name, weight in parts.terms.items())}; pictures "
        f"{', '.join(parts.pictures)}; Eq. 3 at stride {recipe.losses.similarity_stride}"
    )
    print(
        f"  {'form':<10} {'ms/step':>9} {'images/s':>9} {'speed':>6} {'peak MB':>8} {'memory':>7} "
        f"{'GFLOP/image':>12} {'GFLOP/s':>9} {'of ceiling':>10}"
    )
    reference = next(iter(measured.values()))
    for name, one in measured.items():
        rate = one.operations / one.seconds
        print(
            f"  {name:<10} {one.seconds * 1e3:9.1f} {case.batch / one.seconds:9.2f} "
            f"{reference.seconds / one.seconds:6.2f} {one.peak / 1e6:8.0f} "
            f"{one.peak / reference.peak:7.2f} {one.operations / case.batch / 1e9:12.2f} "
            f"{rate / 1e9:9.1f} {rate / limits[one.dtype]:10.0%}",
            flush=True,
        )
    if found["baseline"] is None:
        print("  baseline: none, or its matrices do not fit into half of the memory")


def print_differences(differences):
    print("  difference from ours, same weights: of any term (relative, above 1), of the gradient")
    for name, (term, gradient) in differences.items():
        print(f"    {name:<30} {term:8.0e} {gradient:8.0e}", flush=True)


def variants(case):
    """The case with one number changed at a time."""
    height, width = case.size
    for factor in (0.5, 2):
        yield replace(case, size=(int(height * factor), int(width * factor)))
    for classes in (35, 150):
        yield replace(case, classes=classes)
    for batch in (1, 4):
        if batch != case.batch:
            yield replace(case, batch=batch)


def print_scaling(case, base, device, repeats):
    print(
        f"\n{'':<10} {'':>9} {'':>7} {'':>5}   {'images/s':^35}   {'peak MB':^26}\n"
        f"{'':<10} {'size':>9} {'classes':>7} {'batch':>5}   {'baseline':>8} {'ours':>8} "
        f"{'bfloat16':>8} {'ours is':>8}   {'baseline':>8} {'ours':>8} {'bfloat16':>8}"
    )
    for variant in [case, *variants(case)]:
        new = variant is not case
        measured = measure(forms(variant, device), device, repeats) if new else base
        height, width = variant.size
        names = ("baseline", "ours", "bfloat16")
        speeds = [variant.batch / measured[n].seconds if n in measured else None for n in names]
        peaks = [measured[n].peak / 1e6 if n in measured else None for n in names]
        ratio = None if speeds[0] is None else speeds[1] / speeds[0]
        print(
            f"{'scaling':<10} {f'{width}x{height}':>9} {variant.classes:7} {variant.batch:5}   "
            f"{' '.join(number(x, '8.2f') for x in speeds)} {number(ratio, '7.2f')}x   "
            f"{' '.join(number(x, '8.0f') for x in peaks)}",
            flush=True,
        )


def number(x, form):
    return "no room".rjust(8) if x is None else format(x, form)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(128, 192), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--similarity-stride", default="auto", help="of Eq. 3; auto: 1 on CUDA, 4 on a CPU"
    )
    parser.add_argument(
        "--label-generator", type=int, default=32, metavar="WIDTH", help="of SegFormer; 0: none"
    )
    parser.add_argument(
        "--perceptual", choices=("efficientnet_lite0", "vgg19", "none"),
        default="efficientnet_lite0",
    )  # fmt: skip
    parser.add_argument("--small-data", action="store_true", help="with all of the recipe")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--scaling", action="store_true", help="one number changed at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets on stderr
    device = torch.device(arguments.device)
    limits, ceiling = ceilings(device)
    layouts = "CamVid" if "ECGAN_CAMVID" in os.environ else "toy scenes"
    print(machine())
    print(
        f"{versions()}; on {device_name(device)}; {layouts}; median of {arguments.repeats}; "
        f"{ceiling}"
    )
    case = Case(
        arguments.width, tuple(arguments.size), arguments.classes, arguments.batch,
        arguments.similarity_stride, arguments.label_generator, arguments.perceptual,
        arguments.small_data,
    )  # fmt: skip
    names = ("baseline", "ours", "bfloat16", *["compiled"] * arguments.compile)
    found = forms(case, device, names)
    compared = differences(found)
    measured = measure(found, device, arguments.repeats)
    print_table(case, found, measured, limits)
    print(f"  of ours: {spans(found['ours'], device)}")
    print_differences(compared)
    if arguments.scaling:
        del found
        print_scaling(case, measured, device, arguments.repeats)


if __name__ == "__main__":
    main()
