"""The triple that everything here is about: a label map with its photo and its edges. No torch.

Shape legend:
    H, W  height and width, the same for all parts of a sample
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgan.errors import UserError
from ecgan.labels import Labels

_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, eq=False)
class Sample:
    """A label map with what belongs to it, checked: one key, one size.

    Attributes:
        key: names the sample in shards: letters, digits, ``_`` and ``-``.
        label: input ids, (H, W), uint8 or uint16.
        image: RGB, (H, W, 3), uint8.
        edge: edges, (H, W), uint8, 0 or 255.
        boundary: instance boundaries, (H, W), uint8, 0 or 1.
    """

    key: str
    label: Labels
    image: npt.NDArray[np.uint8] | None = None
    edge: npt.NDArray[np.uint8] | None = None
    boundary: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        """Raise UserError when the parts differ in size; assert what our own code must keep."""
        assert _KEY.fullmatch(self.key), self.key
        assert self.label.ndim == 2, self.label.shape
        assert self.label.dtype in (np.uint8, np.uint16), self.label.dtype
        parts: dict[str, npt.NDArray[Any] | None] = {
            "label": self.label,
            "image": self.image,
            "edge": self.edge,
            "boundary": self.boundary,
        }
        sizes = {name: part.shape[:2] for name, part in parts.items() if part is not None}
        if len(set(sizes.values())) > 1:
            *first, last = (f"{name} {size}" for name, size in sizes.items())
            raise UserError(f"{self.key}: {', '.join(first)} and {last} differ in size")
