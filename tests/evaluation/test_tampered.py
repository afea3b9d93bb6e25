"""Reports and answers of somebody else: one sentence; nothing in them steers what shows them."""

import json
import os
from pathlib import Path

import pytest

from ecgan.evaluation.report import ablation, document, page, study, tables
from tests.helpers.errors import message

METRIC = document.Metric.of(0.5, 0.6, 9, 0.4, 0.7).model_dump()
EVIL = "\x1b[31m\u202e\n| x | [a](javascript:1) <script>`"


def report(**values):
    whole = {
        "schema": 2,
        "samples": "datasets/city",
        "protocol": {"judge_hash": "1", "size": [2, 2]},
        "metrics": dict.fromkeys(("miou", "accuracy"), METRIC),
    }
    return whole | values


def written(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


SPREAD = {"mean": 0.1, "std": 0.1}
ROW = {
    "name": "real",
    "real_fraction": 1,
    "mix": 0,
    "real_images": 1,
    "synthetic_images": 0,
    "runs": [],
    "miou": SPREAD,
    "accuracy": SPREAD,
    "per_class": {"sky": SPREAD},
    "against_real": None,
}
DOWNSTREAM = {"protocol": {}, "rows": [ROW], "sentences": [], "notes": [], "failed": []}
TAMPERED = [
    report(schema=[2]),
    report(schema=True),
    report(schema="x" * 9999),
    report(metrics=[]),
    report(metrics={"miou": None}),
    report(metrics={"miou": {**METRIC, "value": "high"}}),
    report(metrics={"miou": {**METRIC, "n": 10**400}}),
    report(metrics={"miou": {**METRIC, "n": -1}}),
    report(warnings="none"),
    report(notes=[{}]),
    report(protocol=[]),
    report(confusion={"classes": ["a"], "counts": [[1, 2], [3, 4]]}),
    report(per_class={"a": {"iou": 1}}),
    report(compared=[[]]),
    report(compared={"a": 1}),
    report(downstream={"rows": []}),
    report(downstream={**DOWNSTREAM, "rows": [ROW, {**ROW, "per_class": {}}]}),
    report(downstream={**DOWNSTREAM, "rows": [ROW, {**ROW, "per_sequence": {"a_*": SPREAD}}]}),
    json.dumps(report()).replace("0.5", "Infinity", 1),
    json.dumps(report()).replace("0.5", "1e999", 1),
    json.dumps(report()).replace("datasets/city", r"\ud800"),
    "[" * 100_000,
    '{"schema": 2, "metrics": {}, "protocol": {"a": ' + "[" * 5000 + "]" * 5000 + "}}",
    "[]",
    "7",
    "",
]


@pytest.mark.parametrize("tampered", TAMPERED, ids=lambda value: str(value)[:60])
def test_tampered_reports_are_one_sentence(tmp_path, tampered):
    path = written(tmp_path, tampered)
    text = message(document.load, path)
    assert text.startswith(str(path))
    assert len(text) < 1500
    assert text in message(ablation.read, [path], [])


def test_pipes_and_devices_are_no_reports(tmp_path):
    os.mkfifo(tmp_path / "report.json")
    assert "not a file" in message(document.load, tmp_path)
    assert "not a file" in message(document.load, tmp_path / "report.json")
    assert "not a file" in message(ablation.read, [Path("/dev/zero"), tmp_path], [])


def test_names_in_a_report_steer_neither_terminal_nor_page(tmp_path):
    classes = {
        EVIL: {
            "iou": 0.5,
            "real": 0.5,
            "low": 0.4,
            "high": 0.6,
            "share": 0.1,
            "real_share": 0.1,
            "color": [1, 2, 3],
        }
    }
    scores = {"per_class": {EVIL: SPREAD}, "per_sequence": {EVIL: SPREAD}}
    arms = {**DOWNSTREAM, "rows": [{**ROW, "name": EVIL, **scores}]}
    texts = {name: [EVIL * 99] for name in ("warnings", "notes")}
    found = document.load(
        written(
            tmp_path,
            report(samples=EVIL, per_class=classes, skipped={EVIL: EVIL}, downstream=arms, **texts)
            | {"metrics": {"miou": {**METRIC, "protocol": EVIL}}},
        )
    )
    plain, markdown = tables.table(found), tables.table(found, markdown=True)
    html = page.html(found, [page.Illustrations()])
    for text in (plain, markdown, html):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert all(len(line) < 1200 for line in plain.splitlines())
    assert not any(line.startswith("| x") for line in (plain + markdown).splitlines())
    for text in (markdown, html):
        assert "<script>" not in text
    assert "](" not in markdown


@pytest.mark.parametrize("markdown", [False, True])
def test_very_many_or_long_notes_are_cut(tmp_path, markdown):
    texts = {"warnings": ["w"] * 9999, "notes": ["<b>" * (1 << 20)]}
    text = tables.table(document.load(written(tmp_path, report(**texts))), markdown=markdown)
    assert "... and 9," in text
    assert len(text) < 20_000


def test_an_ablation_follows_no_place_that_is_none(tmp_path):
    places = ["x" * 5000, "a\u0000b", "s3://attacker/set", "/dev/zero"]
    for place in places:
        (entry,) = ablation.read([written(tmp_path, report(samples=place))], [])
        assert "mIoU" in ablation.table([entry])
    without = report()
    del without["metrics"]["accuracy"]
    assert "no pixel accuracy" in message(ablation.read, [written(tmp_path, without)], [])
    other = tmp_path / "other"
    other.mkdir()
    nested = report(protocol={"judge_hash": [["x" * 999] * 99], "checkpoint": []})
    text = message(ablation.read, [written(tmp_path, report()), written(other, nested)], [other])
    assert "judge_hash" in text
    assert len(text) < 1000


ASSIGNMENT = {
    "schema": 1,
    "study": "s",
    "a": "A",
    "b": "B",
    "question": "?",
    "trials": {"t": {"source": "x", "first": "a"}},
}
ANSWERS = {
    "schema": 1,
    "study": "s",
    "id": "1",
    "participant": "p",
    "answers": [{"trial": "t", "choice": 1, "left": 1, "time": 1}],
}


def results(tmp_path, answers, assignment=ASSIGNMENT):
    for name, value in (("answers.json", answers), ("assignment.json", assignment)):
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / name).write_text(text)
    return study.read([tmp_path / "answers.json"], tmp_path / "assignment.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"trials": {}},
        {"trials": {"t": {"source": "x", "first": "c"}}},
        {"trials": {"t": ["a"]}},
        {"trials": [1]},
        {"a": ["A"]},
        {"study": None},
        {"schema": "1"},
    ],
    ids=str,
)
def test_tampered_assignments(tmp_path, changed):
    text = message(results, tmp_path, ANSWERS, ASSIGNMENT | changed)
    assert text.startswith(str(tmp_path / "assignment.json"))


@pytest.mark.parametrize(
    "tampered",
    [
        "[" * 100_000,
        ANSWERS | {"answers": [[["x" * 9999] * 99] * 99]},
        ANSWERS | {"answers": {"t": 1}},
        ANSWERS | {"participant": ["p"]},
        ANSWERS | {"participant": "p" * 5000},
        ANSWERS | {"id": {"a": 1}},
        ANSWERS | {"study": ["s"]},
        json.dumps(ANSWERS).replace('"p"', r'"\ud800"'),
        ANSWERS | {"answers": [{"trial": "t", "choice": 1e999, "time": 1}]},
        ANSWERS | {"answers": [{"trial": "t", "choice": True, "time": 1}]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_tampered_answers(tmp_path, tampered):
    text = message(results, tmp_path, tampered)
    assert "answers.json" in text
    assert len(text) < 1500


def test_names_of_participants_steer_no_terminal(tmp_path):
    found = results(tmp_path, ANSWERS | {"participant": EVIL}).table()
    assert "\x1b" not in found
    assert "\u202e" not in found
    assert not any(line.startswith("| x") for line in found.splitlines())
