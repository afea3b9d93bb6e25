"""How many workers where, from what the user said and what this machine has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ecgan.errors import UsageError
from ecgan.runtime.cluster import Workers

Executor = Literal["auto", "local", "ray"]
TIMEOUT = 3600.0  # seconds for a job, where another process does it


@dataclass(frozen=True)
class Wish:
    """What the user said.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        executor: this machine or Ray; auto: Ray where an address is given.
        workers: default: one for each GPU, or one.
        gpus_per_worker: a fraction shares a GPU; default: 1 on CUDA.
        ray_address: of a cluster.
        timeout: seconds for a job.
    """

    device: str = "auto"
    executor: Executor = "auto"
    workers: int | None = None
    gpus_per_worker: float | None = None
    ray_address: str | None = None
    timeout: float | None = None

    @property
    def wants_ray(self) -> bool:
        """Whether Ray is to be used."""
        return self.executor == "ray" or (self.executor == "auto" and self.ray_address is not None)

    @property
    def wants_others(self) -> bool:
        """Whether other processes than this one do the work."""
        return self.wants_ray or self.ray_address is not None or (self.workers or 1) > 1


def place_workers(wish: Wish, device: torch.device) -> tuple[Workers, tuple[str, ...]]:
    """The workers, and the device of each in turn.

    Args:
        wish: what the user said.
        device: what ``wish.device`` means here.

    Raises:
        UserError: more than this machine has.
    """
    on_cuda = device.type == "cuda" or (wish.gpus_per_worker is not None and wish.wants_ray)
    gpus_each = (wish.gpus_per_worker or 1.0) if on_cuda else 0.0
    if wish.gpus_per_worker is not None and not on_cuda:
        raise UsageError(
            f"--gpus-per-worker {wish.gpus_per_worker:g}: this machine has no CUDA device; "
            "leave it out, or name a cluster that has GPUs with --ray-address"
        )
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    one_device = wish.device.startswith("cuda:")
    count = wish.workers or (max(1, int(num_gpus / gpus_each)) if on_cuda else 1)
    if one_device and wish.workers is None:
        count = 1
    timeout = wish.timeout or TIMEOUT
    if wish.wants_ray:
        where = ("cuda" if on_cuda else "cpu",)
        return Workers("ray", count, gpus_each, wish.ray_address, timeout=timeout), where
    if on_cuda and not one_device and count * gpus_each > num_gpus + 1e-9:
        raise UsageError(
            f"--workers {count} x --gpus-per-worker {gpus_each:g}: this machine has {num_gpus} GPUs"
        )
    devices = (str(device),)
    if on_cuda and not one_device:
        devices = tuple(f"cuda:{int(i * gpus_each + 1e-9)}" for i in range(count))
    if count == 1 and wish.timeout is None:
        return Workers("inline", 1, gpus_each), devices
    return Workers("processes", count, gpus_each, timeout=timeout), devices


def settle(index: int, devices: Sequence[str], threads: int | None) -> torch.device:
    """In a worker: its device, and how many threads it may take.

    Args:
        index: number of this worker.
        devices: of the workers in turn.
        threads: of this process; None leaves them as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device(devices[index % len(devices)])
