"""``ecgan sample``."""

from typing import Any

import click

from ecgan_cli.command import Command
from ecgan_cli.options import DIRECTORY, PATH, data_option, generation_options, make, option


@click.command(cls=Command)
@generation_options(
    option("--num", type=int, metavar="N", help="Samples, spread evenly over the layouts."),
    option("--n-styles", type=int, metavar="N", help="Images of each layout, in place of --num."),
    option("--split", metavar="NAME", help="Split.", show_default="the one of training"),
    data_option("root", type=DIRECTORY),
    option(
        "--labels",
        type=PATH,
        metavar="DIR",
        expert=True,
        help="Label maps, as in ecgan augment.",
    ),
    option("--instances", type=PATH, metavar="DIR", expert=True, help="Instance maps of --labels."),
)
def sample(
    num: int | None,
    n_styles: int | None,
    split: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Generate samples of the layouts in the recipe's own data set.

    \b
    ecgan sample --num 10000
    ecgan sample --run runs/city --num 500 --split val --out shards/city-val

    The same command again completes what was interrupted.
    """
    if num is None and n_styles is None:
        raise click.UsageError("give --num N, the number of samples, or --n-styles")
    suffix = f"sample-{split}" if split is not None else "sample"
    make(suffix=suffix, num=num, n_styles=n_styles, split=split, **options)
