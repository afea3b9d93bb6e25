"""Classes of all commands and the options they share: headings, completion, logs, exit codes."""

import difflib
import json
import logging
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from ecgan.errors import UsageError, UserError, printable

FAILED_SHARDS, BELOW_LIMIT, INTERRUPTED = 3, 4, 130  # exit codes
_ALL = "ecgan.all_options"
_PRECEDENCE = "Precedence: command line > --set > recipe file > default."


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text; names and values in it may be somebody else's, so nothing steers a terminal."""
    click.echo(printable(text), err=err, nl=nl)  # noqa: TID251  here and nowhere else


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
    """Log handler that writes to the standard error of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(self.format(record), err=True)


def _log_to_stderr(_: click.Context, __: click.Parameter, verbose: bool) -> None:
    """Show warnings of the library on stderr, with ``--verbose`` what it does, too."""
    logger = logging.getLogger("ecgan")
    if not any(isinstance(handler, _Echo) for handler in logger.handlers):
        logger.addHandler(_Echo())
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _help_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        echo(ctx.get_help())
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
            raise click.UsageError(printable(str(error)), ctx) from error
        except UserError as error:
            raise click.ClickException(printable(str(error))) from error


class Group(click.Group):
    """Group of commands that suggests a similar name for an unknown one."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; suggest a similar one where there is none of that name."""
        close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
        known = ctx.resilient_parsing or self.get_command(ctx, args[0]) is not None
        if close and not known:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)


Decorator = Callable[[Any], Any]


class _Address(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Type of an option that is a folder or an address, whose password is never shown."""

    name = "address"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,  # noqa: ARG002
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        """The address."""
        from ecgan.reading.places import Address

        return Address(value)


ADDRESS = _Address()
PATH = click.Path(path_type=Path)
POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)
option = partial(click.option, cls=Option)
folder_option = partial(option, type=PATH, metavar="DIR")
number_option = partial(option, type=int, metavar="N")


class CommaList(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Type of an option whose value is a list with commas.

    Args:
        parse: function that makes an item of a word; ValueError refuses the word.
        expected: what the message of a refusal asks for.
    """

    name = "list"

    def __init__(self, parse: Callable[[str], Any], expected: str) -> None:
        self.parse, self.expected = parse, expected

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[Any, ...]:
        """The items; a default that is a tuple stays as it is."""
        if isinstance(value, tuple):
            return cast("tuple[Any, ...]", value)
        try:
            items = tuple(self.parse(word.strip()) for word in value.split(",") if word.strip())
        except ValueError:
            items = ()
        return items or self.fail(f"{value!r}: {self.expected}", param, ctx)


def under(heading: str, *options: Decorator, hidden: bool = False) -> Decorator:
    """Decorator that adds several options below one heading of the help, or hidden ones."""

    def decorate(command: Any) -> Any:  # noqa: ANN401
        for decorator in reversed(options):
            command = decorator(command)
            added = cast(Any, vars(command)["__click_params__"][-1])
            added.heading, added.hidden = heading, hidden
        return command

    return decorate


def _complete_recipe(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from ecgan.recipe import recipe_names

    names = [CompletionItem(name) for name in recipe_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_run(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Finished runs below runs/; folders, if none of them fits."""
    runs = sorted(str(path.parent) for path in Path("runs").glob("*/generator.safetensors"))
    fitting = [CompletionItem(run) for run in runs if run.startswith(incomplete)]
    return fitting or [CompletionItem(incomplete, type="dir")]


def _complete_key(
    _: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from ecgan.recipe import recipe_keys

    prefix = "sampling." if (param.metavar or "").startswith("sampling.") else ""
    return [
        CompletionItem(f"{key}=")
        for key in recipe_keys()
        if "." in key and key.startswith(prefix) and f"{key}=".startswith(incomplete)
    ]


recipe_option = partial(
    option, "--recipe", "recipe_name", metavar="NAME|FILE", shell_complete=_complete_recipe
)
recipe_argument = partial(click.argument, shell_complete=_complete_recipe)
set_option = partial(option, "--set", "overrides", multiple=True, shell_complete=_complete_key)
SET = set_option(metavar="SECTION.KEY=VALUE", help="Change a key of the recipe; repeatable.")
data_option = partial(
    folder_option,
    "--data",
    help="Root folder of the data set.",
    show_default="data.root of the recipe",
)
DEVICE = option("--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda, cuda:N.")
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")
MARKDOWN = option("--markdown", is_flag=True, help="Print Markdown.")
WORKERS = number_option(
    "--workers",
    help="Worker processes; more than one run on Ray, which starts by itself.",
    show_default="one for each GPU, or one",
)
GPUS_PER_WORKER = option(
    "--gpus-per-worker",
    type=float,
    metavar="X",
    expert=True,
    help="GPUs of each worker; a fraction shares one.",
    show_default="1 on CUDA",
)
RAY_ADDRESS = option(
    "--ray-address",
    metavar="HOST:PORT|auto",
    expert=True,
    help="Ray cluster; auto: the one started on this machine.",
)
QUIET = option("-q", "--quiet", is_flag=True, help="No progress bars.")
DRY_RUN = partial(option, "-n", "--dry-run", is_flag=True)
FORMAT = partial(
    option,
    "--format",
    "data_format",
    type=click.Choice(["webdataset", "parquet", "folder"]),
    help="Tar shards, Parquet shards or loose files.",
)


@contextmanager
def interruptible(message: str) -> Generator[None, None, None]:
    """When interrupted, print how to go on and exit with INTERRUPTED."""
    try:
        yield
    except KeyboardInterrupt:
        echo(f"Interrupted; {message}", err=True)
        sys.exit(INTERRUPTED)


def require_folder(name: str, folder: Path | None) -> None:
    """Refuse the folder of an option or key if it does not exist, with a UsageError."""
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{name} {folder}: no such folder")


def with_data(overrides: tuple[str, ...], folder: Path | None) -> tuple[str, ...]:
    """The overrides of ``--set``, then that of ``--data``, whose folder must exist."""
    require_folder("--data", folder)
    return overrides if folder is None else (*overrides, f"data.root={json.dumps(str(folder))}")


def require_root(root: str | None) -> None:
    """Refuse a recipe's ``data.root`` that does not exist, with a UsageError."""
    if root is not None and not Path(root).is_dir():
        raise UsageError(f"{root}: no such folder; give the data set with --data DIR")


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet.

    Raises:
        UserError: it is there, or cannot be written.
    """
    try:
        stream = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{path} exists already; give another file name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from error
    try:
        with stream:
            stream.write(text)
    except OSError as error:
        path.unlink(missing_ok=True)  # half of it would be in the way of the next try
        raise UserError(f"{path}: cannot write: {error.strerror}") from error
