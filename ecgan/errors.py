"""The one exception that a user can mend, and what other errors say in short."""

from collections.abc import Sequence


class UserError(Exception):
    """Something that the user can mend: a file, a field, an option.

    The message names the file, the field, the value and the remedy. Several faults found together
    are reported together, one a line below the title.

    Args:
        title: the whole message, or the place that all ``faults`` share.
        faults: one sentence each.
    """

    def __init__(self, title: str, faults: Sequence[str] = ()) -> None:
        self.title = title
        self.faults = tuple(faults)
        super().__init__("\n  ".join([f"{title}:" if self.faults else title, *self.faults]))


class UsageError(UserError):
    """A fault of the command line: an option's value, a combination, or a name of nothing.

    The command exits with 2, as for every fault that the parser of the command line finds.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, without the pages that may follow; else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
