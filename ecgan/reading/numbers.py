"""Numbers of recipes and files that are read back, each with its range.

The upper bounds are no advice: what is above them is no setting but a mistake, or an attack on what
computes with it.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

_MOST = 10**12
_MOST_SEED = 2**63 - 1  # what every random generator takes


def _sane(value: int) -> int:
    if value > _MOST:
        raise ValueError(f"expected a number of at most {_MOST:,}")
    return value


def _sane_seed(value: int) -> int:
    if value > _MOST_SEED:
        raise ValueError(f"expected a seed of at most {_MOST_SEED}")
    return value


Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0), AfterValidator(_sane)]
Positive = Annotated[int, Field(gt=0), AfterValidator(_sane)]
Seed = Annotated[int, Field(ge=0), AfterValidator(_sane_seed)]
