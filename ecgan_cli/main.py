"""The command group ``ecgan``. Commands are imported when they are called: no torch at start-up."""

import importlib
import os
import sys
from typing import Any

import click

from ecgan import __version__
from ecgan.errors import UserError, printable
from ecgan.runtime.processes import machine, signals
from ecgan_cli.options import INTERRUPTED, Group, echo

# On a CPU, torch's threads wait for each other many times in a step. GNU's OpenMP lets them spin so
# long that on cores which others use as well most of the time goes into it; spinning a little costs
# nothing on idle ones (docs/benchmarks.md). OpenMP reads this once, when torch is imported.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "20000"

_COMMANDS = {
    "train": ("ecgan_cli.train", "Train ECGAN on photos with label maps."),
    "sample": ("ecgan_cli.generate", "Generate samples of the recipe's layouts."),
    "augment": ("ecgan_cli.generate", "Generate samples of a folder of label maps."),
    "evaluate": ("ecgan_cli.evaluate", "Measure the quality of samples."),
    "downstream": ("ecgan_cli.evaluate", "Measure what samples add as training data."),
    "report": ("ecgan_cli.report", "Show, compare and publish evaluations."),
    "data": ("ecgan_cli.data", "Draw, inspect, verify and convert data."),
    "recipes": ("ecgan_cli.recipes", "List, show, copy and check recipes."),
    "weights": ("ecgan_cli.weights", "List and download pretrained weights."),
    "demo": ("ecgan_cli.train", "Run every step once, on a toy data set."),
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
    """Group that imports a command when it is called.

    Every command is interrupted by SIGTERM and SIGHUP as by Ctrl-C, and what the machine refuses
    ends it with a sentence.
    """

    def main(self, *args: Any, **settings: Any) -> Any:  # noqa: ANN401
        """Run a command line and exit."""
        machine.mend_streams()
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signals.end_with_launcher()
        try:
            with signals.interrupting():
                return super().main(*args, **settings)
        except machine.OutputError as error:  # of --help; commands have their own
            echo(f"Error: {error}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> object:
        """Import and run a command."""
        try:
            with machine.explained(click.ClickException, click.exceptions.Exit, click.Abort):
                return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(printable(str(error))) from error
        except KeyboardInterrupt:
            echo("Interrupted; what is finished is kept, run the same command again", err=True)
            sys.exit(INTERRUPTED)

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
