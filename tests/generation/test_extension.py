"""Data sets extended, checked again, begun by earlier versions; dry runs over them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import run as generate
from ecgan.segmentation import calibration
from ecgan.shards.manifest import WORDING, read_manifest
from ecgan.shards.verify import verify
from tests.helpers import trees
from tests.helpers.data_sets import FORMATS, contents
from tests.helpers.tiny import SIZE

# Extension


@pytest.mark.slow
@pytest.mark.parametrize("data_format", FORMATS)
def test_an_extended_data_set_keeps_its_shards_and_gets_styles_and_layouts(
    request_of, world, tmp_path, data_format
):
    labels = tmp_path / "labels"
    labels.mkdir()
    paths = sorted((world / "real/labels/train").glob("*.png"))
    for path in paths[:3]:
        (labels / path.name).write_bytes(path.read_bytes())
    first = request_of(labels=labels, n_styles=2, data_format=data_format)
    generate.run(first)
    before = contents(tmp_path / "out")
    for path in paths[3:5]:
        (labels / path.name).write_bytes(path.read_bytes())
    wider = request_of(labels=labels, n_styles=3, data_format=data_format)
    with pytest.raises(UserError, match=r"differ in labels .*styles of a layout .*--extend to add"):
        generate.run(wider)
    assert contents(tmp_path / "out") == before

    extended = replace(wider, output=replace(wider.output, extend=True))
    outcome = generate.run(extended)
    assert (outcome.num_samples, outcome.made) == (15, 9)
    after = contents(tmp_path / "out")
    kept = {n: s for n, s in before.items() if "train-00" in n or ".ecgan/shards" in n}
    assert kept
    assert {n: after[n] for n in kept} == kept, "earlier shards stay as they are"
    keys = [s.key for s in dataset.read(tmp_path / "out")]
    assert len(set(keys)) == 15
    whole = generate.run(request_of(labels=labels, n_styles=3, out=tmp_path / "at-once"))
    assert whole.num_samples == 15
    assert sorted(keys) == sorted(s.key for s in dataset.read(tmp_path / "at-once"))
    assert verify(tmp_path / "out", quiet=True).faults == []
    assert read_manifest(tmp_path / "out").layouts == 5

    assert generate.run(wider).made == 0  # the same again resumes, and has nothing to do
    with pytest.raises(UserError, match="has all of that already; ask for more"):
        generate.run(replace(first, output=replace(first.output, extend=True)))


@pytest.mark.slow
def test_an_interrupted_extension_goes_on(request_of, tmp_path):
    generate.run(request_of())
    more = request_of(n_styles=5, extend=True)
    generate.run(more)
    undisturbed = contents(tmp_path / "out")
    for number in (1, 6):  # one of each stage
        (tmp_path / f"out/.ecgan/shards/{number:06d}.json").unlink()
    (tmp_path / "out/manifest.json").unlink()
    assert generate.run(request_of(n_styles=5)).made == 8
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_changed_labels_and_other_settings_do_not_extend(request_of, world, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in (world / "real/labels/train").glob("*.png"):
        (labels / path.name).write_bytes(path.read_bytes())
    generate.run(request_of(labels=labels))
    with pytest.raises(UserError, match=r"differ in --seed \(0, now 4\)"):
        generate.run(request_of(labels=labels, n_styles=4, extend=True, seed=4))
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(labels / "scene-01.png")
    with pytest.raises(UserError, match=r"1 label map changed since .*first: scene-01"):
        generate.run(request_of(labels=labels, n_styles=4, extend=True))
    (labels / "scene-01.png").unlink()
    with pytest.raises(UserError, match=r"1 layout of .* missing \(first: scene-01\)"):
        generate.run(request_of(labels=labels, n_styles=4, extend=True))


@pytest.mark.slow
def test_overwriting_removes_what_is_ours_and_nothing_else(request_of, tmp_path):
    generate.run(request_of(data_format="folder"))
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/images/train/mine.jpg").write_bytes(b"mine")
    generate.run(request_of(seed=1, overwrite=True))
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"notes.txt", "mine.jpg", "train-000000.tar"} <= left
    assert not any(name.endswith("-s000.jpg") for name in left)
    assert verify(tmp_path / "out", quiet=True).faults == []


# Verification of committed shards


@pytest.mark.slow
def test_a_changed_byte_is_noticed_with_verify(request_of, tmp_path):
    generate.run(request_of())
    undisturbed = contents(tmp_path / "out")
    path = tmp_path / "out/data/train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert generate.run(request_of()).made == 0  # sizes alone do not tell
    assert generate.run(request_of(verify=True)).made == 4
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_record_of_another_plan_does_not_count(request_of, tmp_path):
    """What an orphan of an earlier driver may commit after the data set was begun anew."""
    generate.run(request_of())
    undisturbed = contents(tmp_path / "out")
    path = tmp_path / "out/.ecgan/shards/000001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": "0" * 16}))
    assert generate.run(request_of()).made == 4
    assert contents(tmp_path / "out") == undisturbed


# Data sets of earlier versions


def as_schema_2(out):
    """Rewrite a data set's documents as the version before wrote them, by another release."""

    def fingerprint(value):
        versions = {f"version of {k}": v for k, v in value.pop("versions").items()}
        old = {WORDING.get(key, key): own for key, own in value.items()}
        old["--style-images or --styles"] = old.pop("--style-images")
        return old | versions | {"version of ecgan": "0.0.9", "threads": 1, "recipe": "of old"}

    path = out / ".ecgan/plan.json"
    book = json.loads(path.read_text())
    for stage in book["stages"]:
        stage["fingerprint"] = fingerprint(stage["fingerprint"])
    path.write_text(json.dumps(book | {"schema": 2}))
    path = out / "manifest.json"
    about = json.loads(path.read_text())
    about["fingerprint"] = fingerprint(about["fingerprint"])
    path.write_text(json.dumps(about | {"schema": 2, "style_source": "seed 0"}))


@pytest.mark.slow
def test_a_data_set_of_an_earlier_version_is_read_resumed_and_extended(request_of, tmp_path):
    generate.run(request_of())
    out = tmp_path / "out"
    as_schema_2(out)
    about = read_manifest(out)
    assert about.fingerprint.checkpoint == about.provenance.checkpoint.sha256
    assert about.styles == "seed 0"
    assert about.is_complete
    assert verify(out, quiet=True).faults == []
    assert generate.run(request_of()).made == 0
    with pytest.raises(UserError, match=r"differ in --seed \(0, now 1\)\. Use"):
        generate.run(request_of(seed=1))
    before = (out / "data/train-000001.tar").read_bytes()
    (out / ".ecgan/shards/000001.json").unlink()
    assert generate.run(request_of()).made == 4
    named = (out / "data/train-000001.tar").read_bytes().count(b'CreatorTool="ecgan 0.0.9"')
    assert named == 4, "finished by the version that began it"
    assert len((out / "data/train-000001.tar").read_bytes()) == len(before)
    assert read_manifest(out).versions["ecgan"] == "0.0.9"
    assert generate.run(request_of(n_styles=4, extend=True)).made == 6
    assert json.loads((out / ".ecgan/plan.json").read_text())["schema"] == 3
    assert verify(out, quiet=True).faults == []


# Dry runs


@pytest.mark.parametrize(
    "changes",
    [
        {"label_filter": "train"},
        {"spread": "hardness"},
        {"style_images": True},
        {"label_filter": "train", "on_inconsistent": "drop", "changes": ("flip",)},
    ],
)
def test_a_dry_run_writes_and_trains_nothing(request_of, world, tmp_path, monkeypatch, changes):
    run = shutil.copytree(world / "run", tmp_path / "run", ignore=lambda *_: ["segmenters"])
    if "style_images" in changes:
        trees.save(tmp_path / "photos/a.jpg", trees.photo(0))
        changes = {"style_images": tmp_path / "photos"}
    monkeypatch.setattr(calibration, "train_segmenter", None)
    before = [*map(contents, (tmp_path, world))]
    text = generate.describe(request_of(generator=run / "generator.safetensors", **changes))
    assert "samples of" in text
    assert [*map(contents, (tmp_path, world))] == before
    hardness = "not known before the filter is trained" in text
    assert hardness == (changes.get("spread") == "hardness")


@pytest.mark.slow
def test_a_dry_run_over_a_filtered_data_set_compares_what_it_knows(request_of, world, tmp_path):
    changes = {"label_filter": "train", "spread": "hardness"}
    generate.run(request_of(**changes))
    before = contents(tmp_path)
    assert "18 samples" in generate.describe(request_of(**changes))
    with pytest.raises(UserError, match="--seed"):
        generate.describe(request_of(**changes, seed=1))
    assert contents(tmp_path) == before
