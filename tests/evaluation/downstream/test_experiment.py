"""A downstream experiment: its section, its kept runs, its statistics, its refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data.datasets import DataFolder, Subset
from ecgan.errors import UserError
from ecgan.evaluation.downstream import experiment
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream.arms import Arm, Run
from ecgan.evaluation.downstream.student import SegmenterTrainer
from ecgan.runtime.jobs import Workers
from ecgan.segmentation.segmenter import Sources
from tests.helpers import folder_items
from tests.helpers.downstream import (
    arms,
    keys_of,
    make_samples,
    numbers,
    parts,
    ran,
    refusal,
    request_of,
    training,
    write_plain,
)
from tests.helpers.segmenters import overflow, save_segmenter
from tests.helpers.tiny import NAMES, SIZE

# Statistics


@pytest.mark.slow
def test_section(world, tmp_path):
    mixes = (0.0, 1.0, "synthetic")
    section = ran(request_of(world, tmp_path, arms=arms(*mixes)))
    json.dumps(section, allow_nan=False)
    assert set(section) == {"protocol", "rows", "copies", "sentences", "notes", "failed"}
    assert all(isinstance(text, str) for text in section["protocol"].values())
    rows = section["rows"]
    assert [row["name"] for row in rows] == ["real only", "real + 1x synthetic", "synthetic only"]
    assert [row["mix"] for row in rows] == [0.0, 1.0, None]
    assert [row["real_images"] for row in rows] == [10, 10, 0]
    assert [row["synthetic_images"] for row in rows] == [0, 20, 20]
    assert section["failed"] == []
    assert [note.partition(";")[0] for note in section["notes"]] == [
        "samples are compared with nothing that users can have without them"
    ]
    assert section["protocol"]["generators"].startswith("none saw a held-out pair")
    assert len(section["sentences"]) == 3
    (copies,) = section["copies"]
    assert copies["part"] == "all pairs"
    assert [copies[name] for name in ("samples", "photos", "held_out")] == [20, 10, 3]
    for row in rows:
        assert [one["seed"] for one in row["runs"]] == [0, 1]
        values = [one["miou"] for one in row["runs"]]
        assert row["miou"]["mean"] == pytest.approx(np.mean(values))
        assert row["miou"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["accuracy"]["mean"] == np.mean([one["accuracy"] for one in row["runs"]])
        assert list(row["per_class"]) == list(NAMES)
    assert rows[0]["against_real"] is None
    differences = [row["miou"]["mean"] - rows[0]["miou"]["mean"] for row in rows[1:]]
    assert [row["against_real"]["difference"] for row in rows[1:]] == pytest.approx(differences)
    means = [np.mean([v["mean"] for v in row["per_class"].values()]) for row in rows]
    assert means == pytest.approx([row["miou"]["mean"] for row in rows])


@pytest.mark.slow
def test_kept_runs_are_not_done_again(world, tmp_path):
    request = request_of(world, tmp_path)
    first = ran(request)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 4
    assert ran(request) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    one, other, third, _ = sorted(before)
    one.unlink()
    other.write_text('{"miou": 0.9')  # a machine that went down
    third.write_text('{"miou": 0.9}')
    assert numbers(ran(request)) == numbers(first)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path for path in before if after[path] != before[path]} == {one, other, third}
    more = ran(replace(request, seeds=3))
    assert len(list(tmp_path.iterdir())) == 6
    assert [row["runs"][:2] for row in more["rows"]] == [row["runs"] for row in first["rows"]]


@pytest.mark.parametrize(
    "change",
    [
        {"miou": "high"}, {"miou": float("inf")}, {"iou": None}, {"blocks": []}, {"blocks": [[1]]},
        {"blocks": [[[10**30] * 5] * 3]}, {"blocks": [[[1] * 4] * 3]}, {"accuracy": [0.5]},
    ],
)  # fmt: skip
def test_a_kept_run_that_is_damaged_is_none(tmp_path, change):
    whole = {"miou": 0.5, "accuracy": 0.5, "iou": [0.5] * 4 + [None], "blocks": [[[1] * 5] * 3]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**whole, "seconds": 3.0}))
    assert downstream._kept(path, 1) == {**whole, "seconds": 3.0}
    assert downstream._kept(path, 2) is None
    path.write_text(json.dumps({**whole, **change}))
    assert downstream._kept(path, 1) is None
    path.write_text("[" * 100_000)
    assert downstream._kept(path, 1) is None


@pytest.mark.slow
def test_real_only_knows_no_samples(world, tmp_path):
    alone = request_of(world, tmp_path, arms=arms(0.0), samples=())
    section = ran(alone)
    before = set(tmp_path.iterdir())
    beside = ran(request_of(world, tmp_path, arms=arms(0.0), seeds=2))
    assert set(tmp_path.iterdir()) == before
    assert beside["rows"] == section["rows"]
    mixed = ran(request_of(world, tmp_path))
    assert mixed["rows"][0] == section["rows"][0]
    assert before < set(tmp_path.iterdir())
    assert section["rows"][0]["synthetic_images"] == 0


@pytest.mark.slow
def test_mix_0_of_samples_is_real_only(world, tmp_path):
    """No sample is looked at: the student is the same to the bit, wherever samples come from."""
    with_samples = downstream.check(request_of(world, tmp_path)).config
    without = downstream.check(request_of(world, tmp_path, arms=arms(0.0), samples=())).config
    run = Run(Subset(), Arm.of(0), 0)
    assert with_samples.samples[Subset()]
    assert not without.samples[Subset()]
    one, other = (SegmenterTrainer(found)(run) for found in (with_samples, without))
    assert one | {"seconds": 0} == other | {"seconds": 0}
    assert one["miou"] != SegmenterTrainer(with_samples)(Run(Subset(), Arm.of(1), 0))["miou"]


CHANGED = {
    "seed": {},
    "architecture": {"training": training(architecture="unet")},
    "channels": {"training": training(channels=16)},
    "images": {"training": training(images=8)},
    "batch": {"training": training(batch=1)},
    "flip": {"flip": False},
    "size": {"size": (32, 32), "samples": (), "arms": arms(0)},
    "test_split": {"test_split": "test"},
    "parts": {"parts": parts(0.3)},
}


@pytest.mark.parametrize("name", CHANGED)
def test_everything_that_decides_a_run_is_in_its_name(world, tmp_path, name):
    shutil.copytree(world / "real", tmp_path / "real")
    for folder in ("images", "labels"):
        shutil.copytree(tmp_path / "real" / folder / "val", tmp_path / "real" / folder / "test")
        path = tmp_path / "real" / folder / "test" / "view-00.png"
        path.rename(path.with_name("further.png"))
    base = request_of(
        world, tmp_path, folder=DataFolder("folder", tmp_path / "real"), arms=arms(0.0)
    )
    changed = replace(base, **CHANGED[name])
    run = Run(base.parts[0], Arm.of(0), 0)
    other = Run(changed.parts[0], Arm.of(0), int(name == "seed"))
    assert downstream.check(base).path(run) != downstream.check(changed).path(other)
    assert downstream.check(base).path(run) == downstream.check(base).path(run)


def test_changed_files_change_the_runs_that_see_them(world, tmp_path):
    shutil.copytree(world / "real", tmp_path / "real")
    request = request_of(world, tmp_path, folder=DataFolder("folder", tmp_path / "real"))
    runs = [
        Run(Subset(), Arm.of(0), 0),
        Run(Subset(), Arm.of(1), 0),
        Run(Subset(), Arm.of("synthetic"), 0),
    ]

    def names(request):
        found = downstream.check(request)
        return [found.path(run) for run in runs]

    before = names(request)
    photo = tmp_path / "real" / "images" / "train" / "scene-03.png"
    Image.fromarray(np.asarray(Image.open(photo)) // 2).save(photo)
    after = names(request)
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False, True]
    copy = tmp_path / "other"
    make_samples(copy, tmp_path / "real", seed=9)
    other = replace(request, samples=(copy / "samples",), generators=(copy / checkpoint.GENERATOR,))
    assert [one == two for one, two in zip(names(other), after, strict=True)] == [
        True,
        False,
        False,
    ]


@pytest.mark.slow
def test_workers_on_ray_find_what_this_process_finds(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    mixes = (0.0, 1.0, "synthetic")
    request = request_of(Path(), tmp_path / "a", arms=arms(*mixes))
    workers = Workers(2, timeout=0.05)  # seconds, too few for any student
    here = ran(request)
    there = ran(replace(request, cache=tmp_path / "b", workers=workers))
    assert numbers(there) == numbers(here)


SCRIPT = """
import sys
from pathlib import Path
from tests.helpers.downstream import ran, request_of
import torch
torch.set_num_threads(1)
ran(request_of(Path(sys.argv[1]), Path(sys.argv[2]), seeds=4))
"""


@pytest.mark.slow
def test_a_killed_experiment_goes_on(world, tmp_path):
    request = request_of(world, tmp_path / "killed", seeds=4)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(world), str(request.cache)], env=environment
    )
    deadline = time.monotonic() + 120
    while not list(request.cache.glob("run-*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in request.cache.glob("run-*.json")}
    assert 0 < len(kept) < 8
    section = ran(request)
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in kept.items())
    undisturbed = ran(replace(request, cache=tmp_path / "undisturbed"))
    assert numbers(section) == numbers(undisturbed)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_kept(world, tmp_path):
    write_plain(tmp_path / "plain", world / "real", ("scene-00", "scene-01"))
    damaged = tmp_path / "plain" / "images" / "scene-01.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    request = request_of(
        world, tmp_path / "cache", samples=(tmp_path / "plain",), unknown_generator=True
    )
    section = ran(request)
    assert [row["name"] for row in section["rows"]] == ["real only"]
    assert [text.partition(":")[0] for text in section["failed"]] == [
        "real + 1x synthetic, seed 0",
        "real + 1x synthetic, seed 1",
    ]
    assert all("scene-01" in text for text in section["failed"])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    with pytest.raises(UserError, match="no run came to its end"):
        ran(replace(request, arms=arms("synthetic")))


@pytest.mark.slow
def test_weights_of_the_segmenter_decide_the_runs(world, tmp_path):
    folder = save_segmenter(tmp_path / "own")
    request = request_of(world, tmp_path, arms=arms(0.0), segmenter=folder)
    before = downstream.check(request).path(Run(Subset(), Arm.of(0), 0))
    weights = tmp_path / "own" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert downstream.check(request).path(Run(Subset(), Arm.of(0), 0)) != before


def test_a_segmenter_that_overflows_is_refused_before_any_training(world, tmp_path):
    folder = overflow(save_segmenter(tmp_path / "own"))
    text = refusal(request_of(world, tmp_path, arms=arms(0.0), segmenter=folder))
    assert text.startswith(f"--segmenter {folder}: its predictions are NaN or infinite")


@pytest.mark.slow
def test_a_segmenter_that_knows_too_much_is_refused(world, tmp_path):
    real = world / "real"
    tested = Sources.of(folder_items.items_for("folder", real, "val"))
    whole = Sources.of(folder_items.items_for("folder", real, "train"))
    part = Sources.of(folder_items.items_for("folder", real, "train", subset=Subset(0.3)))
    request = request_of(world, tmp_path, arms=arms(0.0))
    save_segmenter(tmp_path / "none")
    for name, sources in (("tested", tested), ("whole", whole), ("part", part)):
        shutil.copytree(tmp_path / "none", tmp_path / name)
        about = json.loads((tmp_path / name / "segmenter.json").read_text())
        text = json.dumps(about | {"sources": sources.to_json()})
        (tmp_path / name / "segmenter.json").write_text(text)

    def of(name, **changes):
        return replace(request, segmenter=str(tmp_path / name), **changes)

    assert "learnt from 3 pairs that nobody may learn from" in refusal(of("tested"))
    assert downstream.check(of("whole")).notes == []
    text = refusal(of("whole", parts=parts(1.0, 0.3)))
    assert "learnt from 7 real pairs outside of 30 % of them" in text
    assert downstream.check(of("part", parts=parts(1.0, 0.3))).notes == []
    (note,) = downstream.check(of("none")).notes
    assert "learnt from before is not known" in note


# Fractions


@pytest.mark.slow
def test_sets_belong_to_the_fraction_of_their_generator(world, tmp_path):
    whole, third = world / "whole" / "samples", world / "third" / "samples"
    found, notes = downstream.match_samples((whole, third), parts(1.0, 0.3))
    assert found == {Subset(): (str(whole),), Subset(0.3): (str(third),)}
    assert notes == []
    assert downstream.match_samples((third, whole), parts(0.3, 1.0)) == (found, [])
    found, notes = downstream.match_samples((third, whole), parts(1.0))
    assert found == {Subset(): (str(whole),)}
    assert notes[0].startswith(f"{third}: made by a generator of 30 % of the real pairs")
    request = request_of(world, tmp_path, samples=(whole, third), parts=parts(1.0, 0.3), seeds=1)
    rows = ran(request)["rows"]
    assert [row["name"] for row in rows] == [
        "real only",
        "real + 1x synthetic",
        "real only (30 %)",
        "real (30 %) + 1x synthetic",
    ]
    assert [row["real_images"] for row in rows] == [10, 10, 3, 3]
    assert [row["synthetic_images"] for row in rows] == [0, 20, 0, 6]
    one, third_row = rows[1]["against_real"], rows[3]["against_real"]
    assert one["difference"] == rows[1]["miou"]["mean"] - rows[0]["miou"]["mean"]
    assert third_row["difference"] == rows[3]["miou"]["mean"] - rows[2]["miou"]["mean"]


def test_a_fraction_trains_on_its_pairs_only(world, tmp_path):
    request = request_of(world, tmp_path, arms=arms(0.0), parts=parts(0.3))
    found = downstream.check(request).config
    assert {found.real.keys[i] for i in found.parts[Subset(0.3)]} == keys_of(
        world / "real", fraction=0.3
    )


def test_a_fraction_without_samples(world, tmp_path):
    text = refusal(request_of(world, tmp_path, parts=parts(1.0, 0.5)))
    assert "no samples for 50 % of the pairs; make them: ecgan train" in text
    assert "--set data.fraction=0.5" in text
    downstream.check(request_of(world, tmp_path, parts=parts(1.0, 0.5), arms=arms(0.0)))


# Refusals


def test_all_faults_of_the_options_at_once(world, tmp_path):
    request = request_of(
        world,
        tmp_path,
        parts=parts(0.0, 1.5),
        seeds=0,
        test_split="train",
    )
    text = refusal(request)
    for part in (
        "--seeds 0: must be at least 1",
        "--real-fraction 0: must be above 0",
        "--real-fraction 1.5: must be above 0",
        "--split train: segmenters are trained on it",
    ):
        assert part in text
    assert "less than a batch" in refusal(request_of(world, tmp_path, training=training(images=1)))
    text = refusal(request_of(world, tmp_path, parts=parts(), arms=arms()))
    assert "--real-fraction: give at least one" in text
    assert "--mix: give at least one" in text


def test_sets_that_do_not_fit_are_refused_together(world, tmp_path):
    space = world / "real" / "classes.json"
    about = json.loads(space.read_text())
    about["classes"][0]["name"] = "street"
    other = labels.from_json(about, "test")
    shutil.copytree(world / "third", tmp_path / "third")
    request = request_of(world, tmp_path, space=other, size=(16, 32))
    text = refusal(request)
    assert "its classes (road, sky, building, tree, ...) are not those of the real" in text
    assert "its samples are 32 x 64, expected 16 x 32" in text


def test_a_split_without_scored_pixels_is_refused(world, tmp_path):
    shutil.copytree(world / "real", tmp_path / "real")
    for path in (tmp_path / "real" / "labels" / "val").iterdir():
        Image.fromarray(np.full(SIZE, 255, np.uint8)).save(path)
    request = request_of(
        world, tmp_path, folder=DataFolder("folder", tmp_path / "real"), arms=arms(0.0)
    )
    assert "no pixel of split val has a class that is scored" in refusal(request)
    assert "no label maps of split nowhere" in refusal(replace(request, test_split="nowhere"))


def test_the_set_must_be_whole(world, tmp_path):
    shutil.copytree(world / "whole" / "samples", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert "is not complete" in refusal(request_of(world, tmp_path, samples=(tmp_path / "half",)))


def test_runs_are_listed_once(world, tmp_path):
    request = request_of(world, tmp_path, arms=arms(0.0, 0, 1.0, "synthetic"), parts=parts(1.0, 1))
    assert len(request.runs) == 3 * 2
    assert experiment.Request is downstream.Request
