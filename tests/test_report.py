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


MARKED = REPORT | {
    "marks": ["the judge is the label generator (forced)"],
    "confusion": {"classes": ["road", "pole"], "counts": [[75, 20, 5], [0, 0, 0]]},
}


def row(name, mious, against=None, mix=1.0):
    return {
        "name": name,
        "real_fraction": 1.0,
        "mix": mix,
        "real_images": 367,
        "synthetic_images": 1835,
        "runs": [{"seed": s, "miou": m, "accuracy": 0.8} for s, m in enumerate(mious)],
        "miou": {"mean": sum(mious) / len(mious), "std": 0.01, "low": 0.3, "high": 0.5},
        "accuracy": {"mean": 0.8, "std": 0.0, "low": 0.8, "high": 0.8},
        "per_class": {"road": {"mean": 0.9, "std": 0.02}, "pole": {"mean": None, "std": None}},
        "against_real": against,
    }


WORTH = {
    "protocol": {"students": "SegFormer of width 8"},
    "rows": [
        row("real only", [0.4, 0.42], mix=0.0),
        row(
            "real + 1x samples",
            [0.44, 0.46],
            {"difference": 0.04, "low": 0.01, "high": 0.07, "spread": 0.014, "larger": True},
        ),
    ],
    "sentences": ["real + 1x samples: +0.040 mIoU, larger than the spread"],
    "notes": ["the generator is not known"],
    "failed": [],
}


def test_page_shows_marks_and_what_was_read_as_what():
    text = report.html(MARKED, [illustrations()])
    page = Page(text)
    assert "These numbers carry a mark" in text
    assert "The judge is the label generator (forced)." in text
    cells = re.findall(r"--share:([0-9.]+)\">(\d+)<", text)
    assert cells == [("0.750", "75"), ("0.200", "20"), ("0.050", "5")]
    assert text.count("<td>-</td>") == 3  # a class without pixels
    assert "details" in page.tags
    many = [f"c{i}" for i in range(13)]
    wide = MARKED | {"confusion": {"classes": many, "counts": [[1] * 14] * 13}}
    assert "<details><summary>Confusion of 13 classes" in report.html(wide, [illustrations()])
    assert "<details open><summary>Confusion of 2 classes" in text
    assert "carry a mark" not in report.html(REPORT, [illustrations()])


def test_page_shows_what_samples_are_worth():
    text = report.html(REPORT | {"downstream": WORTH}, [illustrations()])
    Page(text)
    assert "Real + 1x samples: +0.040 mIoU, larger than the spread" in text
    assert "+0.0400 (+0.0100 to +0.0700) <strong>*</strong>" in text
    assert "mIoU 0.4500, seeds 0.4400 0.4600" in text
    assert "The generator is not known." in text
    # One axis for all rows: 0.3 to 0.5 and a twentieth on either side
    dots = report._dots(WORTH, "miou")
    assert (dots[0]["from"], dots[0]["to"]) == pytest.approx((0.29, 0.51))
    assert dots[1]["mean"] == pytest.approx(100 * (0.45 - 0.29) / 0.22, abs=0.01)
    assert dots[0]["seeds"] == pytest.approx([50, 100 * 0.13 / 0.22], abs=0.01)


def test_a_report_of_worth_alone():
    bare = {
        "schema": 1, "samples": "datasets/train", "protocol": {}, "metrics": {}, "per_class": {},
        "skipped": {}, "notes": [], "downstream": WORTH,
    }  # fmt: skip
    text = report.html(bare, [report.Illustrations()])
    Page(text)
    assert "Headline numbers" not in text
    assert "What the samples are worth" in text
    table = report.table(bare)
    assert "real + 1x samples" in table
    assert "+0.0400 (+0.0100 to +0.0700)" in table
    assert "datasets/train" not in table  # there is nothing to say of it


def test_markdown_is_a_summary_for_a_pull_request():
    text = report.table(MARKED | {"downstream": WORTH}, markdown=True)
    assert report.verdict(REPORT) in text
    assert "- mark: the judge is the label generator (forced)" in text
    assert "<details><summary>IoU of each class</summary>" in text
    assert "| real + 1x samples | 0.4500 | 0.0100 | 0.8000 | +0.0400 (+0.0100 to +0.0700) |" in text


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
