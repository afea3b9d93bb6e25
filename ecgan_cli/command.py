"""Classes of all commands: options under headings, expert options, log messages, exit codes."""

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import click

from ecgan.errors import UsageError, UserError

FAILED_SHARDS, BELOW_LIMIT, INTERRUPTED = 3, 4, 130  # exit codes
_ALL = "ecgan.all_options"
_PRECEDENCE = "Precedence: command line > --set > recipe file > default."


class Option(click.Option):
    """Option under a heading of the help; ``--help-all`` alone shows it where it is ``expert``.

    Its default is shown; a number is called N.
    """

    heading = "Options"

    def __init__(self, names: Sequence[str], *, expert: bool = False, **settings: Any) -> None:  # noqa: ANN401
        settings.setdefault("show_default", settings.get("default") not in (None, ()))
        if isinstance(settings.get("type"), click.IntRange):
            settings.setdefault("metavar", "N")
        super().__init__(names, **settings)
        self.expert = expert

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Name and help of the option; None where it is not shown."""
        return super().get_help_record(ctx) if ctx.meta.get(_ALL, not self.expert) else None


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(self.format(record), err=True)


def _log_to_stderr(_: click.Context, __: click.Parameter, verbose: bool) -> None:
    """Show warnings of the library on stderr, with ``--verbose`` what it does, too."""
    logger = logging.getLogger("ecgan")
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo())
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _help_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Command(click.Command):
    """Command whose options have headings; each takes ``--verbose``."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **settings)
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_log_to_stderr,
                help="Show log messages.",
            )
        )
        if any(isinstance(param, Option) and param.expert for param in self.params):
            self.params.append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=_help_all,
                    help="Show expert options, too, and exit.",
                )
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write which value wins, where a recipe gives some."""
        super().format_epilog(ctx, formatter)
        if any(param.name == "overrides" for param in self.params):
            formatter.write(f"\n{_PRECEDENCE}\n")

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the library's faults end as click's own do: 2 for options, else 1."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error
        except UserError as error:
            raise click.ClickException(str(error)) from error


class Group(click.Group):
    """Group of commands of the class above."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; suggest a similar one where there is none of that name."""
        close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
        if close and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)
