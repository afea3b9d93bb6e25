"""What goes wrong while a data set is made, and options and label maps that are refused."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import run as generate
from ecgan.runtime import files
from tests.helpers import trees
from tests.helpers.data_sets import FORMATS, contents, run_cli

# Failures


@pytest.mark.slow
def test_a_shard_that_fails_is_named_and_the_others_are_kept(made, generator, layouts):
    out = made("webdataset")
    undisturbed = contents(out)
    (out / "data/train-000001.tar").unlink()
    (out / "data/train-000001.tar").mkdir()  # cannot be replaced by a file
    arguments = ["augment", "--checkpoint", generator, "--labels", layouts, "--n-styles", 3]
    arguments += ["--samples-per-shard", 4, "--out", out, "-q", "--device", "cpu"]
    result = run_cli(*arguments)
    assert result.exit_code == 3, result.output
    assert "1 shard failed:\n  shard 1: " in result.output
    assert "The others are kept; the same command makes the missing ones" in result.output
    (line,) = (out / ".ecgan/failures.jsonl").read_text().splitlines()
    assert json.loads(line)["shard"] == 1
    assert not (out / ".ecgan/shards/000001.json").exists()
    with pytest.raises(UserError, match="is not complete"):
        list(dataset.read(out))

    (out / "data/train-000001.tar").rmdir()
    assert run_cli(*arguments).exit_code == 0
    assert contents(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_a_full_disk_says_what_is_kept_and_what_is_needed(request_, made, data_format):
    """A limit on the size of files stands in for the disk's."""
    out = made(data_format)
    undisturbed = contents(out)
    for number in (1, 2):
        (out / f".ecgan/shards/{number:06d}.json").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(UserError, match=r"full \(.*\). 2 of 4 shards .* about 0.\d MB more"):
            generate.run(request_(data_format=data_format))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    generate.run(request_(data_format=data_format))
    assert contents(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_really_full(request_, tmp_path, workers):
    disk, options = tmp_path / "disk", {"n_styles": 20, "samples_per_shard": 10}
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(UserError, match=f"the disk is full .{os.strerror(errno.ENOSPC)}"):
            generate.run(request_(out=disk / "out", workers=workers, **options))
        kept = list((disk / "out/.ecgan/shards").iterdir())
        assert len(kept) > 0
        assert list((disk / "out/.ecgan").glob("tmp/*")) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        outcome = generate.run(request_(out=disk / "out", workers=workers, **options))
        assert outcome.made == 100 - 10 * len(kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_writers_are_kept_apart(request_, tmp_path):
    (tmp_path / "out/.ecgan").mkdir(parents=True)
    path = tmp_path / "out/.ecgan/lock"
    with (
        files.held_lock(path, "this"),
        pytest.raises(UserError, match=f"is being written by process {os.getpid()} on .* since 20"),
    ):
        generate.run(request_(n_styles=1))
    assert not path.exists()


def test_a_dead_writers_lock_is_taken_over_but_not_another_machines(tmp_path):
    path = tmp_path / "lock"
    for text in (json.dumps({"host": socket.gethostname(), "pid": 2**22 - 1}), "", "{"):
        path.write_text(text)
        with files.held_lock(path, "this"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with (
        pytest.raises(UserError, match="process 1 on elsewhere; wait for it, or"),
        files.held_lock(path, "x"),
    ):
        pass
    assert path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_goes_on_to_the_same_bytes(request_, generator, layouts, tmp_path, how):
    options = {"n_styles": 60, "samples_per_shard": 20}
    generate.run(request_(**options))
    undisturbed = contents(tmp_path / "out")
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "ecgan_cli",
        "augment",
        "--checkpoint",
        generator,
        "--out",
        out,
    ]
    command += ["--labels", layouts, "--n-styles", 60, "--samples-per-shard", 20, "-q"]
    process = subprocess.Popen(
        [str(c) for c in [*command, "--device", "cpu"]], stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob(".ecgan/shards/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    message = process.communicate()[1]
    assert process.returncode == (130 if how == signal.SIGTERM else -how)
    if how == signal.SIGTERM:
        assert "the same command resumes" in message
    assert not (out / "manifest.json").exists()
    assert 0 < generate.run(request_(out=out, **options)).made < 300
    assert contents(out) == undisturbed


# Bad input


def no_labels(folder):
    folder.mkdir()


def wrong_ids(folder):
    for i in range(2):
        trees.save(folder / f"{i}.png", trees.stripes([0, 7]))


def colliding(folder):
    for name in ("a.b", "a_b"):
        trees.save(folder / f"{name}.png", trees.stripes([0]))


def truncated(folder):
    path = trees.save(folder / "a.png", trees.stripes([0, 1]))
    path.write_bytes(path.read_bytes()[:60])
    (folder / "b.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (no_labels, "no label maps below it"),
        (wrong_ids, "7 found in 2 files"),
        (colliding, "a.b.png.*a_b.png"),
        (truncated, "a.png.*b.png"),
    ],
)
def test_bad_label_folders_are_refused_before_anything_is_written(
    request_, tmp_path, make, message
):
    make(tmp_path / "labels")
    with pytest.raises(UserError) as caught:
        generate.run(request_(labels=tmp_path / "labels"))
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--n-styles", "0"], 2, "--n-styles 0: must be at least 1"),
        (["--n-styles", "-2", "--batch", "0"], 2, "--batch 0: must be at least 1"),
        (["--seed", "1", "--style-seed", "1"], 2, "--seed and --style-seed: each says where"),
        (["--style-images", "nowhere"], 2, "--style-images nowhere: no such folder"),
        (["--instances", "nowhere"], 2, "this run takes no instance boundaries"),
        (["--out", "file"], 2, "--out file: a file; give a folder"),
        (["--workers", "0"], 2, "--workers 0: must be at least 1"),
        (["--gpus-per-worker", "0.5"], 2, "this machine has no CUDA device; leave it out, or"),
        (["--shard-timeout", "0"], 2, "--shard-timeout 0: must be above 0"),
        (["--out", "memory://x", "--workers", "2"], 2, "other processes cannot see it; use one"),
        (["--out", "ftp9://x/y"], 2, "ftp9://x/y: no such place"),
        (["--overwrite", "--extend"], 2, "--overwrite and --extend: give one of them"),
        (["--on-inconsistent", "drop"], 2, "says what the filter does; add --filter"),
        (["--filter", "train", "--on-inconsistent", "retry", "--style-seed", "1"], 2, "the same;"),
        (["--balance", "target"], 2, "--balance target: needs the shares that classes shall have"),
        (["--balance", "target", "--target", "cow=0.1"], 2, "cow"),
        (["--target", "car=0.1"], 2, "--target: belongs to --balance target"),
        (["--vary", "flip,spin"], 2, "'flip,spin': choose from flip, crop, paste"),
        (["--n-variants", "2"], 2, "say what with --vary flip,crop,paste"),
        (["--set", "model.width=8"], 2, "recipe is fixed but for sampling.*"),
        (["--set", "sampling.qualty=8"], 2, "sampling.qualty: no such key (did you mean quality?)"),
        (["--filter", "nowhere"], 2, "the recipe has no data.root: give the data set with --data"),
        (["--checkpoint", "nowhere"], 2, "--checkpoint nowhere: no such file"),
        (["--checkpoint", "file"], 1, "file: not a whole safetensors file"),
        (["--checkpoint", "pickle.pth"], 1, "a pickle (.pth, .pt), which can run code"),
        (["--device", "abacus"], 2, "--device abacus"),
    ],
)
def test_bad_options_get_a_sentence(
    tmp_path, generator, layouts, monkeypatch, arguments, exit_code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a checkpoint")
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x04K\x01.")
    result = run_cli("augment", "--checkpoint", generator, "--labels", layouts, *arguments)
    assert result.exit_code == exit_code, result.output
    assert message in result.output
    assert not (tmp_path / "datasets").exists()


def test_sample_refuses_a_split_of_other_layouts(generator, layouts):
    result = run_cli(
        "sample", "--checkpoint", generator, "--labels", layouts, "--num", 1, "--split", "val"
    )
    assert "--split names layouts of the recipe's data, --labels others" in result.output


# The command


def test_the_newest_run_is_taken_and_named(generator, layouts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(generator.parent, tmp_path / "runs/city")
    arguments = ["augment", "--labels", layouts, "--n-styles", 2, "--device", "cpu", "-q"]
    result = run_cli(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "Using the newest run, runs/city" in result.stderr
    assert "10 samples of 32 x 64 (5 layouts, 2 styles each) in 1 shard " in result.stdout
    assert not (tmp_path / "datasets").exists()
    result = run_cli(*arguments)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"10 samples, 0.\d MB \(10 made now, [\d.]+ samples/s, [\d.]+ MB/s, bottleneck: \w+ \(\d+%",
        result.stdout,
    )
    assert (tmp_path / "datasets/city-augment/manifest.json").is_file()


@pytest.mark.slow
def test_augment_says_what_it_makes_and_what_comes_next(generator, layouts, tmp_path):
    out = tmp_path / "a set"
    arguments = ["augment", "--checkpoint", generator, "--labels", layouts, "--device", "cpu"]
    arguments += ["--out", out, "--samples-per-shard", 4, "--n-styles"]
    lines = run_cli(*arguments, 1).stderr.splitlines()
    assert lines[-4:] == [
        f"generating 5 samples into {out}",
        "  5 layouts, 1 style each; 32 x 64 pixels; webdataset of jpg; cpu, 1 worker",
        f"preview: {out}/preview.png",
        f"next: ecgan evaluate --samples '{out}'",
    ]
    assert (out / "preview.png").is_file()
    (out / "data/train-000001.tar").unlink()
    assert (
        f"generating 5 samples into {out}, 4 of them there already"
        in run_cli(*arguments, 1).stderr.splitlines()
    )
    assert "generating" not in run_cli(*arguments, 1).stderr  # nothing is missing
    result = run_cli(*arguments, 2, "--overwrite", "-q")
    assert not result.stderr
    assert result.stdout.startswith("10 samples, ")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-styles", 10**30], "--n-styles 1000000000000000000000000000000: must be at most"),
        (["--n-styles", 10**9, "--samples-per-shard", "1"], "5,000,000,000 samples of 5 layouts"),
        (["--vary", "flip", "--n-variants", 10**30], "--n-variants 1000"),
        (["--workers", 10**9], "--workers 1000000000: must be at most 10000"),
        (["--batch", 10**30], "--batch 1000"),
        (["--samples-per-shard", 10**30], "--samples-per-shard 1000"),
        (["--seed", 10**30], "--seed 1000"),
        (["--style-seed", 2**63], "--style-seed 9223372036854775808: must be at most 9223372036"),
        (["--shard-timeout", "nan"], "--shard-timeout nan: must be a number"),
        (["--shard-timeout", "inf"], "--shard-timeout inf: must be a number"),
        (["--gpus-per-worker", "nan"], "--gpus-per-worker nan: must be a number"),
        (
            ["--ray-address", "x:1", "--gpus-per-worker", "1e300"],
            "--gpus-per-worker 1e+300: must be",
        ),
        (
            ["--balance", "target", "--target", "car=nan"],
            "car=nan: expected a share of the labelled",
        ),
    ],
)
def test_absurd_numbers_are_refused_before_any_work(
    tmp_path, generator, layouts, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    result = run_cli("augment", "--checkpoint", generator, "--labels", layouts, *arguments)
    assert (result.exit_code, not message or message in result.output) == (2, True), result.output
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_label_map_that_changes_under_way_fails_its_shard(
    request_, generator, layouts, tmp_path, monkeypatch
):
    own = shutil.copytree(layouts, tmp_path / "layouts")
    planned = generate.planner.plan

    def change_afterwards(request):
        plan = planned(request)
        (own / "b/3.png").write_bytes((own / "b/1.png").read_bytes())
        return plan

    monkeypatch.setattr(generate.planner, "plan", change_afterwards)
    outcome = generate.run(request_(labels=own))
    assert len(outcome.failed) == 1
    assert re.search(
        "shard 3: .*b/3.png: it has changed since it was checked; put", outcome.failed[0]
    )
    monkeypatch.setattr(generate.planner, "plan", planned)
    (own / "b/3.png").write_bytes((layouts / "b/3.png").read_bytes())
    assert generate.run(request_(labels=own)).failed == ()


def test_a_data_set_tells_nothing_of_the_places_that_it_was_made_from(request_, tmp_path):
    generate.run(request_())
    told = json.loads((tmp_path / "out/.ecgan/request.json").read_text())
    assert told["generator"] == "generator.safetensors"
    assert told["out"] == "out"
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path.parent).encode() not in path.read_bytes(), path
    assert generate.run(request_()).made == 0
