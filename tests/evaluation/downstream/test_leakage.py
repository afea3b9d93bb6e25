"""Every leak into a downstream experiment is refused or noted."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data.datasets import DataFolder, Subset
from ecgan.evaluation.downstream import leakage as leaks
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream.leakage import Part
from ecgan.generation import run as generate
from ecgan.runtime.files import sha256
from ecgan.runtime.storage import HIDDEN
from ecgan.segmentation.segmenter import Sources
from ecgan.shards.manifest import photo_digest
from tests.helpers.downstream import (
    arms,
    copy_samples,
    edit_manifest,
    keys_of,
    make_samples,
    parts,
    ran,
    refusal,
    request_of,
    write_metadata,
    write_plain,
)
from tests.helpers.tiny import write_pairs


@pytest.mark.slow
def test_samples_of_tested_layouts_are_refused(world, tmp_path):
    make_samples(tmp_path / "bad", world / "real", split="val")
    request = request_of(
        world,
        tmp_path,
        samples=(tmp_path / "bad" / "samples",),
        generators=(tmp_path / "bad" / checkpoint.GENERATOR,),
    )
    text = refusal(request)
    assert "3 of 3 layouts (first: view-00) are of val, which nobody may learn from" in text
    downstream.check(replace(request, arms=arms(0.0)))


@pytest.mark.slow
def test_layouts_of_other_splits_than_the_tested_one_are_held_too(world, tmp_path):
    real = tmp_path / "real"
    shutil.copytree(world / "real", real)
    for folder in ("images", "labels"):
        for path in (real / folder / "val").iterdir():
            other = path.name.replace("view", "test")
            target = real / folder / "test" / other
            target.parent.mkdir(exist_ok=True)
            pixels = np.asarray(Image.open(path)).copy()
            pixels[-1, -1] = 0
            Image.fromarray(pixels).save(target)
    for made_of, tested_on in (("val", "test"), ("test", "val")):
        make_samples(tmp_path / made_of, real, split=made_of)
        request = request_of(
            world,
            tmp_path,
            folder=DataFolder("folder", real),
            test_split=tested_on,
            samples=(tmp_path / made_of / "samples",),
            generators=(tmp_path / made_of / checkpoint.GENERATOR,),
        )
        assert "3 of 3 layouts" in refusal(request)


@pytest.mark.slow
def test_label_maps_are_known_under_other_names(world, tmp_path):
    """By the digests that the data set keeps; without them only by key."""
    for split in ("train", "val"):
        for path in (world / "real" / "labels" / split).iterdir():
            target = tmp_path / split / f"mine-{path.name}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
        make_samples(tmp_path / f"of-{split}", world / "real", labels=tmp_path / split)
    requests = {
        split: request_of(
            world,
            tmp_path,
            samples=(tmp_path / f"of-{split}" / "samples",),
            generators=(tmp_path / f"of-{split}" / checkpoint.GENERATOR,),
        )
        for split in ("train", "val")
    }
    assert "3 of 3 layouts (first: mine-view-00) are of val" in refusal(requests["val"])
    assert downstream.check(requests["train"]).notes == []
    for split, request in requests.items():
        shutil.rmtree(tmp_path / f"of-{split}" / "samples" / HIDDEN)
        (note,) = downstream.check(request).notes
        assert "are of label maps that are not in the real data set" in note


@pytest.mark.slow
def test_keys_that_splits_share_are_decided_by_the_label_map(tmp_path):
    write_pairs(tmp_path / "real", 4, 3)  # scene-00 to -02 in both splits
    requests = {}
    for split in ("train", "val"):
        make_samples(tmp_path / split, tmp_path / "real", split=split)
        requests[split] = request_of(
            tmp_path,
            tmp_path,
            samples=(tmp_path / split / "samples",),
            generators=(tmp_path / split / checkpoint.GENERATOR,),
        )
    downstream.check(requests["train"])
    assert "3 of 3 layouts (first: scene-00) are of val" in refusal(requests["val"])
    for split, request in requests.items():
        shutil.rmtree(tmp_path / split / "samples" / HIDDEN)
        text = refusal(request)
        assert "have a key that the split train shares with val" in text
        assert "3 of " in text


@pytest.mark.slow
def test_layouts_outside_of_the_fraction_are_refused(world, tmp_path):
    seen = keys_of(world / "real", fraction=0.3)
    of_all = world / "real" / "labels" / "train"
    make_samples(tmp_path / "bad", world / "real", fraction=0.3, seen=seen, labels=of_all)
    request = request_of(
        world,
        tmp_path,
        samples=(tmp_path / "bad" / "samples",),
        generators=(tmp_path / "bad" / checkpoint.GENERATOR,),
        parts=parts(0.3),
    )
    text = refusal(request)
    assert "7 of 10 layouts" in text
    assert "are not of the part (30 %) of the real pairs" in text
    assert "--set data.fraction=0.3" in text
    shutil.copytree(world / "real" / "labels" / "train", tmp_path / "labels")
    for path in (tmp_path / "labels").iterdir():
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] = 0
        path.unlink()
        Image.fromarray(pixels).save(path.with_name(f"mine-{path.name}"))
    make_samples(
        tmp_path / "own", world / "real", fraction=0.3, seen=seen, labels=tmp_path / "labels"
    )
    request = replace(
        request,
        samples=(tmp_path / "own" / "samples",),
        generators=(tmp_path / "own" / checkpoint.GENERATOR,),
    )
    assert "10 of 10 layouts" in refusal(request)


def test_a_generator_that_saw_too_much_is_refused(world, tmp_path):
    train, tested = keys_of(world / "real"), keys_of(world / "real", "val")
    part = keys_of(world / "real", fraction=0.3)
    outsider = min(train - part)
    cases = {
        "tested": (1.0, train | {"view-01"}, "saw 1 of its 11 layouts (first: view-01)"),
        "more": (0.3, part | {outsider}, f"saw 1 of its 4 layouts (first: {outsider})"),
        "strange": (0.3, part | {"elsewhere"}, "saw 1 of its 4 layouts (first: elsewhere)"),
        "fine": (1.0, train | {"elsewhere"}, ""),
    }
    assert tested == {"view-00", "view-01", "view-02"}
    for name, (fraction, seen, fault) in cases.items():
        source = world / ("whole" if fraction == 1 else "third")
        request = request_of(
            world,
            tmp_path,
            samples=(copy_samples(source, tmp_path / name, seen=seen),),
            generators=(tmp_path / name / checkpoint.GENERATOR,),
            parts=parts(fraction),
        )
        if fault:
            assert fault in refusal(request)
            assert fault in refusal(replace(request, unknown_generator=True))
        else:
            assert downstream.check(request).notes == []


def test_a_generator_that_started_from_one_that_saw_too_much_is_refused(world, tmp_path):
    """--init does not wash what a generator saw."""
    train, part = keys_of(world / "real"), keys_of(world / "real", fraction=0.3)
    outsider = min(train - part)
    space = labels.load_label_space(world / "real" / "classes.json")
    cases = {
        "tested": (1.0, {"keys": ["view-01"]}, "that saw 1 layouts (first: view-01)"),
        "more": (0.3, {"keys": [*part, outsider]}, f"that saw 1 layouts (first: {outsider})"),
        "other data": (0.3, {"keys": ["view-01"], "classes": ["cat"]}, ""),
        "whole": (1.0, {"keys": [*train]}, ""),
        "unknown": (1.0, {"keys": []}, "what that one was trained on is not known"),
    }
    for name, (fraction, about, fault) in cases.items():
        seen = sorted(train if fraction == 1 else part)
        before = {"sha256": "0" * 64, "classes": list(space.names), **about}
        source = world / ("whole" if fraction == 1 else "third")
        place = copy_samples(source, tmp_path / name, seen=seen)
        file = tmp_path / name / checkpoint.GENERATOR
        write_metadata(source / checkpoint.GENERATOR, file, seen_keys=seen, inherited=[before])
        edit_manifest(place, lambda m, f=file: m["fingerprint"].update(checkpoint=sha256(f)))
        request = request_of(
            world, tmp_path, samples=(place,), generators=(file,), parts=parts(fraction)
        )
        if fault:
            assert fault in refusal(request)
        else:
            others = [note for note in downstream.check(request).notes if "1 other layout" in note]
            assert len(others) == (name == "other data")
    found = downstream.check(replace(request, unknown_generator=True))
    assert "what that one was trained on is not known (taken on request)" in found.notes[0]


def test_styles_of_photos_are_noted(world, tmp_path):
    place = copy_samples(world / "whole", tmp_path / "set")
    edit_manifest(place, lambda about: about.update(style_source="photos"))
    request = request_of(
        world, tmp_path, samples=(place,), generators=(tmp_path / "set" / checkpoint.GENERATOR,)
    )
    (note,) = downstream.check(request).notes
    assert "its styles (photos) may be of photos that segmenters are tested on" in note


def test_samples_of_a_generator_of_more_than_the_fraction_are_not_used(world, tmp_path):
    request = request_of(world, tmp_path, parts=parts(0.3), generators=(), unknown_generator=True)
    assert "no samples for 30 % of the pairs" in refusal(request)
    (note,) = downstream.check(replace(request, arms=arms(0.0))).notes
    assert "made by a generator of 100 % of the real pairs, which is none of the parts" in note


def test_a_generator_of_the_tested_split_is_refused(world, tmp_path):
    place = copy_samples(world / "whole", tmp_path / "bad", data={"split": "val"})
    request = request_of(world, tmp_path, samples=(place,), unknown_generator=True)
    assert "its generator was trained on the split val" in refusal(request)


def test_a_key_of_another_split_is_no_proof(tmp_path):
    """Trained on another split, scene-00 may be anyone's where the tested split has one too."""
    part = Part(
        Subset(),
        Sources(frozenset({"scene-00", "b"})),
        Sources(frozenset({"scene-00", "b"})),
        Sources(frozenset({"scene-00", "c"})),
        frozenset({"val"}),
        "train",
    )
    for by_key, seen, refused in (
        (True, {"scene-00", "b"}, False),
        (True, {"c"}, True),
        (False, {"scene-00"}, True),
        (False, {"b"}, False),
    ):
        assert bool(part.forbidden(seen, same_split=by_key)) == refused


def test_an_unknown_generator_is_refused_unless_taken_on_request(world, tmp_path):
    request = request_of(world, tmp_path, generators=())
    text = refusal(request)
    assert "what its generator (SHA-256 " in text
    assert "--unknown-generator" in text
    (note,) = downstream.check(replace(request, unknown_generator=True)).notes
    assert "was trained on is not known (taken on request)" in note
    write_plain(tmp_path / "plain", world / "real", ("scene-00", "scene-01"))
    plain = replace(request, samples=(tmp_path / "plain",))
    assert "what its generator was trained on is not known" in refusal(plain)
    section = ran(replace(plain, unknown_generator=True, arms=arms(1.0), seeds=1))
    assert any("taken on request" in text for text in section["notes"])
    assert "taken on request" in section["protocol"]["generators"]
    assert any("--mix has no 0" in text for text in section["notes"])
    assert any("one seed" in text for text in section["notes"])
    assert section["rows"][0]["against_real"] is None


def test_generators_are_found_below_runs_and_asked_by_their_hash(world, tmp_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    shutil.copy(
        world / "whole" / checkpoint.GENERATOR, tmp_path / "runs/one/generator-best.safetensors"
    )
    monkeypatch.chdir(tmp_path)
    request = request_of(world, tmp_path / "cache", generators=())
    assert downstream.check(request).notes == []
    assert "is not known" in refusal(
        replace(request, samples=(world / "third/samples",), parts=parts(0.3))
    )


def test_what_the_manifest_says_of_the_generator_counts(world, tmp_path):
    place = copy_samples(world / "whole", tmp_path / "copy")
    request = request_of(world, tmp_path, samples=(place,), generators=())
    for seen, fault in ((keys_of(world / "real"), ""), ({"view-02"}, "saw 1 of its 1 layouts")):
        told = {"seen": sorted(seen)}
        edit_manifest(place, lambda about, told=told: about.update(provenance=told))
        if fault:
            assert fault in refusal(request)
        else:
            assert downstream.check(request).notes == []


@pytest.mark.parametrize(
    ("taught", "filtered", "text"),
    [
        ("elsewhere", "train", "generator's label generator (elsewhere)"),
        ("train", "elsewhere", "label filter (elsewhere)"),
        ("off", "train", ""),
    ],
)
def test_other_trainers_are_noted(world, tmp_path, taught, filtered, text):
    place = copy_samples(world / "whole", tmp_path / "copy", model={"label_generator": taught})
    told = {"kind": "consistency", "segmenter": filtered}
    edit_manifest(place, lambda about: about.update(filter=told))
    notes = downstream.check(request_of(world, tmp_path, samples=(place,))).notes
    assert len(notes) == bool(text)
    assert all(text in note for note in notes)


@pytest.mark.slow
def test_pasted_objects_come_from_the_layouts_of_the_command(world, tmp_path):
    """All of the part's layouts and no others is proof; a choice of them is not."""
    for name, options in (("all", {}), ("some", {"num": 4})):
        styles = {} if options else {"n_styles": 1}
        folder = tmp_path / name
        make_pasted(folder, world / "real", **options, **styles)
        request = request_of(
            world,
            tmp_path,
            samples=(folder / "samples",),
            generators=(folder / checkpoint.GENERATOR,),
        )
        notes = downstream.check(request).notes
        assert any("--vary paste took objects" in note for note in notes) == (name == "some")


@pytest.mark.slow
def test_a_whole_part_with_instance_maps_is_known_as_such(world, tmp_path):
    real = shutil.copytree(world / "real", tmp_path / "real")
    for path in real.glob("labels/*/*.png"):
        folder = real / "instances" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(folder / path.name)
    make_pasted(tmp_path / "all", real, data={"instances": True}, n_styles=1)
    place = tmp_path / "all" / "samples"
    assert len(next(leaks._layout_digests(str(place)))[1]) == 32, "two files"
    request = request_of(
        world, tmp_path, samples=(place,), generators=(tmp_path / "all" / checkpoint.GENERATOR,)
    )
    assert not any("--vary paste took objects" in n for n in downstream.check(request).notes)


def make_pasted(folder, real, data=(), **options):
    make_samples(folder, real, data=data)
    shutil.rmtree(folder / "samples")
    generate.run(
        generate.Request.of(
            folder / checkpoint.GENERATOR,
            folder / "samples",
            changes=("paste",),
            device="cpu",
            quiet=True,
            **options,
        )
    )


def test_where_a_layout_belongs():
    part = Part(
        Subset(0.5),
        Sources(frozenset("a"), frozenset({"1" * 64})),
        Sources(frozenset("ab"), frozenset({"1" * 64, "2" * 64})),
        Sources(frozenset("bc"), frozenset({"2" * 64, "3" * 64})),
        frozenset({"val"}),
        "train",
    )
    cases = {
        ("x", "1" * 16): "part",
        ("x", "2" * 16): "train",  # a map that both splits have
        ("x", "3" * 16): "held",
        ("a", "3" * 16): "held",  # whatever its name
        ("c", "1" * 16): "part",
        ("a", "9" * 16): "part",
        ("b", "9" * 16): "unclear",
        ("c", "9" * 16): "held",
        ("x", "9" * 16): "other",
        ("a", None): "part",
        ("b", None): "unclear",
        ("c", None): "held",
        ("x", None): "other",
    }
    assert {case: part.membership(*case) for case in cases} == cases
    later = replace(part, held=Sources())
    assert later.membership("b", None) == "train"


def unlabelled_samples(world, folder, split, *, in_manifest):
    """The set of all pairs, whose generator also learnt from a split's photos without label maps.

    Either the manifest says so, or only the generator's own metadata.
    """
    source = world / "whole"
    saw = sorted(sha256(path) for path in (world / "real" / "images" / split).iterdir())
    shutil.copytree(source / "samples", folder / "samples")
    file = folder / checkpoint.GENERATOR
    write_metadata(source / checkpoint.GENERATOR, file, unlabelled=[] if in_manifest else saw)

    def change(about):
        about["fingerprint"]["checkpoint"] = sha256(file)
        if in_manifest:
            about["unlabelled"] = [photo_digest(digest) for digest in saw]

    return edit_manifest(folder / "samples", change)


@pytest.mark.parametrize("in_manifest", [True, False])
def test_tested_photos_without_their_label_maps_are_refused(world, tmp_path, in_manifest):
    tested, learnt = (
        request_of(
            world,
            tmp_path,
            samples=(unlabelled_samples(world, tmp_path / split, split, in_manifest=in_manifest),),
            generators=(tmp_path / split / checkpoint.GENERATOR,),
        )
        for split in ("val", "train")
    )
    text = refusal(tested)
    assert "learnt from 3 photos of val without their label maps (data.unlabelled)" in text
    notes = downstream.check(learnt).notes
    assert any("also learnt from 10 photos without label maps" in note for note in notes)


def test_what_an_earlier_generator_saw_without_label_maps_counts_too(world, tmp_path):
    place = unlabelled_samples(world, tmp_path / "set", "train", in_manifest=True)
    file = tmp_path / "set" / checkpoint.GENERATOR
    saw = [sha256(path) for path in (world / "real" / "images" / "val").iterdir()]
    earlier = {"sha256": "0" * 64, "classes": [], "keys": ["scene-00"], "unlabelled": saw}
    write_metadata(file, file, inherited=[earlier])

    def change(about):
        about["fingerprint"]["checkpoint"] = sha256(file)

    edit_manifest(place, change)
    request = request_of(world, tmp_path, samples=(place,), generators=(file,))
    assert "learnt from 3 photos of val without their label maps" in refusal(request)


def test_images_that_hold_photos_are_no_samples_alone(world, tmp_path):
    samples = copy_samples(world / "whole", tmp_path / "onto")
    edit_manifest(samples, lambda about: about.update(onto="photos"))
    generators = (tmp_path / "onto" / checkpoint.GENERATOR,)
    request = request_of(world, tmp_path, samples=(samples,), generators=generators)
    downstream.check(request)
    text = refusal(replace(request, arms=arms(0, "synthetic")))
    assert "hold pixels of photos (--onto photos), so they are no samples alone" in text
