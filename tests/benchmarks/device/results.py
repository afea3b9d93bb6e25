"""Results of a run: figures of each part as they come, in one JSON and one Markdown file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JSON, MARKDOWN, LOG = "results.json", "results.md", "log.txt"


@dataclass
class Results:
    """What is known so far; each change is on the disk before the next one.

    Attributes:
        folder: where the files are.
        about: what was asked for, and when.
        parts: name, title, state, reason, limit and seconds of each, and its figures.
    """

    folder: Path
    about: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, name, title, limit):
        self.parts.append(
            {
                "name": name, "title": title, "state": "running", "reason": "",
                "limit": round(limit, 1), "seconds": None, "figures": [],
            }
        )  # fmt: skip
        self.write()

    def add(self, figures):
        """Figures of the part that runs."""
        self.parts[-1]["figures"] += figures
        self.write()

    def end(self, state, reason="", seconds=None):
        """How the part ended: done, failed, out of time, or left out."""
        self.parts[-1] |= {"state": state, "reason": reason, "seconds": seconds}
        self.write()

    def write(self):
        written = {"about": self.about, "parts": self.parts}
        replace(self.folder / JSON, json.dumps(written, indent=1) + "\n")
        replace(self.folder / MARKDOWN, self.markdown())

    def markdown(self):
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = ["# Benchmarks on a device", "", about]
        for part in self.parts:
            lines += ["", f"## {part['title']}", "", state_line(part)]
            if part["figures"]:
                lines += ["", "| | | target | | |", "|---|---:|---:|---|---|"]
                lines += [row(figure) for figure in part["figures"]]
        return "\n".join(lines) + "\n"


def state_line(part):
    """``done in 31 s of 45 s``, ``failed after 3 s: ...``."""
    if part["state"] in {"left out", "running"}:
        return f"{part['state']}: {part['reason'] or 'no end was seen'}"
    reason = f": {part['reason']}" if part["reason"] else ""
    word = "in" if part["state"] == "done" else "after"
    return f"{part['state']} {word} {part['seconds']:.0f} s of {part['limit']:.0f} s{reason}"


def row(figure):
    value = figure["value"]
    if isinstance(value, float):
        value = f"{value:.4g}"
    shown = "not measured" if value is None else f"{value} {figure['unit']}".strip()
    target = ""
    if figure["target"] is not None:
        target = f"{figure['target'][0]} {figure['target'][1]:g}"
    cells = (figure["name"], shown, target, verdict(figure), figure["note"])
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def verdict(figure):
    """``met`` or ``missed``; empty where there is no target, or nothing was measured."""
    if figure["target"] is None or figure["value"] is None:
        return ""
    bound, limit = figure["target"]
    met = figure["value"] >= limit if bound == "at least" else figure["value"] <= limit
    return "met" if met else "missed"


def replace(path, text):
    """A reader sees the file before or after, and a kill leaves one of them."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
