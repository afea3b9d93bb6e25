"""Private names of torch, all in one place: each with what its public interface lacks.

A new version of torch may take them away; then this file alone has to change, and a test finds any
that are used elsewhere.
"""

from contextlib import AbstractContextManager
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrizations
from torch.utils import _python_dispatch

# parametrizations.spectral_norm() registers its module, which has no public name: we subclass it to
# run in the weight's own precision, and find it again to hold its vectors.
TorchSpectralNorm = parametrizations._SpectralNorm  # pyright: ignore[reportPrivateUsage]

# BatchNorm1d to 3d and SyncBatchNorm share no public base class.
AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]

# Sees every operation, below autograd; FlopCounterMode is one and counts no bytes.
DispatchMode = _python_dispatch.TorchDispatchMode


def has_deterministic_inductor() -> bool:
    """Whether torch.compile knows ``options={"deterministic": True}``.

    There is no public list of its options.
    """
    from torch._inductor import config  # not there before it is asked for

    return hasattr(config, "deterministic")


def recompile_limit(limit: int) -> AbstractContextManager[Any]:
    """How many shapes of a function torch.compile accepts; neither it nor torch.compiler says."""
    from torch._dynamo import config

    return cast(Any, config).patch(recompile_limit=limit)


def compile_failures() -> tuple[type[Exception], ...]:
    """Exceptions of a network that cannot be compiled; torch.compiler names none."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
