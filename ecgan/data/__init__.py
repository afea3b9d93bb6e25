"""Data sets to train on: pairing, checks, decoding, loading. No torch until it is asked for."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ecgan.data.packed.sample_sets import SampleDataset

__all__ = ["SampleDataset"]


def __getattr__(name: str) -> object:
    if name == "SampleDataset":
        from ecgan.data.packed.sample_sets import SampleDataset

        return SampleDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
