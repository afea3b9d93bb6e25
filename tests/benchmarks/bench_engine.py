"""The data-set engine: its plan at scale, its resume scan, what it adds to the generator's time.

    python -m tests.benchmarks.bench_engine                 # all, some minutes
    python -m tests.benchmarks.bench_engine --only engine --scaling     # samples/s alone, against
                                                # size, styles, formats and encoding threads

* **plan**: 200,000 label maps x 500 styles in shards of 1,000, label check cached (its first run is
  shown apart), in a process of its own whose peak memory is measured.
* **resume**: the scan of 100,000 committed shards.
* **engine**: a generator that costs nothing, at 256 x 512: samples/s of reading, encoding and
  writing. Baseline: the same steps one after the other in one thread, label and edges encoded by
  Pillow for every sample.
* **end to end**: a real, small generator alone, and the whole pipeline with it, in the same
  process, one worker.
"""

import argparse
import io
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ecgan.generation import planner
from ecgan.generation.plan import Plan, Stage, passes, whole_rows
from ecgan.generation.request import Request
from ecgan.generation.state import DatasetState
from ecgan.generation.worker import ShardWorker
from ecgan.runtime.storage import open_store
from ecgan.runtime.timing import StageSeconds
from ecgan.sampling.sampler import GeneratedPair, Sampler
from ecgan.shards import codecs
from ecgan.shards.files.names import commit_name
from ecgan.shards.manifest import CommitRecord
from tests.helpers.tiny import make_generator

SIZE = (256, 512)


class NullSampler(Sampler):
    """A generator that costs nothing: pictures that were made before."""

    def __init__(self, path, device):
        super().__init__(path, device)
        rng = np.random.default_rng(0)
        self._made = [GeneratedPair(scene(rng, self.size), edges(rng, self.size)) for _ in range(4)]

    def start(self, layouts, z, batch):
        return Ready([[self._made[k % 4] for k in range(z.shape[1])] for _ in layouts])


class Ready:
    """A pass that is done."""

    def __init__(self, made):
        self._made = made

    def result(self):
        return self._made

    def seconds(self):
        return {}


def scene(rng, size):
    """Something as hard to encode as a street scene: smooth shapes with fine texture."""
    coarse = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (*size, 3))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def edges(rng, size):
    coarse = rng.integers(0, 256, (size[0] // 4, size[1] // 4), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def write_layouts(folder, count, size=(16, 32)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        blocks = np.random.default_rng(i).integers(0, 3, (4, 8), dtype=np.uint8)
        label = np.kron(blocks, np.ones((size[0] // 4, size[1] // 8), np.uint8))
        (folder / f"{i:06d}.png").write_bytes(codecs.encode_map(label))
    return folder


def generator(folder, size=SIZE):
    height, width = size
    return make_generator(
        folder / "run" / "generator.safetensors",
        data={"height": height, "width": width, "classes": ["road", "sky", "car"]},
    )


def request_of(path, layouts, out, **changes):
    fields = {"labels": layouts, "n_styles": 5, "device": "cpu", "quiet": True}
    return Request.of(generator=path, out=out, **(fields | changes))


# Each measurement prints its own line


def plan_in_a_process(path, layouts, styles):
    """What the child does: plan, keep the stage, make every hundredth job."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        request = request_of(path, layouts, Path(folder) / "out", n_styles=styles)
        wanted = planner.plan(request).wanted
        state = DatasetState(open_store(request.out))
        state.check_place()
        plan, _ = state.resolve(wanted, extend=False)
        state.record_stage(plan, wanted)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        for number in range(0, plan.num_shards, 100):
            assert plan.job(number).samples == 1000
        jobs = (time.perf_counter() - start) * 100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{plan.num_samples} {seconds:.1f} {jobs:.1f} {peak:.0f}")


def measure_plan(folder, layouts, styles):
    start = time.perf_counter()
    labels = write_layouts(folder / "labels", layouts)
    print(f"  ({layouts:,} label maps drawn in {time.perf_counter() - start:.0f} s)", flush=True)
    path = generator(folder)
    for title in ("first call, every label read", "label check cached"):
        child = subprocess.run(
            [sys.executable, "-m", __spec__.name, "--child", path, labels, str(styles)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        samples, seconds, jobs, peak = child.stdout.split()
        print(
            f"plan, {title}: {int(samples):,} samples in {seconds} s; all jobs made one by one in "
            f"{jobs} s; peak memory {peak} MB, of which torch's import takes most",
            flush=True,
        )


def measure_resume(folder, count):
    store = open_store(folder / "resume")
    base = folder / "resume"
    (base / ".ecgan/shards").mkdir(parents=True)
    (base / "data").mkdir()
    stage = Stage([None], whole_rows(np.array([[count]])), 0, 1, plan="p")
    for number in range(count):
        name = f"data/train-{number:06d}.tar"
        shard = CommitRecord(
            name=name, samples=1, bytes=1, sha256="0" * 64, md5="0" * 32, class_pixels=(1,) * 35,
            plan="p",
        )  # fmt: skip
        (base / commit_name(number)).write_text(shard.model_dump_json())
        (base / name).write_bytes(b"x")
    start = time.perf_counter()
    found = DatasetState(store).committed(Plan((stage,)), "webdataset", 35)
    seconds = time.perf_counter() - start
    assert len(found.shards) == count
    print(f"resume: {count:,} committed shards scanned in {seconds:.1f} s", flush=True)


IMAGES = {"jpg": {"format": "JPEG", "quality": 95, "subsampling": 0}, "png": {"format": "PNG"}}


def naive_shard(sampler, settings, job, out):
    """The baseline: one thread, everything in turn, Pillow, labels encoded for every sample."""
    image_format = settings.output.image_format
    with tarfile.open(out, "w") as tar:
        for part in passes(job.groups, settings.output.batch):
            for group in part:
                layout = sampler.layout(group.key, *sampler.read_maps(group.item))
                z = torch.zeros(1, group.count, 256)
                for k, made in enumerate(sampler.start([layout], z, 8).result()[0]):
                    for name, pixels, options in (
                        (image_format, made.image, IMAGES[image_format]),
                        ("seg.png", layout.label, {"format": "PNG"}),
                        ("edge.png", made.edge, {"format": "PNG"}),
                    ):
                        buffer = io.BytesIO()
                        Image.fromarray(pixels).save(buffer, **options)
                        info = tarfile.TarInfo(f"{group.key}-{k}.{name}")
                        info.size = buffer.tell()
                        buffer.seek(0)
                        tar.addfile(info, buffer)


def median_rate(call, samples, repeats):
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        rates.append(samples / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def measure_engine(
    folder, repeats, *, size=SIZE, styles=5, data_format="webdataset", image_format="jpg", threads=0
):
    layouts = write_layouts(folder / "few", 300 // styles, size)
    path = generator(folder, size)
    request = request_of(
        path, layouts, folder / "null", samples_per_shard=300, n_styles=styles,
        data_format=data_format, image_format=image_format,
    )  # fmt: skip
    prepared = planner.plan(request)
    settings = replace(prepared.settings, encoders=threads or prepared.settings.encoders)
    job = prepared.wanted.stage.job(0)
    maker = ShardWorker(settings, sampler=NullSampler(path, torch.device("cpu")))
    seconds = {}

    def engine():
        nonlocal seconds
        made = maker(job)
        seconds = {**made.seconds, "elapsed": made.elapsed, "bytes": made.shard.bytes}

    fast = median_rate(engine, job.samples, repeats)
    slow = median_rate(
        lambda: naive_shard(maker.sampler, settings, job, folder / "naive.tar"),
        job.samples, repeats,
    )  # fmt: skip
    megabytes = seconds["bytes"] / job.samples * fast / 1e6
    busy = ", ".join(
        f"{name} {seconds[name] / seconds['elapsed']:.0%}" for name in ("read", "encode", "write")
    )
    print(
        f"engine, null generator, {size[0]} x {size[1]}, {styles} style(s), {data_format} of "
        f"{image_format}: {fast:.0f} samples/s, {megabytes:.0f} MB/s ({settings.encoders} "
        f"encoders; busy: {busy}); baseline {slow:.0f} samples/s, ratio {fast / slow:.2f}",
        flush=True,
    )


def variants():
    """The engine's case with one thing changed at a time."""
    yield from ({"size": size} for size in ((128, 256), (512, 1024)))
    yield from ({"styles": styles} for styles in (1, 20))
    yield from ({"data_format": name} for name in ("parquet", "folder"))
    yield {"image_format": "png"}
    yield from ({"threads": threads} for threads in (1, 2, 4))


@dataclass(frozen=True)
class EndToEnd:
    """The whole pipeline beside its generator, on one worker."""

    alone: float  # samples/s of the generator, with styles drawn and bytes brought to the host
    whole: float  # samples/s of the pipeline
    spent: StageSeconds  # where the time of the last shard went


def end_to_end(folder, layouts, repeats, *, recipe, styles=5, **options):
    """Measure a generator with random weights, and the pipeline with it.

    Args:
        folder: for the generator and the data set.
        layouts: folder of label maps.
        repeats: of each; medians are returned.
        recipe: sections of the generator's recipe.
        styles: of each layout.
        options: of the request.
    """
    path = make_generator(folder / "real" / "generator.safetensors", **recipe)
    num_samples = styles * sum(1 for _ in layouts.iterdir())
    request = request_of(
        path, layouts, folder / "whole", n_styles=styles, samples_per_shard=num_samples, **options
    )
    prepared = planner.plan(request)
    maker = ShardWorker(prepared.settings)
    job = prepared.wanted.stage.job(0)
    sampler, batch = maker.sampler, prepared.settings.output.batch
    parts = [
        (part, [sampler.layout(group.key, *sampler.read_maps(group.item)) for group in part])
        for part in passes(job.groups, batch)
    ]

    def drawn(part):
        draw = maker.settings.styles.draw
        z = [draw(g.key, k) for g in part for k in range(g.first, g.first + g.count)]
        return torch.stack(z).view(len(part), -1, z[0].shape[-1])

    def alone():
        begun = None  # as in the pipeline, a pass is begun before the one before it is waited for
        for part, read in parts:
            following = sampler.start(read, drawn(part), batch)
            if begun is not None:
                begun.result()
            begun = following
        begun.result()

    spent = StageSeconds(prepared.settings.encoders)

    def whole():
        nonlocal spent
        made = maker(job)
        spent = StageSeconds(prepared.settings.encoders)
        spent.add(made.seconds, made.elapsed, job.samples)

    rate_alone = median_rate(alone, job.samples, repeats)
    return EndToEnd(rate_alone, median_rate(whole, job.samples, repeats), spent)


def measure_end_to_end(folder, repeats):
    recipe = {
        "data": {"height": SIZE[0], "width": SIZE[1], "classes": ["road", "sky", "car"]},
        "model": {"width": 16},
    }
    layouts = write_layouts(folder / "few", 12, SIZE)
    found = end_to_end(folder, layouts, repeats, recipe=recipe)
    print(
        f"end to end, generator of width 16 on one thread, 256 x 512, 5 styles: {found.whole:.2f} "
        f"samples/s; generator alone {found.alone:.2f}; ratio {found.whole / found.alone:.1%}; "
        f"waits for {found.spent.bottleneck()}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["plan", "resume", "engine", "end-to-end"])
    parser.add_argument("--layouts", type=int, default=200_000)
    parser.add_argument("--styles", type=int, default=500)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scaling", action="store_true", help="the engine, one thing changed")
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        path, labels, styles = options.child
        plan_in_a_process(Path(path), Path(labels), int(styles))
        return
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "opencv-python", "pillow"))
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in {None, "engine"}:
            for number, changes in enumerate([{}, *variants()] if options.scaling else [{}]):
                measure_engine(folder / f"engine-{number}", options.repeats, **changes)
        if options.only in {None, "end-to-end"}:
            measure_end_to_end(folder, options.repeats)
        if options.only in {None, "resume"}:
            measure_resume(folder, options.shards)
        if options.only in {None, "plan"}:
            measure_plan(folder, options.layouts, options.styles)


if __name__ == "__main__":
    main()
