"""Files that changed under a run: the refusal, the way on, and what later readers learn of it."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint
from ecgan.data.datasets import Item
from ecgan.data.decode import Encoding
from ecgan.data.files.photo_sets import Reading
from ecgan.errors import UserError
from ecgan.recipe import load_recipe
from ecgan.runtime.files import sha256
from ecgan.segmentation.training import file_stamps
from ecgan.training import run as train
from ecgan.training.loop import data_files
from tests.helpers.tiny import write_pairs
from tests.training.test_run import LIGHT, ecgan_train, metrics, sets, start

FOUR = (*LIGHT, "train.images=4", "train.preview_every=100")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A data set, and a run of four images on it."""
    root = tmp_path_factory.mktemp("begun")
    write_pairs(root / "toy")
    go(root, "train.images=4")
    return root


@pytest.fixture
def world(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "world")
    return tmp_path / "world"


def go(world, *overrides, **options):
    """The run, or more of it."""
    recipe = load_recipe("demo", (*FOUR, f"data.root={world / 'toy'}", *overrides))
    return train.run(recipe, world / "run", device="cpu", quiet=True, **options)


def listed(world):
    return json.loads((world / "run" / data_files.NAME).read_text())


def label(world, number, split="train"):
    return world / "toy" / "labels" / split / f"scene-{number:02d}.png"


def correct(path):
    """Another class in the last pixels of a label map."""
    pixels = np.array(Image.open(path))
    pixels[-2:, -2:] = (pixels[-1, -1] + 1) % 4
    Image.fromarray(pixels).save(path)


def add(world, new, old=0):
    for folder in ("images", "labels"):
        path = world / "toy" / folder / "train"
        shutil.copy(path / f"scene-{old:02d}.png", path / f"{new}.png")


def remove(world, number):
    for folder in ("images", "labels"):
        (world / "toy" / folder / "train" / f"scene-{number:02d}.png").unlink()


def test_a_run_lists_its_files_by_content(world):
    document = listed(world)
    assert document["reading"] == {
        "label_encoding": "index", "orientation": "auto", "photo_levels": None,
    }  # fmt: skip
    assert [len(document[part]) for part in ("train", "held_out")] == [10, 2]
    digests = document["train"]["scene-03"]
    assert digests["label"] == sha256(label(world, 3))
    photo = world / "toy" / "images" / "train" / "scene-03.png"
    assert digests == {"label": digests["label"], "photo": sha256(photo)}


@pytest.mark.slow
def test_the_same_files_go_on_wherever_they_are(world):
    (world / "toy").rename(world / "moved")
    recipe = load_recipe("demo", (*FOUR, f"data.root={world / 'moved'}", "train.images=6"))
    assert train.run(recipe, world / "run", device="cpu", quiet=True) == "done"


@pytest.mark.slow
def test_changed_files_are_refused_by_kind_and_key_until_they_are_accepted(world, capsys):
    before = (world / "run" / data_files.NAME).read_bytes()
    for number in (0, 1, 2, 3, 4, 5):
        correct(label(world, number))
    shutil.copy(*(world / "toy" / "images" / "train" / f"scene-0{i}.png" for i in (9, 6)))
    remove(world, 7)
    add(world, "new", 8)
    with pytest.raises(UserError) as error:
        go(world, "train.images=8")
    assert str(error.value) == (
        f"{world / 'run'} was trained on other data: 6 label maps changed (scene-00, scene-01, "
        "scene-02, scene-03, scene-04, ...); 1 photo changed (scene-06); 1 pair added (new); "
        "1 pair removed (scene-07). Give --accept-changed-data to go on with the data as it is, "
        "or another --out to train anew"
    )
    assert (world / "run" / data_files.NAME).read_bytes() == before
    result = ecgan_train(
        "--recipe", "demo", "--data", str(world / "toy"), "--out", str(world / "run"),
        "--accept-changed-data", *sets((*FOUR, "train.images=8")),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "going on with changed data: 6 label maps changed (scene-00, " in result.output
    assert metrics(world / "run")[-1]["images"] == 8
    after = listed(world)
    assert after["train"]["scene-00"]["label"] == sha256(label(world, 0))
    assert "new" in after["train"]
    assert after["earlier"] == ["scene-07"]
    seen = checkpoint.read_metadata(world / "run" / checkpoint.GENERATOR).seen_keys
    assert {"new", "scene-07", "scene-08"} <= set(seen)  # learnt from, though it is gone
    assert go(world, "train.images=10") == "done"  # accepted once
    assert listed(world)["earlier"] == ["scene-07"]


def test_a_finished_run_does_not_pretend_to_learn_from_changed_files(world):
    before = (world / "run" / data_files.NAME).read_bytes()
    correct(label(world, 0))
    with pytest.raises(UserError, match=r"at its end .4 images.*scene-00.*raise train.images"):
        go(world, accept_changed_data=True)
    assert (world / "run" / data_files.NAME).read_bytes() == before


def test_pairs_that_change_sides_are_named(world):
    for folder in ("images", "labels"):
        path = world / "toy" / folder
        (path / "train" / "scene-09.png").rename(path / "val" / "scene-09.png")
    with pytest.raises(UserError, match=r"1 pair moved between .* part \(scene-09\)"):
        go(world)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["label_encoding=gray", "orientation=stored"])
def test_another_reading_is_refused_until_it_is_accepted(world, name):
    key, value = name.split("=")
    said = f"files were read as label_encoding index, orientation auto, now as .*{key} {value}"
    with pytest.raises(UserError, match=said):
        go(world, f"data.{name}")
    go(world, f"data.{name}", "train.images=6", accept_changed_data=True)
    assert listed(world)["reading"][key] == value


@pytest.mark.slow
def test_saying_the_reading_that_is_used_already_changes_nothing(world):
    assert go(world, "data.label_encoding=index", "train.images=6") == "done"


@pytest.mark.slow
def test_a_run_without_a_list_goes_on_and_gets_one(world):
    (world / "run" / data_files.NAME).unlink()
    correct(label(world, 0))
    assert go(world, "train.images=6") == "done"
    assert listed(world)["train"]["scene-00"]["label"] == sha256(label(world, 0))


def test_a_run_that_has_learnt_nothing_yet_takes_the_files_as_they_are(world):
    shutil.rmtree(world / "run" / "checkpoints")
    remove(world, 0)
    assert go(world) == "done"
    assert listed(world)["earlier"] == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 2}', "[" * 100_000, '{"version": NaN}']
)
def test_a_damaged_list_is_refused_with_the_way_out(world, text):
    (world / "run" / data_files.NAME).write_text(text)
    with pytest.raises(UserError, match=r"data-files\.json: .*--accept-changed"):
        go(world)
    go(world, accept_changed_data=True)
    assert len(listed(world)["train"]) == 10


@pytest.mark.slow
def test_a_dry_run_tells_the_reading_refuses_what_a_run_would_and_writes_nothing(world):
    arguments = (
        "--recipe", "demo", "--data", str(world / "toy"), "--out", str(world / "run"),
        "--dry-run", *sets(FOUR),
    )  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    result = ecgan_train(*arguments)
    assert result.exit_code == 0, result.output
    assert "read as:    label_encoding index, orientation auto\n" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before
    correct(label(world, 1))
    changed = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    result = ecgan_train(*arguments)
    assert result.exit_code == 1
    assert "1 label map changed (scene-01)" in result.output
    more = ("--set", "train.images=6")
    result = ecgan_train(*arguments, *more, "--accept-changed-data")
    assert result.exit_code == 0, result.output
    assert "going on with changed data: 1 label map changed (scene-01)" in result.output
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == changed


@pytest.mark.slow
def test_two_ranks_refuse_and_accept_as_one(world):
    correct(label(world, 1))
    arguments = (
        "--recipe", "demo", "--data", str(world / "toy"), "--out", str(world / "run"),
        "--device", "cpu", "--nproc-per-node", "2", *sets((*FOUR, "train.images=8")),
    )  # fmt: skip
    process = start(*arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1, output
    assert output.count("1 label map changed (scene-01)") == 1, output
    process = start(*arguments, "--accept-changed-data")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert output.count("going on with changed data") == 1, output
    assert metrics(world / "run")[-1]["images"] == 8


def test_every_byte_of_a_large_label_map_counts_for_caches(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (300, 300), np.uint8)
    path = tmp_path / "label.bmp"
    Image.fromarray(pixels).save(path)
    item = Item("a", path, reading=Reading(Encoding.INDEX))
    (before,) = file_stamps([item])
    pixels[150, 150] ^= 1  # beyond 16 KiB from both ends
    Image.fromarray(pixels).save(path)
    (after,) = file_stamps([item])
    assert before[:2] == after[:2]  # key and size
    assert before != after
    (gray,) = file_stamps([Item("a", path, reading=Reading(Encoding.GRAY))])
    assert gray[:3] == after
    assert gray != after


def test_small_files_have_the_stamps_of_earlier_versions(tmp_path):
    path = tmp_path / "label.png"
    path.write_bytes(b"0123456789")
    twice = hashlib.sha256(2 * b"0123456789").hexdigest()  # both ends are the whole file
    (found,) = file_stamps([Item("a", path, reading=Reading(Encoding.INDEX))])
    assert found == ("a", 10, twice)
