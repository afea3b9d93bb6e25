"""Names, numbers and YAML of others: what is taken, and every refusal."""

import subprocess
import sys

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ecgan.errors import printable
from ecgan.reading import numbers, plain_yaml
from ecgan.reading.names import Name, checked_name, odd_characters
from ecgan.reading.numbers import Count, Seed
from ecgan.reading.places import relative_name


class Document(BaseModel):
    name: Name
    count: Count = 0
    seed: Seed = 0


@pytest.mark.parametrize("name", ["camvid", "my run", "straße-2", "a..b", "x" * 200, "-1", "~"])
def test_names_of_files_are_taken(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("..", "dot"),
        (".lock", "dot"),
        ("../x", "path"),
        ("/x", "path"),
        ("a\\b", "path"),
        ("a\0b", "x00"),
        ("a\nb", "n"),
        ("a\x1b[2J", "x1b"),
        ("a\u202eb", "u202e"),
        ("a\ud800", "ud800"),
        ("a\ufeffb", "ufeff"),
        ("x" * 201, "200 bytes"),
        ("ä" * 101, "200 bytes"),
    ],
)
def test_what_is_no_name_is_refused_with_its_reason(name, reason):
    with pytest.raises(ValidationError) as caught:
        Document(name=name)
    assert reason in str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize("odd", ["\0", "\x1b", "\x85", "\u202e", "\u2028", "\ufeff", "\ud800"])
def test_an_odd_character_is_odd_everywhere(odd):
    assert printable(f"a{odd}b") != f"a{odd}b"
    assert odd_characters(f"a{odd}b") == ascii(odd)[1:-1]
    for refuses in (checked_name, relative_name):
        with pytest.raises(ValueError, match=r"no name of a file|must not have the characters"):
            refuses(f"a{odd}b")


@pytest.mark.parametrize(
    "text", ["é", "道\u3000路", "\u06cc\u200c\u062e", "1\u00a0%", "\U0001f468\u200d\U0001f469"]
)
def test_what_is_seen_is_not_odd(text):
    assert printable(text) == checked_name(text) == relative_name(text) == text


def test_a_refusal_does_not_rest_on_assertions():
    code = "from ecgan.reading.names import checked_name; checked_name('../x')"
    done = subprocess.run(
        [sys.executable, "-O", "-c", code], capture_output=True, check=False, text=True
    )
    assert "not a path" in done.stderr


def test_a_number_without_end_is_refused():
    for field in ("count", "seed"):
        with pytest.raises(ValidationError, match=f"{field}\n.*at most"):
            Document.model_validate({"name": "a", field: 10**30})


def aliases(levels):
    """Lists of two, each of the one before."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels)]
    return "\n".join(lines)


class WithAliases(plain_yaml.Loader):
    aliases = True


@pytest.mark.parametrize(
    ("text", "loader", "reason"),
    [
        ("[" * 100_000, plain_yaml.Loader, "nested deeper"),
        ("a: 1" + ":1" * 1000, plain_yaml.Loader, "100 digits"),
        ("a: 0x" + "f" * 5000, plain_yaml.Loader, "100 digits"),
        ("a: &b 1\nc: *b", plain_yaml.Loader, "an alias"),
        (aliases(30), WithAliases, "100,000 values"),
        ("&a [*a]", WithAliases, "100,000 values"),
        ("a: !!python/name:os.system x", plain_yaml.Loader, "a tag"),
        ("a: !!bool x", plain_yaml.Loader, "a tag"),
        ("a: 2020-99-99", plain_yaml.Loader, "month"),
        ("a: 0x_", plain_yaml.Loader, "literal"),
        ("{[1]: 2}", plain_yaml.Loader, "unhashable"),
        ("a: [", plain_yaml.Loader, "expected"),
    ],
)
def test_yaml_that_is_odd_is_refused(text, loader, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        plain_yaml.parse_yaml(text, loader)
    assert len(str(caught.value)) < 400


def test_aliases_are_taken_where_a_loader_says_so():
    found = plain_yaml.parse_yaml(aliases(3), WithAliases)
    assert found["a2"] == [[["x", "x"]] * 2] * 2
    assert plain_yaml.parse_yaml("a: !!str 1") == {"a": "1"}


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (numbers.Weight, [0, 0.5, 10], [-0.1, "x", None]),
        (numbers.Rate, [1e-9], [0, -1]),
        (numbers.Share, [0, 0.5, 1], [-0.1, 1.1]),
        (numbers.Count, [0, 10**12], [-1, 10**12 + 1, 0.5]),
        (numbers.Positive, [1], [0, -1, 10**12 + 1]),
        (numbers.Seed, [0, 2**63 - 1], [-1, 2**63]),
    ],
)
def test_numbers_have_ranges(kind, taken, refused):
    reader = TypeAdapter(kind)
    assert [reader.validate_python(value) for value in taken] == taken
    for value in refused:
        with pytest.raises(ValidationError):
            reader.validate_python(value)


def test_characters_that_are_allowed_are_not_odd():
    assert odd_characters("a\nb\tc", "\n\t") == ""
    assert odd_characters("a\nb\x00", "\n") == "\\x00"
