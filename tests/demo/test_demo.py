"""Everything once, through the command: the demo, small, and what a new user does after it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecgan_cli.main import cli

SMALL = [
    *("--set", "train.images=16", "--set", "train.batch=4", "--set", "train.preview_every=8"),
    *("--set", "model.width=4", "--set", "model.label_generator_training.images=16"),
    *(
        "--set",
        "model.label_generator_training.channels=8",
        "--set",
        "evaluate.judge_training.images=16",
    ),
    *(
        "--set",
        "evaluate.judge_training.channels=8",
        "--set",
        "data.height=32",
        "--set",
        "data.width=64",
    ),
    *("--set", "evaluate.features=[]"),
]


@pytest.mark.slow
def test_the_demo_makes_a_data_set_and_a_report_and_calling_it_again_makes_nothing_anew(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(cli, ["demo", "--quiet", *SMALL])
    assert first.exit_code == 0, first.output
    out = tmp_path / "ecgan-demo"
    assert (out / "report" / "report.html").is_file()
    assert (out / "samples" / "preview.png").is_file()
    manifest = json.loads((out / "samples" / "manifest.json").read_text())
    assert manifest["samples"] == 100
    assert manifest["layouts"] == 20
    for line in first.output.splitlines():
        if line.startswith("  ecgan-demo"):
            assert Path(line.split()[0]).exists(), line
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert kept
    again = CliRunner().invoke(cli, ["demo", "--quiet", *SMALL])
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == kept


def test_the_demo_refuses_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "not empty, and not a demo of ecgan" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
