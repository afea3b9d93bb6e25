"""Sections for the segmenters that are trained, and what all sections have in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ecgan.reading.numbers import Count, Positive, Rate, Seed, Share


class Section(BaseModel, frozen=True):
    """Section of a recipe: no unknown keys, no changes after reading, no inf or NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SegmenterTraining(Section, frozen=True):
    """Training of a segmenter on real pairs."""

    architecture: Literal["segformer", "unet"] = "segformer"
    """Network: a SegFormer from scratch, or a U-Net on EfficientNet-Lite1 (needs ecgan[eval])."""
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of SegFormer's first stage; 32 is SegFormer-B0. A U-Net has its own."""
    images: Positive = 20_000
    """Length of the training in images."""
    batch: Positive = 8
    """Images per step."""
    seed: Seed | None = None
    """Seed of the initial weights and of the order of the data; default: train.seed."""


class JudgeTraining(SegmenterTraining, frozen=True):
    """Training of a judge; its seed differs from the label generator's by default."""

    seed: Seed = 1
    """Seed of initial weights, of the order of the data, and of styles of scores in training."""


class FilterTraining(SegmenterTraining, frozen=True):
    """Training of the label filter; its seed differs from label generator's and judge's."""

    seed: Seed = 2
    """Seed of the initial weights and of the order of the data."""


_LENGTHS = {"probe": 4_000, "unet": 12_000, "scratch": 20_000, "segformer": 20_000}


class DownstreamTraining(Section, frozen=True):
    """Training of the downstream segmenters, once per seed."""

    architecture: Literal["probe", "unet", "scratch", "segformer"] = "probe"
    """Network: two convolutions on frozen features of EfficientNet-Lite1, a U-Net on that encoder
    (both need ecgan[eval]), the U-Net from scratch, or a SegFormer from scratch."""
    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    """Channels of SegFormer's first stage; the others have their own."""
    images: Positive | None = None
    """Length of each training in images, of every arm; default: 4,000 of a probe, 12,000 of unet,
    else 20,000."""
    batch: Positive = 8
    """Images per step."""
    mix_until: Share = 0.7
    """Share of the training in which samples, or what a control adds, are beside real pairs."""
    sample_weight: Rate = 1.0
    """Weight of the pixels of samples in the loss."""
    border: Count = 0
    """Pixels of samples so near to another class are not learnt; 1 where made borders are soft."""
    seed: Seed = 0
    """First seed; the others follow it."""

    @property
    def length(self) -> int:
        """Length of each training in images."""
        return _LENGTHS[self.architecture] if self.images is None else self.images
