"""Options that several commands share, and completion of their values."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ecgan.errors import UsageError, UserError
from ecgan_cli.command import Option

Decorator = Callable[[Any], Any]
PATH = click.Path(path_type=Path)
POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)
option = partial(click.option, cls=Option)


def under(heading: str, *options: Decorator) -> Decorator:
    """Decorator that adds several options below one heading of the help."""

    def decorate(command: Any) -> Any:  # noqa: ANN401
        for decorator in reversed(options):
            command = decorator(command)
            vars(command)["__click_params__"][-1].heading = heading
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
    option,
    "--data",
    metavar="DIR",
    help="Root folder of the data set.",
    show_default="data.root of the recipe",
)
DEVICE = option("--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda, cuda:N.")
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")
MARKDOWN = option("--markdown", is_flag=True, help="Print Markdown.")
WORKERS = option(
    "--workers",
    type=int,
    metavar="N",
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


class terminable:  # noqa: N801 - a context manager
    """SIGTERM does what Ctrl-C does."""

    def __enter__(self) -> None:
        import signal
        import threading

        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        import signal

        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def require_folder(name: str, folder: Path | None) -> None:
    """Refuse the folder of an option or key if it does not exist.

    Raises:
        UsageError: it does not.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"{name} {folder}: no such folder")


def with_data(overrides: tuple[str, ...], folder: Path | None) -> tuple[str, ...]:
    """The overrides of ``--set``, then that of ``--data``.

    Raises:
        UsageError: the folder does not exist.
    """
    require_folder("--data", folder)
    return overrides if folder is None else (*overrides, f"data.root={json.dumps(str(folder))}")


def require_root(root: str | None) -> None:
    """Refuse a recipe's ``data.root`` that does not exist.

    Raises:
        UsageError: it does not.
    """
    if root is not None and not Path(root).is_dir():
        raise UsageError(f"{root}: no such folder; give the data set with --data DIR")


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet.

    Raises:
        UserError: it is there, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists already; give another file name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from error
