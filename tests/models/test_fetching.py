"""`ecgan weights`: against a server on this machine that is right, wrong, cut short or silent."""

import ast
import dataclasses
import errno
import hashlib
import http.client
import shutil
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from ecgan.errors import UserError
from ecgan.evaluation.feature_networks import feature_networks, find_inception
from ecgan.models.pretrained import fetching, weights
from ecgan_cli.main import cli

CONTENT = bytes(range(256)) * 2000
ROOT = Path(__file__).parents[2]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        getattr(self, self.path.strip("/"))()

    def send(self, content, size, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if size is not None:
            self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(content)

    def right(self):
        self.send(CONTENT, len(CONTENT))

    def moved(self):
        self.send(b"", 0, 302, Location="/right")

    def wrong(self):
        self.send(CONTENT[::-1], len(CONTENT))

    def half(self):
        self.send(CONTENT[: len(CONTENT) // 2], len(CONTENT))

    def longer(self):
        self.send(CONTENT * 2, 2 * len(CONTENT))

    def endless(self):
        self.send(CONTENT * 2, None)

    def gone(self):
        self.send(b"", 0, 404)

    def silent(self):
        self.server.released.wait(10)

    def hangs(self):
        self.send(CONTENT[:1000], len(CONTENT))
        self.wfile.flush()
        self.server.released.wait(10)

    def drips(self):
        self.send(b"", len(CONTENT))
        self.drip(CONTENT)

    def drips_headers(self):
        self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + CONTENT)

    def drip(self, content):
        for byte in content:
            if self.server.released.wait(0.02):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def garbage(self):
        self.wfile.write(b"no HTTP\r\n\r\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as one:
        one.paths, one.released = [], threading.Event()
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.released.set()
        one.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def known(server, cache, monkeypatch):
    """Makes the table's vgg19 a small file at a path of the server."""

    def make(path):
        address = f"http://127.0.0.1:{server.server_address[1]}/{path}"
        digest = hashlib.sha256(CONTENT).hexdigest()
        one = dataclasses.replace(weights.VGG19, address=address, size=len(CONTENT), sha256=digest)
        monkeypatch.setitem(weights.KNOWN, "vgg19", one)
        return one

    return make


def run(*words):
    return CliRunner().invoke(cli, ["weights", *words])


def fails(*words):
    """What a refused command says; no more than the one line, and exit code 1."""
    result = run("fetch", *words)
    assert result.exit_code == 1, result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    return error


@pytest.mark.parametrize("path", ["right", "moved"])
def test_the_right_file_is_fetched_once(server, cache, known, path):
    one = known(path)
    assert "not there; ecgan weights fetch vgg19" in run("list").output
    result = run("fetch", "vgg19", "-q")
    assert result.exit_code == 0, result.output
    shown = result.output.index
    for text in (one.address, one.licence, f"{one.size:,} bytes", one.sha256):
        assert shown(text) < shown(str(cache))  # before the download
    assert one.place.read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == [one.file]
    assert weights.find_vgg19_weights(None) == one.place
    asked = len(server.paths)
    again = run("fetch", "vgg19")
    assert again.exit_code == 0
    assert "there already" in again.output
    assert len(server.paths) == asked
    assert f"{one.place}: there\n" in run("list").output


def test_a_damaged_file_is_named_and_replaced(cache, known):
    one = known("right")
    cache.mkdir(parents=True)
    one.place.write_bytes(CONTENT[::-1])
    assert f"{one.place}: damaged; ecgan weights fetch vgg19" in run("list").output
    result = run("fetch", "vgg19")
    assert result.exit_code == 0
    assert "another content" in result.output
    assert one.place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("wrong", "another file than the known one, invalid hash value"),
        ("half", "the connection ended after 256,000 of 512,000 bytes"),
        ("longer", "the server sends 1,024,000 bytes, expected 512,000 bytes"),
        ("endless", "the server sends no size, expected 512,000 bytes"),
        ("gone", "the server answers 404"),
        ("silent", "the server sent nothing for 0.2 s"),
        ("hangs", "the server sent nothing for 0.2 s"),
        ("drips", "the server sent less than 10 kB a second for 0.3 s"),
        ("drips_headers", "the server sent less than 10 kB a second for 0.3 s"),
        ("garbage", "the connection broke"),
    ],
)
def test_what_is_not_the_file_leaves_the_one_before(cache, known, monkeypatch, path, sentence):
    monkeypatch.setattr(fetching, "SILENCE", 0.2)
    monkeypatch.setattr(fetching, "SPAN", 0.3)
    before = socket.getdefaulttimeout(), getattr(urllib.request, "_opener", None)
    one = known(path)
    cache.mkdir(parents=True)
    one.place.write_bytes(b"older")
    error = fails("vgg19", "-q")
    assert sentence in error
    assert one.address in error
    assert [p.name for p in cache.iterdir()] == [one.file]
    assert one.place.read_bytes() == b"older"
    assert before == (socket.getdefaulttimeout(), getattr(urllib.request, "_opener", None))


def test_a_slow_disk_is_no_slow_server(cache, known, monkeypatch):
    """The rate is that of the time spent waiting for the server."""
    monkeypatch.setattr(fetching, "SPAN", 0.05)
    monkeypatch.setattr(torch.hub, "READ_DATA_CHUNK", 1 << 16)
    read = http.client.HTTPResponse.read

    def slow(response, *args):
        time.sleep(0.1)
        return read(response, *args)

    monkeypatch.setattr(http.client.HTTPResponse, "read", slow)
    one = known("right")
    assert run("fetch", "vgg19", "-q").exit_code == 0
    assert one.place.read_bytes() == CONTENT


def test_no_network(cache, known, monkeypatch, free_port):
    one = dataclasses.replace(known("right"), address=f"http://127.0.0.1:{free_port}/right")
    monkeypatch.setitem(weights.KNOWN, "vgg19", one)
    error = fails("vgg19")
    assert "no connection" in error
    assert "--set losses.vgg19_weights=FILE" in error
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["resnet", "", "../vgg19", "vgg19.pth"])
def test_an_unknown_name_is_refused_with_the_known_ones(cache, name):
    result = run("fetch", name)
    assert result.exit_code == 2
    assert "expected one of vgg19, inception" in result.stderr
    assert not cache.exists()


def test_places_that_cannot_take_it_are_noticed_before_the_download(
    server, cache, known, monkeypatch
):
    one = known("right")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    assert f"{one.place}: cannot write: " in fails("vgg19")
    cache.unlink()
    one.place.mkdir(parents=True)
    assert f"{one.place}: a folder, not a file" in fails("vgg19")
    assert "a folder, not a file" in run("list").output
    one.place.rmdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=511_999))
    assert "needs 512,000 bytes, and 511,999 are free" in fails("vgg19")
    assert server.paths == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses(cache, known, monkeypatch, number):
    known("right")

    def refuse(*args, **kwargs):
        raise OSError(number, "the disk's own words")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    error = fails("vgg19")
    assert "cannot write: the disk's own words" in error
    assert "TORCH_HOME" in error


def test_every_message_about_missing_weights_ends_in_the_command(cache):
    pytest.importorskip("torch_fidelity")
    cpu = torch.device("cpu")

    def networks(path):
        return feature_networks(
            ["inception", "inception_clean"],
            inception_weights=path,
            dinov2=None,
            hed_weights=None,
            device=cpu,
        )

    messages = []
    for path in (None, "no.pth"):
        with pytest.raises(UserError) as error:
            weights.find_vgg19_weights(path)
        messages.append((str(error.value), "vgg19"))
    with pytest.raises(UserError) as error:
        networks("no.pth")
    messages.append((str(error.value), "inception"))
    messages += [(reason, "inception") for reason in networks(None)[1].values()]
    assert len(messages) == 11
    for message, name in messages:
        assert message.endswith(f": ecgan weights fetch {name}")


def test_inception_is_found_in_torchs_cache(cache):
    assert find_inception(None) is None
    cache.mkdir(parents=True)
    weights.INCEPTION.place.write_bytes(b"none of Inception's")
    assert find_inception(None) == str(cache / "pt_inception-2015-12-05-6726825d.pth")
    assert find_inception("mine.pth") == "mine.pth"


def test_the_table_is_consistent():
    for name, one in weights.KNOWN.items():
        assert one.name == name
        assert one.address.startswith("https://")
        assert one.address.endswith(f"/{one.file}")
        assert one.file.rpartition("-")[2] == f"{one.sha256[:8]}.pth"
        assert len(one.sha256) == 64


# Modules and functions that open a connection, and the files that may name them
NETWORK = {
    *("urllib.request", "requests", "urllib3", "httpx", "aiohttp", "http.client", "ftplib"),
    *("download_url_to_file", "load_state_dict_from_url", "hub.load", "urlopen"),
    *("urlretrieve", "create_connection", "hf_hub_download", "snapshot_download"),
}
DOOR = "ecgan/models/pretrained/fetching.py"
OTHERS = {
    "ecgan/segmentation/loading.py": {"snapshot_download"},  # by a name that the user gives
    "ecgan/runtime/ray_pool.py": {"create_connection"},  # to the user's or our own Ray
}


def names(text):
    """Every module that a source imports, and every name with its dots."""
    if not any(name in text for name in NETWORK):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (alias.name for alias in node.names)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield node.attr
            yield f"{getattr(node.value, 'attr', getattr(node.value, 'id', ''))}.{node.attr}"


def test_nothing_else_opens_a_connection():
    found = {}
    for package in ("ecgan", "ecgan_cli"):
        for path in (ROOT / package).rglob("*.py"):
            if used := NETWORK & set(names(path.read_text())):
                found[path.relative_to(ROOT).as_posix()] = used
    door = found.pop(DOOR)
    assert "download_url_to_file" in door
    assert found == OTHERS
