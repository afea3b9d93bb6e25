"""``ecgan weights``: pretrained weights that ecgan can use but does not bring."""

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from ecgan.errors import UsageError, UserError
from ecgan_cli.options import QUIET, Group, echo

if TYPE_CHECKING:
    from ecgan.models.pretrained.weights import KnownFile


@click.group(cls=Group)
def weights() -> None:
    """List and download pretrained weights.

    \b
    ecgan weights list
    ecgan weights fetch vgg19

    No other command downloads any of them.
    """


@weights.command("list", short_help="List the known files.")
def list_() -> None:
    """List the files that can be fetched: what each is for, whether it is there, its licence."""
    from ecgan.models.pretrained.weights import KNOWN

    for known in KNOWN.values():
        echo(f"{known.name}: {known.used_by}")
        _show(known)
        echo(f"  file     {known.place}: {_state(known)}")


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ecgan.models.pretrained.weights import KNOWN

    return [CompletionItem(name) for name in KNOWN if name.startswith(incomplete)]


@weights.command(short_help="Download a known file.")
@click.argument("name", shell_complete=_complete_name)
@QUIET
def fetch(name: str, *, quiet: bool) -> None:
    """Download the weights NAME into torch's cache, where the other commands look for them.

    Address, licence, size and SHA-256 are printed first. The file is checked and kept whole or not
    at all; where the right one is there already, nothing is done. TORCH_HOME moves torch's cache.
    """
    from ecgan.models.pretrained import fetching
    from ecgan.models.pretrained.weights import KNOWN

    if name not in KNOWN:
        raise UsageError(f"{name}: no known weights; expected one of {', '.join(KNOWN)}")
    known = KNOWN[name]
    _show(known)
    if known.place.exists():
        if fetching.is_right(known, known.place):
            echo(f"{known.place}: there already, with this SHA-256")
            return
        echo(f"{known.place}: has another content, and is replaced")
    place = fetching.fetch(known, quiet=quiet)
    echo(f"{place}: found by the other commands where {known.key} is not set")


def _show(known: "KnownFile") -> None:
    for title, value in (
        ("address", known.address),
        ("licence", known.licence),
        ("size", f"{known.size:,} bytes"),
        ("sha256", known.sha256),
    ):
        echo(f"  {title:<9}{value}")


def _state(known: "KnownFile") -> str:
    from ecgan.models.pretrained import fetching

    if not known.place.exists():
        return f"not there; {known.command}"
    try:
        return "there" if fetching.is_right(known, known.place) else f"damaged; {known.command}"
    except UserError as error:
        return str(error).removeprefix(f"{known.place}: ")
