"""Encoders of pictures and maps: time, size, loss, and whether a second thread helps.

    python -m tests.benchmarks.bench_encoders [--pictures 16] [--repeats 7]

Photos are CamVid's where ECGAN_CAMVID names its folder, scenes of ``ecgan.demo.toy`` elsewhere.
The baseline is Pillow with its defaults, what ``ecgan.shards.codecs`` replaced. Encoders take
turns, and their time is the thread's CPU time, so that another program's load does little harm.
simplejpeg and PyTurboJPEG are measured where they are installed; the project does not need them.

Two columns tell whether threads help: "2 thr" is the speed of two threads against one by the clock,
which means something on idle cores only; "GIL" is whether the encoder releases it.
"""

import argparse
import importlib
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image

from ecgan.data.transforms import canny_edges
from ecgan.demo import toy
from ecgan.shards import codecs
from tests.benchmarks.common import machine

QUALITY = 95
SIZES = [(192, 256), (256, 512), (512, 1024)]  # height, width
LEVEL, STRATEGY = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY
RLE, HUFFMAN = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
MARK = codecs.synthetic_mark(tool="ecgan 0.1.0", license="cc-by-4.0", checkpoint="0" * 64)


@dataclass(frozen=True)
class Encoder:
    """One row of the table; the first of a group is its baseline."""

    name: str
    encode: Callable[[np.ndarray], Any]
    prepare: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels  # not timed


def to_bgr(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def pillow(image_format, **options):
    def encode(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, image_format, **options)
        return buffer.getvalue()

    return encode


def opencv(suffix, *options):
    return lambda pixels: cv2.imencode(suffix, pixels, options)[1].tobytes()


def opencv_rgb(suffix, *options):
    return lambda image: cv2.imencode(suffix, to_bgr(image), options)[1].tobytes()


# Encoders


def jpeg_encoders():
    quality = (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
    full = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    ours = partial(codecs.encode_image, image_format="jpg", quality=QUALITY)
    return [
        Encoder("Pillow", pillow("JPEG", quality=QUALITY, subsampling=0)),
        Encoder("OpenCV", opencv_rgb(".jpg", *quality, *full)),
        Encoder("OpenCV, given BGR", opencv(".jpg", *quality, *full), to_bgr),
        Encoder("torchvision (only 4:2:0)", encode_by_torchvision),
        *simplejpeg_encoders(),
        *turbojpeg_encoders(),
        Encoder("codecs", ours),
        Encoder("codecs, marked", partial(ours, xmp=MARK)),
    ]


def encode_by_torchvision(image):
    data = torchvision.io.encode_jpeg(torch.from_numpy(image).permute(2, 0, 1), QUALITY)
    return data.numpy().tobytes()


def simplejpeg_encoders():
    try:
        simplejpeg: Any = importlib.import_module("simplejpeg")
    except ImportError as error:
        print(f"simplejpeg is not measured: {error}")
        return []
    return [
        Encoder(name, partial(simplejpeg.encode_jpeg, quality=QUALITY, fastdct=fast, **FULL_COLOR))
        for name, fast in (("simplejpeg", False), ("simplejpeg, fast DCT", True))
    ]


FULL_COLOR = {"colorspace": "RGB", "colorsubsampling": "444"}  # simplejpeg's words


def turbojpeg_encoders():
    try:
        turbojpeg: Any = importlib.import_module("turbojpeg")
        encoder = turbojpeg.TurboJPEG()
    except (ImportError, RuntimeError, OSError) as error:  # no library, or one that is too old
        print(f"PyTurboJPEG is not measured: {str(error).splitlines()[0]}")
        return []
    options = {"pixel_format": turbojpeg.TJPF_RGB, "jpeg_subsample": turbojpeg.TJSAMP_444}
    return [Encoder("PyTurboJPEG", partial(encoder.encode, quality=QUALITY, **options))]


def map_encoders():
    levels = [
        Encoder(f"Pillow, level {level}{name}", pillow("PNG", compress_level=level, **options))
        for level in (1, 6)
        for name, options in (
            ("", {}),
            (", RLE", {"compress_type": RLE}),
            (", Huffman", {"compress_type": HUFFMAN}),
        )
    ]
    return [
        Encoder("Pillow", pillow("PNG")),
        *levels,
        Encoder("OpenCV", opencv(".png")),
        Encoder("OpenCV, level 1", opencv(".png", LEVEL, 1)),
        Encoder("OpenCV, level 6", opencv(".png", LEVEL, 6)),
        Encoder("OpenCV, Huffman", opencv(".png", LEVEL, 1, STRATEGY, HUFFMAN)),
        *[Encoder(name, opencv(".png", *options)) for name, options in rle_with_filters().items()],
        Encoder("codecs", codecs.encode_map),
    ]


def rle_with_filters():
    """OpenCV's options by name; before 4.12 it tries all filters on every row."""
    found = {"OpenCV, RLE, best filter": (LEVEL, 1, STRATEGY, RLE)}
    for name in ("NONE", "SUB", "UP", "PAETH"):
        value = getattr(cv2, f"IMWRITE_PNG_FILTER_{name}", None)
        if value is not None:
            options = (LEVEL, 1, STRATEGY, RLE, cv2.IMWRITE_PNG_FILTER, value)
            found[f"OpenCV, RLE, {name.lower()}"] = options
    return found


def png_encoders():
    return [
        Encoder("Pillow", pillow("PNG")),
        Encoder("Pillow, level 1", pillow("PNG", compress_level=1)),
        Encoder("OpenCV", opencv_rgb(".png")),
        *[
            Encoder(name, opencv_rgb(".png", *options))
            for name, options in rle_with_filters().items()
        ],
        Encoder("codecs", partial(codecs.encode_image, image_format="png", quality=QUALITY)),
    ]


def webp_encoders():
    quality = (cv2.IMWRITE_WEBP_QUALITY, QUALITY)
    return [
        Encoder("Pillow", pillow("WEBP", quality=QUALITY)),
        Encoder("Pillow, method 0", pillow("WEBP", quality=QUALITY, method=0)),
        Encoder("OpenCV", opencv_rgb(".webp", *quality)),
        Encoder("codecs", partial(codecs.encode_image, image_format="webp", quality=QUALITY)),
    ]


# Pictures


def read_pictures(count):
    """(image, label) in the size in which they are; spread over the data set."""
    root = os.environ.get("ECGAN_CAMVID")
    if root is None:
        return "toy scenes", [toy.draw_scene(seed, 512, 1024) for seed in range(count)]
    paths = sorted(Path(root, "images", "train").glob("*.jpg"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    return "CamVid", [
        (np.asarray(Image.open(path)), np.asarray(Image.open(label_path(path)))) for path in paths
    ]


def label_path(path):
    return path.parents[2] / "labels" / path.parent.name / f"{path.stem}.png"


def resized(pixels, height, width, method):
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def smooth_edges(image, noise):
    """What a generator's edges look like: soft lines, on a ground that is not quite black."""
    soft = cv2.GaussianBlur(canny_edges(image), (0, 0), 1).astype(float)
    soft += noise * (3 + np.random.default_rng(0).normal(0, 1, soft.shape))
    return soft.round().clip(0, 255).astype(np.uint8)


def groups(pictures, jpeg):
    """(what, pixels, encoders) of each part of the table."""
    for height, width in SIZES:
        images = [resized(image, height, width, Image.Resampling.BICUBIC) for image, _ in pictures]
        yield f"jpg {width}x{height}", images, jpeg
    for height, width in SIZES[1:]:
        images = [resized(image, height, width, Image.Resampling.BICUBIC) for image, _ in pictures]
        labels = [resized(label, height, width, Image.Resampling.NEAREST) for _, label in pictures]
        yield f"label {width}x{height}", labels, map_encoders()
        for name, noise in (("edge", 0), ("noisy edge", 1)):
            edges = [smooth_edges(image, noise) for image in images]
            yield f"{name} {width}x{height}", edges, map_encoders()
    height, width = SIZES[1]
    images = [resized(image, height, width, Image.Resampling.BICUBIC) for image, _ in pictures]
    yield f"png {width}x{height}", images, png_encoders()
    yield f"webp {width}x{height}", images, webp_encoders()


# The table


def measure(encoders, pixels, repeats):
    """For each encoder, one pass over the pixels: median CPU seconds, and speed of two threads."""
    prepared = [[encoder.prepare(p) for p in pixels] for encoder in encoders]
    cpu, clock, shared = ([[] for _ in encoders] for _ in range(3))
    with ThreadPoolExecutor(2) as pool:
        for repeat in range(repeats + 1):
            for index, (encoder, own) in enumerate(zip(encoders, prepared, strict=True)):
                start = time.perf_counter(), time.thread_time()
                for p in own:
                    encoder.encode(p)
                middle = time.perf_counter(), time.thread_time()
                list(pool.map(encoder.encode, own))
                if repeat:  # the first one warms up
                    shared[index].append(time.perf_counter() - middle[0])
                    clock[index].append(middle[0] - start[0])
                    cpu[index].append(middle[1] - start[1])
    median = statistics.median
    return [(median(c), median(o) / median(t)) for c, o, t in zip(cpu, clock, shared, strict=True)]


def releases_gil(encoder, pixels, attempts=3):
    """Whether another thread runs while a large picture is encoded.

    With a switch interval without end, a thread gives up the GIL where its code says so only. The
    other thread asks for it every millisecond; if the encoder holds it, it waits for most of the
    time, each time. On a busy machine it may do so once for want of a core.
    """
    large = encoder.prepare(np.concatenate([pixels] * 32))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        with ThreadPoolExecutor(1) as pool:
            waits = [longest_wait(pool, encoder, large) for _ in range(attempts)]
    finally:
        sys.setswitchinterval(before)
    return min(waits) < 0.5


def longest_wait(pool, encoder, pixels):
    """Of a thread that wants to wake every millisecond, as a share of the encoding's time."""
    longest, start = 0.0, time.perf_counter()
    encoded = pool.submit(encoder.encode, pixels)
    while not encoded.done():
        asleep = time.perf_counter()
        time.sleep(0.001)
        longest = max(longest, time.perf_counter() - asleep)
    return longest / (time.perf_counter() - start)


def psnr(data, pixels):
    """Against the input, in dB; infinite where nothing is lost."""
    decoded = np.asarray(Image.open(io.BytesIO(data)).convert(Image.fromarray(pixels).mode))
    error = np.square(decoded.astype(float) - pixels).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def chroma(data):
    """J:a:b of a JPEG; empty for other formats."""
    image: Any = Image.open(io.BytesIO(data))
    if image.format != "JPEG":
        return ""
    across, down = image.layer[0][1:3]
    return {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0"}.get((across, down), "other")


def rows(what, pixels, encoders, repeats):
    measured = measure(encoders, pixels, repeats)
    count, megabytes = len(pixels), sum(p.nbytes for p in pixels) / 1e6
    for encoder, (seconds, scaling) in zip(encoders, measured, strict=True):
        encoded = [encoder.encode(encoder.prepare(p)) for p in pixels]
        size = statistics.mean(map(len, encoded))
        loss = statistics.mean(map(psnr, encoded, pixels))
        yield (
            f"{what:<18} {encoder.name:<25} {seconds / count * 1e3:6.2f} "
            f"{megabytes / seconds:6.1f} {measured[0][0] / seconds:5.2f} {size:7.0f} {loss:5.2f} "
            f"{chroma(encoded[0]):<6} {scaling:5.2f} "
            f"{'released' if releases_gil(encoder, pixels[0]) else 'held'}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torchvision's encoders are deprecated since 0.29
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    name, pictures = read_pictures(arguments.pictures)
    others = [f"torchvision {torchvision.__version__}"]
    for package in ("simplejpeg", "PyTurboJPEG"):
        try:
            others.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    print(machine())
    print(", ".join([*(f"{k} {v}" for k, v in codecs.versions().items()), *others]))
    print(f"{len(pictures)} pictures ({name}), median of {arguments.repeats}, quality {QUALITY}")
    jpeg = jpeg_encoders()
    print(
        f"\n{'what':<18} {'encoder':<25} {'ms':>6} {'MB/s':>6} {'speed':>5} {'bytes':>7} "
        f"{'PSNR':>5} {'chroma':<6} {'2 thr':>5} GIL"
    )
    for what, pixels, encoders in groups(pictures, jpeg):
        for row in rows(what, pixels, encoders, arguments.repeats):
            print(row, flush=True)
    print("\nms: CPU time of one picture; speed: against the first of the group; PSNR: in dB")


if __name__ == "__main__":
    main()
