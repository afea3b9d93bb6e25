"""The command line as a whole: start-up, help, refusals."""

import logging
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from ecgan.errors import UserError
from ecgan.evaluation import run as evaluate
from ecgan.evaluation.downstream.arms import Arm
from ecgan.recipe import recipe_names
from ecgan_cli.main import cli
from ecgan_cli.options import Command

COMMANDS = [
    *("train", "sample", "augment", "evaluate", "downstream", "report", "data", "recipes", "demo"),
]


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "list"], ["train", "--help"]])
def test_help_imports_neither_torch_nor_ray(arguments):
    code = (
        "import sys; from ecgan_cli.main import cli; "
        f"cli({arguments!r}, standalone_mode=False); "
        "print(sorted({'torch', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_of_torch_spin_briefly_unless_they_are_told_otherwise(given, expected):
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    result = subprocess.run(
        [sys.executable, "-c", "import ecgan_cli.main, torch"],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose"} | given, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in result.stderr:
        pytest.skip("torch comes with another OpenMP")
    assert f"GOMP_SPINCOUNT = '{expected}'" in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_or_a_sentence(command):
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 4


def test_every_command_is_listed():
    output = CliRunner().invoke(cli, ["--help"]).output
    assert [name for name in COMMANDS if f"\n  {name} " not in output] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["data", "verfy"], "No such command 'verfy'. Did you mean 'verify'?"),
        (["data", "zip"], "No such command 'zip'."),
    ],
)
def test_an_unknown_command_is_a_usage_error(arguments, message):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_the_list_of_recipes_has_two_columns():
    lines = CliRunner().invoke(cli, ["recipes", "list"]).output.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--recipe", "demoo"], "no recipe 'demoo' (did you mean demo?)"),
        (["train", "--recipe", "no.yaml"], "no.yaml: no such file"),
        (["train", "--recipe", "demo", "--set", "train.batch=0"], "train.batch: "),
        (["train", "--recipe", "demo", "--set", "trian.batch=1"], "trian: no such key"),
        (["train", "--recipe", "demo", "--batch", "0"], "batch"),
        (["train", "--recipe", "demo", "--batch", "abc"], "batch"),
        (["train", "--recipe", "demo", "--profile", "0"], "profile"),
        (
            ["train", "--recipe", "camvid"],
            "datasets/camvid: no such folder; give the data set with",
        ),
        (["sample", "--num", "1", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["augment", "--labels", "nowhere"], "--labels nowhere: no such folder"),
        (["evaluate", "--samples", ".", "--reference", "no"], "--reference no: no such folder"),
        (["evaluate", "--fail-below", "miou"], "expected NAME=X, e.g. miou=0.5"),
        (["recipes", "show", "demoo"], "no recipe 'demoo'"),
        (["sample", "--num", "1", "--run", "nowhere"], "--run nowhere: no such folder"),
    ],
)
def test_a_fault_of_an_option_ends_with_code_2_and_the_command_is_named(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, arguments, prog_name="ecgan")
    assert result.exit_code == 2, result.output
    assert message in result.output
    named = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    assert f"Usage: ecgan {named if arguments[0] == 'recipes' else arguments[0]}" in result.output


def test_a_fault_of_a_recipe_file_ends_with_code_1(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {batch: 0}\n")
    for more in ([], ["--set", "train.seed=1"]):
        arguments = ["train", "--recipe", str(tmp_path / "mine.yaml"), *more]
        assert CliRunner().invoke(cli, arguments).exit_code == 1


def test_verbose_shows_what_is_logged():
    @click.command(cls=Command)
    def work():
        logging.getLogger("ecgan.segmentation").info("fetching the weights")
        logging.getLogger("ecgan.segmentation").warning("slow disk")

    assert CliRunner().invoke(work, []).stderr == "slow disk\n"
    assert CliRunner().invoke(work, ["-v"]).stderr == "fetching the weights\nslow disk\n"
    assert CliRunner().invoke(work, []).stderr == "slow disk\n"


def commands():
    """Every command and command of a group, with its name."""
    context = click.Context(cli, info_name="ecgan")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        yield [name], command
        for inner in getattr(command, "commands", {}):
            yield [name, inner], command.commands[inner]


@pytest.mark.parametrize(("words", "command"), [*commands()], ids=str)
def test_options_have_metavars_and_help(words, command):
    for param in command.params:
        if not isinstance(param, click.Option):
            continue
        assert param.help, param.opts
        if param.is_flag or isinstance(param.type, click.Choice):
            continue
        assert param.metavar, f"{words} {param.opts}: TEXT, INTEGER or PATH says little"


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=str)
def test_help_shows_at_most_25_options(words):
    output = CliRunner().invoke(cli, [*words, "--help"]).output
    shown = [line for line in output.splitlines() if line.startswith("  -")]
    assert len(shown) <= 25


@pytest.mark.parametrize("command", ["sample", "augment", "evaluate"])
def test_options_stand_under_headings_and_experts_have_their_own_help(command):
    runner = CliRunner()
    short, full = (runner.invoke(cli, [command, flag]).output for flag in ("--help", "--help-all"))
    assert short.index("\nOutput:\n") < short.index("\nWorkers:\n")
    assert "--gpus-per-worker" not in short
    assert full.index("\nWorkers:\n") < full.index("--gpus-per-worker") < full.index("--device")


def test_no_line_of_a_group_is_cut():
    for words, command in commands():
        if len(words) == 2:
            assert command.short_help, words
            assert len(command.short_help) <= 45, words
    for words in ([], ["data"], ["report"], ["recipes"]):
        output = CliRunner().invoke(cli, [*words, "--help"], terminal_width=80).output
        assert "...\n" not in output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ("ecgan train --recipe", "cam", "plain,camvid"),
        ("ecgan train --recipe", "mine", "file,mine"),
        ("ecgan train --set", "train.acc", "plain,train.accumulate="),
        ("ecgan sample --set", "train.acc", ""),
        ("ecgan sample --run", "runs/c", "plain,runs/city"),
        ("ecgan recipes show", "de", "plain,demo"),
        ("ecgan trian", "--rec", ""),
    ],
)
def test_the_shell_completes(words, incomplete, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/city").mkdir(parents=True)
    (tmp_path / "runs/city/generator.safetensors").touch()
    environment = {
        "_ECGAN_COMPLETE": "bash_complete",
        "COMP_WORDS": f"{words} {incomplete}",
        "COMP_CWORD": str(len(words.split())),
    }
    result = CliRunner().invoke(cli, [], prog_name="ecgan", env=environment)
    assert result.output.strip() == expected


@pytest.mark.parametrize("command", [["downstream"], ["evaluate", "--downstream"]], ids=str)
def test_downstream_is_a_command_and_still_an_option_of_evaluate(command, monkeypatch, tmp_path):
    def note(request):
        asked.append(request)
        raise UserError("that is all")

    asked = []
    monkeypatch.setattr(evaluate, "run", note)
    options = ["--samples", str(tmp_path), "--mix", "0, 2,synthetic", "--seeds", "1"]
    result = CliRunner().invoke(cli, [*command, *options])
    assert "Error: that is all" in result.stderr
    assert ("is now a command: ecgan downstream" in result.stderr) == (command[0] == "evaluate")
    (request,) = asked
    assert request.samples == (str(tmp_path),)
    assert request.downstream == evaluate.DownstreamOptions(
        tuple(Arm.of(word) for word in (0, 2, "synthetic")), seeds=1
    )
    refused = CliRunner().invoke(cli, [*command, "--samples", str(tmp_path), "--mix", "0,many"])
    assert refused.exit_code == 2
    assert "'0,many': expected numbers, copy-paste" in refused.output
