"""Label filter, balance, layout augmentation and provenance, end to end."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest

from ecgan.data.packed import sample_sets as dataset
from ecgan.errors import UserError
from ecgan.generation import planner
from ecgan.generation import run as generate
from ecgan.shards.manifest import read_manifest
from ecgan.shards.records import decoded
from ecgan.shards.verify import verify
from tests.helpers import trees
from tests.helpers.data_sets import contents
from tests.helpers.tiny import NAMES


def files_of_samples(out):
    """The bytes of every sample of a WebDataset, by member name."""
    found = {}
    for path in sorted((out / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def records(out):
    return [raw.record for raw in dataset.read_raw(out)]


# The label filter


@pytest.mark.slow
def test_the_filter_makes_unlabelled_what_the_segmenter_does_not_recognise(
    request_of, world, tmp_path
):
    generate.run(request_of())
    outcome = generate.run(request_of(out=tmp_path / "filtered", label_filter="train"))
    assert outcome.filtered.startswith("filter: ")
    plain, filtered = (list(dataset.read(tmp_path / n)) for n in ("out", "filtered"))
    found = records(tmp_path / "filtered")
    removed = 0
    for before, after, record in zip(plain, filtered, found, strict=True):
        np.testing.assert_array_equal(before.image, after.image)
        changed = before.label != after.label
        assert (after.label[changed] == 255).all(), "pixels are taken away, never relabelled"
        labelled = (before.label != 255).sum()
        assert record["kept_fraction"] == pytest.approx(1 - changed.sum() / labelled)
        assert 0 <= record["consistency"] <= 1
        assert sum(record["class_pixels"]) == (after.label != 255).sum()
        removed += changed.sum()
    assert removed > 0
    about = read_manifest(tmp_path / "filtered")
    assert about.filter.independent == "yes"
    assert about.filter.kept_fraction == pytest.approx(np.mean([r["kept_fraction"] for r in found]))
    assert about.filter.inconsistent == sum(r["kept_fraction"] < 0.5 for r in found)
    card = (tmp_path / "filtered/README.md").read_text()
    assert "no sample was judged by a network that was trained on its layout's photo" in card
    assert verify(tmp_path / "filtered", quiet=True).faults == []


@pytest.mark.slow
def test_dropped_samples_shorten_shards_and_are_counted(request_of, tmp_path):
    first = request_of(label_filter="train", samples_per_shard=18)
    generate.run(first)
    kept = sorted(r["kept_fraction"] for r in records(tmp_path / "out"))
    limit = f"sampling.filter_min_kept={(kept[8] + kept[9]) / 2}"
    outcome = generate.run(
        request_of(
            out=tmp_path / "dropped", label_filter="train", on_inconsistent="drop",
            samples_per_shard=18, overrides=(limit,),
        )
    )  # fmt: skip
    assert outcome.num_samples == 9
    about = read_manifest(tmp_path / "dropped")
    assert (about.samples, about.filter.dropped) == (9, 9)
    assert min(r["kept_fraction"] for r in records(tmp_path / "dropped")) == kept[9]
    assert verify(tmp_path / "dropped", quiet=True).faults == []
    result = generate.run(
        request_of(
            out=tmp_path / "none", label_filter="train", on_inconsistent="drop",
            overrides=("sampling.filter_min_kept=1.0", "sampling.filter_tolerance=0.01"),
        )
    )  # fmt: skip
    assert len(result.failed) == 5
    assert "left none of shard 0's samples (4)" in result.failed[0]


@pytest.mark.slow
def test_retries_take_the_next_seeds_and_keep_the_best(request_of, tmp_path):
    overrides = ("sampling.filter_min_kept=1.0", "sampling.filter_retries=2")
    generate.run(request_of(label_filter="train"))
    generate.run(
        request_of(
            out=tmp_path / "retried", label_filter="train", on_inconsistent="retry",
            overrides=overrides,
        )
    )  # fmt: skip
    once, retried = records(tmp_path / "out"), records(tmp_path / "retried")
    assert [r["key"] for r in once] == [r["key"] for r in retried]
    added = [b["seed"] - a["seed"] for a, b in zip(once, retried, strict=True)]
    assert set(added) <= {0, 1, 2}
    assert max(added) > 0
    for a, b in zip(once, retried, strict=True):
        assert b["kept_fraction"] >= a["kept_fraction"]
        assert (a["seed"] == b["seed"]) == (a["kept_fraction"] == b["kept_fraction"])
    assert read_manifest(tmp_path / "retried").filter.retried == 36


# Balance


@pytest.mark.slow
def test_balance_changes_how_often_layouts_occur_and_the_dry_run_shows_it(
    request_of, world, tmp_path
):
    even = generate.describe(request_of())
    assert "  road " in even
    request = request_of(spread="target", targets=("car=0.35",))
    text = generate.describe(request)
    (line,) = [line for line in text.splitlines() if line.split()[0] == "car"]
    before, after = (float(word.rstrip("%")) for word in line.split()[1:])
    assert abs(after - 35) < abs(before - 35)
    assert not (tmp_path / "out").exists()
    outcome = generate.run(request)
    assert outcome.num_samples == 18
    pixels = np.array(read_manifest(tmp_path / "out").class_pixels)
    assert pixels[NAMES.index("car")] / pixels.sum() * 100 == pytest.approx(after, abs=0.01)

    generate.run(request_of(out=tmp_path / "hard", spread="hardness"))
    counts = {}
    for sample in dataset.read(tmp_path / "hard"):
        counts[sample.source] = counts.get(sample.source, 0) + 1
    assert sum(counts.values()) == 18
    assert len(set(counts.values())) > 1
    assert read_manifest(tmp_path / "hard").balance == "hardness"


@pytest.mark.slow
def test_targets_out_of_reach_are_named_in_one_line(request_of, world, tmp_path, capsys):
    request = request_of(spread="target", targets=("car=0.9", "road=0.01"))
    text = generate.describe(request)
    planned = {words[0]: words[2] for words in map(str.split, text.splitlines()) if len(words) == 3}
    (line,) = [line for line in text.splitlines() if "cannot reach" in line]
    assert f"car 90.00% wanted, {planned['car']} planned; " in line
    assert f"road 1.00% wanted, {planned['road']} planned; add layouts" in line
    assert "cannot reach" not in generate.describe(
        request_of(spread="target", targets=("car=0.25",))
    )
    generate.run(replace(request, quiet=False))
    assert f"  {line}\n" in capsys.readouterr().err


# Variation


@pytest.mark.slow
def test_varied_layouts_stand_beside_the_layouts_themselves(request_of, world, tmp_path):
    generate.run(request_of(changes=("flip",), n_styles=2))
    found = {s.key: s for s in dataset.read(tmp_path / "out")}
    assert len(found) == 24
    told = {r["key"]: r for r in records(tmp_path / "out")}
    for i in range(6):
        own, varied = found[f"scene-{i:02d}-s000"], found[f"scene-{i:02d}-v1-s000"]
        np.testing.assert_array_equal(varied.label, own.label[:, ::-1])
        assert told[varied.key]["variation"] == "flip"
        assert told[varied.key]["source"] == f"scene-{i:02d}"
        assert told[own.key]["variation"] == ""
    assert read_manifest(tmp_path / "out").varied_layouts == 6
    assert "varied before (flip)" in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
def test_all_variations_give_the_same_bytes_from_two_processes(request_of, tmp_path):
    changes = {"changes": ("flip", "crop", "paste"), "n_variants": 2}
    generate.run(request_of(**changes))
    generate.run(request_of(out=tmp_path / "two", workers=2, **changes))
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    told = [r["variation"] for r in records(tmp_path / "out")]
    assert len({text for text in told if "crop" in text}) > 5
    assert verify(tmp_path / "out", quiet=True).faults == []


def test_a_layout_with_the_name_of_a_varied_one_is_refused(request_of, tmp_path):
    for name in ("a", "a-v1"):
        trees.save(tmp_path / "labels" / f"{name}.png", trees.stripes([0, 1]))
    with pytest.raises(UserError, match="a-v1 would be the name of a varied form"):
        planner.plan(request_of(labels=tmp_path / "labels", changes=("flip",)))


# Provenance


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_images_and_records_say_that_they_are_synthetic(request_of, world, tmp_path, image_format):
    labels = world / "real/labels/val"
    options = {"labels": labels, "n_styles": 1, "image_format": image_format}
    generate.run(request_of(overrides=("sampling.license=cc-by-4.0",), **options))
    generate.run(request_of(out=tmp_path / "bare", provenance=False, **options))
    marked, bare = (next(dataset.read_raw(tmp_path / name)) for name in ("out", "bare"))
    assert b"trainedAlgorithmicMedia" in marked.image
    assert b"cc-by-4.0" in marked.image
    assert marked.record["digital_source_type"] == "trainedAlgorithmicMedia"
    assert b"trainedAlgorithmicMedia" not in bare.image
    assert bare.record["digital_source_type"] == ""
    about = read_manifest(tmp_path / "out")
    assert about.provenance.checkpoint.sha256 == about.fingerprint.checkpoint
    assert about.license == "cc-by-4.0"
    assert read_manifest(tmp_path / "bare").provenance is None
    front, text = ((tmp_path / n / "README.md").read_text() for n in ("out", "bare"))
    assert "license: cc-by-4.0" in front
    assert "checkpoint `" in front
    assert "checkpoint" not in text
    a, b = (decoded(raw, "") for raw in (marked, bare))
    np.testing.assert_array_equal(a.image, b.image)
