"""report.json and report.html: schema, table, self-containedness, refusals."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ecgan.errors import UserError
from ecgan.evaluation.report import document, tables
from ecgan.evaluation.report import page as report
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


def as_report(content):
    return document.Report.of_document(content)


def html(content, illustrations):
    return report.html(as_report(content), illustrations)


def table(content, **options):
    return tables.table(as_report(content), **options)


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
    report.write(as_report(REPORT), tmp_path / "out", [illustrations()])
    assert document.load(tmp_path / "out") == as_report(REPORT)
    assert document.load(tmp_path / "out" / "report.json") == as_report(REPORT)
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["schema"] == 2
    assert document.Report.model_json_schema(by_alias=True)["properties"].keys() >= written.keys()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("real only: harms", "Real only: harms."),
        ("sets/night_a: its styles", "sets/night_a: its styles."),
        ("mIoU is low!", "mIoU is low!"),
        ("", "."),
    ],
)
def test_sentences_keep_paths_as_they_are(text, shown):
    assert report._sentence(text) == shown


def test_page_is_self_contained_and_escaped():
    text = html(REPORT, [illustrations()])
    page = Page(text)
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert "default-src 'none'" in text  # and the browser sees to it
    assert "datasets/city &lt;b&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert [image["alt"] for image in page.images] == ["layout of a", "sample of a"]


def test_page_holds_every_number_and_the_reasons():
    text = html(REPORT, [illustrations()])
    for expected in ("0.4321", "0.5512", "0.4100 to 0.4500", "12.30", "inception_weights is not"):
        assert expected in text
    assert "Judge mIoU 0.432 on samples, 0.551 on real photos (78 %)." in text
    assert "The judge saw 3 layouts." in text


def test_page_of_several_sets_compares_them():
    both = copy.deepcopy(REPORT)
    both["compared"] = [copy.deepcopy({**REPORT, "samples": "second"})]
    text = html(both, [illustrations(), report.Illustrations()])
    Page(text)
    assert "2 sets of samples" in text
    assert 'id="set-2"' in text
    assert 'class="marked"' not in text
    both["compared"][0] |= {"warnings": ["forced"], "metrics": {"new": REPORT["metrics"]["miou"]}}
    text = html(both, [illustrations(), report.Illustrations()])
    Page(text)
    assert '<code>second</code></a> <strong class="marked">warning</strong>' in text
    assert "<td>n/a</td>" in text  # what only one of them has
    assert '<th scope="row">new</th>' in text


def test_page_without_judge_or_pictures():
    bare = {**REPORT, "metrics": {}, "per_class": {}, "notes": [], "skipped": {}}
    Page(html(bare, [report.Illustrations()]))


MARKED = REPORT | {
    "warnings": ["the judge is the label generator (forced)"],
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


def test_every_metric_has_its_place():
    names = {
        f"{kind}_{network}"
        for kind in ("precision", "recall")
        for network in ("inception", "inception_clean", "dinov2", "efficientnet_lite0", "vgg16_hed")
    } | {"diversity_efficientnet_lite0", "consistency", "fid_clean", "kid", "fd_dinov2"}
    assert names <= tables.MEANINGS.keys()
    assert {m.better for m in tables.MEANINGS.values()} == {"higher", "lower", "equal"}
    one = as_report(REPORT).metrics["miou"]
    sets = [
        document.SetReport(samples="a", metrics=dict.fromkeys(tables.MEANINGS, one)),
        document.SetReport(samples="b", metrics={"new": one}),
    ]
    groups = dict(report._grouped(sets))
    assert sum(map(len, groups.values())) == len(tables.MEANINGS) + 1
    assert groups["Others"] == ["new"]
    assert groups["Distance between samples and photos, as sets"] == [
        "fid", "kid", "fid_clean", "kid_clean", "fd_dinov2", "fd_efficientnet_lite0",
        "fd_vgg16_hed", "kd_vgg16_hed",
    ]  # fmt: skip
    assert {"style_spread", "style_spread_deep", "top_octave"} <= {
        *groups["Styles, texture and edges"]
    }


def test_spread_and_protocol_of_a_metric_are_shown():
    report_ = copy.deepcopy(REPORT)
    report_["metrics"]["miou"] |= {"std": 0.0123, "protocol": "three judges"}
    text = html(report_, [illustrations()])
    assert "<td>0.4321 ± 0.0123</td>" in text
    assert "over classes; three judges</small>" in text
    assert "<dt>standard deviation</dt><dd>0.0123</dd>" in text
    assert "0.4321 ± 0.0123" in table(report_)
    assert "standard deviation" not in html(REPORT, [illustrations()])


def test_what_the_generator_was_trained_against_is_marked():
    report_ = copy.deepcopy(REPORT)
    report_["metrics"]["fd_efficientnet_lite0"]["trained_against"] = "efficientnet_lite0"
    text = html(report_, [illustrations()])
    assert text.count("FD, EfficientNet-Lite0 †") == 2  # a card and the table of all numbers
    assert "FD, EfficientNet-Lite0 † ↓" in table(report_)
    assert "Lite0 †" not in html(REPORT, [illustrations()])
    written = as_report(report_).to_json()["metrics"]
    assert written["fd_efficientnet_lite0"]["trained_against"] == "efficientnet_lite0"
    assert "trained_against" not in written["miou"]


def test_spread_of_each_class_is_a_column_where_there_are_styles():
    report_ = copy.deepcopy(REPORT)
    report_["metrics"]["style_spread"] = dict(report_["metrics"]["miou"], value=0.06)
    report_["per_class"]["road"]["style_spread"] = 0.125
    text = html(report_, [illustrations()])
    assert '<th scope="col">Style spread</th>' in text
    assert "<td>0.1250</td>" in text
    assert "| road | 0.9000 | 0.8900 to 0.9100 | 0.9300 | 30.0 % | 0.1250 |" in table(
        report_, markdown=True
    )
    assert '<th scope="col">Style spread</th>' not in html(REPORT, [illustrations()])


def test_bars_of_ratios_reach_beyond_one():
    metric = document.Metric.of(1.6, 1.0, 9)
    assert report._gauge("top_octave", metric)["value"] == pytest.approx(100 / 1.15, abs=0.01)
    assert report._gauge("top_octave", document.Metric.of(0.5, 1.0, 9))["value"] == 50


def test_curves_carry_the_names_of_their_metrics():
    curves = [report.Curve("fd_efficientnet_lite0", [(100, 400.0), (300, 250.0)])]
    text = html(REPORT, [report.Illustrations((), curves)])
    assert "<figcaption>FD, EfficientNet-Lite0 ↓<span>last 250.00</span>" in text
    assert 'points="0.0,4.0 320.0,116.0"' in text
    assert "<span>100</span><span>300 images</span>" in text


def test_page_shows_marks_and_what_was_read_as_what():
    text = html(MARKED, [illustrations()])
    page = Page(text)
    assert text.index("<strong>Warnings</strong>") < text.index("0.4321")
    assert "The judge is the label generator (forced)." in text
    cells = re.findall(r"--share:([0-9.]+)\">(\d+)<", text)
    assert cells == [("0.750", "75"), ("0.200", "20"), ("0.050", "5")]
    assert text.count("<td>-</td>") == 3  # a class without pixels
    assert "details" in page.tags
    many = [f"c{i}" for i in range(13)]
    wide = MARKED | {"confusion": {"classes": many, "counts": [[1] * 14] * 13}}
    assert "<details><summary>Confusion of 13 classes" in html(wide, [illustrations()])
    assert "<details open><summary>Confusion of 2 classes" in text
    assert "<strong>Warnings" not in html(REPORT, [illustrations()])


def test_page_shows_what_samples_are_worth():
    text = html(REPORT | {"downstream": WORTH}, [illustrations()])
    Page(text)
    assert "Real + 1x samples: +0.040 mIoU, larger than the spread" in text
    assert "+0.0400 (+0.0100 to +0.0700) <strong>*</strong>" in text
    assert "* the 95&nbsp;% interval leaves out 0" in text
    assert "mIoU 0.4500, 95 % interval 0.3000 to 0.5000, seeds 0.4400 0.4600" in text
    assert "The generator is not known." in text
    assert "<td>0.9000 ± 0.0200</td>" in text  # road
    assert text.index("Headline numbers") < text.index("Segmenters trained with samples")
    assert text.index("Segmenters trained with samples") < text.index("IoU of each class")
    without = copy.deepcopy(WORTH)
    without["rows"][1]["against_real"]["larger"] = False
    assert "<strong>*" not in html(REPORT | {"downstream": without}, [illustrations()])


def test_what_samples_are_worth_in_photos_is_drawn():
    def point(photos, miou, **changes):
        spread = {"mean": miou, "std": 0.01, "low": miou - 0.02, "high": miou + 0.02}
        one = WORTH["rows"][0] | {"name": f"{photos} pairs", "mix": 0.0, "real_images": photos}
        return one | {"miou": spread} | changes

    curve = [point(20, 0.3), point(40, 0.36), point(80, 0.4)]
    assert report._exchange(section(curve[:1])) is None
    worth = point(20, 0.36, name="20 pairs + 1x", mix=1.0, source="samples", photos_worth=40.0)
    drawn = report._exchange(section([*curve, worth]))
    assert [n for _, n in drawn.photos] == ["20", "40", "80"]
    assert [x for x, _ in drawn.photos] == [0, 320, 640]  # logarithmic
    heights = [one["mean"] for one in drawn.curve]
    assert heights == sorted(heights, reverse=True)
    (arm,) = drawn.arms
    assert (arm["from"], arm["to"], arm["worth"]) == (0, 320, 40)
    assert arm["y"] == heights[1]  # meets the curve there
    text = html(REPORT | {"downstream": WORTH | {"rows": [*curve, worth]}}, [illustrations()])
    Page(text)
    assert "20 pairs + 1x: 40</text>" in text


def section(rows):
    return document.DownstreamReport.model_validate(WORTH | {"rows": rows})


def test_runs_of_all_conditions_share_one_axis():
    rows = [
        *WORTH["rows"],
        row("synthetic only", [0.31], mix=None),
        row("real only (10 %)", [0.35], mix=0.0) | {"real_fraction": 0.1},
        row("real (10 %) + 1x samples", [0.39]) | {"real_fraction": 0.1},
    ]
    ticks, placed = report._plot(section(rows))
    assert ticks == [
        (pytest.approx(value), pytest.approx(x))
        for value, x in ((0.3, 0), (0.35, 25), (0.4, 50), (0.45, 75), (0.5, 100))
    ]
    assert placed[0]["seeds"] == pytest.approx([50, 60])
    assert placed[1]["mean"] == pytest.approx(75)
    assert (placed[1]["low"], placed[1]["high"]) == (0, 100)
    assert [at["real"] for at in placed] == pytest.approx([55, 55, None, 25, None])
    more = [*rows, row("80 pairs only", [0.5], mix=0.0) | {"real_images": 80}]
    assert report._plot(section(more)).rows[1]["real"] == placed[1]["real"]  # its own pairs' only
    rows[0]["miou"] = rows[0]["miou"] | {"high": 1.7, "low": -0.2}  # of few seeds
    ticks, placed = report._plot(section(rows))
    assert [ticks[0][0], ticks[-1][0]] == [0, 1]
    assert (placed[0]["low"], placed[0]["high"]) == (0, 100)
    rows[0]["miou"] = rows[0]["miou"] | {"high": None, "low": None}  # of one
    assert report._plot(section(rows[:1])).rows[0]["low"] is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_ticks_are_round_and_few(first, second):
    low, high = min(first, second), max(first, second)
    ticks = report._ticks(low, high)
    assert 3 <= len(ticks) <= 6
    assert 0 <= ticks[0] <= low + 1e-9
    assert high - 1e-9 <= ticks[-1] <= 1
    assert np.ptp(np.diff(ticks)) < 1e-9


def test_a_report_of_worth_alone():
    bare = {
        "schema": 1, "samples": "datasets/train", "protocol": {}, "metrics": {}, "per_class": {},
        "skipped": {}, "notes": [], "downstream": WORTH,
    }  # fmt: skip
    text = html(bare, [report.Illustrations()])
    Page(text)
    assert "Headline numbers" not in text
    assert "Segmenters trained with samples" in text
    text = table(bare)
    assert "real + 1x samples" in text
    assert "+0.0400 (+0.0100 to +0.0700)" in text
    assert "datasets/train" not in text  # there is nothing to say of it


def test_markdown_is_a_summary_for_a_pull_request():
    text = table(MARKED | {"downstream": WORTH}, markdown=True)
    assert tables.verdict(as_report(REPORT)) in text
    assert "\n> **Warning:** the judge is the label generator (forced)\n" in text
    assert text.count("<details><summary>IoU of each class</summary>") == 2
    assert "| road | 0.9000 ± 0.0200 | 0.9000 ± 0.0200 |" in text
    assert "| pole | n/a | n/a |" in text
    assert "| real + 1x samples | 0.4500 | 0.0100 | 0.8000 | +0.0400 (+0.0100 to +0.0700) |" in text
    # What is not a headline is folded away
    assert "All 3 numbers" not in text
    more = copy.deepcopy(REPORT)
    more["metrics"]["edge_f1"] = more["metrics"]["miou"] | {"std": 0.01}
    text = table(more, markdown=True)
    assert text.index("| mIoU |") < text.index("<details><summary>All 4 numbers")
    assert text.index("All 4 numbers") < text.index("| Edge F1 | 0.4321 ± 0.0100 |")
    named = REPORT | {"per_class": {"a|b": REPORT["per_class"]["road"]}}
    assert "| a&#124;b | 0.9000 |" in table(named, markdown=True)


def test_table_golden():
    assert table(REPORT) == (
        "datasets/city <b>\n"
        "  metric                    samples     95 % interval  real photos     n\n"
        "  mIoU                       0.4321  0.4100 to 0.4500       0.5512  1165\n"
        "  Pixel accuracy             0.8100  0.8000 to 0.8200       0.8800  1165\n"
        "  FD, EfficientNet-Lite0 ↓    12.30                          3.100  1165\n"
        "note: the judge saw 3 layouts\n"
        "FID skipped: evaluate.inception_weights is not set\n"
    )
    markdown = table(REPORT, markdown=True)
    assert "| mIoU | 0.4321 | 0.4100 to 0.4500 | 0.5512 | 1165 |" in markdown
    assert "|---|---:|---:|---:|---:|" in markdown


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (0.0, "0.0000"), (0.12345, "0.1235"), (3.14159, "3.142"), (250.0, "250.00")],
)
def test_number(value, text):
    assert tables.number(value) == text


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
        document.load(tmp_path)


def test_report_show(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    result = CliRunner().invoke(cli, ["report", "show", str(tmp_path)])
    assert result.exit_code == 0
    assert result.output == table(REPORT)
    result = CliRunner().invoke(cli, ["report", "show", "--markdown", str(tmp_path)])
    assert result.output == table(REPORT, markdown=True)
    result = CliRunner().invoke(cli, ["report", "show", str(tmp_path / "no")])
    assert result.exit_code == 1
    assert "no such file" in result.output


def test_verdict():
    def sentence(value, real):
        content = copy.deepcopy(REPORT)
        content["metrics"]["miou"] |= {"value": value, "real": real}
        return tables.verdict(as_report(content))

    assert sentence(0.491, 0.448) == "judge mIoU 0.491 on samples, 0.448 on real photos (110 %)"
    assert sentence(0.25, 0.5).endswith("(50 %)")
    assert "no judge" in tables.verdict(as_report(REPORT | {"metrics": {}}))


def test_reports_of_version_1_are_read(tmp_path):
    old = {k: v for k, v in REPORT.items() if k != "warnings"} | {"marks": ["forced"]}
    content = old | {"compared": [{**old, "samples": "second"}]}
    (tmp_path / "report.json").write_text(json.dumps(content))
    found = document.load(tmp_path)
    assert [one.warnings for one in found.sets] == [["forced"], ["forced"]]
    assert found.sets[1].samples == "second"
    assert "warning: forced" in tables.table(found)
    (tmp_path / "report.json").write_text(json.dumps(content | {"metrics": {"miou": {"n": 1}}}))
    with pytest.raises(UserError, match=r"report\.json: 4 fields do not fit[\s\S]*metrics\.miou"):
        document.load(tmp_path)
