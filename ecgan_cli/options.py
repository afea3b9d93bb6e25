"""Options that several commands share, and completion of their values."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

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


def under(heading: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Decorator that adds several options below one heading of the help."""

    def decorate(command: Command) -> Command:
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
DEVICE = option(
    "--device", metavar="DEVICE", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N."
)
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


class _Changes(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """Kinds of layout augmentation, separated by commas."""

    name = "changes"
    known = ("flip", "crop", "paste")

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return cast("tuple[str, ...]", value)
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        wrong = [word for word in words if word not in self.known]
        if wrong or not words:
            self.fail(f"{value!r}: choose from {', '.join(self.known)}, e.g. flip,crop", param, ctx)
        return tuple(word for word in self.known if word in words)


_VARIATION = (
    option(
        "--vary",
        "changes",
        type=_Changes(),
        default=(),
        metavar="flip,crop,paste",
        help="Add variants of each layout: mirrored, cropped, with objects pasted in.",
    ),
    option(
        "--n-variants",
        type=int,
        metavar="N",
        expert=True,
        help="Variants of each layout.",
        show_default="1",
    ),
)
_GENERATOR = (
    option(
        "--run",
        type=PATH,
        metavar="DIR",
        help="Run folder.",
        show_default="the newest finished below runs/",
        shell_complete=complete_run,
    ),
    option(
        "--checkpoint",
        type=PATH,
        metavar="FILE",
        expert=True,
        help="A generator.safetensors, in place of --run.",
    ),
    set_option(metavar="sampling.KEY=VALUE", help="Change a key of the section sampling."),
)
_STYLES = (
    option(
        "--seed",
        type=COUNT,
        metavar="N",
        help="Seed; every sample draws its own style.",
        show_default="0",
    ),
    option("--style-seed", type=COUNT, metavar="N", help="Seed of styles that all layouts share."),
    option("--style-images", type=PATH, metavar="DIR", help="Photos whose styles all layouts get."),
)
_QUALITY = (
    option(
        "--filter",
        "label_filter",
        metavar="train|DIR|NAME",
        help='Set pixels to "ignore" where a segmenter disagrees. `train`: cross-fit two '
        "segmenters on halves of the real data.",
    ),
    option(
        "--on-inconsistent",
        type=click.Choice(["ignore", "drop", "retry"]),
        default="ignore",
        show_default=True,
        help="Where the filter leaves little of a sample: keep it, drop it, or draw another style.",
    ),
    option(
        "--balance",
        "spread",
        type=click.Choice(["none", "hardness", "target"]),
        default="none",
        show_default=True,
        help="Distribute the styles: evenly, more for hard layouts, or to reach --target.",
    ),
    option(
        "--target",
        "targets",
        multiple=True,
        metavar="CLASS=SHARE",
        help="Share of a class in the labelled pixels, e.g. car=0.1; repeatable.",
    ),
)
_OUTPUT = (
    option(
        "--out",
        metavar="DIR|URL",
        help="Data set; s3:// and gs:// too.",
        show_default="datasets/RUN-...",
    ),
    FORMAT(default="webdataset", show_default=True),
    option(
        "--image-format",
        type=click.Choice(["jpg", "png", "webp"]),
        expert=True,
        help="Codec of the images.",
        show_default="sampling.image_format of the recipe",
    ),
    option(
        "--samples-per-shard",
        type=int,
        metavar="N",
        expert=True,
        help="Samples in a shard.",
        show_default="sampling.samples_per_shard of the recipe",
    ),
    option(
        "--label-space",
        type=click.Choice(["input", "evaluation"]),
        default="input",
        show_default=True,
        expert=True,
        help="Class ids of the written labels.",
    ),
    option(
        "--provenance/--no-provenance",
        default=True,
        show_default=True,
        expert=True,
        help="Mark images and records as synthetic and name the generator.",
    ),
    option("--overwrite", is_flag=True, help="Replace an existing data set of ecgan."),
    option("--extend", is_flag=True, help="Add styles and layouts to an existing data set."),
    option(
        "--verify", is_flag=True, expert=True, help="Compare hashes of finished shards, not sizes."
    ),
    DRY_RUN(help="Print samples, classes and bytes; write nothing."),
)
_WORKERS = (
    WORKERS,
    GPUS_PER_WORKER,
    RAY_ADDRESS,
    option(
        "--shard-timeout",
        type=float,
        metavar="SECONDS",
        expert=True,
        help="Time after which a worker that has not finished its shard is replaced; a single "
        "worker then runs on Ray, too.",
        show_default="3600; none for one worker",
    ),
    option(
        "--batch",
        type=int,
        metavar="N",
        expert=True,
        help="Images a step.",
        show_default="sampling.batch of the recipe",
    ),
    DEVICE,
    option(
        "--profile",
        type=POSITIVE,
        metavar="N",
        expert=True,
        help="Generate N samples, print where the time goes, keep nothing.",
    ),
)


def generation_options(
    *layouts: Callable[[Command], Command],
) -> Callable[[Command], Command]:
    """Options of ``sample`` and ``augment``: the layouts of one of them, and what both share."""
    headings = {
        "Layouts": (*layouts, *_VARIATION),
        "Generator": _GENERATOR,
        "Styles": _STYLES,
        "Quality": _QUALITY,
        "Output": _OUTPUT,
        "Workers": _WORKERS,
    }

    def decorate(command: Command) -> Command:
        command = QUIET(command)
        for heading in reversed(headings):
            command = under(heading, *headings[heading])(command)
        return command

    return decorate


def make(
    *,
    run: Path | None,
    checkpoint: Path | None,
    out: str | None,
    suffix: str,
    **options: Any,  # noqa: ANN401
) -> None:
    """Generate a data set and print what was done."""
    dry_run, profiled = options.pop("dry_run"), options.pop("profile")
    if dry_run and profiled is not None:
        raise UsageError("--dry-run generates nothing and --profile does; give one of them")
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
                f"Interrupted; finished shards are kept, the same command resumes ({out})", err=True
            )
            sys.exit(INTERRUPTED)
    _tell(outcome, out)


def _tell(outcome: "Outcome", out: str) -> None:
    """Print what was done."""
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
        super().__init__(f"{error}\nThe others are kept; the same command makes the missing ones")


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
