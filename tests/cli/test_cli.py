"""The command line as a whole: start-up, help, refusals."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from ecgan_cli.main import cli

COMMANDS = ["train", "sample", "augment", "evaluate", "report", "data", "recipes", "demo"]


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


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_or_a_sentence(command):
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 4


def test_every_command_is_listed():
    output = CliRunner().invoke(cli, ["--help"]).output
    assert [name for name in COMMANDS if f"\n  {name} " not in output] == []


def test_an_unknown_command_is_a_usage_error():
    assert CliRunner().invoke(cli, ["trian"]).exit_code == 2
