"""Options that ``sample`` and ``augment`` share, and what both do at the end."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ecgan.errors import UserError

FAILED_SHARDS, INTERRUPTED = 3, 130  # exit codes
Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

INSTANCES = click.option(
    "--instances",
    type=PATH,
    metavar="DIR",
    help="Instance maps of the labels' names, for a run that uses them; default: boundaries "
    "between classes.",
)

_SHARED = (
    click.option("--run", type=PATH, help="Run folder; default: the newest finished below runs/."),
    click.option("--checkpoint", type=PATH, help="A generator.safetensors, in place of --run."),
    click.option("--out", type=PATH, help="Folder of the data set; default: below datasets/."),
    click.option(
        "--format",
        "data_format",
        type=click.Choice(["webdataset", "parquet", "folder"]),
        default="webdataset",
        show_default=True,
        help="Tar shards, Parquet shards, or loose files.",
    ),
    click.option(
        "--image-format",
        type=click.Choice(["jpg", "png", "webp"]),
        help="Default: the recipe's sampling.image_format.",
    ),
    click.option("--samples-per-shard", type=int, help="Default: the recipe's."),
    click.option("--batch", type=int, help="Samples of one pass; default: the recipe's."),
    click.option(
        "--seed", type=click.IntRange(min=0), help="A style of its own for each sample; default: 0."
    ),
    click.option("--style-images", type=PATH, metavar="DIR", help="Take styles from photos."),
    click.option(
        "--style-seed", type=click.IntRange(min=0), help="The same styles for all layouts."
    ),
    click.option(
        "--label-space",
        type=click.Choice(["input", "evaluation"]),
        default="input",
        show_default=True,
        help="Ids of the labels that are written.",
    ),
    click.option(
        "--executor",
        type=click.Choice(["auto", "local"]),
        default="auto",
        help="Where shards are made; both in this process so far.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--overwrite", is_flag=True, help="Replace a data set of ecgan that is there."),
    click.option(
        "-n", "--dry-run", is_flag=True, help="Count samples, shards and bytes, and stop."
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
)


def shared(command: Command) -> Command:
    """Add the options that both commands have."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def make(
    *,
    run: Path | None,
    checkpoint: Path | None,
    out: Path | None,
    suffix: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Make a data set and say what was done."""
    options.pop("executor")
    dry_run = options.pop("dry_run")
    from ecgan import generate
    from ecgan.checkpoint import resolve_generator

    path = resolve_generator(run, checkpoint)
    if run is None and checkpoint is None:
        click.echo(f"Using the newest run, {path.parent}", err=True)
    if out is None:
        out = Path("datasets") / f"{path.parent.name or path.stem}-{suffix}"
    request = generate.Request(generator=path, out=out, **options)
    if dry_run:
        click.echo(generate.describe(request))
        return
    with _terminable():
        try:
            outcome = generate.run(request)
        except KeyboardInterrupt:
            click.echo(
                f"Interrupted; finished shards are kept, the same command goes on ({out})", err=True
            )
            sys.exit(INTERRUPTED)
    if outcome.failed:
        raise _Failed(UserError(f"{out}: {len(outcome.failed)} shards failed", outcome.failed))
    now = f"{outcome.made} made now"
    if outcome.made:
        now += f", {outcome.made / outcome.seconds:.1f} samples/s"
    click.echo(f"{outcome.num_samples} samples, {outcome.bytes / 1e6:.1f} MB ({now})")
    click.echo(f"{out}/preview.png shows some of them")


class _Failed(click.ClickException):
    exit_code = FAILED_SHARDS

    def __init__(self, error: UserError) -> None:
        super().__init__(f"{error}\nThe others are kept; run the same command again for these")


class _terminable:  # noqa: N801 - a context manager
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


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet.

    Raises:
        UserError: it is there, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists already; give another file name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror}") from error
