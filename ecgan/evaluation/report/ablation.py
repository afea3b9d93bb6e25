"""The paper's Table 3: what each part of the model is worth, from reports of several runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgan import checkpoint
from ecgan.errors import UserError, in_markdown, shortened
from ecgan.evaluation.report import tables
from ecgan.evaluation.report.document import SetReport, load
from ecgan.recipe import Recipe, parse_recipe
from ecgan.runtime.files import sha256
from ecgan.shards.manifest import read_manifest

_FID = ("fid", "fid_clean", "fd_dinov2", "fd_efficientnet_lite0")  # the first of the most frequent
_SAME = ("judge_hash", "size", "split", "reference_images", "layouts")  # of comparable protocols
_NOTED = ("label_filter", "codec", "resizing", "distances", "ecgan", "torch")  # may move a number


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        place: run or report, as it was named.
        setup: parts that the generator was trained with, as the paper writes them; the samples'
            name where that is not known.
        images: images seen in training; None where that is not known.
        numbers: report of the set.
    """

    place: str
    setup: str
    images: int | None
    numbers: SetReport


def setup_of(recipe: Recipe) -> str:
    """Parts of a run as in Table 3: ``E+Gi+Ge+Gt+Gs+Gl+Gc``.

    The paper's last part is contrastive learning and class-specific generation; one alone is named.
    """
    parts = recipe.parts()
    names = [name for name in ("E", "Gi", "Ge", "Gt", "Gs", "Gl") if name in parts.names]
    if parts.contrastive and parts.class_specific:
        names.append("Gc")
    elif parts.contrastive or parts.class_specific:
        alone = "contrastive" if parts.contrastive else "class-specific"
        names.append(f"Gc ({alone} alone)")
    return "+".join(names)


def read(places: Sequence[Path], reports: Sequence[Path] = (Path("reports"),)) -> list[Entry]:
    """The numbers of each place: a run, the folder of a report, or a ``report.json``.

    A report with several sets of samples gives as many rows.

    Args:
        places: runs and reports, in the order of the table.
        reports: reports, or folders of reports, among which those of runs are looked for.

    Raises:
        UserError: places without a report, or reports that cannot be compared; all at once.
    """
    faults: list[str] = []
    entries: list[Entry] = []
    known = _by_checkpoint(reports)
    for place in places:
        try:
            entries += _entries(place, known)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("there is no report to read", faults)
    faults = _differences(entries)
    if faults:
        raise UserError("these reports cannot stand in one table", faults)
    return entries


def _by_checkpoint(folders: Sequence[Path]) -> dict[str, SetReport]:
    """Every set that was evaluated, by the hash of its generator; of several, the last one."""
    paths = {path for place in folders for path in _report_files(place)}
    found: dict[str, SetReport] = {}
    for path in sorted(paths, key=lambda p: (p.stat().st_mtime, p)):
        try:
            parts = load(path).sets
        except UserError:  # another program's, or of another version
            continue
        found |= {str(one.protocol.get("checkpoint", "")): one for one in parts if one.metrics}
    return found


def _report_files(place: Path) -> list[Path]:
    own = [place, place / "report.json", *place.glob("*/report.json")]
    return [path for path in own if path.is_file()]


def _entries(place: Path, known: Mapping[str, SetReport]) -> list[Entry]:
    generator = place / checkpoint.GENERATOR
    if not generator.is_file():
        if (place / "recipe.yaml").is_file():
            raise UserError(f"{place}: its training is not finished; run the same command again")
        return [_of_report(place, one) for one in load(place).sets]
    numbers = known.get(sha256(generator))
    if numbers is None:
        raise UserError(f"{place}: no report of this generator; ecgan evaluate --samples {place}")
    file = checkpoint.read_metadata(generator)
    recipe = parse_recipe(file.recipe, f"{generator}: its recipe")
    return [Entry(str(place), setup_of(recipe), file.images_seen, numbers)]


def _of_report(place: Path, one: SetReport) -> Entry:
    """A set of a report, with what its samples say of their generator, where they still are."""
    samples = Path(one.samples)
    try:
        about = read_manifest(samples) if (samples / "manifest.json").is_file() else None
    except (OSError, UserError):  # a place that is none, or no longer what was evaluated
        about = None
    made_by = one.protocol.get("checkpoint")
    if about is None or about.fingerprint.checkpoint != made_by:
        return Entry(str(place), one.samples, None, one)
    recipe = parse_recipe(about.recipe, f"{samples}/manifest.json: recipe")
    images = None if about.provenance is None else about.provenance.checkpoint.images_seen
    return Entry(str(place), setup_of(recipe), images, one)


def _differences(entries: Sequence[Entry]) -> list[str]:
    """Faults of reports that cannot be compared: no mIoU, or another protocol than the first."""
    faults = [
        f"{entry.place}: no judge scored {entry.numbers.samples}, so it has no mIoU"
        for entry in entries
        if "miou" not in entry.numbers.metrics
    ]
    faults += [
        f"{entry.place}: has no pixel accuracy of {entry.numbers.samples}"
        for entry in entries
        if "miou" in entry.numbers.metrics and "accuracy" not in entry.numbers.metrics
    ]
    scored = [entry for entry in entries if "miou" in entry.numbers.metrics]
    for entry in scored[1:]:
        own, wanted = _comparable(entry), _comparable(scored[0])
        faults += [
            f"{entry.place}: {name} is {shortened(str(own[name]))}, "
            f"of {scored[0].place} {shortened(str(wanted[name]))}"
            for name in own
            if own[name] != wanted[name]
        ]
    return faults


def _comparable(entry: Entry) -> dict[str, Any]:
    protocol = {name: entry.numbers.protocol.get(name) for name in _SAME}
    return protocol | {"number of images": entry.numbers.metrics["miou"].n}


def to_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The table for machines."""
    distance = _distance(entries)
    names = ("miou", "accuracy", *([distance] if distance else []))
    rows = [
        {
            "setup": entry.setup,
            "place": entry.place,
            "images": entry.images,
            "warnings": entry.numbers.warnings,
            **{n: m.model_dump() if (m := entry.numbers.metrics.get(n)) else None for n in names},
        }
        for entry in entries
    ]
    return {"rows": rows, "distance": distance, "notes": _notes(entries)}


def _number(value: float | None, scale: float = 1) -> str:
    return "n/a" if value is None else f"{scale * value:.1f}"


def table(entries: Sequence[Entry], *, markdown: bool = False) -> str:
    """The table as the paper prints it: mIoU and Acc in per cent, FID."""
    distance = _distance(entries)
    far = [] if distance is None else [f"{tables.title(distance)} ↓"]
    rows = [("setup", "mIoU ↑", "Acc ↑", *far, "images seen")]
    for entry in entries:
        metrics = entry.numbers.metrics
        if distance is not None:
            far = [_number(metrics[distance].value) if distance in metrics else "-"]
        rows.append(
            (
                entry.setup,
                _number(metrics["miou"].value, 100),
                _number(metrics["accuracy"].value, 100),
                *far,
                "not known" if entry.images is None else f"{entry.images:,}",
            )
        )
    lines = [*tables.lines_of(rows, markdown=markdown)]
    notes = _notes(entries)
    if notes:
        texts = [f"note: {note}" for note in notes]
        lines += [
            "",
            *(f"- {in_markdown(t)}" if markdown else t for t in tables.plain(texts)),
        ]
    return "\n".join(lines) + "\n"


def dumps(entries: Sequence[Entry]) -> str:
    """:func:`to_json` as text."""
    return json.dumps(to_json(entries), indent=2)


def _distance(entries: Sequence[Entry]) -> str | None:
    """The distance that most reports have, of equally many FID; None where no report has any."""
    counts = {name: sum(name in e.numbers.metrics for e in entries) for name in _FID}
    name = max(_FID, key=counts.__getitem__)
    return name if counts[name] else None


def _notes(entries: Sequence[Entry]) -> list[str]:
    notes = [
        f"real photos, same judge: mIoU {_number(metrics['miou'].real, 100)}, Acc "
        f"{_number(metrics['accuracy'].real, 100)}"
        for metrics in [entries[0].numbers.metrics]
        if metrics["miou"].real
    ]
    lengths = {entry.images for entry in entries if entry.images is not None}
    if len(lengths) > 1:
        listed = ", ".join(f"{n:,}" for n in sorted(lengths))
        notes.append(f"the runs were not trained equally long: {listed} images")
    distance = _distance(entries)
    if distance is None:
        notes.append("no report has a Fréchet distance, so there is no column of it")
    else:
        if distance != "fid":
            notes.append("not the paper's FID: other features, named above")
        without = [entry.place for entry in entries if distance not in entry.numbers.metrics]
        if without:
            title = tables.title(distance)
            notes.append(f"reports without {title}: {', '.join(without)}; evaluate them again")
    for name in _NOTED:
        found = {str(entry.numbers.protocol.get(name, "not known"))[:200] for entry in entries}
        if len(found) > 1:
            listed = "; ".join(sorted(found))
            notes.append(f"the protocols differ in {name.replace('_', ' ')}: {listed}")
    warned = [entry.place for entry in entries if entry.numbers.warnings]
    if warned:
        notes.append(f"reports with warnings: {', '.join(warned)}; read them first")
    return notes
