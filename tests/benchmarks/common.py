"""Helpers of several benchmarks: the machine, time and operations of a call, a device's ceiling."""

import os
import platform
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


def machine():
    """GPU, CPU, cores, load and Python."""
    information = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if information.is_file():
        lines = information.read_text().splitlines()
        model = next((li.partition(": ")[2] for li in lines if li.startswith("model name")), model)
    if torch.cuda.is_available():
        model = f"{torch.cuda.get_device_name()}, {model}"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return f"{model}, {os.cpu_count()} cores, load {load}, Python {platform.python_version()}"


def versions():
    """torch, and on a GPU Triton and CUDA."""
    found = [f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        import triton

        found += [f"Triton {triton.__version__}", f"CUDA {torch.version.cuda}"]
    return ", ".join(found)


def seconds(call, device):
    """Seconds of a call on the device, between two events, or of this thread's CPU time."""
    if device.type != "cuda":
        start = time.thread_time()
        call()
        return time.thread_time() - start
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record(torch.cuda.current_stream(device))
    call()
    stop.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1e3


def peak_bytes(call, device):
    """Bytes of CUDA's memory that a call takes at most, beyond what is in use."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def flops(call):
    """Floating-point operations of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_ceiling(device, dtype):
    """FLOP/s of a large matrix product, the fastest of six; of one thread on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(6))


def copy_bandwidth(device):
    """Bytes/s of a large copy within the device's memory, read and written, the fastest of six."""
    source = torch.randn(2**30 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(6))


def ceilings(device):
    """FLOP/s of a large matrix product in each type, and a sentence that says so."""
    found = {dtype: matrix_ceiling(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    text = ", ".join(
        f"{ceiling / 1e9:.1f} GFLOP/s ({str(dtype).removeprefix('torch.')})"
        for dtype, ceiling in found.items()
    )
    return found, f"a large matrix product: {text}"


def device_name(device):
    """The GPU's name, or the CPU's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
