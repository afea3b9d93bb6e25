"""The paper's Table 3: what each part of the model is worth, from reports of several runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgan import checkpoint, report
from ecgan.errors import UserError
from ecgan.recipe import Recipe, parse_recipe

_FID = ("fid", "fid_clean", "fd_dinov2", "fd_efficientnet_lite0")  # the first that all reports have
_SAME = ("judge_hash", "size", "split", "reference_images", "layouts")  # of comparable protocols


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        place: run or report, as it was named.
        setup: parts that the run has, as the paper writes them.
        images: seen in training; None where that is not known.
        document: the report.
    """

    place: str
    setup: str
    images: int | None
    document: Mapping[str, Any]


def setup_of(recipe: Recipe) -> str:
    """Parts of a run as in Table 3: ``E+Gi+Ge+Gt+Gs+Gl+Gc``."""
    model = recipe.model
    parts = {
        "E": True,
        "Gi": True,
        "Ge": model.edge_generator,
        "Gt": model.edge_transfer,
        "Gs": model.semantic_preserving,
        "Gl": model.label_generator != "off" and recipe.losses.similarity > 0,
        "Gc": model.contrastive or model.class_specific,
    }
    return "+".join(name for name, there in parts.items() if there)


def read(places: Sequence[Path], reports: Path = Path("reports")) -> list[Entry]:
    """The report of each place: a run, the folder of a report, or a ``report.json``.

    Args:
        places: in the order of the table.
        reports: folder of reports, where those of runs are looked for.

    Raises:
        UserError: places without a report, or reports that cannot be compared; all at once.
    """
    faults: list[str] = []
    entries: list[Entry] = []
    known = _reports_by_checkpoint(reports)
    for place in places:
        try:
            entries.append(_entry(place, known))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("runs without a report that can be read", faults)
    faults = _differences(entries)
    if faults:
        raise UserError("these reports cannot stand in one table", faults)
    return entries


def _reports_by_checkpoint(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/report.json"), key=lambda p: p.stat().st_mtime):
        try:
            document = report.load(path)
        except UserError:  # another program's, or of another version
            continue
        if document["metrics"]:
            found[document["protocol"].get("checkpoint", "")] = path
    return found


def _entry(place: Path, known: Mapping[str, Path]) -> Entry:
    generator = place / checkpoint.GENERATOR
    if not generator.is_file():
        document = report.load(place)
        return Entry(str(place), str(document["samples"]), None, document)
    path = known.get(checkpoint.sha256(generator))
    if path is None:
        raise UserError(f"{place}: no report of this generator; ecgan evaluate --samples {place}")
    file = checkpoint.read_metadata(generator)
    recipe = parse_recipe(file["recipe"], f"{generator}: its recipe")
    return Entry(str(place), setup_of(recipe), int(file["images_seen"]), report.load(path))


def _differences(entries: Sequence[Entry]) -> list[str]:
    """What keeps reports from being compared: protocols that differ from the first one's."""
    first = entries[0].document["protocol"]
    faults = [
        f"{entry.place}: no judge scored it, so it has no mIoU"
        for entry in entries
        if "miou" not in entry.document["metrics"]
    ]
    for entry in entries[1:]:
        own = entry.document["protocol"]
        faults += [
            f"{entry.place}: {name} is {own.get(name)}, of {entries[0].place} {first.get(name)}"
            for name in _SAME
            if own.get(name) != first.get(name)
        ]
    return faults


def to_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The table for machines."""
    distance = _distance(entries)
    names = ("miou", "accuracy", *([distance] if distance else []))
    rows = [
        {
            "setup": entry.setup,
            "place": entry.place,
            "images": entry.images,
            **{name: entry.document["metrics"][name] for name in names},
        }
        for entry in entries
    ]
    return {"rows": rows, "distance": distance, "notes": _notes(entries)}


def table(entries: Sequence[Entry], *, markdown: bool = False) -> str:
    """The table as the paper prints it: mIoU and Acc in per cent, FID."""
    distance = _distance(entries)
    title = "-" if distance is None else report.MEANINGS[distance].title
    rows = [("setup", "mIoU ↑", "Acc ↑", f"{title} ↓", "images seen")]
    for entry in entries:
        metrics = entry.document["metrics"]
        rows.append(
            (
                entry.setup,
                f"{100 * metrics['miou']['value']:.1f}",
                f"{100 * metrics['accuracy']['value']:.1f}",
                "-" if distance is None else f"{metrics[distance]['value']:.1f}",
                "not known" if entry.images is None else f"{entry.images:,}",
            )
        )
    lines = [*report.lines_of(rows, markdown=markdown)]
    notes = _notes(entries)
    if notes:
        lines += ["", *(f"{'- ' if markdown else ''}note: {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def dumps(entries: Sequence[Entry]) -> str:
    """:func:`to_json` as text."""
    return json.dumps(to_json(entries), indent=2)


def _distance(entries: Sequence[Entry]) -> str | None:
    """The distance that all reports have, FID if they do."""
    shared = set.intersection(*(set(entry.document["metrics"]) for entry in entries))
    return next((name for name in _FID if name in shared), None)


def _notes(entries: Sequence[Entry]) -> list[str]:
    notes = [
        f"real photos, same judge: mIoU {100 * metrics['miou']['real']:.1f}, Acc "
        f"{100 * metrics['accuracy']['real']:.1f}"
        for metrics in [entries[0].document["metrics"]]
        if metrics["miou"]["real"]
    ]
    lengths = {entry.images for entry in entries if entry.images is not None}
    if len(lengths) > 1:
        listed = ", ".join(f"{n:,}" for n in sorted(lengths))
        notes.append(f"the runs were not trained equally long: {listed} images")
    if _distance(entries) not in {None, "fid"}:
        notes.append("not the paper's FID: other features, named above")
    marked = [entry.place for entry in entries if entry.document.get("marks")]
    if marked:
        notes.append(f"reports with marks: {', '.join(marked)}; read them first")
    return notes
