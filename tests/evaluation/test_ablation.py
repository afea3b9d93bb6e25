"""The ablation table: rows from runs and from reports, what is refused, what is noted."""

import json
import os

import pytest
from click.testing import CliRunner

from ecgan import checkpoint
from ecgan.errors import UserError
from ecgan.evaluation.report import ablation
from ecgan.recipe import load_recipe, parse_recipe, recipe_names
from ecgan.runtime.files import sha256
from ecgan_cli.main import cli
from tests.helpers.tiny import make_generator


def report(miou, *, fid=None, protocol=(), n=9, **changes):
    metric = {"real": None, "low": None, "high": None, "n": n}
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
        protocol = {"checkpoint": sha256(path)}
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


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({"model": {"class_specific": False}}, "Gl+Gc (contrastive alone)"),
        ({"losses": {"contrastive": 0}}, "Gl+Gc (class-specific alone)"),
        ({"losses": {"similarity": 0}}, "Gs+Gc"),
    ],
)
def test_half_of_a_part_is_not_called_the_whole(changes, last):
    given = load_recipe("ablation-6").model_dump(mode="json")
    for section, keys in changes.items():
        given[section] |= keys
    setup = ablation.setup_of(parse_recipe(given, "test"))
    assert setup in {f"E+Gi+Ge+Gt+{last}", f"E+Gi+Ge+Gt+Gs+{last}"}


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


def test_reports_are_looked_for_where_one_says(runs, tmp_path, monkeypatch):
    """A report, or a folder of them; the second set of a report, too; and the newest of several."""
    (tmp_path / "reports").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        ablation.read(runs)
    assert str(caught.value).count("no report of this generator; ecgan evaluate --samples") == 2
    both = [tmp_path / "elsewhere" / name for name in ("any-0", "any-1/report.json")]
    options = [word for place in both for word in ("--report", str(place))]
    result = CliRunner().invoke(cli, ["report", "ablation", *map(str, runs), *options, "--json"])
    assert result.exit_code == 0, result.output
    assert [r["miou"]["value"] for r in json.loads(result.stdout)["rows"]] == [0.3, 0.4]
    hashes = [sha256(run / checkpoint.GENERATOR) for run in runs]
    sets = [report(0.5 + i / 10, protocol={"checkpoint": h}) for i, h in enumerate(hashes)]
    write(tmp_path / "elsewhere" / "aa-newest", sets[0] | {"compared": [sets[1]]})
    os.utime(tmp_path / "elsewhere" / "aa-newest" / "report.json", (2e9, 2e9))
    rows = ablation.to_json(ablation.read(runs, [tmp_path / "elsewhere"]))["rows"]
    assert [row["miou"]["value"] for row in rows] == [0.5, 0.6]


def test_samples_that_are_still_there_say_what_made_them(runs, tmp_path):
    recipe = checkpoint.read_metadata(runs[0] / checkpoint.GENERATOR).recipe
    about = {
        "schema": 2,
        "classes": {"classes": [{"id": 0, "name": "sky", "color": [1, 2, 3]}]},
        "names": ["sky"],
        "class_pixels": [0],
        "label_space": "input",
        "shards": [],
        "recipe": recipe,
        "fingerprint": {"checkpoint": "c"},
        "provenance": {"checkpoint": {"images_seen": 64}},
    }
    (tmp_path / "datasets" / "x").mkdir(parents=True)
    (tmp_path / "datasets" / "x" / "manifest.json").write_text(json.dumps(about))
    own = write(tmp_path / "own", report(0.5, protocol={"checkpoint": "c"}))
    other = write(tmp_path / "other", report(0.5, protocol={"checkpoint": "since replaced"}))
    entries = ablation.read([own, other])
    assert [(e.setup, e.images) for e in entries] == [("E+Gi+Ge+Gt", 64), ("datasets/x", None)]


def test_reports_stand_for_themselves_and_fid_goes_first(tmp_path):
    places = [write(tmp_path / str(i), report(0.5, fid=50.0 + i)) for i in range(2)]
    result = CliRunner().invoke(cli, ["report", "ablation", *map(str, places), "--json"])
    found = json.loads(result.stdout)
    assert found["distance"] == "fid"
    assert [row["fid"]["value"] for row in found["rows"]] == [50.0, 51.0]
    assert found["rows"][0]["images"] is None
    only_one = [places[0], write(tmp_path / "x", report(0.5))]
    assert ablation.to_json(ablation.read(only_one))["distance"] == "fd_efficientnet_lite0"


def without(document, name):
    del document["metrics"][name]
    return document


def test_a_report_without_the_distance_of_the_others_keeps_its_row(tmp_path):
    far, bare = report(0.5), without(report(0.4), "fd_efficientnet_lite0")
    places = [write(tmp_path / name, one) for name, one in (("far", far), ("bare", bare))]
    entries = ablation.read(places)
    lines = ablation.table(entries, markdown=True).splitlines()
    assert lines[0] == "| setup | mIoU ↑ | Acc ↑ | FD, EfficientNet-Lite0 ↓ | images seen |"
    assert [line.split(" | ")[3] for line in lines[2:4]] == ["99.4", "-"]
    (note,) = (line for line in lines if "reports without" in line)
    assert f"FD, EfficientNet-Lite0: {places[1]}; evaluate" in note
    found = ablation.to_json(entries)
    assert found["distance"] == "fd_efficientnet_lite0"
    assert [row["fd_efficientnet_lite0"] is None for row in found["rows"]] == [False, True]


def test_without_any_distance_there_is_no_column_of_it(tmp_path):
    place = write(tmp_path / "bare", without(report(0.4), "fd_efficientnet_lite0"))
    table = ablation.table(ablation.read([place]), markdown=True)
    assert table.splitlines()[0] == "| setup | mIoU ↑ | Acc ↑ | images seen |"
    assert "| 40.0 | 80.0 | not known |" in table
    assert "no report has a Fréchet distance" in table
    assert ablation.to_json(ablation.read([place]))["distance"] is None


def test_other_protocols_are_refused_all_at_once(tmp_path):
    places = [
        write(tmp_path / "a", report(0.5)),
        write(tmp_path / "b", report(0.5, protocol={"judge_hash": "k", "split": "val"})),
        write(tmp_path / "c", report(0.5) | {"metrics": {}}),
        write(tmp_path / "d", report(0.5, n=10)),
    ]
    with pytest.raises(UserError) as caught:
        ablation.read(places)
    message = str(caught.value)
    assert "b: judge_hash is k, of" in message
    assert "b: split is val, of" in message
    assert "c: no judge scored datasets/x" in message
    assert "d: number of images is 10, of" in message
    assert message.count("\n") == 4
    with pytest.raises(UserError, match="no judge scored"):
        ablation.read([places[2]])


def test_a_run_without_a_report_says_how_to_make_one(runs, tmp_path):
    other = tmp_path / "runs" / "new"
    other.mkdir()
    make_generator(other / checkpoint.GENERATOR, train={"images": 8, "batch": 8})
    half = tmp_path / "runs" / "half"
    half.mkdir()
    (half / "recipe.yaml").touch()
    with pytest.raises(UserError) as caught:
        ablation.read([runs[0], other, half, tmp_path / "nowhere"])
    assert "half: its training is not finished" in str(caught.value)
    assert f"ecgan evaluate --samples {other}" in str(caught.value)
    assert "nowhere" in str(caught.value)


def test_marked_reports_are_named(tmp_path):
    place = write(tmp_path / "a", report(0.5, marks=["forced"]))
    assert f"reports with warnings: {place}" in ablation.table(ablation.read([place]))
    assert ablation.to_json(ablation.read([place]))["rows"][0]["warnings"] == ["forced"]


def test_what_may_move_a_number_is_noted(tmp_path):
    filters = ("none", "consistency")
    places = [
        write(tmp_path / kind, report(0.5, protocol={"label_filter": kind, "codec": "jpg"}))
        for kind in filters
    ]
    notes = ablation.to_json(ablation.read(places))["notes"]
    assert "the protocols differ in label filter: consistency; none" in notes
    assert "codec" not in " ".join(notes)
