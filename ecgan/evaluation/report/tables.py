"""Tables of a report for a terminal and for Markdown, and the metrics' names and units."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from ecgan.errors import in_markdown, one_line
from ecgan.evaluation.report.document import (
    Difference,
    DownstreamReport,
    Metric,
    Report,
    SetReport,
    Spread,
)


class Meaning(NamedTuple):
    """Title and explanation of a metric."""

    title: str
    better: str  # higher or lower; equal: as near to 1 as can be
    text: str


_NETWORKS = {
    "inception": "Inception",
    "inception_clean": "Inception, clean",
    "dinov2": "DINOv2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vgg16_hed": "VGG16 of HED",
}
MEANINGS = {
    "miou": Meaning(
        "mIoU", "higher", "mean IoU of the layout and the judge's prediction, over classes"
    ),
    "frequency_weighted_iou": Meaning("IoU by frequency", "higher", "IoU weighted by class pixels"),
    "accuracy": Meaning(
        "Pixel accuracy", "higher", "labelled pixels that the judge predicts as in the layout"
    ),
    "accuracy_with_void": Meaning(
        "Pixel accuracy, with void", "higher", "the same, over all pixels: void counts as wrong"
    ),
    "consistency": Meaning(
        "Consistency", "higher", "mean probability that the judge predicts for the layout's class"
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
    "fd_vgg16_hed": Meaning(
        "FD, VGG16 of HED", "lower", "Fréchet distance of features of HED's VGG16; not FID"
    ),
    "kd_vgg16_hed": Meaning(
        "KD, VGG16 of HED", "lower", "kernel distance of features of HED's VGG16; not KID"
    ),
    "diversity_efficientnet_lite0": Meaning(
        "Diversity (real: other layouts)",
        "higher",
        "mean perceptual distance between styles of one layout",
    ),
    "style_spread": Meaning(
        "Style spread",
        "higher",
        "variance of the classes' mean colours over styles of one layout, by that over photos: 1 "
        "where styles differ as photos do",
    ),
    "style_spread_deep": Meaning(
        "Style spread, VGG16 of HED",
        "higher",
        "the same of the classes' mean features (relu3_1 of HED's VGG16)",
    ),
    "top_octave": Meaning(
        "Top octave",
        "equal",
        "share of a picture's variance above half of Nyquist, by that of photos: 1 is as photos, "
        "more is a woven texture, less is blur",
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
_LINE = 1000  # characters of a note
_MOST_NOTES = 100  # of a set: those of `ecgan evaluate` are a dozen
_HEADLINES = ("miou", "accuracy", "fid", "fd_efficientnet_lite0", "fd_vgg16_hed", "style_spread")


class HasInterval(Protocol):
    """Anything with the ends of an interval."""

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def table(report: Report, *, markdown: bool = False) -> str:
    """The numbers of a report as a table, for a terminal or for a pull request."""
    parts: list[str] = []
    for one in report.sets:
        if one.metrics:
            parts += [*_numbers(one, markdown=markdown), ""]
    if report.downstream is not None:
        parts += [*_downstream(report.downstream, markdown=markdown), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _numbers(one: SetReport, *, markdown: bool) -> list[str]:
    names, remarks = list(one.metrics), _remarks(one)
    if not markdown:
        texts = [*(f"warning: {text}" for text in one.warnings), *remarks]
        return [one_line(one.samples), *_text_table(_rows(one, names)), *plain(texts)]
    shown = headlines(one) or names
    lines = [f"**{in_markdown(one.samples)}**", "", in_markdown(verdict(one)), ""]
    warnings = plain(one.warnings)
    lines += [line for text in warnings for line in (f"> **Warning:** {in_markdown(text)}", "")]
    lines += _markdown_table(_rows(one, shown))
    lines += ["", *(f"- {in_markdown(text)}" for text in plain(remarks))] if remarks else []
    if len(shown) < len(names):
        lines += _folded(f"All {len(names)} numbers", _rows(one, names))
    if one.per_class:
        spreads = "style_spread" in one.metrics
        head = ("class", "samples", "95 % interval", "real photos", "share of pixels")
        classes = [(*head, "style spread") if spreads else head]
        classes += [
            (
                *(name, number(c.iou), interval(c), number(c.real), percent(c.share)),
                *([number(c.style_spread)] if spreads else []),
            )
            for name, c in one.per_class.items()
        ]
        lines += _folded("IoU of each class", classes)
    return lines


def _rows(one: SetReport, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Head and rows of a table of metrics."""
    return [("metric", "samples", "95 % interval", "real photos", "n")] + [
        (
            title(name) + mark(metric) + (" ↓" if lower(name) else ""),
            spread(metric.value, metric.std),
            interval(metric),
            number(metric.real),
            str(metric.n),
        )
        for name, metric in one.metrics.items()
        if name in names
    ]


def _folded(summary: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """A collapsed table in Markdown."""
    table = _markdown_table(rows)
    return ["", f"<details><summary>{summary}</summary>", "", *table, "", "</details>"]


def _remarks(one: SetReport) -> list[str]:
    """Notes and what was skipped, a line each."""
    notes = [f"note: {text}" for text in one.notes]
    return notes + [f"{', '.join(names)} skipped: {why}" for why, names in skipped(one)]


def _downstream(downstream: DownstreamReport, *, markdown: bool) -> list[str]:
    """Scores of segmenters that were trained with samples."""
    rows = [("trained on", "mIoU", "std", "accuracy", "against real only", "against best control")]
    for row in downstream.rows:
        against, best = row.against_real, row.against_control
        rows.append(
            (
                row.name,
                number(row.miou.mean),
                number(row.miou.std),
                number(row.accuracy.mean),
                "" if against is None else signed(against),
                "" if best is None or row.control == "real" else f"{row.control} {signed(best)}",
            )
        )
    remarks = [
        *downstream.sentences,
        *(f"note: {text}" for text in downstream.notes),
        *(f"failed: {text}" for text in downstream.failed),
    ]
    remarks = [f"- {in_markdown(text)}" if markdown else text for text in plain(remarks)]
    heading = "Segmenters trained with samples"
    if not markdown:
        return [heading, *_text_table(rows), *remarks]
    lines = [f"**{heading}**", "", *_markdown_table(rows), "", *remarks]
    names = [row.name for row in downstream.rows]
    for title, head, scores in (
        ("IoU of each class", "class", [row.per_class for row in downstream.rows]),
        ("mIoU of each sequence", "sequence", [row.per_sequence for row in downstream.rows]),
    ):
        if scores and scores[0]:
            lines += _folded(title, [(head, *names), *_spread_rows(scores)])
    return lines


def _spread_rows(scores: Sequence[Mapping[str, Spread]]) -> list[tuple[str, ...]]:
    """A row of each name, with a column of each arm."""
    return [
        (name, *(spread(one[name].mean, one[name].std) for one in scores)) for name in scores[0]
    ]


def signed(against: Difference) -> str:
    """A difference with its interval."""
    text = f"{against.difference:+.4f}"
    if against.low is None or against.high is None:
        return text
    return f"{text} ({against.low:+.4f} to {against.high:+.4f})"


def number(value: float | None) -> str:
    """Four significant digits for small numbers, two decimals for large; n/a for none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0 or 1e-4 <= abs(value) < 10:
        return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"
    return f"{value:.2e}" if abs(value) < 1 or abs(value) >= 1e9 else f"{value:.2f}"


def spread(value: float | None, std: float | None) -> str:
    """A value with its standard deviation, where there is one."""
    return number(value) if value is None or std is None else f"{number(value)} ± {number(std)}"


def interval(metric: HasInterval) -> str:
    """``low to high``; empty where there is no interval."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low)} to {number(metric.high)}"


def verdict(one: SetReport) -> str:
    """The judge's mIoU on samples against that on real photos, in one line."""
    metric = one.metrics.get("miou")
    if metric is None or metric.value is None or not metric.real:
        return "no judge compared these samples with real photos"
    return (
        f"judge mIoU {metric.value:.3f} on samples, {metric.real:.3f} on real photos "
        f"({100 * metric.value / metric.real:.0f} %)"
        + (f"; {metric.protocol}" if metric.protocol else "")
    )


def headlines(one: SetReport) -> list[str]:
    """Names of the metrics that come first."""
    return [name for name in _HEADLINES if name in one.metrics]


def skipped(one: SetReport) -> list[tuple[str, list[str]]]:
    """Reasons, each with the metrics that it keeps from being computed."""
    reasons: dict[str, list[str]] = {}
    for name, why in one.skipped.items():
        reasons.setdefault(why, []).append(title(name))
    return list(reasons.items())


def title(name: str) -> str:
    """Title of a metric; its name where it has none."""
    return MEANINGS[name].title if name in MEANINGS else name


def explanation(name: str) -> str:
    """Explanation of a metric; empty where there is none."""
    return MEANINGS[name].text if name in MEANINGS else ""


def lower(name: str) -> bool:
    """Whether a lower value is better."""
    return name in MEANINGS and MEANINGS[name].better == "lower"


def mark(metric: Metric) -> str:
    """A dagger where the generator was trained against features of the metric's family."""
    return "" if metric.trained_against is None else " †"


def percent(value: float | None) -> str:
    """A share in per cent."""
    if value is None:
        return "n/a"
    return f"{100 * value:.1f} %" if value >= 0.0005 or value == 0 else "< 0.1 %"


def lines_of(rows: Sequence[Sequence[str]], *, markdown: bool) -> Iterator[str]:
    """A table, the first row its head; the first column to the left, the others to the right."""
    return _markdown_table(rows) if markdown else _text_table(rows)


def plain(texts: Sequence[str]) -> list[str]:
    """Sentences of others for a terminal, a line each; of very many, the first and a count."""
    lines = [one_line(text, _LINE) for text in texts[:_MOST_NOTES]]
    more = len(texts) - len(lines)
    return [*lines, f"... and {more:,} more"] if more else lines


def _text_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    shown = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
        yield "  " + "  ".join(cells).rstrip()


def _markdown_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = [[in_markdown(one_line(cell)) for cell in row] for row in rows]
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in body:
        yield f"| {' | '.join(row)} |"
