"""``ecgan sample``."""

from pathlib import Path
from typing import Any

import click

from ecgan_cli.options import INSTANCES, PATH, make, shared


@click.command()
@click.option("--num", type=int, required=True, metavar="N", help="Number of samples.")
@click.option("--labels", type=PATH, metavar="DIR", help="Layouts; default: the recipe's own data.")
@click.option("--data", "root", type=PATH, metavar="DIR", help="The recipe's data set (data.root).")
@click.option("--split", help="Split to take layouts from; default: the one of training.")
@INSTANCES
@shared
def sample(
    num: int,
    labels: Path | None,
    root: Path | None,
    split: str | None,
    instances: Path | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Make a data set of N samples from the layouts of the recipe's own data.

    \b
    ecgan sample --num 10000
    ecgan sample --run runs/city --num 500 --split val --out shards/city-val

    N samples are spread evenly over the layouts. The same command again completes what was
    interrupted. Exit code 3: some shards failed, the others are kept.
    """
    suffix = f"sample-{split}" if split is not None else "sample"
    make(
        suffix=suffix,
        num=num,
        labels=labels,
        root=root,
        split=split,
        instances=instances,
        **options,
    )
