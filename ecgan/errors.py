"""The one exception that a user can mend, and how values of others are shown in text.

Two rules, each in one place. A value that a message names is never longer than :data:`MOST`
characters: :func:`shown` at the value, and every :class:`UserError` for what slips through. Control
characters reach no terminal, card or page: :func:`printable`, where text leaves ecgan.
"""

import re
import unicodedata
from collections.abc import Sequence
from reprlib import Repr
from typing import Any

MOST = 200  # characters of a value in a message
_MOST_FAULTS = 100  # in a message
_LONG_LINE = 2000  # of a message; a sentence with all ways out has some 500
_JOINERS = "\u200c\u200d"  # of Persian and of emoji: invisible, and needed


class UserError(Exception):
    """Something that the user can mend: a file, a field, an option.

    The message names the file, the field, the value and the remedy. Several faults found together
    are reported together, one a line below the title. A line break within a sentence, as a file's
    name may hold, is written as such.

    Args:
        title: the whole message, or the place that all ``faults`` share.
        faults: one sentence each.
    """

    def __init__(self, title: str, faults: Sequence[str] = ()) -> None:
        self.title = _sentence(title)
        self.faults = tuple(map(_sentence, faults[:_MOST_FAULTS]))
        if len(faults) > _MOST_FAULTS:
            self.faults += (f"... and {len(faults) - _MOST_FAULTS:,} more",)
        super().__init__("\n  ".join([f"{self.title}:" if faults else self.title, *self.faults]))


class UsageError(UserError):
    """A fault of the command line: an option's value, a combination, or a name of nothing.

    The command exits with 2, as for every fault that the parser of the command line finds.
    """


def first_line(error: Exception) -> str:
    """What an error of a library says, without the pages that may follow; else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: Any) -> str:  # noqa: ANN401
    """A value of somebody else's file, for a message: at most :data:`MOST` characters.

    What is nested is written only as far as it is shown: a small file may hold references that
    would be terabytes of text.
    """
    return shortened(_repr.repr(value))


def shortened(text: str, most: int = MOST) -> str:
    """Text of at most so many characters; of a longer one, both ends and how much is left out."""
    if len(text) <= most:
        return text
    half = (most - 35) // 2
    return f"{text[:half]}...({len(text) - 2 * half:,} more characters)...{text[-half:]}"


def printable(text: str) -> str:
    """Text without odd characters, as of :func:`is_odd`.

    Each is written as JSON writes it, a backslash and its number; line breaks stay.
    """
    if text.isprintable():
        return text
    return "".join(_escape(c) if is_odd(c) and c != "\n" else c for c in text)


def is_odd(character: str) -> bool:
    """Whether a character does something else than to be seen.

    Control characters and line breaks, halves of characters, and marks that nobody sees, such as
    those that turn the direction of a text; but for the joiners of Persian and of emoji.
    """
    return unicodedata.category(character) in _ODD and character not in _JOINERS


def one_line(text: str, most: int = MOST) -> str:
    """Text of somebody else's file for a line of a table: printable, without breaks, cut."""
    return shortened(printable(text).replace("\n", "\\n"), most)


def in_markdown(text: str) -> str:
    """Text of somebody else's file in Markdown: no tag, link, mark or line of its own."""
    line = printable(text).replace("\n", "\\n")
    return re.sub(r"[&<>|\[\]`]", lambda found: f"&#{ord(found[0])};", line)


_ODD = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # general categories of Unicode
_repr = Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 4, MOST, MOST, MOST


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


def _sentence(text: str) -> str:
    """A sentence of a message in one line, words and whole cut to a bearable length.

    The lines below the title of another error, which two spaces begin, stay lines.
    """
    lines = re.split(r"\r?\n(?=  )", text)
    return "\n".join(shortened(_words(line), _LONG_LINE) for line in lines)


def _words(line: str) -> str:
    line = line.rstrip("\n").replace("\n", "\\n")
    if len(line) <= MOST:
        return line
    return re.sub(rf"\S{{{MOST + 1},}}", lambda word: shortened(word[0]), line)
