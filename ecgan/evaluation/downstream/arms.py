"""Arms of a downstream experiment: what students learn from."""

import math
from dataclasses import dataclass
from enum import StrEnum

from ecgan.data.datasets import Subset


class Source(StrEnum):
    """What is added to real pairs, or takes their place."""

    NOTHING = "real"
    SAMPLES = "samples"
    PRETRAIN = "pretrain"  # samples first, then real pairs alone
    SYNTHETIC = "synthetic"  # samples alone
    # Controls: what users can have without a generator
    COPY_PASTE = "copy-paste"  # things of other photos of the part, cut out and pasted
    HISTOGRAM = "histogram"  # real photos with the colours of photos without labels
    SELF_TRAINING = "self-training"  # photos without labels, labelled by a student of the real ones


_OF_SAMPLES = {Source.SAMPLES, Source.PRETRAIN, Source.SYNTHETIC}
_OF_UNLABELLED = {Source.HISTOGRAM, Source.SELF_TRAINING}
WORDS = tuple(one.value for one in Source if one not in {Source.NOTHING, Source.SAMPLES})


@dataclass(frozen=True, order=True)
class Arm:
    """What a student learns from, beside a part of the real pairs.

    Attributes:
        source: what is added.
        mix: images of it for each real pair, while both are shown.
    """

    source: Source
    mix: float = 1.0

    @classmethod
    def of(cls, word: str | float) -> "Arm":
        """Arm of a ratio of samples to real pairs, or of one of ``WORDS``.

        Raises:
            ValueError: neither.
        """
        if isinstance(word, str) and word in WORDS:
            return cls(Source(word))
        ratio = float(word)
        if not 0 <= ratio < math.inf:
            raise ValueError(f"must be 0 or more, or {', '.join(WORDS)}")
        return cls(Source.SAMPLES, ratio) if ratio else cls(Source.NOTHING, 0.0)

    @property
    def share(self) -> float:
        """Share of what is added among what a student sees, r / (1 + r), while it is shown."""
        alone = self.source in {Source.PRETRAIN, Source.SYNTHETIC}
        return 1.0 if alone else self.mix / (1 + self.mix)

    @property
    def has_real(self) -> bool:
        """Whether students see real pairs."""
        return self.source is not Source.SYNTHETIC

    @property
    def needs_samples(self) -> bool:
        """Whether students see samples."""
        return self.source in _OF_SAMPLES

    @property
    def needs_unlabelled(self) -> bool:
        """Whether it needs photos without labels."""
        return self.source in _OF_UNLABELLED

    @property
    def is_control(self) -> bool:
        """Whether samples have to be better than this."""
        return not self.needs_samples

    def name(self, part: str = "") -> str:
        """Training data in words.

        Args:
            part: the part of the real pairs, where it is not the whole.
        """
        part = f" ({part})" if part else ""
        match self.source:
            case Source.NOTHING:
                return f"real only{part}"
            case Source.SAMPLES:
                return f"real{part} + {self.mix:g}x synthetic"
            case Source.SYNTHETIC:
                return f"synthetic only{part}"
            case Source.PRETRAIN:
                return f"synthetic, then real{part}"
            case _:
                return f"real{part} + {self.source}"


@dataclass(frozen=True)
class Run:
    """A job: the training and test of one student.

    Attributes:
        part: which real pairs.
        arm: what is added to them.
        seed: seed of the weights and of all draws.
    """

    part: Subset
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Training data of the student, in words."""
        return self.arm.name("" if self.part.is_whole else str(self.part))

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"
