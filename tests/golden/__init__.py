"""Golden files: help texts, resolved recipes, and names and types of the files that users read.

``python -m tests.golden`` writes them anew; review the difference before you commit it.
"""

import json
import tempfile
from pathlib import Path

import click
from click.testing import CliRunner

from ecgan.recipe import load_recipe, recipe_names
from ecgan_cli.main import cli
from tests.helpers.tiny import SIZE, make_generator, write_pairs

FOLDER = Path(__file__).parent / "files"


def help_texts():
    """``--help`` of every command and command of a group, 80 columns wide."""
    context = click.Context(cli, info_name="ecgan")
    commands = {(): cli}
    for name in cli.list_commands(context):
        commands[name,] = command = cli.get_command(context, name)
        for inner in getattr(command, "commands", {}):
            commands[name, inner] = command.commands[inner]
    texts = {}
    for words, command in commands.items():
        names = {name for param in command.params for name in param.opts}
        for option in {"--help", "--help-all"} & {*names, "--help"}:
            texts[f"{option[2:]}/{'-'.join(words) or 'ecgan'}.txt"] = run(*words, option)
    return texts


def recipes():
    """Every key of the recipes that come with the package."""
    return {f"recipes/{name}.yaml": load_recipe(name).to_yaml() for name in recipe_names()}


def documents():
    """Names and types in manifest.json and report.json of a tiny data set."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root / "real", num_train=4, num_val=4)
        height, width = SIZE
        generator = make_generator(
            root / "run" / "generator.safetensors",
            data={"root": str(root / "real"), "height": height, "width": width, "classes": None},
        )
        set_, report = root / "samples", root / "report"
        options = "--device", "cpu", "-q"
        made = "--checkpoint", generator, "--num", 4, "--split", "val", "--out", set_
        run("sample", *made, *options)
        small = ("evaluate.judge_training={images: 8, channels: 8}",)
        overrides = [word for text in small for word in ("--set", text)]
        run("evaluate", "--samples", set_, "--split", "val", "--out", report, *overrides, *options)
        written = (set_ / "manifest.json", report / "report.json")
        found = {path.name: types(json.loads(path.read_text())) for path in written}
    return {f"documents/{name}": json.dumps(found[name], indent=1) + "\n" for name in found}


def types(value):
    """A JSON document with types in place of values; of a list, its first item stands for all."""
    if isinstance(value, dict):
        return {key: types(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [types(inner) for inner in value[:1]]
    return {bool: "boolean", int: "integer", float: "number", str: "string"}.get(type(value))


def run(*arguments):
    """What a command prints."""
    result = CliRunner().invoke(
        cli, [str(word) for word in arguments], prog_name="ecgan", terminal_width=80
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def all_files():
    """The text of every golden file, by its path below :data:`FOLDER`."""
    return {**help_texts(), **recipes(), **documents()}
