"""Several processes that train together; the only module that knows ``torch.distributed``.

torchrun starts one process, a **rank**, for each GPU (gloo and CPU threads without one). Where no
process group is there, every function here does what it says for a world of one rank.

The mean of the ranks' losses is what is minimised: DDP averages gradients. ``gather`` and
``all_reduce_sum`` carry the gradients of *all* ranks' losses back to the tensor that a rank put in,
so a loss that every rank computes from gathered or summed tensors gets the gradient that one
process with the whole batch would get: DDP's 1 / world undoes the sum over ranks.

Shape legend:
    B  images in a rank's batch      R  ranks
    C  channels                      h, w  height and width of features
"""

import inspect
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ecgan.errors import UsageError, UserError
from ecgan.runtime.device import choose_device, require_gpus
from ecgan.runtime.processes.signals import (
    GRACE,
    adopt_orphans,
    asking,
    end_with_launcher,
    end_with_parent,
    is_launched_by_ecgan,
    wait_for_orphans,
)

# Others wait while rank 0 trains the label generator or scores; a dead rank is noticed by torchrun.
_TIMEOUT = timedelta(hours=12)

T = TypeVar("T")


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launched_ranks() -> int:
    """Number of processes that torchrun started, this one included; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is rank 0; also before and after the ranks are joined."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """R, number of processes."""
    return dist.get_world_size() if _is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Generator[None, None, None]:
    """Join the other ranks, if torchrun started this process."""
    if not is_launched() or _is_initialized():
        yield
        return
    if device.type == "cuda":
        # gloo beside it for what is on the CPU, so that nobody waits for the GPU to say a word
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    end_with_launcher()
    try:
        yield
    except BaseException as error:
        # NCCL would wait here for what others have not joined, and they in it for this rank.
        # torchrun ends them once this process is gone
        if device.type != "cuda":
            dist.destroy_process_group()
        if _is_loss_of_a_rank(error):
            if is_launched_by_ecgan():  # which tells why the other one ended
                raise SystemExit(1) from None
            raise UserError(
                f"rank {os.environ['RANK']}: another rank ended, and this one with it; the same "
                "command goes on from the last checkpoint"
            ) from error
        raise
    dist.destroy_process_group()


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def from_first(value: T) -> T:
    """The first rank's value, on every rank."""
    if world_size() == 1:
        return value
    found: list[Any] = [value]
    dist.broadcast_object_list(found)
    return found[0]


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; every rank gets the same answer."""
    if world_size() == 1:
        return flag
    value = torch.tensor(float(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


def mean_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its mean over the ranks; no gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """Tensors of all ranks, joined along the first dimension; of equal shapes. With gradient."""
    return cast("Tensor", _Gather.apply(tensor)) if world_size() > 1 else tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of the ranks' tensors, of equal shapes. With gradient."""
    return cast("Tensor", _Sum.apply(tensor)) if world_size() > 1 else tensor


def synchronised(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norms that normalise by the statistics of all ranks' batches.

    torch's SyncBatchNorm refuses CPU tensors, so ranks without a GPU get one of ours. The names and
    values in the state dict stay as they are.
    """
    if world_size() == 1:
        return network
    if device.type == "cuda":
        return cast(Any, nn.SyncBatchNorm).convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, BatchNormOverRanks):
                setattr(parent, name, BatchNormOverRanks.like(child))
    return network


def parallel(network: nn.Module, device: torch.device, *, find_unused: bool = False) -> nn.Module:
    """The network in DDP, which averages gradients over ranks; itself in a world of one.

    Args:
        network: every parameter that needs a gradient must serve in its forward pass.
        device: of its parameters.
        find_unused: whether some parameters may get no gradient.
    """
    if world_size() == 1:
        return network
    # Buffers are equal on all ranks: statistics are synchronised. torch 2.14 renames the option.
    known = inspect.signature(cast(Any, DistributedDataParallel).__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {option: False}
    return DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=find_unused,
        **settings,
    )


def without_parallel(network: nn.Module) -> nn.Module:
    """The network itself, out of :func:`parallel`."""
    if isinstance(network, DistributedDataParallel):
        return cast("nn.Module", getattr(network, "module"))  # noqa: B009  torch does not type it
    return network


def without_averaging(network: nn.Module) -> AbstractContextManager[Any]:
    """Add gradients up on each rank, to be averaged by a later pass outside of this."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


class BatchNormOverRanks(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks, on any device, by all-reduce of sums."""

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> "BatchNormOverRanks":
        """One with the settings and values of an ordinary batch norm."""
        own = cls(
            norm.num_features,
            norm.eps,
            norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
        for value in norm.state_dict().values():
            if value.is_floating_point():
                own = own.to(value)
        own.load_state_dict(norm.state_dict())
        return own.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(B, C, h, w) -> the same shape, normalised over the ranks' B x h x w values."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.numel() // x.shape[1] * world_size()
        mean = all_reduce_sum(x.sum(dim=(0, 2, 3))) / count  # (C,)
        centred = x - mean[:, None, None]
        # the variance from centred values: a difference of large sums would lose digits
        variance = all_reduce_sum(centred.square().sum(dim=(0, 2, 3))) / count  # (C,)
        self._track(mean.detach(), variance.detach(), count)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum or 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        unbiased = variance * (count / max(1, count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


def launch(num_processes: int, arguments: Sequence[str], *, device: str) -> int:
    """Run ``ecgan`` with these arguments on several ranks of this machine; return the exit code.

    Ctrl-C, SIGTERM and SIGHUP reach the ranks, which write a checkpoint; the code is then 130.

    Args:
        num_processes: ranks.
        arguments: of ``ecgan``, without ``--nproc-per-node``.
        device: as :func:`choose_device` takes it.

    Raises:
        UserError: torchrun started this process already, or there are too few GPUs.
    """
    if is_launched():
        raise UserError(
            "torchrun started this process already; leave out --nproc-per-node, or torchrun"
        )
    if choose_device(device).type == "cuda":
        if device not in {"auto", "cuda"}:
            raise UsageError(
                f"--device {device} is one GPU; with --nproc-per-node use --device cuda"
            )
        require_gpus(num_processes)
    command = [
        *(sys.executable, "-m", "ecgan.runtime.processes.torchrun", "--standalone"),
        *(f"--nproc-per-node={num_processes}", "-m", "ecgan_cli", *arguments),
    ]
    # torchrun says so at length if it has to set this itself
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    environment = {"OMP_NUM_THREADS": threads} | os.environ | adopt_orphans()
    code, interrupted = _run_torchrun_beside(command, environment)
    if interrupted:
        return 130
    if code < 0:
        raise UserError(
            f"torchrun was ended by {signal.Signals(-code).name}, and its ranks with it; the same "
            "command goes on from the last checkpoint"
        )
    return 1 if code else 0


def _run_torchrun_beside(command: list[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Its exit code, and whether a signal to this process, which it passes on, ended it."""
    interrupted = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    # A session of its own: a terminal's Ctrl-C must reach the ranks once, through torchrun. Where
    # this process is killed, torchrun gets SIGTERM, and passes it on to the ranks.
    process = subprocess.Popen(  # noqa: S603
        command,
        env=environment,
        start_new_session=True,
        preexec_fn=end_with_parent(),  # noqa: PLW1509  one system call, in a process of one thread
    )
    before = {number: signal.signal(number, forward) for number in asking()}
    try:
        code = process.wait()
        if code < 0:  # killed: the ranks notice, and write a checkpoint
            wait_for_orphans(GRACE)
        return code, interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_torchrun(arguments: Sequence[str]) -> int:
    """Run torchrun in this process; its exit code. A rank that was killed is told in a sentence."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # ranks say themselves what failed
    try:
        cast(Any, run).run(cast(Any, run).parse_args([*arguments]))
    except SignalException:
        return 130
    except ChildFailedError as error:
        failed = cast(Any, error.get_first_failure()[1])
        if failed.exitcode < 0:
            name = signal.Signals(-failed.exitcode).name
            hint = ", as happens where memory runs out" if failed.exitcode == -9 else ""
            sys.stderr.write(
                f"Error: rank {error.get_first_failure()[0]} (process {failed.pid}) was ended by "
                f"{name}{hint}; the same command goes on from the last checkpoint\n"
            )
        return 1
    return 0


def _is_loss_of_a_rank(error: BaseException) -> bool:
    """Whether a collective call failed since a rank is not there any more."""
    signs = (
        "closed by peer",
        "reset by peer",
        "broken pipe",
        "remote process exited",
        "unreachable",
    )
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    """Join along the first dimension; back: the sum of all ranks' gradients of this rank's part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ANN401
        ctx.size = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.size, ctx.size)


class _Sum(torch.autograd.Function):
    """Sum over ranks; back: the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        total = tensor.detach().contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401, ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
