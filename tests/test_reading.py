"""Files of others: regular ones, of a bounded size, JSON with a schema, documented pictures."""

import os
import socket
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from ecgan.reading import documents
from ecgan.reading.documents import checked, parse_json, read_bytes, read_json
from ecgan.reading.pictures import open_image
from tests.helpers.errors import message


class Point(BaseModel):
    x: int
    y: int


class Many(BaseModel):
    points: list[Point]


@pytest.fixture
def places(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("/dev/zero")
        yield tmp_path


@pytest.mark.parametrize("name", ["pipe", "socket", "folder", "link", "/dev/zero", "none", "a\0b"])
def test_only_regular_files_are_opened(places, name):
    text = message(read_bytes, places / name)
    assert "not a file" in text or "no such file" in text or "cannot read" in text


def test_large_files_are_refused_by_their_size(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 256 MiB" in message(read_bytes, tmp_path / "sparse")


def test_what_became_a_pipe_after_the_check_does_not_block(places, monkeypatch):
    monkeypatch.setattr(documents, "check_file", lambda *_: None)
    found = []
    thread = threading.Thread(target=lambda: found.append(read_bytes(places / "pipe")), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [b""]


def test_a_file_that_holds_more_than_it_says_is_read_up_to_the_bound():
    assert Path("/proc/self/status").stat().st_size == 0
    assert "larger than 0 MiB" in message(read_bytes, Path("/proc/self/status"), 10)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[NaN]", "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[1e999]", "not finite"),
        (rb'["\ud800"]', "surrogates"),
        (rb'{"\udfff": 1}', "surrogates"),
        (b"[" * 101 + b"]" * 101, "too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
        (b"1" * 5000, "4300"),
    ],
)
def test_json_is_refused_in_one_sentence(tmp_path, content, why):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    text = message(read_json, path, "a state", "delete it")
    assert text.startswith(f"{path}: not a state: ")
    assert why in text
    assert text.endswith("; delete it")
    assert "\n" not in text


def test_depth_that_is_allowed():
    assert parse_json("[" * 99 + "]" * 99, "p", "a list", "r") is not None


def test_a_schema_names_every_field_that_does_not_fit():
    assert checked(Point, {"x": 1, "y": 2}, "p.json", "make it anew") == Point(x=1, y=2)
    text = message(checked, Point, {"x": "left"}, "p.json", "make it anew")
    assert text.startswith("p.json: 2 fields do not fit; make it anew:\n")
    assert "x: input should be a valid integer" in text
    assert "got 'left'" in text
    assert "y: field required" in text
    many = message(checked, Many, {"points": [{}] * 9}, "p", "r")
    assert many.splitlines()[-1] == "  and 13 more"
    one = message(checked, Point, {"x": 1, "y": "y" * 9999}, "p.json", "make it anew")
    assert len(one) < 500
    assert one.endswith("; make it anew")
    assert "the whole: input should be a valid dictionary" in message(checked, Point, [], "p", "r")


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        b"8BPS\0\1" + bytes(40),
        b"P6 1 1 255\n\0\0\0",
        b"SIMPLE  =                    T",
        b"\0\0\1\0\1\0" + bytes(40),
    ],
)
def test_formats_that_are_not_documented_are_not_opened(content):
    with pytest.raises(OSError, match="cannot identify"):
        open_image(content)
