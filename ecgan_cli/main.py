"""The command group ``ecgan``. Commands are imported when they are called: no torch at start-up."""

import importlib

import click

from ecgan import __version__
from ecgan_cli.command import Group

_COMMANDS = {
    "train": ("ecgan_cli.train", "Train ECGAN on photos with label maps."),
    "sample": ("ecgan_cli.sample", "Make a data set from the recipe's own layouts."),
    "augment": ("ecgan_cli.augment", "Make a data set from a folder of label maps."),
    "evaluate": ("ecgan_cli.evaluate", "Measure what samples are worth."),
    "report": ("ecgan_cli.report", "Read a report again."),
    "data": ("ecgan_cli.data", "Draw, inspect, check and convert data."),
    "recipes": ("ecgan_cli.recipes", "List, show and copy recipes."),
    "demo": ("ecgan_cli.demo", "Everything once, on a toy data set, in five minutes."),
}


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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ecgan")
def cli() -> None:
    """Labelled images from label maps: train ECGAN, make data sets with it, measure them.

    \b
    ecgan demo                                      everything once, on toy data
    ecgan train --recipe cityscapes --data DIR      train on photos with label maps
    ecgan augment --labels DIR --n-styles 5         label maps in, shards of samples out
    ecgan evaluate                                  what the samples are worth
    """
