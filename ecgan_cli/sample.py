"""``ecgan sample``."""

from pathlib import Path
from typing import Any

import click

from ecgan.errors import UserError
from ecgan_cli.options import INSTANCES, PATH, make, shared


@click.command()
@click.option("--num", type=int, metavar="N", help="Number of samples.")
@click.option("--labels", type=PATH, metavar="DIR", help="Layouts; default: the recipe's own data.")
@click.option("--split", help="Split to take layouts from; default: the one of training.")
@click.option("--n-styles", type=int, help="Images of each layout, in place of --num.")
@click.option(
    "--of", metavar="DIR|URL", help="With --key: the data set that holds it; default: the newest."
)
@click.option("--key", metavar="K", help="Make one sample again: the key of its layout.")
@click.option(
    "--style", type=click.IntRange(min=0), metavar="S", help="... and its style's number."
)
@INSTANCES
@shared
def sample(
    num: int | None,
    n_styles: int | None,
    of: str | None,
    key: str | None,
    style: int | None,
    split: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Make a data set of N samples from the layouts of the recipe's own data.

    \b
    ecgan sample --num 10000
    ecgan sample --run runs/city --num 500 --split val --out shards/city-val
    ecgan sample --of shards/city-val --key frankfurt_000 --style 0 --out one

    N samples are spread evenly over the layouts. The same command again completes what was
    interrupted. Exit code 3: some shards failed, the others are kept. --of with --key and --style
    makes one sample of a data set again, with the same bytes.
    """
    if of is not None or key is not None or style is not None:
        _again(of, key, style, options)
        return
    if num is None and n_styles is None:
        raise click.UsageError("give --num N, the number of samples, or --n-styles")
    suffix = f"sample-{split}" if split is not None else "sample"
    make(suffix=suffix, num=num, n_styles=n_styles, split=split, **options)


def _again(of: str | None, key: str | None, style: int | None, options: dict[str, Any]) -> None:
    """One sample of a data set, once more."""
    if key is None or style is None:
        raise UserError("--key K and --style S: one sample is named by both, --of names its set")
    from ecgan.evaluation import run as evaluate
    from ecgan.generation import planner
    from ecgan.generation import run as generate
    from ecgan.generation.state import Ledger
    from ecgan.runtime.storage import open_store

    if of is None:
        of = str(evaluate.newest_samples(Path("datasets")))
        click.echo(f"Using the newest data set, {of}", err=True)
    kept = Ledger(open_store(of)).request()
    request = planner.Request.from_json({**kept, "out": of})
    out = Path(options["out"] or "samples")
    files = generate.recreate(request, key, style, out, save_styles=options["save_styles"])
    for path in files:
        click.echo(path)
