"""``ecgan augment``."""

from pathlib import Path
from typing import Any

import click

from ecgan_cli.command import Command
from ecgan_cli.options import INSTANCES, PATH, make, shared


@click.command(cls=Command)
@click.option("--labels", type=PATH, required=True, metavar="DIR", help="Label maps, any depth.")
@click.option(
    "--n-styles", type=int, help="Images of each layout; default: 1, or one for each style photo."
)
@INSTANCES
@shared
def augment(labels: Path, n_styles: int | None, instances: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Make a data set from a folder of label maps; photos are not needed.

    \b
    ecgan augment --labels DIR --n-styles 5
    ecgan augment --run runs/city --labels DIR --n-styles 5 --format parquet --out shards/city

    The same command again completes what was interrupted. Exit code 3: some shards failed, the
    others are kept.
    """
    make(suffix="augment", labels=labels, n_styles=n_styles, instances=instances, **options)
