"""Options that several commands share, and completion of their values."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ecgan.errors import UsageError, UserError
from ecgan_cli.command import FAILED_SHARDS, INTERRUPTED, Option

if TYPE_CHECKING:
    from ecgan.generation.run import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
POSITIVE, COUNT = click.IntRange(min=1), click.IntRange(min=0)
option = partial(click.option, cls=Option)


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
    from ecgan.recipe import Recipe

    sampling_alone = (param.metavar or "").startswith("sampling.")
    return [
        CompletionItem(f"{name}.{key}=")
        for name, section in Recipe.model_fields.items()
        for key in getattr(section.annotation, "model_fields", ())
        if f"{name}.{key}=".startswith(incomplete) and (name == "sampling" or not sampling_alone)
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
DEVICE = option(
    "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N."
)
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")
MARKDOWN = option("--markdown", is_flag=True, help="Print Markdown.")
QUIET = option("-q", "--quiet", is_flag=True, help="No progress bars.")
DRY_RUN = partial(option, "-n", "--dry-run", is_flag=True)
FORMAT = partial(
    option,
    "--format",
    "data_format",
    type=click.Choice(["webdataset", "parquet", "folder"]),
    help="Tar shards, Parquet shards or loose files.",
)

INSTANCES = click.option(
    "--instances",
    type=PATH,
    metavar="DIR",
    help="Instance maps of the labels' names, for a run that uses them; default: boundaries "
    "between classes.",
)


class _Changes(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Kinds of variation, with commas between."""

    name = "changes"
    known = ("flip", "crop", "paste")

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        wrong = [word for word in words if word not in self.known]
        if wrong or not words:
            self.fail(f"{value!r}: choose from {', '.join(self.known)}, e.g. flip,crop", param, ctx)
        return tuple(word for word in self.known if word in words)


_STYLES = (
    click.option(
        "--seed", type=click.IntRange(min=0), help="A style of its own for each sample; default: 0."
    ),
    click.option(
        "--style-seed", type=click.IntRange(min=0), help="The same styles for all layouts."
    ),
    click.option("--style-images", type=PATH, metavar="DIR", help="Take styles from photos."),
)
_BETTER = (
    click.option(
        "--filter",
        "label_filter",
        metavar="train|PATH|NAME",
        help="Make unlabelled what a segmenter does not recognise; train: two, on halves of the "
        "real pairs, each judging what it has not seen.",
    ),
    click.option(
        "--on-inconsistent",
        type=click.Choice(["ignore", "drop", "retry"]),
        default="ignore",
        show_default=True,
        help="Samples of which little is kept: keep them, leave them out, or draw another style.",
    ),
    click.option(
        "--balance",
        "spread",
        type=click.Choice(["none", "hardness", "target"]),
        default="none",
        show_default=True,
        help="Spread the same number of samples: evenly, more of hard layouts, or by --target.",
    ),
    click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="CLASS=SHARE",
        help="Share of the labelled pixels that a class shall have; may be repeated.",
    ),
    click.option(
        "--vary",
        "changes",
        type=_Changes(),
        default=(),
        metavar="flip,crop,paste",
        help="Add varied forms of each layout.",
    ),
    click.option("--n-variants", type=int, help="Varied forms of each layout; default: 1."),
)
_WRITING = (
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
        "--label-space",
        type=click.Choice(["input", "evaluation"]),
        default="input",
        show_default=True,
        help="Ids of the labels that are written.",
    ),
    click.option(
        "--provenance/--no-provenance",
        default=True,
        show_default=True,
        help="Mark images and records as synthetic, and name the generator.",
    ),
    set_option(
        metavar="sampling.KEY=VALUE",
        help="Change a key of the recipe's section sampling.",
    ),
)
_WHERE = (
    click.option(
        "--executor",
        type=click.Choice(["auto", "local", "ray"]),
        default="auto",
        show_default=True,
        help="This machine, or Ray; auto: Ray where --ray-address is given.",
    ),
    click.option("--workers", type=int, help="Default: one for each GPU, or one."),
    click.option(
        "--gpus-per-worker", type=float, metavar="X", help="A share is allowed; default: 1 on CUDA."
    ),
    click.option(
        "--ray-address", metavar="A", help="Of a Ray cluster; auto: the one started here."
    ),
    click.option(
        "--shard-timeout",
        type=float,
        metavar="SECONDS",
        help="A worker that takes longer for a shard is replaced; default: 3600, none for a single "
        "local worker.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--overwrite", is_flag=True, help="Replace a data set of ecgan that is there."),
    click.option("--extend", is_flag=True, help="Add further styles and layouts to what is there."),
    click.option("--verify", is_flag=True, help="Check the bytes of finished shards, not sizes."),
    click.option(
        "-n", "--dry-run", is_flag=True, help="Count samples, classes and bytes, and stop."
    ),
    click.option(
        "--profile",
        type=click.IntRange(min=1),
        metavar="N",
        help="Make N samples, print where the time goes, keep nothing.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="No progress bar."),
)
_SHARED = (
    option(
        "--run",
        type=PATH,
        metavar="DIR",
        help="Run folder.",
        show_default="the newest finished below runs/",
        shell_complete=complete_run,
    ),
    click.option("--checkpoint", type=PATH, help="A generator.safetensors, in place of --run."),
    click.option(
        "--data",
        "root",
        type=PATH,
        metavar="DIR",
        help="The recipe's data set (data.root): layouts of sample, real pairs of --filter.",
    ),
    click.option(
        "--out", metavar="DIR|URL", help="Data set, s3:// and gs:// too; default: below datasets/."
    ),
    *_STYLES,
    *_BETTER,
    *_WRITING,
    *_WHERE,
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
    out: str | None,
    suffix: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Make a data set and say what was done."""
    dry_run, profiled = options.pop("dry_run"), options.pop("profile")
    from ecgan.checkpoint import resolve_generator
    from ecgan.generation import planner
    from ecgan.generation import run as generate

    path = resolve_generator(run, checkpoint)
    if run is None and checkpoint is None:
        click.echo(f"Using the newest run, {path.parent}", err=True)
    if out is None:
        out = str(Path("datasets") / f"{path.parent.name or path.stem}-{suffix}")
    request = planner.Request(generator=path, out=out, **options)
    if dry_run:
        click.echo(generate.describe(request))
        return
    if profiled is not None:
        click.echo(generate.profile(request, profiled))
        return
    with terminable():
        try:
            outcome = generate.run(request)
        except KeyboardInterrupt:
            click.echo(
                f"Interrupted; finished shards are kept, the same command goes on ({out})", err=True
            )
            sys.exit(INTERRUPTED)
    _tell(outcome, out)


def _tell(outcome: "Outcome", out: str) -> None:
    """Say what was done."""
    if outcome.failed:
        raise _Failed(UserError(f"{out}: {len(outcome.failed)} shards failed", outcome.failed))
    now = f"{outcome.made} made now"
    if outcome.made:
        now += (
            f", {outcome.made / outcome.seconds:.1f} samples/s, "
            f"{outcome.made_bytes / 1e6 / outcome.seconds:.1f} MB/s, bottleneck: "
            f"{outcome.spent.bottleneck()}"
        )
    click.echo(f"{outcome.num_samples} samples, {outcome.bytes / 1e6:.1f} MB ({now})")
    if outcome.filtered:
        click.echo(outcome.filtered)
    click.echo(f"{out}/preview.png shows some of them")


class _Failed(click.ClickException):
    exit_code = FAILED_SHARDS

    def __init__(self, error: UserError) -> None:
        super().__init__(f"{error}\nThe others are kept; run the same command again for these")


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
