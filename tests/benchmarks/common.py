"""Helpers of several benchmarks: a device's name and its speed at a large matrix product."""

import time

import torch


def matrix_ceiling(device, dtype):
    """FLOP/s of a large matrix product, the fastest of six; of one thread on a CPU."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    # Of a CPU this thread's own time, in which other programs have no part
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    seconds = []
    for _ in range(6):
        start = clock()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - start)
    return 2 * side**3 / min(seconds)


def device_name(device):
    """The GPU's name, or the CPU's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.backends.cpu.get_cpu_capability()})"
