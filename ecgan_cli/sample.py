"""``ecgan sample``."""

from typing import Any

import click

from ecgan_cli.command import Command
from ecgan_cli.options import INSTANCES, PATH, make, shared


@click.command(cls=Command)
@click.option("--num", type=int, metavar="N", help="Number of samples.")
@click.option("--labels", type=PATH, metavar="DIR", help="Layouts; default: the recipe's own data.")
@click.option("--split", help="Split to take layouts from; default: the one of training.")
@click.option("--n-styles", type=int, help="Images of each layout, in place of --num.")
@INSTANCES
@shared
def sample(
    num: int | None,
    n_styles: int | None,
    split: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Make a data set of N samples from the layouts of the recipe's own data.

    \b
    ecgan sample --num 10000
    ecgan sample --run runs/city --num 500 --split val --out shards/city-val

    N samples are spread evenly over the layouts. The same command again completes what was
    interrupted. Exit code 3: some shards failed, the others are kept.
    """
    if num is None and n_styles is None:
        raise click.UsageError("give --num N, the number of samples, or --n-styles")
    suffix = f"sample-{split}" if split is not None else "sample"
    make(suffix=suffix, num=num, n_styles=n_styles, split=split, **options)
