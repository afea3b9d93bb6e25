"""Everything once, through the command: the demo, small, and what a new user does after it."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ecgan_cli.main import cli

README = Path(__file__).parents[2] / "README.md"
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


def commands():
    """Every ``ecgan …`` line in a code block of the README, without its comment."""
    text = README.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for name, value in re.findall(r'^([A-Z]+)="(.*)"$', text, re.MULTILINE):
        lines = [line.replace(f"${name}", value) for line in lines]
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [part for part in parts if part.startswith("ecgan ") and "…" not in part]


def test_the_readme_shows_every_command():
    assert {line.split()[1] for line in commands()} >= {
        "demo", "train", "augment", "sample", "evaluate", "data", "recipes", "report",
    }  # fmt: skip


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_of_the_readme_is_one_that_the_program_takes(line):
    """Its options and choices are parsed by the program itself; nothing is run."""
    words, command = shlex.split(line)[1:], cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{line}: no command {name}"
        command = found
    command.make_context(command.name, words)
