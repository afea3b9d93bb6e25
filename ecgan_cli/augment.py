"""``ecgan augment``."""

from typing import Any

import click

from ecgan_cli.command import Command
from ecgan_cli.options import DIRECTORY, PATH, data_option, generation_options, make, option


@click.command(cls=Command)
@generation_options(
    option("--labels", type=PATH, required=True, metavar="DIR", help="Label maps, at any depth."),
    option(
        "--n-styles",
        type=int,
        metavar="N",
        help="Images of each layout.",
        show_default="1, or one for each of --style-images",
    ),
    option(
        "--instances",
        type=PATH,
        metavar="DIR",
        help="Instance maps with the names of the label maps, for a run that uses them.",
        show_default="boundaries between classes",
    ),
    data_option("root", type=DIRECTORY, expert=True),
)
def augment(**options: Any) -> None:  # noqa: ANN401
    """Generate samples of the layouts in a folder of label maps; photos are not needed.

    \b
    ecgan augment --labels DIR --n-styles 5
    ecgan augment --run runs/city --labels DIR --n-styles 5 --format parquet --out shards/city

    The same command again completes what was interrupted.
    """
    make(suffix="augment", **options)
