"""The ablation table: rows from runs and from reports, what is refused, what is noted."""

import json

import pytest
from click.testing import CliRunner

from ecgan import ablation, checkpoint
from ecgan.errors import UserError
from ecgan.recipe import load_recipe, recipe_names
from ecgan_cli.main import cli
from tests.tiny import make_generator


def report(miou, *, fid=None, protocol=(), **changes):
    metric = {"real": None, "low": None, "high": None, "n": 9}
    metrics = {
        "miou": metric | {"value": miou, "real": 0.7},
        "accuracy": metric | {"value": 0.8, "real": 0.9},
        "fd_efficientnet_lite0": metric | {"value": 99.44},
    }
    if fid is not None:
        metrics["fid"] = metric | {"value": fid}
    document = {
        "schema": 1,
        "samples": "datasets/x",
        "protocol": {"judge_hash": "j", "size": "32 x 64", "split": "test"} | dict(protocol),
        "metrics": metrics,
    }
    return document | changes


def write(folder, document):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, each with a report below reports/."""
    monkeypatch.chdir(tmp_path)
    for index, parts in enumerate(({"semantic_preserving": False, "contrastive": False}, {})):
        run = tmp_path / "runs" / f"row-{index}"
        run.mkdir(parents=True)
        off = {"class_specific": False, "contrastive": False} | parts
        path = make_generator(
            run / checkpoint.GENERATOR, model=off, train={"images": 64 * (index + 1), "batch": 8}
        )
        protocol = {"checkpoint": checkpoint.sha256(path)}
        write(tmp_path / "reports" / f"any-{index}", report(0.3 + index / 10, protocol=protocol))
    return [tmp_path / "runs" / f"row-{index}" for index in range(2)]


def test_the_recipes_are_the_papers_rows():
    names = [name for name in recipe_names() if name.startswith("ablation-")]
    assert [ablation.setup_of(load_recipe(name)) for name in names] == [
        "E+Gi",
        "E+Gi+Ge",
        "E+Gi+Ge+Gt",
        "E+Gi+Ge+Gt+Gs",
        "E+Gi+Ge+Gt+Gs+Gl",
        "E+Gi+Ge+Gt+Gs+Gl+Gc",
    ]


def test_runs_find_their_reports(runs):
    result = CliRunner().invoke(cli, ["report", "ablation", *map(str, runs), "--markdown"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "| setup | mIoU ↑ | Acc ↑ | FD, EfficientNet-Lite0 ↓ | images seen |"
    assert lines[2] == "| E+Gi+Ge+Gt | 30.0 | 80.0 | 99.4 | 64 |"
    assert lines[3] == "| E+Gi+Ge+Gt+Gs | 40.0 | 80.0 | 99.4 | 128 |"
    assert "- note: real photos, same judge: mIoU 70.0, Acc 90.0" in lines
    assert "- note: the runs were not trained equally long: 64, 128 images" in lines
    assert "- note: not the paper's FID: other features, named above" in lines


def test_reports_stand_for_themselves_and_fid_goes_first(tmp_path):
    places = [write(tmp_path / str(i), report(0.5, fid=50.0 + i)) for i in range(2)]
    result = CliRunner().invoke(cli, ["report", "ablation", *map(str, places), "--json"])
    found = json.loads(result.stdout)
    assert found["distance"] == "fid"
    assert [row["fid"]["value"] for row in found["rows"]] == [50.0, 51.0]
    assert found["rows"][0]["images"] is None
    only_one = [places[0], write(tmp_path / "x", report(0.5))]
    assert ablation.to_json(ablation.read(only_one))["distance"] == "fd_efficientnet_lite0"


def test_other_protocols_are_refused_all_at_once(tmp_path):
    places = [
        write(tmp_path / "a", report(0.5)),
        write(tmp_path / "b", report(0.5, protocol={"judge_hash": "k", "split": "val"})),
        write(tmp_path / "c", report(0.5) | {"metrics": {}}),
    ]
    with pytest.raises(UserError) as caught:
        ablation.read(places)
    message = str(caught.value)
    assert "b: judge_hash is k, of" in message
    assert "b: split is val, of" in message
    assert "c: no judge scored it" in message


def test_a_run_without_a_report_says_how_to_make_one(runs, tmp_path):
    other = tmp_path / "runs" / "new"
    other.mkdir()
    make_generator(other / checkpoint.GENERATOR, train={"images": 8, "batch": 8})
    with pytest.raises(UserError) as caught:
        ablation.read([runs[0], other, tmp_path / "nowhere"])
    assert f"ecgan evaluate --samples {other}" in str(caught.value)
    assert "nowhere" in str(caught.value)


def test_marked_reports_are_named(tmp_path):
    place = write(tmp_path / "a", report(0.5, marks=["forced"]))
    assert f"reports with marks: {place}" in ablation.table(ablation.read([place]))
