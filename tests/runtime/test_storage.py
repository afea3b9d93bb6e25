"""The promise of a place: a file appears when it is whole, in a folder, in memory and in S3."""

import copy
import json
import os
import pickle
import socket
from datetime import datetime
from pathlib import Path

import pytest

from ecgan.errors import UserError
from ecgan.runtime import files
from ecgan.runtime.storage import (
    HIDDEN,
    Address,
    Folder,
    ObjectStore,
    cache_folder,
    open_store,
)
from ecgan.shards.manifest import read_manifest

BUCKET = "ecgan-test"


@pytest.fixture(
    params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)],
)
def store(request, tmp_path, monkeypatch):
    if request.param == "folder":
        return open_store(tmp_path / "out")
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}/out")
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://{BUCKET}/{tmp_path.name}/out")


def everything(store, folder=""):
    found = {f"{folder}/{name}".lstrip("/") for name in store.sizes(folder)}
    for below in ("data", HIDDEN, f"{HIDDEN}/tmp", "images/train"):
        found |= {f"{below}/{name}" for name in store.sizes(below)}
    return found


def test_what_is_written_is_there_with_its_size(store):
    assert not store.holds_anything()
    assert store.names() == []
    store.write("data/a.tar", b"12345")
    store.write(f"{HIDDEN}/plan.json", "{}")
    assert store.holds_anything()
    assert store.read("data/a.tar") == b"12345"
    assert (store.size("data/a.tar"), store.size("data/b.tar")) == (5, None)
    assert store.sizes("data") == {"a.tar": 5}
    assert store.sizes("nowhere") == {}
    assert store.names() == [HIDDEN, "data"]
    with store.open("data/a.tar") as file:
        file.seek(3)
        assert file.read() == b"45"
    store.write("data/a.tar", b"other")
    assert store.read("data/a.tar") == b"other"


def test_a_missing_file_is_a_file_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.read("data/a.tar")
    assert list(store.read_many(["a", "b"])) == [None, None]


def test_many_files_are_read_in_order(store):
    for name in "abc":
        store.write(f"data/{name}", name * 3)
    names = ["data/c", "data/x", "data/a"]
    assert list(store.read_many(names)) == [b"ccc", None, b"aaa"]


def test_an_error_leaves_nothing_behind(store):
    def write():
        with store.writing("data/a.tar") as file:
            file.write(b"half")
            raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError):
        write()

    def files():
        yield "images/train/a.jpg", b"whole"
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError):
        store.write_many(files())
    assert everything(store) - {f"{HIDDEN}/lock"} == set()
    if isinstance(store, Folder):
        assert [path for path in store.path.rglob("*") if path.is_file()] == []


def test_files_and_their_folders_are_brought_to_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "sync", lambda: synced.append("everything"))
    store = open_store(tmp_path)
    store.write("data/a.tar", b"1")
    written, folder = synced
    assert Path(written).name.startswith("a.tar.")
    assert folder == str(tmp_path / "data")
    synced.clear()
    store.write_many([("images/train/0.jpg", b"0"), ("labels/train/0.png", b"0")])
    assert synced == ["everything", f"{tmp_path}/images/train", f"{tmp_path}/labels/train"]


def test_a_file_shows_only_when_it_is_whole(store):
    store.write("data/a.tar", b"before")
    with store.writing("data/a.tar") as file:
        file.write(b"after")
        file.flush()
        assert store.read("data/a.tar") == b"before"
        assert "a.tar" in store.sizes("data")
    assert store.read("data/a.tar") == b"after"


def test_many_files_are_written(store):
    store.write_many([(f"images/train/{i}.jpg", bytes([i])) for i in range(3)])
    assert store.sizes("images/train") == {f"{i}.jpg": 1 for i in range(3)}
    store.sweep()
    assert everything(store) == {f"images/train/{i}.jpg" for i in range(3)}


def test_what_is_removed_is_gone_and_the_rest_stays(store):
    for name in ("data/a", "data/b", "README.md", f"{HIDDEN}/shards/0.json"):
        store.write(name, "x")
    store.remove(["data/a", "data/never", "README.md"])
    assert everything(store) == {"data/b"}
    store.remove(["data/b"])
    store.remove_folder(f"{HIDDEN}/shards")
    store.remove_folder("nowhere")
    assert store.sizes(f"{HIDDEN}/shards") == {}
    assert store.sizes("data") == {}
    if isinstance(store, Folder):
        assert "data" not in store.names()


def test_a_link_is_removed_and_not_what_it_names(tmp_path):
    store = open_store(tmp_path / "out")
    store.write("data/a", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("1")
    for target in (tmp_path / "out" / "data", tmp_path / "elsewhere"):
        (tmp_path / "out" / "link").symlink_to(target)
        store.remove_folder("link")
        assert not (tmp_path / "out" / "link").is_symlink()
        assert (target / "a").read_bytes() == b"1"


def test_another_driver_is_kept_out(store):
    with store.held():
        holder = json.loads(store.read(f"{HIDDEN}/lock"))
        age = datetime.now().astimezone() - datetime.fromisoformat(holder.pop("since"))
        assert 0 <= age.total_seconds() < 60
        assert holder == {"host": socket.gethostname(), "pid": os.getpid()}
    assert store.size(f"{HIDDEN}/lock") is None
    if isinstance(store, Folder):
        return  # the kernel knows who holds the lock: tests of ecgan.runtime.files
    store.write(f"{HIDDEN}/lock", json.dumps({"host": socket.gethostname(), "pid": os.getppid()}))
    with pytest.raises(UserError, match=rf"written by process {os.getppid()} .*{HIDDEN}/lock"):
        store.held().__enter__()
    store.write(f"{HIDDEN}/lock", json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        store.held().__enter__()


def test_a_dead_drivers_lock_is_taken_over_where_no_kernel_knows():
    dead = json.dumps({"host": socket.gethostname(), "pid": 2**22 - 1})
    files.refuse_living_lock(dead, "place", "what")
    files.refuse_living_lock("", "place", "what")
    files.refuse_living_lock("{", "place", "what")


def test_a_stale_temporary_is_swept(tmp_path):
    store = open_store(tmp_path)
    (tmp_path / HIDDEN / "tmp").mkdir(parents=True)
    (tmp_path / HIDDEN / "tmp" / "train-000000.tar.123").write_bytes(b"half")
    store.sweep()
    assert list(tmp_path.rglob("*.123")) == []


def test_places_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: a file; give a folder"):
        open_store(tmp_path / "file").holds_anything()
    with pytest.raises(UserError, match=r"nosuch://x: no such place .*s3://BUCKET/PREFIX"):
        open_store("nosuch://x")


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_named(s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore("s3://no-such-bucket/out")
    with pytest.raises(UserError, match=r"s3://no-such-bucket/out: .*check the bucket"):
        store.write("data/a.tar", b"1")


READING = {
    "open": lambda store: store.open("a"),
    "read": lambda store: store.read("a"),
    "read_many": lambda store: list(store.read_many(["a"])),
    "size": lambda store: store.size("a"),
    "sizes": lambda store: store.sizes("data"),
    "names": lambda store: store.names(),
    "remove": lambda store: store.remove(["a"]),
    "remove_folder": lambda store: store.remove_folder("a"),
}


@pytest.mark.parametrize("ask", READING.values(), ids=READING)
def test_a_store_that_refuses_to_be_read_is_named(tmp_path, monkeypatch, ask):
    store = open_store(f"memory://{tmp_path.name}/out")

    def refuse(*arguments, **options):
        raise PermissionError("Forbidden")

    for name in ("open", "cat", "info", "ls", "rm", "rm_file"):
        monkeypatch.setattr(store._fs, name, refuse)
    with pytest.raises(UserError, match=r"memory://.*/out: Forbidden; check .*credentials"):
        ask(store)


def test_a_bucket_without_credentials_is_named(tmp_path, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "PROFILE", "ENDPOINT_URL"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name in ("SHARED_CREDENTIALS_FILE", "CONFIG_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match=r"s3://nobucket/x: .*credentials; check the bucket"):
            read_manifest("s3://nobucket/x")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("protocol", ["gs", "abfs"])
def test_a_protocol_that_is_not_installed_says_how(protocol, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in {"gcsfs", "adlfs"}:
            raise ImportError(f"Install {name}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="this protocol is not installed"):
        open_store(f"{protocol}://bucket/out")


def test_addresses_and_paths(tmp_path):
    assert isinstance(open_store(str(tmp_path)), Folder)
    assert open_store(f"file://{tmp_path}").path == tmp_path
    memory = open_store("memory://somewhere/")
    assert (str(memory), memory.is_private) == ("memory://somewhere", True)
    assert not open_store(tmp_path).is_private
    assert open_store(memory) is memory


# The user's cache


def test_the_users_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("ECGAN_CACHE", "/own")
    assert cache_folder() == Path("/own")
    monkeypatch.setenv("ECGAN_CACHE", "")
    assert cache_folder() == Path("/xdg/ecgan")
    for value in ("", "relative/is/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path("/home/a/.cache/ecgan")


# What a data set of somebody else may hold

ODD_NAMES = [
    *("", ".", "..", "../victim.txt", "data/../../victim.txt", "/etc/passwd", "a//b", "a/./b"),
    *("a\\..\\b", "nul\0", "a\nb", "x" * 2000),
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_no_name_leads_out(tmp_path, kind, name):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    place = {"folder": tmp_path / "set", "memory": "memory://odd-names/set"}[kind]
    store = open_store(place)
    store.write("a", b"x")
    refused = pytest.raises(UserError, match="no name of a file below a folder; get the data set")
    with refused:
        store.open(name)
    with refused:
        store.size(name)
    with refused:
        store.write(name, b"x")
    with refused:
        store.write_many([("b", b"x"), (name, b"x")])
    with refused:
        store.remove([name])
    with refused:
        store.remove_folder(name or "..")
    assert victim.read_text() == "mine"


def test_no_link_leads_out(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "a.txt").write_text("mine")
    out = tmp_path / "set"
    (out / "own").mkdir(parents=True)
    (out / "own" / "b.txt").write_text("own")
    (out / "folder").symlink_to(victim)
    (out / "a.txt").symlink_to("../victim/a.txt")
    (out / "b.txt").symlink_to("own/b.txt")
    (out / ".ecgan").symlink_to(victim)
    store = open_store(out)
    for call in (
        lambda: store.read("a.txt"),
        lambda: store.read("folder/a.txt"),
        lambda: store.sizes("folder"),
        lambda: store.write("folder/new.txt", b"x"),
        lambda: store.write("new.txt", b"x"),  # its temporary name is in .ecgan
        lambda: store.remove(["folder/a.txt"]),
        lambda: store.remove_folder(".ecgan/tmp"),
        lambda: store.held().__enter__(),
        store.sweep,
    ):
        with pytest.raises(UserError, match="a link that leads out of the data set, which is not"):
            call()
    assert store.read("b.txt") == b"own"
    store.remove(["a.txt"])
    store.remove_folder("folder")
    assert not (out / "a.txt").is_symlink()
    assert sorted(path.name for path in victim.iterdir()) == ["a.txt"]
    assert (victim / "a.txt").read_text() == "mine"


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(UserError, match=f"{name}: not a file; copy the data set again"):
            open_store(tmp_path).read(name)
    with (tmp_path / "large").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(UserError, match="large: more than 256 MB; no such file of a data set"):
        open_store(tmp_path).read("large")


@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@localhost:1/set",
        "http://user:sec@ret@localhost:1/set",
        "s3://KEY:secret@bucket/set",
        "simplecache::http://user:secret@localhost:1/set",
        "http://localhost:1/set?token=secret",
        "nosuch://user:secret@host",
        "github://user:secret@host",
        "zip://user:secret@host",
    ],
)
def test_passwords_of_addresses_are_never_shown(address):
    told = []
    try:
        store = open_store(address)
        told.append(str(store))
        read_manifest(store)
    except UserError as error:
        told.append(str(error))
    assert told
    assert not [text for text in told if "sec" in text or "***" not in text]


def test_an_address_opens_what_it_does_not_show():
    address = Address("memory://user:secret@place/set?token=secret")
    assert str(address) == f"{address}" == json.loads(json.dumps(address))
    assert "secret" not in repr(address)
    for same in (
        address,
        Address(address),
        copy.deepcopy(address),
        pickle.loads(pickle.dumps(address)),
    ):
        assert same.whole == "memory://user:secret@place/set?token=secret"
        assert open_store(same).url == "memory://***@place/set?***"
