"""The heavy operations, forward and backward: Eqs. 3 and 5, and class heads.

    python -m tests.benchmarks.bench_losses [--repeats 7] [--only similarity] [--large]

The baseline, in the same process, is the definition in plain torch and float32 as one would write
it at first: M x M matrices with autograd, and a branch for each class. It is left out where it
does not fit. "torch" are our own operations in plain torch, "triton" are the kernels, on CUDA
alone. The implementations of one scale take turns.

Times are medians: of the thread's CPU time on a CPU, so that another program's load does little
harm, and between two events on CUDA. "error" is the norm of the gradient's error against float64,
where that is cheap. "MB" is the peak of CUDA's memory beyond what was in use.

Without CUDA, sizes are those of training on a CPU; --large takes those of a GPU.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ecgan.ops.class_conv import class_specific_heads
from ecgan.ops.pair_similarity import BOUND, pair_similarity
from ecgan.ops.pixel_contrast import pixel_contrast
from tests.benchmarks.common import machine, peak_bytes, seconds, versions

IGNORE = 255
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BYTES_OF_BASELINE = 30e9 if DEVICE.type == "cuda" else 1.5e9  # at most
PAIRS_IN_FLOAT64 = 2**35 if DEVICE.type == "cuda" else 2**28  # at most, for the error


@dataclass(frozen=True)
class Case:
    """One scale of one operation."""

    operation: str
    scale: str
    inputs: list[Tensor]  # with gradient
    ours: Callable[..., Tensor]
    baseline: Callable[..., Tensor] | None  # None: does not fit
    in_float64: bool  # cheap enough


# Cases


def scene(B, N, height, width):
    """Labels of some objects in patches, (B, H, W)."""
    patches = torch.randint(0, N, (B, 1, max(1, height // 6), max(1, width // 6))).float()
    return F.interpolate(patches, size=(height, width))[:, 0].long().to(DEVICE)


def similarity(B, N, height, width):
    labels = scene(B, N, height, width)
    logits = 1.5 * torch.randn(B, N, height, width, device=DEVICE)
    logits += 3 * F.one_hot(labels, N).permute(0, 3, 1, 2)

    def dense(p):
        p, y = p.flatten(2), labels.flatten(1)
        a = p.transpose(1, 2) @ p  # (B, M, M)
        b = torch.where(y[:, :, None] == y[:, None], a, 1 - a)
        b = b + (b.clamp(min=BOUND) - b).detach()  # the gradient passes through the bound
        return -b.log().mean(dim=(1, 2)).mean()

    pairs = B * (height * width) ** 2
    return Case(
        "similarity",
        f"{B} x {height}x{width}, N {N}",
        [logits.softmax(dim=1)],
        lambda p: pair_similarity(p, labels, IGNORE).mean(),
        dense if pairs * 4 * 8 < BYTES_OF_BASELINE else None,
        pairs <= PAIRS_IN_FLOAT64,
    )


def contrast(M, N, D=64, bank=0):
    classes = scene(1, N, 1, M + bank).flatten()[torch.randperm(M + bank, device=DEVICE)]
    e = torch.randn(M + bank, D, device=DEVICE) + 2 * torch.randn(N, D, device=DEVICE)[classes]
    e = F.normalize(e, dim=1)
    stored, stored_classes = (e[M:], classes[M:]) if bank else (None, None)

    def ours(e):
        if stored is None:
            total, count = pixel_contrast(e, classes, 0.07)
        else:
            total, count = pixel_contrast(
                e, classes[:M], 0.07, bank=stored.to(e.dtype), bank_classes=stored_classes
            )
        return total / count

    def dense(e):
        s = e @ torch.cat([e, e.new_tensor([]).view(0, D) if stored is None else stored]).T / 0.07
        same = classes[:M, None] == classes[None]
        positive = same & ~torch.eye(M, M + bank, dtype=torch.bool, device=DEVICE)
        l = s.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
        loss = (torch.logaddexp(s, l) - s).masked_fill(~positive, 0).sum(dim=1)
        return (loss / positive.sum(dim=1)).mean()

    return Case(
        "contrast",
        f"{M}{f' + {bank}' if bank else ''} x {D}, N {N}",
        [e[:M].clone()],
        ours,
        dense if M * (M + bank) * 4 * 8 < BYTES_OF_BASELINE else None,
        M * (M + bank) <= PAIRS_IN_FLOAT64,
    )


def heads(B, N, height, width, C=64):
    labels = scene(B, N, height, width)
    shapes = [(N, 16, C, 3, 3), (N, 16), (N, 3, 16, 3, 3), (N, 3)]
    weights = [0.1 * torch.randn(shape, device=DEVICE) for shape in shapes]
    features = torch.randn(B, C, height, width, device=DEVICE)
    features = features.contiguous(memory_format=torch.channels_last)

    def branches(features, w1, b1, w2, b2):
        image = torch.zeros_like(features[:, :3])
        for c in range(N):
            mask = (labels == c)[:, None]
            hidden = F.leaky_relu(F.conv2d(features * mask, w1[c], b1[c], padding=1), 0.2)
            image = image + F.conv2d(hidden * mask, w2[c], b2[c], padding=1).tanh() * mask
        return image.square().sum()

    return Case(
        "class heads",
        f"{B} x {height}x{width}, N {N}",
        [features, *weights],
        lambda features, *w: class_specific_heads(features, labels, IGNORE, *w).square().sum(),
        branches if N * features.nbytes * 3 < BYTES_OF_BASELINE else None,
        False,
    )


def cases(*, large):
    """Scaling over resolution, classes, batch: what is small first."""
    if large:
        yield from (lambda s=s: similarity(1, 12, *s) for s in [(64, 128), (128, 256), (256, 512)])
        yield from (lambda N=N: similarity(1, N, 256, 512) for N in (19, 35, 182))
        yield from (lambda B=B: similarity(B, 19, 128, 256) for B in (4, 16))
        yield from (lambda M=M: contrast(M, 12) for M in (4096, 16384, 65536))
        yield from (lambda N=N: contrast(65536, N) for N in (35, 182))
        yield lambda: contrast(65536, 35, bank=8192)
        yield from (lambda N=N: heads(4, N, 256, 512) for N in (12, 35, 182))
    else:
        yield from (lambda s=s: similarity(1, 12, *s) for s in [(24, 32), (48, 64), (64, 128)])
        yield from (lambda N=N: similarity(1, N, 48, 64) for N in (35, 182))
        yield lambda: similarity(4, 12, 48, 64)
        yield from (lambda M=M: contrast(M, 12) for M in (768, 3072, 12288))
        yield from (lambda N=N: contrast(3072, N) for N in (35, 182))
        yield lambda: contrast(3072, 12, bank=1024)
        yield from (lambda N=N: heads(1, N, 96, 128) for N in (12, 35, 182))


# The table


def gradients(f, inputs, dtype=torch.float32):
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
    return torch.autograd.grad(f(*inputs), inputs)


@dataclass(frozen=True)
class Measured:
    """What one implementation takes, forward and backward."""

    milliseconds: float  # median
    megabytes: float  # of CUDA's memory at most, beyond what was in use; 0 on a CPU
    error: float | None  # norm of the gradient's error; None: too large for float64


def implementations(case):
    """Name -> function; the kernels where there is CUDA."""
    found = {} if case.baseline is None else {"baseline": case.baseline}
    found["torch"] = case.ours
    if DEVICE.type == "cuda":
        found["triton"] = case.ours
    return found


@contextmanager
def kernels_of(name):
    """Where our operations run as this implementation."""
    kernels = {"ECGAN_KERNELS": "triton" if name == "triton" else "torch"}
    with mock.patch.dict(os.environ, kernels):
        yield


def measure(case, repeats):
    """Name -> Measured; the implementations take turns."""
    found = implementations(case)
    times: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, f in found.items():
            with kernels_of(name):
                spent = seconds(lambda f=f: gradients(f, case.inputs), DEVICE)
            if repeat:  # the first one warms up, and compiles
                times[name].append(1e3 * spent)
    exact = None
    if case.in_float64:
        with kernels_of("torch"):
            exact = gradients(case.ours, case.inputs, torch.float64)[0]
    result = {}
    for name, f in found.items():
        error, megabytes = None, 0.0
        with kernels_of(name):
            if DEVICE.type == "cuda":
                megabytes = peak_bytes(lambda f=f: gradients(f, case.inputs), DEVICE) / 1e6
            if exact is not None:
                gradient = gradients(f, case.inputs)[0].double()
                error = float((gradient - exact).norm() / exact.norm())
        result[name] = Measured(statistics.median(times[name]), megabytes, error)
    return result


def rows(case, repeats):
    """One row for each implementation."""
    measured = measure(case, repeats)
    first = next(iter(measured.values())).milliseconds
    for name, one in measured.items():
        error = "" if one.error is None else f"{one.error:.0e}"
        memory = f"{one.megabytes:.0f}" if DEVICE.type == "cuda" else ""
        yield (
            f"{case.operation:<13} {case.scale:<26} {name:<9} {one.milliseconds:9.2f} "
            f"{first / one.milliseconds:6.2f} {error:>6} {memory:>6}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", help="similarity, contrast or heads")
    parser.add_argument("--large", action="store_true", default=DEVICE.type == "cuda")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(machine())
    print(f"{versions()}; one thread, median of {arguments.repeats}, forward and backward")
    print(f"\n{'operation':<13} {'scale':<26} {'how':<9} {'ms':>9}  speed  error     MB")
    for make in cases(large=arguments.large):
        case = make()
        if arguments.only is None or arguments.only in case.operation:
            for row in rows(case, arguments.repeats):
                print(row, flush=True)


if __name__ == "__main__":
    main()
