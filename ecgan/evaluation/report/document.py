"""``report.json``: its schema, and reading it again.

Version 2 calls ``warnings`` what version 1, which is still read, called ``marks``.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ecgan import __version__
from ecgan.errors import UserError, shown
from ecgan.reading.documents import checked, read_json

SCHEMA = 2
_READ = (1, 2)
_REMEDY = "`ecgan evaluate` writes it anew"
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Channel = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    """Base of a report's parts: numbers are finite, or null."""

    model_config = ConfigDict(allow_inf_nan=False)


class Metric(_Part):
    """A number of samples beside that of real photos; None where it is not defined."""

    value: float | None
    real: float | None
    """The same measurement of real photos."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    n: Count
    """Images behind the value; of diversity, pairs of them."""
    std: float | None = None
    """Standard deviation over repetitions."""
    protocol: str | None = None
    """Part of the protocol that is particular to this metric."""
    trained_against: str | None = None
    """Network of this metric's family that the generator was trained against, which flatters it."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what few metrics have."""
        fields: dict[str, Any] = write(self)
        rare = {"std", "protocol", "trained_against"}
        return {k: v for k, v in fields.items() if v is not None or k not in rare}

    @classmethod
    def of(
        cls,
        value: float,
        real: float,
        n: int,
        low: float = math.nan,
        high: float = math.nan,
        std: float | None = None,
        protocol: str | None = None,
    ) -> "Metric":
        """Metric of numbers that may be NaN."""
        return cls(
            value=finite(value),
            real=finite(real),
            low=finite(low),
            high=finite(high),
            n=n,
            std=std,
            protocol=protocol,
        )


class ClassScore(_Part):
    """IoU of a class, its share of the labelled pixels, and the spread of its colour."""

    iou: float | None
    real: float | None
    low: float | None
    high: float | None
    share: float
    real_share: float
    color: tuple[Channel, Channel, Channel]
    style_spread: float | None = None
    """Variance of its mean colour over styles by that over photos."""

    @property
    def metric(self) -> Metric:
        """The IoU as a metric."""
        return Metric(value=self.iou, real=self.real, low=self.low, high=self.high, n=0)


class Confusion(_Part):
    """Pixels by true class (row) and predicted class (column); the last column is no class."""

    classes: list[str]
    counts: list[list[Count]]

    @model_validator(mode="after")
    def _fits(self) -> "Confusion":
        sides = {len(self.counts), *(len(row) - 1 for row in self.counts)}
        if sides != {len(self.classes)}:
            raise ValueError("expected a row for each class, and a column more than classes")
        return self


class SetReport(_Part):
    """Measurements of one set of samples."""

    samples: str
    protocol: dict[str, Any] = {}
    metrics: dict[str, Metric] = {}
    per_class: dict[str, ClassScore] = {}
    confusion: Confusion | None = None
    skipped: dict[str, str] = {}
    """Reasons why metrics were not computed."""
    warnings: list[str] = []
    """Reasons not to quote the numbers."""
    notes: list[str] = []
    best: list[str] = []
    worst: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, dict) or "marks" not in value:
            return value
        fields = cast("dict[str, Any]", value)
        return fields | {"warnings": fields["marks"]}


class SeedScore(_Part):
    """Scores of a segmenter that was trained with one seed."""

    seed: int
    draw: int = 0
    """Draw of the real pairs."""
    miou: float
    accuracy: float


class Spread(_Part):
    """Mean over seeds, with its 95 % interval."""

    mean: float | None
    std: float | None
    low: float | None = None
    high: float | None = None


class Difference(_Part):
    """Difference in mIoU to other training data, with its 95 % interval."""

    difference: float
    low: float | None
    high: float | None
    spread: float | None
    """Standard deviation of a seed, pooled; of a draw's difference, where there are several."""
    larger: bool
    """The interval leaves out 0."""


class Condition(_Part):
    """Segmenters that were trained on the same mix of real pairs and samples."""

    name: str
    real_fraction: float
    source: str = "samples"
    """What is added to real pairs or takes their place; see ``--mix``."""
    mix: float | None
    """Images of it for each real pair; None: it alone."""
    real_images: Count
    synthetic_images: Count
    runs: list[SeedScore]
    miou: Spread
    accuracy: Spread
    per_class: dict[str, Spread]
    per_sequence: dict[str, Spread] = {}
    """Mean IoU on the photos of each sequence, where 2 to 20 are tested on; by start of keys."""
    against_real: Difference | None
    control: str | None = None
    """The best of the controls: what samples have to be better than."""
    against_control: Difference | None = None
    photos_worth: float | None = None
    """Labelled photos that reach this mIoU by themselves."""


class CopyPair(_Part):
    """A sample and the training photo that is nearest to it."""

    sample: str
    photo: str
    distance: float
    """Cosine distance of their features."""


class Copies(_Part):
    """Distances of samples to their nearest training photos, beside those of held-out photos."""

    part: str
    """Part of the real pairs that the generators learnt from."""
    samples: Count
    photos: Count
    held_out: Count
    median: float
    held_out_median: float
    near: float
    """Share of samples that are nearer than 95 % of the held-out photos, with Wilson's interval."""
    low: float
    high: float
    passed: bool
    """The interval reaches down to 5 %, the share of photos that were never seen."""
    closest: list[CopyPair]


class DownstreamReport(_Part):
    """Segmenters trained with and without samples, tested on real photos."""

    protocol: dict[str, str]
    rows: list[Condition]
    copies: list[Copies] = []
    """Where samples were trained with alone, as they may be shared."""
    sentences: list[str]
    notes: list[str]
    failed: list[str]

    @model_validator(mode="after")
    def _fits(self) -> "DownstreamReport":
        if len({tuple(row.per_class) for row in self.rows}) > 1:
            raise ValueError("rows: not of the same classes")
        if len({tuple(row.per_sequence) for row in self.rows}) > 1:
            raise ValueError("rows: not of the same sequences")
        return self


class Report(SetReport):
    """A report: the first set of samples, further sets, and a downstream experiment."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    compared: list[SetReport] = []
    downstream: DownstreamReport | None = None

    @classmethod
    def of_sets(cls, first: SetReport, others: Sequence[SetReport]) -> "Report":
        """Report on several sets."""
        compared = [one.model_dump() for one in others]
        return cls.model_validate(first.model_dump() | {"compared": compared})

    @property
    def sets(self) -> Sequence[SetReport]:
        """All sets of samples: the first, then those compared with it."""
        return [self, *self.compared]

    def to_json(self) -> dict[str, Any]:
        """The content of ``report.json``."""
        document = self.model_dump(mode="json", by_alias=True)
        if self.downstream is None:
            del document["downstream"]
        return document

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> "Report":
        """Report of the content of a ``report.json`` of version 1 or 2.

        Raises:
            ValueError: fields are missing or of another type.
        """
        return cls.model_validate(document | {"schema": SCHEMA})


def load(path: Path) -> Report:
    """Read a ``report.json``, or the one in a folder.

    Raises:
        UserError: no such file, not a report of ecgan, or one of a later version.
    """
    file = path / "report.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{file}: no such file; {_REMEDY}")
    document = read_json(file, "a report", _REMEDY)
    if not isinstance(document, dict) or not {"schema", "metrics"} <= document.keys():
        raise UserError(f"{file}: not a report of ecgan: schema or metrics is missing; {_REMEDY}")
    document = cast("dict[str, Any]", document)
    schema = document["schema"]
    if type(schema) is not int or schema not in _READ:
        raise UserError(
            f"{file}: schema {shown(schema)}, this ecgan ({__version__}) reads "
            f"{_READ[0]} to {_READ[-1]}; {_REMEDY}"
        )
    return checked(Report, document | {"schema": SCHEMA}, str(file), _REMEDY)


def finite(value: float) -> float | None:
    """The number, or None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None
