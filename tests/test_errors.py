"""Messages: one line for a sentence, no value without end, nothing that steers a terminal."""

import json
import pickle

import click
import pytest
from click.testing import CliRunner

from ecgan.errors import UserError, printable, shortened, shown
from ecgan_cli import options


def test_a_sentence_is_one_line_whatever_names_are_in_it():
    error = UserError("a\nError: b.png: bad", ["c\r\nd: worse", "e"])
    assert str(error).split("\n") == ["a\\nError: b.png: bad:", "  c\r\\nd: worse", "  e"]
    nested = UserError("both", [str(UserError("one", ["x", "y"]))])
    assert str(nested).splitlines() == ["both:", "  one:", "  x", "  y"]
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)


def test_no_value_in_a_message_is_longer_than_200_characters():
    text = str(UserError(f"recipe.yaml: name: {'x' * 5000}: too long; give a shorter one"))
    assert "x" * 201 not in text
    assert "more characters)" in text
    assert text.startswith("recipe.yaml: name: xxx")
    assert text.endswith("too long; give a shorter one")
    assert len(str(UserError("a " * 50_000))) <= 2000
    assert shortened("short") == "short"


@pytest.mark.parametrize("value", [[[["a"] * 99] * 99] * 99, "x" * 9999, 10**3000, {"a": {1: 2}}])
def test_shown_values_are_bounded(value):
    assert len(shown(value)) <= 200


def test_very_many_faults_are_counted():
    lines = str(UserError("answers", [f"fault {n}" for n in range(5000)])).splitlines()
    assert len(lines) == 102
    assert lines[-1] == "  ... and 4,900 more"
    assert len(UserError("answers", ["a"] * 100).faults) == 100


def test_values_that_would_be_terabytes_are_shown_at_once():
    value = ["lol"]
    for _ in range(60):
        value = [value] * 10
    assert len(shown(value)) <= 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", "\\u001b[2J"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u2028b\x85", "a\\u2028b\\u0085"),
        ("\r\x07\x00\x7f\t", "\\u000d\\u0007\\u0000\\u007f\\u0009"),
        ("\udcff", "\\udcff"),
        ("a\u200bb\ufeff\u00ad", "a\\u200bb\\ufeff\\u00ad"),
        ("\u06cc\u200c\u062e, 道\u3000路", "\u06cc\u200c\u062e, 道\u3000路"),
        ("two\nlines, é, 道路, 1\u00a0%", "two\nlines, é, 道路, 1\u00a0%"),
    ],
)
def test_nothing_printed_steers_a_terminal(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected


def test_the_command_line_escapes_output_and_errors_alike():
    @click.command(cls=options.Command)
    def command():
        options.echo("class \x1b[31mred\x1b[0m")
        raise UserError("file\u202e.png\nError: all is well")

    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    assert "class \\u001b[31mred" in result.output
    assert "Error: file\\u202e.png\\nError: all is well" in result.output


def test_json_stays_json():
    text = json.dumps({"a": "\x7f\x1b\u202e"})
    assert json.loads(printable(text)) == {"a": "\x7f\x1b\u202e"}
