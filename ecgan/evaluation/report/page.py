"""``report.html``: one self-contained page with the numbers and pictures of a report."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, cast

import jinja2
import numpy as np
import numpy.typing as npt

from ecgan import __version__
from ecgan.errors import printable
from ecgan.evaluation.report import tables
from ecgan.evaluation.report.document import (
    Condition,
    Confusion,
    DownstreamReport,
    Metric,
    Report,
    SetReport,
)
from ecgan.runtime.files import write_whole
from ecgan.visualization import data_url

_GROUPS = {  # of the metrics whose names begin so
    "Agreement of the judge with the layouts": ("miou", "frequency", "accuracy", "consistency"),
    "Distance between samples and photos, as sets": ("fid", "kid", "fd_", "kd_"),
    "Shares of one set within the other": ("precision_", "recall_"),
    "Styles, texture and edges": ("style_spread", "diversity_", "top_octave", "edge_"),
}


@dataclass(frozen=True)
class Picture:
    """One cell of a gallery. The image is uint8, (H, W, 3) or (H, W); masks are kept exact."""

    image: npt.NDArray[np.uint8]
    alt: str
    exact: bool = False


@dataclass(frozen=True)
class Row:
    """One layout: a cell for each column of its gallery; None where there is nothing to show."""

    title: str
    text: str
    cells: Sequence[Picture | None]


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Curve:
    """One number over training: (images seen, value)."""

    title: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Illustrations:
    """What the page shows beside the numbers of one set of samples."""

    galleries: Sequence[Gallery] = ()
    curves: Sequence[Curve] = ()


def write(
    report: Report,
    out: Path,
    illustrations: Sequence[Illustrations],
    copies: Sequence[Gallery] = (),
) -> None:
    """Write ``report.html`` and then ``report.json`` into a folder, each whole or not at all.

    Args:
        report: the report.
        out: folder; made if it is not there.
        illustrations: illustrations of each set of samples, in the order of ``report.sets``.
        copies: pictures of the downstream experiment's copy check.
    """
    page = html(report, illustrations, copies)
    write_whole(out / "report.html", page)
    write_whole(out / "report.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")


def html(
    report: Report, illustrations: Sequence[Illustrations], copies: Sequence[Gallery] = ()
) -> str:
    """The page: no network, no script; pictures and drawings are inside."""
    pairs = list(zip(report.sets, illustrations, strict=True))
    return _template().render(
        sets=pairs,
        verdict=tables.verdict,
        headlines=tables.headlines,
        version=__version__,
        downstream=report.downstream,
        copies=copies,
    )


@cache
def _template() -> jinja2.Template:
    """The page's template; to compile it takes longer than to fill it in."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(
        number=tables.number,
        spread=tables.spread,
        interval=tables.interval,
        mark=tables.mark,
        source=_source,
        percent=tables.percent,
        signed=tables.signed,
        sentence=_sentence,
    )
    environment.globals.update(
        title=tables.title,
        text=tables.explanation,
        lower=tables.lower,
        gauge=_gauge,
        chart=_chart,
        skipped=tables.skipped,
        grouped=_grouped,
        shares=_row_shares,
        plot=_plot,
        exchange=_exchange,
    )
    file = resources.files("ecgan.evaluation.report").joinpath("report.html.j2")
    return environment.from_string(file.read_text(encoding="utf-8"))


def _printable(value: object) -> object:
    """Names of others in the page, without marks of direction."""
    return printable(value) if type(value) is str else value


def _grouped(parts: Sequence[SetReport]) -> list[tuple[str, list[str]]]:
    """Names of the metrics of any of these sets by what they are about, in their own order."""
    groups: dict[str, list[str]] = {title: [] for title in (*_GROUPS, "Others")}
    for name in dict.fromkeys(name for one in parts for name in one.metrics):
        found = (title for title, starts in _GROUPS.items() if name.startswith(starts))
        groups[next(found, "Others")].append(name)
    return [(title, names) for title, names in groups.items() if names]


def _sentence(text: str) -> str:
    """A capital in front, but of a path or mIoU, and a full stop behind."""
    first = text.partition(" ")[0].rstrip(",:")
    start = text[:1].upper() if first.isalpha() and first.islower() else text[:1]
    return start + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _gauge(name: str, metric: Metric) -> dict[str, float | None]:
    """Positions on a bar of length 100: value, interval and real."""
    numbers = [v for v in (metric.value, metric.real, metric.high) if v is not None]
    most = max([*numbers, 1e-12])
    full = 1.15 * most if tables.lower(name) or most > 1 else 1.0

    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * min(max(value / full, 0), 1), 2)

    return {key: at(getattr(metric, key)) for key in ("value", "real", "low", "high")}


def _chart(curve: Curve) -> dict[str, Any]:
    """Geometry of a line chart in a box of 320 x 120, and the labels of its axes."""
    xs, ys = zip(*curve.points, strict=True)
    x_0, x_1, y_0, y_1 = min(xs), max(xs), min(ys), max(ys)
    width, height = (x_1 - x_0) or 1, (y_1 - y_0) or 1
    path = " ".join(
        f"{320 * (x - x_0) / width:.1f},{116 - 112 * (y - y_0) / height:.1f}"
        for x, y in curve.points
    )
    ends = {"x_0": f"{x_0:,.0f}", "x_1": f"{x_1:,.0f}", "low": y_0, "high": y_1}
    return {"path": path, "last": ys[-1], **ends}


def _row_shares(confusion: Confusion) -> list[list[float | None]]:
    """Shares of each true class's pixels that were predicted as each class; None without pixels."""
    counts = np.asarray(confusion.counts, np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    return [[None if math.isnan(v) else float(v) for v in row] for row in shares]


class _Plot(NamedTuple):
    """Runs of several conditions on one axis; positions are 0 to 100."""

    ticks: list[tuple[float, float]]  # value and position
    rows: list[dict[str, Any]]  # seeds, mean, low, high, and real: the mean of real pairs only


def _plot(downstream: DownstreamReport) -> _Plot:
    """Every run's mIoU as a dot, with mean and interval of each condition."""
    rows = downstream.rows
    values = [run.miou for row in rows for run in row.runs]
    values += [v for row in rows for v in (row.miou.low, row.miou.high) if v is not None]
    ticks = _ticks(max(0, min(values)), min(1, max(values))) if values else [0.0, 1.0]

    def at(value: float | None) -> float | None:
        return _on_axis(value, ticks, 100)

    placed = [
        {
            "seeds": [at(run.miou) for run in row.runs],
            "real": at(_baseline(row)),
            **{key: at(getattr(row.miou, key)) for key in ("mean", "low", "high")},
        }
        for row in rows
    ]
    return _Plot([(tick, cast("float", at(tick))) for tick in ticks], placed)


class _Exchange(NamedTuple):
    """Mean IoU by number of labelled photos; positions in a box of 640 x 240."""

    photos: list[tuple[float, str]]  # of the points of the curve, and their numbers
    ticks: list[tuple[float, float]]  # of mIoU, and their positions
    curve: list[dict[str, Any]]  # x, y, low, high of each point
    arms: list[dict[str, Any]]  # name, y, from and to: photos used and photos worth, and worth


def _exchange(downstream: DownstreamReport) -> _Exchange | None:
    """The learning curve of real pairs alone, and where arms of samples meet it."""
    points = {row.real_images: row for row in downstream.rows if row.mix == 0}
    points = {n: row for n, row in sorted(points.items()) if n and row.miou.mean is not None}
    arms = [row for row in downstream.rows if row.photos_worth and row.miou.mean is not None]
    if len(points) < 2:
        return None
    ends = [v for row in points.values() for v in (row.miou.low, row.miou.high, row.miou.mean)]
    values = [v for v in (*ends, *(row.miou.mean for row in arms)) if v is not None]
    ticks = _ticks(max(0, min(values)), min(1, max(values)))
    first, last = math.log(min(points)), math.log(max(points))

    def x(photos: float) -> float:
        return round(640 * max(0.0, math.log(max(photos, 1)) - first) / (last - first), 1)

    def y(value: float | None) -> float | None:
        up = _on_axis(value, ticks, 240)
        return None if up is None else round(240 - up, 1)

    curve = [
        {"x": x(n), **{key: y(getattr(row.miou, key)) for key in ("mean", "low", "high")}}
        for n, row in points.items()
    ]
    worth = [
        {
            "name": row.name,
            "y": y(row.miou.mean),
            "from": x(row.real_images),
            "to": x(row.photos_worth or 0),
            "worth": round(row.photos_worth or 0),
        }
        for row in arms
    ]
    numbers = [(x(n), f"{n:,}") for n in points]
    return _Exchange(numbers, [(tick, cast("float", y(tick))) for tick in ticks], curve, worth)


def _on_axis(value: float | None, ticks: Sequence[float], length: float) -> float | None:
    """Position between the first and the last tick; an interval of few seeds may go beyond."""
    if value is None:
        return None
    part = (value - ticks[0]) / (ticks[-1] - ticks[0])
    return round(length * min(max(part, 0), 1), 2)


def _baseline(row: Condition) -> float | None:
    """Mean IoU of students of the same real pairs alone."""
    if row.against_real is None or row.miou.mean is None:
        return row.miou.mean if row.mix == 0 else None
    return row.miou.mean - row.against_real.difference


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, within 0 to 1: three to six."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= 5:
            break
    while last - first < 2:
        first, last = (first - 1, last) if first > 0 else (first, last + 1)
    return [round(step * i, 2) for i in range(first, last + 1)]


def _source(picture: Picture) -> str:
    """Data URL of a picture: PNG for masks, JPEG for the rest."""
    return data_url(picture.image, quality=None if picture.exact else 88)
