"""report.json and report.html: schema, table, self-containedness, refusals."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from ecgan import report
from ecgan.errors import UserError
from ecgan_cli.main import cli

REPORT = {
    "schema": 1,
    "samples": "datasets/city <b>",
    "protocol": {"judge": "SegFormer, trained here", "size": "192 x 256", "classes": ["a", "b"]},
    "metrics": {
        "miou": {"value": 0.4321, "real": 0.5512, "low": 0.41, "high": 0.45, "n": 1165},
        "accuracy": {"value": 0.81, "real": 0.88, "low": 0.8, "high": 0.82, "n": 1165},
        "fd_efficientnet_lite0": {"value": 12.3, "real": 3.1, "low": None, "high": None, "n": 1165},
    },
    "per_class": {
        "road": {
            "iou": 0.9,
            "real": 0.93,
            "low": 0.89,
            "high": 0.91,
            "share": 0.3,
            "real_share": 0.31,
            "color": [128, 64, 128],
        },
        "pole": {
            "iou": None,
            "real": 0.1,
            "low": None,
            "high": None,
            "share": 0.0,
            "real_share": 0.0001,
            "color": [9, 9, 9],
        },
    },
    "skipped": {"fid": "evaluate.inception_weights is not set"},
    "notes": ["the judge saw 3 layouts"],
    "best": [],
    "worst": [],
    "compared": [],
}


def illustrations():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 16, 3), np.uint8)
    mask = np.zeros((12, 16, 3), np.uint8)
    cells = [
        report.Picture(mask, "layout of a", exact=True),
        None,
        report.Picture(image, "sample of a"),
    ]
    gallery = report.Gallery(
        "Samples", "Evenly spread.", ["layout", "edge", "image"], [report.Row("a", "0.9", cells)]
    )
    curve = report.Curve("total", [(0, 3.0), (100, 2.0), (200, 1.5)])
    return report.Illustrations([gallery], [curve])


class Page(HTMLParser):
    """Collects addresses and text, and checks that tags nest."""

    VOID = frozenset({"meta", "link", "img", "br", "rect", "line", "polyline"})

    def __init__(self, text):
        super().__init__()
        self.addresses, self.images, self.open, self.tags = [], [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.addresses += [attributes[k] for k in ("src", "href") if k in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_written_report_is_read_back(tmp_path):
    report.write(REPORT, tmp_path / "out", [illustrations()])
    assert report.load(tmp_path / "out") == REPORT
    assert report.load(tmp_path / "out" / "report.json") == REPORT
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_page_is_self_contained_and_escaped():
    text = report.html(REPORT, [illustrations()])
    page = Page(text)
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert "datasets/city &lt;b&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert [image["alt"] for image in page.images] == ["layout of a", "sample of a"]


def test_page_holds_every_number_and_the_reasons():
    text = report.html(REPORT, [illustrations()])
    for expected in ("0.4321", "0.5512", "0.4100 to 0.4500", "12.30", "inception_weights is not"):
        assert expected in text
    assert "78%" in text  # 0.4321 / 0.5512, in the verdict
    assert "The judge saw 3 layouts." in text


def test_page_of_several_sets_compares_them():
    both = copy.deepcopy(REPORT)
    both["compared"] = [copy.deepcopy({**REPORT, "samples": "second"})]
    text = report.html(both, [illustrations(), report.Illustrations()])
    Page(text)
    assert "2 sets of samples" in text
    assert 'id="set-2"' in text


def test_page_without_judge_or_pictures():
    bare = {**REPORT, "metrics": {}, "per_class": {}, "notes": [], "skipped": {}}
    Page(report.html(bare, [report.Illustrations()]))


def test_table_golden():
    assert report.table(REPORT) == (
        "datasets/city <b>\n"
        "  metric                    samples     95 % interval  real photos     n\n"
        "  mIoU                       0.4321  0.4100 to 0.4500       0.5512  1165\n"
        "  Pixel accuracy             0.8100  0.8000 to 0.8200       0.8800  1165\n"
        "  FD, EfficientNet-Lite0 ↓    12.30                          3.100  1165\n"
        "note: the judge saw 3 layouts\n"
        "FID skipped: evaluate.inception_weights is not set\n"
    )
    markdown = report.table(REPORT, markdown=True)
    assert "| mIoU | 0.4321 | 0.4100 to 0.4500 | 0.5512 | 1165 |" in markdown
    assert "|---|---:|---:|---:|---:|" in markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (0.0, "0.0000"), (0.12345, "0.1235"), (3.14159, "3.142"), (250.0, "250.00")],
)
def test_number(value, text):
    assert report.number(value) == text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such file; `ecgan evaluate` writes it"),
        ("{", "not a report"),
        ("[]", "schema or metrics is missing"),
        ('{"schema": 9, "metrics": {}}', "schema 9, this ecgan"),
    ],
)
def test_load_refuses(tmp_path, content, sentence):
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=re.escape(sentence)):
        report.load(tmp_path)


def test_report_show(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    result = CliRunner().invoke(cli, ["report", "show", str(tmp_path)])
    assert result.exit_code == 0
    assert result.output == report.table(REPORT)
    result = CliRunner().invoke(cli, ["report", "show", "--markdown", str(tmp_path)])
    assert result.output == report.table(REPORT, markdown=True)
    result = CliRunner().invoke(cli, ["report", "show", str(tmp_path / "no")])
    assert result.exit_code == 1
    assert "no such file" in result.output


def test_verdict():
    def sentence(value, real):
        return report.verdict({"metrics": {"miou": {"value": value, "real": real}}})

    assert "keep 50% of that" in sentence(0.25, 0.5)
    assert "no more than that" in sentence(0.6, 0.5)
    assert "No judge" in report.verdict({"metrics": {}})
