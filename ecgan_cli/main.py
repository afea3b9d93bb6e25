"""The command group ``ecgan``. Commands are imported when they are called: no torch at start-up."""

import importlib

import click

from ecgan import __version__
from ecgan_cli.options import Group

_COMMANDS = {
    "train": ("ecgan_cli.train", "Train ECGAN on photos with label maps."),
    "sample": ("ecgan_cli.generate", "Generate samples of the recipe's layouts."),
    "augment": ("ecgan_cli.generate", "Generate samples of a folder of label maps."),
    "evaluate": ("ecgan_cli.evaluate", "Measure the quality of samples."),
    "downstream": ("ecgan_cli.evaluate", "Measure what samples add as training data."),
    "report": ("ecgan_cli.report", "Show, compare and publish evaluations."),
    "data": ("ecgan_cli.data", "Draw, inspect, verify and convert data."),
    "recipes": ("ecgan_cli.recipes", "List, show, copy and check recipes."),
    "demo": ("ecgan_cli.demo", "Run every step once, on a toy data set."),
}
_EXIT_CODES = (
    ("0", "Success."),
    ("1", "Error: data, a file or the machine."),
    ("2", "Wrong option, argument or override."),
    ("3", "Some shards failed; the others are kept."),
    ("4", "A metric is below --fail-below."),
    ("130", "Interrupted; the same command resumes."),
)


class _Group(Group):
    """Group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        return getattr(module, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""Completion in bash (zsh, fish: zsh_source, fish_source):

    \b
    eval "$(_ECGAN_COMPLETE=bash_source ecgan)"
    """,
)
@click.version_option(__version__, prog_name="ecgan")
def cli() -> None:
    """Train ECGAN on photos with label maps, generate labelled images, measure them.

    \b
    ecgan demo                                      every step once, on a toy data set
    ecgan train --recipe cityscapes --data DIR      photos with label maps in, generator out
    ecgan augment --labels DIR --n-styles 5         label maps in, shards of samples out
    ecgan evaluate                                  quality of the newest data set
    """
