"""Numbers -> ``report.json`` and one self-contained ``report.html``; and a report read again.

``report.json``, schema 1::

    {"schema": 1, "samples": PATH, "protocol": {...},
     "metrics": {NAME: {"value": x, "real": y, "low": a, "high": b, "n": k}},
     "per_class": {CLASS: {"iou", "real", "low", "high", "share", "real_share", "color"}},
     "confusion": {"classes": [...], "counts": [[...]]},
     "skipped": {NAME: REASON}, "marks": [...], "notes": [...],
     "best": [...], "worst": [...], "compared": [...],
     "downstream": {"protocol": {...}, "rows": [...], "sentences": [...], "notes": [...],
                    "failed": [...]}}

``real`` is what the same measurement gives for real photos, ``low`` and ``high`` the ends of a 95 %
interval, ``n`` the images behind the value (of diversity, the pairs); null where there is none. A
metric may also have ``std``, over repetitions, and ``protocol``, what is particular to it.
``confusion`` counts pixels, true class x class read, the last column no class. ``marks`` say what
makes numbers unfit to be quoted. ``compared`` holds the same fields (without ``schema``) for each
further set of samples of the same call. ``downstream`` is there where segmenters were trained with
samples, its rows as in :mod:`ecgan.evaluation.downstream.run`; ``metrics`` is empty where nothing
else was asked.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import numpy.typing as npt

from ecgan import __version__
from ecgan.errors import UserError
from ecgan.runtime.files import write_whole
from ecgan.visualization import data_url

SCHEMA = 1


class Meaning(NamedTuple):
    """How a metric is called and read."""

    title: str
    better: str  # higher or lower
    text: str


_NETWORKS = {
    "inception": "Inception",
    "inception_clean": "Inception, clean",
    "dinov2": "DINOv2",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
MEANINGS = {
    "miou": Meaning("mIoU", "higher", "mean IoU of layout and judge's reading, over classes"),
    "frequency_weighted_iou": Meaning("IoU by frequency", "higher", "IoU weighted by class pixels"),
    "accuracy": Meaning(
        "Pixel accuracy", "higher", "labelled pixels that the judge reads as meant"
    ),
    "accuracy_with_void": Meaning(
        "Pixel accuracy, with void", "higher", "the same, over all pixels: void counts as wrong"
    ),
    "consistency": Meaning(
        "Consistency", "higher", "mean probability that the judge gives to the layout's class"
    ),
    "fid": Meaning("FID", "lower", "Fréchet distance of Inception features"),
    "kid": Meaning("KID", "lower", "kernel distance of Inception features"),
    "fid_clean": Meaning("FID, clean", "lower", "Fréchet distance, resized as clean-fid does"),
    "kid_clean": Meaning("KID, clean", "lower", "kernel distance, resized as clean-fid does"),
    "fd_dinov2": Meaning("FD, DINOv2", "lower", "Fréchet distance of DINOv2 features; not FID"),
    "fd_efficientnet_lite0": Meaning(
        "FD, EfficientNet-Lite0",
        "lower",
        "Fréchet distance of EfficientNet-Lite0 features; not FID",
    ),
    "diversity_efficientnet_lite0": Meaning(
        "Diversity",
        "higher",
        "mean perceptual distance between styles of one layout; real: between photos of different "
        "layouts",
    ),
    "edge_precision": Meaning(
        "Edge precision", "higher", "generated edge pixels that lie on an edge of the image"
    ),
    "edge_recall": Meaning(
        "Edge recall", "higher", "edge pixels of the image that the edge map has"
    ),
    "edge_f1": Meaning("Edge F1", "higher", "their harmonic mean"),
    **{
        f"{kind}_{network}": Meaning(f"{kind.capitalize()}, {title}", "higher", text)
        for network, title in _NETWORKS.items()
        for kind, text in (
            ("precision", "share of samples within the photos' manifold of features"),
            ("recall", "share of photos within the samples' manifold of features"),
        )
    },
}
_GROUPS = {  # of the metrics whose names begin so
    "What the judge reads": ("miou", "frequency", "accuracy", "consistency"),
    "Distance between samples and photos, as sets": ("fid", "kid", "fd_"),
    "How much of one set lies within the other": ("precision_", "recall_"),
    "Styles and edges": ("diversity_", "edge_"),
}
_OPTIONAL: dict[str, Any] = {"marks": [], "notes": [], "skipped": {}, "confusion": None}
_HEADLINES = ("miou", "accuracy", "fid", "fd_efficientnet_lite0")


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


def write(report: Mapping[str, Any], out: Path, illustrations: Sequence[Illustrations]) -> None:
    """Write ``report.html`` and then ``report.json`` into ``out``, each whole or not at all.

    Args:
        report: as in the module's docstring.
        out: folder; made if it is not there.
        illustrations: one for each set of samples, in the order of :func:`sets`.
    """
    page = html(report, illustrations)
    write_whole(out / "report.html", page)
    write_whole(out / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read a ``report.json``, or the one in a folder.

    Raises:
        UserError: there is none, it is not one of ours, or of a later schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; `ecgan evaluate` writes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a report: {error}") from error
    if not isinstance(report, dict) or "schema" not in report or "metrics" not in report:
        raise UserError(f"{file}: not a report of ecgan: schema or metrics is missing")
    if report["schema"] != SCHEMA:
        raise UserError(
            f"{file}: schema {report['schema']}, this ecgan ({__version__}) reads {SCHEMA}"
        )
    return report


def sets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sets of samples in a report: the first, then those compared with it."""
    return [dict(report), *report.get("compared", ())]


def table(report: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The numbers of a report as a table, for a terminal or for a pull request."""
    parts: list[str] = []
    for one in sets(report):
        if one["metrics"]:
            parts += [*_numbers(one, markdown=markdown), ""]
    if "downstream" in report:
        parts += [*_worth(report["downstream"], markdown=markdown), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _numbers(one: Mapping[str, Any], *, markdown: bool) -> list[str]:
    names, marks, remarks = list(one["metrics"]), one.get("marks", ()), _remarks(one)
    if not markdown:
        marked = [f"mark: {text}" for text in marks]
        return [str(one["samples"]), *_text_table(_rows(one, names)), *marked, *remarks]
    headlines = _headlines(one) or names
    lines = [f"**`{one['samples']}`**", "", verdict(one), ""]
    lines += [line for text in marks for line in (f"> **Mark:** {text}", "")]
    lines += _markdown_table(_rows(one, headlines))
    lines += ["", *(f"- {text}" for text in remarks)] if remarks else []
    if len(headlines) < len(names):
        lines += _folded(f"All {len(names)} numbers", _rows(one, names))
    if one["per_class"]:
        classes = [("class", "samples", "95 % interval", "real photos", "share of pixels")]
        classes += [
            (name, number(c["iou"]), interval(c), number(c["real"]), _percent(c["share"]))
            for name, c in one["per_class"].items()
        ]
        lines += _folded("IoU of each class", classes)
    return lines


def _rows(one: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Head and rows of a table of metrics."""
    return [("metric", "samples", "95 % interval", "real photos", "n")] + [
        (
            _title(name) + (" ↓" if _lower(name) else ""),
            spread(metric["value"], metric.get("std")),
            interval(metric),
            number(metric["real"]),
            str(metric["n"]),
        )
        for name, metric in one["metrics"].items()
        if name in names
    ]


def _folded(summary: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A table that a reader of Markdown opens."""
    table = _markdown_table(rows)
    return ["", f"<details><summary>{summary}</summary>", "", *table, "", "</details>"]


def _remarks(one: Mapping[str, Any]) -> list[str]:
    """Notes and what was skipped, a line each."""
    notes = [f"note: {text}" for text in one.get("notes", ())]
    return notes + [f"{', '.join(names)} skipped: {why}" for why, names in _skipped(one)]


def _worth(downstream: Mapping[str, Any], *, markdown: bool) -> list[str]:
    """What segmenters learnt from samples."""
    rows = [("trained on", "mIoU", "std over seeds", "accuracy", "against real only")]
    for row in downstream["rows"]:
        against = row["against_real"]
        rows.append(
            (
                row["name"],
                number(row["miou"]["mean"]),
                number(row["miou"]["std"]),
                number(row["accuracy"]["mean"]),
                "" if against is None else _signed(against),
            )
        )
    bullet = "- " if markdown else ""
    remarks = [f"{bullet}{text}" for text in downstream["sentences"]]
    remarks += [f"{bullet}note: {text}" for text in downstream["notes"]]
    remarks += [f"{bullet}failed: {text}" for text in downstream["failed"]]
    title = "What the samples are worth to a segmenter"
    if not markdown:
        return [title, *_text_table(rows), *remarks]
    lines = [f"**{title}**", "", *_markdown_table(rows), "", *remarks]
    classes = _class_rows(downstream)
    return [*lines, *_folded("IoU of each class", classes)] if len(classes) > 1 else lines


def _class_rows(downstream: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Head and rows: IoU of each class in every condition."""
    rows = downstream["rows"]
    names = rows[0]["per_class"] if rows else ()
    head = ("class", *(row["name"] for row in rows))
    return [head] + [
        (name, *(spread(c["mean"], c["std"]) for c in (row["per_class"][name] for row in rows)))
        for name in names
    ]


def _signed(against: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    text = f"{against['difference']:+.4f}"
    if against["low"] is None or against["high"] is None:
        return text
    return f"{text} ({against['low']:+.4f} to {against['high']:+.4f})"


def number(value: float | None) -> str:
    """Four significant digits for small numbers, two decimals for large; n/a for none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0 or 1e-4 <= abs(value) < 10:
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"
    return f"{value:.2e}" if abs(value) < 1 else f"{value:.2f}"


def spread(value: float | None, std: float | None) -> str:
    """A value with its standard deviation, where there is one."""
    return number(value) if value is None or std is None else f"{number(value)} ± {number(std)}"


def interval(metric: Mapping[str, Any]) -> str:
    """``low to high``; empty where there is no interval."""
    if metric["low"] is None or metric["high"] is None:
        return ""
    return f"{number(metric['low'])} to {number(metric['high'])}"


def html(report: Mapping[str, Any], illustrations: Sequence[Illustrations]) -> str:
    """The page: no network, no script; pictures and drawings are inside."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        number=number,
        spread=spread,
        interval=interval,
        source=_source,
        percent=_percent,
        signed=_signed,
        sentence=_sentence,
    )
    environment.globals.update(
        title=_title,
        text=_text,
        lower=_lower,
        gauge=_gauge,
        chart=_chart,
        skipped=_skipped,
        grouped=_grouped,
        shares=_row_shares,
        plot=_plot,
    )
    template = (
        resources.files("ecgan.evaluation.report")
        .joinpath("report.html.j2")
        .read_text(encoding="utf-8")
    )
    known = [_OPTIONAL | one for one in sets(report)]
    pairs = list(zip(known, illustrations, strict=True))
    return environment.from_string(template).render(
        sets=pairs,
        verdict=verdict,
        headlines=_headlines,
        version=__version__,
        downstream=report.get("downstream"),
    )


def verdict(one: Mapping[str, Any]) -> str:
    """One sentence: what the judge reads, against what it reads in real photos."""
    metric = one["metrics"].get("miou")
    if metric is None or not metric["real"]:
        return "No judge compared these samples with real photos."
    share = metric["value"] / metric["real"]
    compared = f": the samples keep {share:.0%} of that" if share < 1 else ", no more than that"
    return (
        f"The judge reads the layouts back from the samples at {metric['value']:.3f} mIoU; from "
        f"real photos it reaches {metric['real']:.3f}{compared}."
    )


def _headlines(one: Mapping[str, Any]) -> list[str]:
    return [name for name in _HEADLINES if name in one["metrics"]]


def _skipped(one: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Reasons, each with the metrics that it keeps from being computed."""
    reasons: dict[str, list[str]] = {}
    for name, why in one["skipped"].items():
        reasons.setdefault(why, []).append(_title(name))
    return list(reasons.items())


def _grouped(parts: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Names of the metrics of any of these sets by what they are about, in their own order."""
    groups: dict[str, list[str]] = {title: [] for title in (*_GROUPS, "Others")}
    for name in dict.fromkeys(name for one in parts for name in one["metrics"]):
        found = (title for title, starts in _GROUPS.items() if name.startswith(starts))
        groups[next(found, "Others")].append(name)
    return [(title, names) for title, names in groups.items() if names]


def _sentence(text: str) -> str:
    """A capital in front and a full stop behind."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _title(name: str) -> str:
    return MEANINGS[name].title if name in MEANINGS else name


def _text(name: str) -> str:
    return MEANINGS[name].text if name in MEANINGS else ""


def _lower(name: str) -> bool:
    return name in MEANINGS and MEANINGS[name].better == "lower"


def _percent(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if value >= 0.0005 or value == 0 else "< 0.1 %"


def _gauge(name: str, metric: Mapping[str, Any]) -> dict[str, float | None]:
    """Positions on a bar of length 100: value, interval and real."""
    numbers = [v for v in (metric["value"], metric["real"], metric["high"]) if v is not None]
    full = 1.0 if not _lower(name) else 1.15 * max([*numbers, 1e-12])

    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * min(max(value / full, 0), 1), 2)

    return {key: at(metric[key]) for key in ("value", "real", "low", "high")}


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


def _row_shares(confusion: Mapping[str, Any]) -> list[list[float | None]]:
    """Of the pixels of each true class, the share that was read as each class; None without any."""
    counts = np.asarray(confusion["counts"], np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    return [[None if math.isnan(v) else float(v) for v in row] for row in shares]


class _Plot(NamedTuple):
    """Runs of several conditions on one axis; positions are 0 to 100."""

    ticks: list[tuple[float, float]]  # value and position
    rows: list[dict[str, Any]]  # seeds, mean, low, high, and real: the mean of real pairs only


def _plot(downstream: Mapping[str, Any], name: str) -> _Plot:
    """Every run's ``miou`` or ``accuracy`` as a dot, with mean and interval of each condition."""
    rows = downstream["rows"]
    values = [run[name] for row in rows for run in row["runs"]]
    values += [v for row in rows for v in (row[name]["low"], row[name]["high"]) if v is not None]
    ticks = _ticks(max(0, min(values)), min(1, max(values))) if values else [0.0, 1.0]
    low, high = ticks[0], ticks[-1]

    def at(value: float | None) -> float | None:
        """An interval of few seeds may go beyond 0 or 1."""
        if value is None:
            return None
        return round(100 * min(max((value - low) / (high - low), 0), 1), 2)

    real = {row["real_fraction"]: row[name]["mean"] for row in rows if row["mix"] == 0}
    placed = [
        {
            "seeds": [at(run[name]) for run in row["runs"]],
            "real": at(real.get(row["real_fraction"])),
            **{key: at(row[name][key]) for key in ("mean", "low", "high")},
        }
        for row in rows
    ]
    return _Plot([(tick, 100 * (tick - low) / (high - low)) for tick in ticks], placed)


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


def lines_of(rows: Sequence[Sequence[str]], *, markdown: bool) -> Iterator[str]:
    """A table, the first row its head; the first column to the left, the others to the right."""
    return _markdown_table(rows) if markdown else _text_table(rows)


def _text_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        yield "  " + "  ".join(cells).rstrip()


def _markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = rows
    yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in body:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
