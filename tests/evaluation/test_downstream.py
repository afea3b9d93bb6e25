"""What samples are worth: draws, students, statistics, resumption, and every leak refused."""

import json
import math
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
import torch
from PIL import Image
from safetensors.torch import save_file

from ecgan import checkpoint, labels
from ecgan.data import datasets
from ecgan.errors import UserError
from ecgan.evaluation.downstream import experiment
from ecgan.evaluation.downstream import leakage as leaks
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream import student as students
from ecgan.evaluation.downstream.leakage import Part
from ecgan.evaluation.downstream.student import Pair, Run, SegmenterTrainer, augment, draws
from ecgan.generation import run as generate
from ecgan.metrics.segmentation import agreement
from ecgan.recipe import parse_recipe
from ecgan.recipe_schema import DownstreamTraining
from ecgan.runtime.jobs import Workers
from ecgan.runtime.storage import HIDDEN
from ecgan.segmentation.loading import load_for_finetuning
from ecgan.segmentation.segmenter import Normalisation, Provenance, Segmenter, Sources, segformer
from ecgan.segmentation.training import VOID
from tests.helpers.tiny import NAMES, write_pairs

SIZE = 32, 64
FEW = {"train": 10, "val": 3}


def write_real(root, num_train=FEW["train"], num_val=FEW["val"]):
    """A real data set whose splits have keys of their own."""
    write_pairs(root, num_train, num_val)
    for path in root.glob("*/val/*.png"):
        path.rename(path.with_name(path.name.replace("scene", "view")))
    return root


def keys_of(root, split="train", fraction=1.0):
    return {i.key for i in datasets.items_for("folder", root, split, fraction=fraction)}


def make_samples(folder, real, *, seen=None, fraction=1.0, data=(), model=(), **options):
    """A data set of ours, by a generator with random weights that says what it saw."""
    document = {
        "data": {"root": str(real), "height": SIZE[0], "width": SIZE[1], "fraction": fraction},
        "model": {"width": 4, "upsamplings": 5, "style": True, "label_generator": "off"},
    }
    document["data"] |= dict(data)
    document["model"] |= dict(model)
    recipe = parse_recipe(document, "test")
    space = labels.load_label_space(real / "classes.json")
    folder.mkdir(parents=True)
    checkpoint.save_generator(
        folder / checkpoint.GENERATOR,
        checkpoint.build_generator(recipe, space),
        recipe,
        space,
        style_encoder=checkpoint.build_style_encoder(recipe),
        seen_keys=keys_of(real, fraction=fraction) if seen is None else seen,
    )
    out = folder / "samples"
    generate.run(
        generate.Request(
            folder / checkpoint.GENERATOR, out, n_styles=2, device="cpu", quiet=True, **options
        )
    )
    return out


def copy_samples(source, folder, *, seen=None, **recipe):
    """A copy of a set whose generator says that it saw other keys, or was of another recipe."""
    shutil.copytree(source / "samples", folder / "samples")
    file = folder / checkpoint.GENERATOR
    if seen is None:
        shutil.copy(source / checkpoint.GENERATOR, file)
    else:
        write_metadata(source / checkpoint.GENERATOR, file, seen_keys=sorted(seen))

    def change(about):
        about["fingerprint"]["checkpoint"] = checkpoint.sha256(file)
        for name, values in recipe.items():
            about["recipe"][name] |= values

    return edit_manifest(folder / "samples", change)


def write_metadata(source, file, **changes):
    """A generator file without weights, whose metadata are another's with changes."""
    document = checkpoint.read_metadata(source).model_dump() | changes
    save_file({"nothing": torch.zeros(1)}, file, {"ecgan": json.dumps(document)})


def edit_manifest(place, change):
    path = place / "manifest.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    return place


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A real data set, and samples of generators of all of it and of a third of it."""
    root = tmp_path_factory.mktemp("downstream")
    write_real(root / "real")
    make_samples(root / "whole", root / "real")
    make_samples(root / "third", root / "real", fraction=0.3)
    return root


def training(**changes):
    return DownstreamTraining(**{"channels": 8, "images": 4, "batch": 2} | changes)


def request_of(world, cache, **changes):
    fields = {
        "root": world / "real",
        "dataset": "folder",
        "train_split": "train",
        "test_split": "val",
        "space": labels.load_label_space(world / "real" / "classes.json"),
        "size": SIZE,
        "samples": (world / "whole" / "samples",),
        "cache": cache,
        "mixes": (0.0, 1.0),
        "seeds": 2,
        "training": training(),
        "generators": (
            world / "whole" / checkpoint.GENERATOR,
            world / "third" / checkpoint.GENERATOR,
        ),
        "quiet": True,
    }
    return downstream.Request(**fields | changes)


def ran(request):
    """The experiment's section of report.json."""
    return downstream.run(request).model_dump(mode="json")


def numbers(section):
    """What must not depend on when and where it ran."""
    return section["rows"], section["sentences"], section["failed"]


def refusal(request):
    with pytest.raises(UserError) as error:
        downstream.check(request)
    return str(error.value)


# Statistics


@pytest.mark.parametrize(
    ("real", "mixed", "larger", "text"),
    [
        ((0.50, 0.51, 0.49), (0.60, 0.61, 0.59), True, "+0.100 mIoU, larger than the spread over"),
        ((0.50, 0.51, 0.49), (0.40, 0.41, 0.39), True, "-0.100 mIoU, larger than the spread over"),
        ((0.50, 0.51, 0.49), (0.51, 0.52, 0.49), False, "no difference that 3 seeds could show"),
        ((0.50, 0.58, 0.42), (0.60, 0.68, 0.52), False, "no difference that 3 seeds could show"),
    ],
)
def test_sentences_say_whether_a_difference_is_larger_than_the_spread(real, mixed, larger, text):
    sides = [
        downstream._Results(Run(1.0, mix, 0), [(s, {"miou": v}) for s, v in enumerate(values)])
        for mix, values in ((0.0, real), (1.0, mixed))
    ]
    against = downstream._against(*sides)
    assert against.larger == larger
    assert against.low < against.difference < against.high
    assert text in downstream._sentence("real + 1x synthetic", against, len(mixed))


# Draws


def test_draws_follow_their_hash_and_permutations():
    import hashlib

    seed, share, num_real, num_synthetic, total = 3, 0.6, 5, 7, 60
    found = draws(seed, share, num_real, num_synthetic, total)
    counters = {False: 0, True: 0}
    for p in range(total):
        digest = hashlib.sha256(f"{seed} {p}".encode()).hexdigest()
        synthetic = int(digest[:16], 16) < share * 2**64
        count = num_synthetic if synthetic else num_real
        epoch, place = divmod(counters[synthetic], count)
        counters[synthetic] += 1
        order = np.random.default_rng((seed, 2, int(synthetic), epoch)).permutation(count)
        assert found.synthetic[p] == synthetic
        assert found.indices[p] == order[place]


@pytest.mark.parametrize("mix", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_share_of_samples(mix, seed):
    share, total = Run(1.0, mix, seed).share, 4000
    assert share == pytest.approx(mix / (1 + mix))
    found = draws(seed, share, 10, 30, total)
    error = math.sqrt(share * (1 - share) / total)
    assert found.synthetic.mean() == pytest.approx(share, abs=4 * error)


def test_more_samples_take_the_place_of_real_pairs():
    less, more, none, all_ = (draws(1, share, 9, 9, 300) for share in (0.5, 0.8, 0.0, 1.0))
    assert not (less.synthetic & ~more.synthetic).any()
    assert not none.synthetic.any()
    assert all_.synthetic.all()
    assert draws(2, 0.5, 9, 9, 300).synthetic.tolist() != less.synthetic.tolist()
    real = less.indices[~less.synthetic]
    assert real.tolist() == none.indices[: len(real)].tolist()  # the same row of real pairs


def test_every_pair_is_drawn_once_an_epoch():
    found = draws(0, 0.5, 6, 4, 400)
    for synthetic, count in ((False, 6), (True, 4)):
        own = found.indices[found.synthetic == synthetic]
        epochs = own[: len(own) // count * count].reshape(-1, count)
        assert (np.sort(epochs, axis=1) == np.arange(count)).all()
        assert len({tuple(row) for row in epochs.tolist()}) > 1


def test_augmentation_keeps_image_and_label_together():
    label = np.kron(np.arange(8).reshape(2, 4), np.ones((16, 16))).astype(np.uint8)
    pair = Pair(np.repeat(label[:, :, None] * 30, 3, axis=2), label)
    mirrored, zoomed = 0, 0
    for position in range(40):
        seen = augment(pair, np.random.default_rng(position), flip=True)
        assert seen.image.shape == (32, 64, 3)
        assert seen.label.shape == (32, 64)
        # Bicubic: exact inside of the blocks, more or less at their borders
        close = np.abs(seen.image[:, :, 0].astype(int) - seen.label.astype(int) * 30) < 15
        assert close.mean() > 0.8
        mirrored += bool(seen.label[0, 0] > seen.label[0, -1])
        zoomed += bool((seen.label != label).any() and (seen.label != label[:, ::-1]).any())
        plain = augment(pair, np.random.default_rng(position), flip=False)
        assert plain.label[0, 0] <= plain.label[0, -1]
        columns = np.unique(np.flatnonzero(np.diff(plain.label[0].astype(int))))
        assert all(np.diff(columns) < 16 * students.MOST_ZOOM + 1)
    assert 10 < mirrored < 30
    assert zoomed > 30


# Students


def test_section(world, tmp_path):
    mixes = (0.0, 1.0, "synthetic")
    section = ran(request_of(world, tmp_path, mixes=mixes))
    json.dumps(section, allow_nan=False)
    assert set(section) == {"protocol", "rows", "sentences", "notes", "failed"}
    assert all(isinstance(text, str) for text in section["protocol"].values())
    rows = section["rows"]
    assert [row["name"] for row in rows] == ["real only", "real + 1x synthetic", "synthetic only"]
    assert [row["mix"] for row in rows] == [0.0, 1.0, None]
    assert [row["real_images"] for row in rows] == [10, 10, 0]
    assert [row["synthetic_images"] for row in rows] == [0, 20, 20]
    assert section["failed"] == []
    assert section["notes"] == []
    assert section["protocol"]["generators"].startswith("none saw a held-out pair")
    assert len(section["sentences"]) == 2
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


def test_real_only_knows_no_samples(world, tmp_path):
    alone = request_of(world, tmp_path, mixes=(0.0,), samples=())
    section = ran(alone)
    before = set(tmp_path.iterdir())
    beside = ran(request_of(world, tmp_path, mixes=(0.0,), seeds=2))
    assert set(tmp_path.iterdir()) == before
    assert beside["rows"] == section["rows"]
    mixed = ran(request_of(world, tmp_path))
    assert mixed["rows"][0] == section["rows"][0]
    assert before < set(tmp_path.iterdir())
    assert section["rows"][0]["synthetic_images"] == 0


def test_mix_0_of_samples_is_real_only(world, tmp_path):
    """No sample is looked at: the student is the same to the bit, wherever samples come from."""
    with_samples = downstream.check(request_of(world, tmp_path)).config
    without = downstream.check(request_of(world, tmp_path, mixes=(0.0,), samples=())).config
    run = Run(1.0, 0.0, 0)
    assert with_samples.samples[1.0]
    assert not without.samples[1.0]
    one, other = (SegmenterTrainer(found)(run) for found in (with_samples, without))
    assert one | {"seconds": 0} == other | {"seconds": 0}
    assert one["miou"] != SegmenterTrainer(with_samples)(Run(1.0, 1.0, 0))["miou"]


CHANGED = {
    "seed": {},
    "architecture": {"training": training(architecture="unet")},
    "channels": {"training": training(channels=16)},
    "images": {"training": training(images=8)},
    "batch": {"training": training(batch=1)},
    "flip": {"flip": False},
    "size": {"size": (32, 32), "samples": (), "mixes": (0.0,)},
    "test_split": {"test_split": "test"},
    "fractions": {"fractions": (0.3,)},
}


@pytest.mark.parametrize("name", CHANGED)
def test_everything_that_decides_a_run_is_in_its_name(world, tmp_path, name):
    shutil.copytree(world / "real", tmp_path / "real")
    for folder in ("images", "labels"):
        shutil.copytree(tmp_path / "real" / folder / "val", tmp_path / "real" / folder / "test")
        path = tmp_path / "real" / folder / "test" / "view-00.png"
        path.rename(path.with_name("further.png"))
    base = request_of(world, tmp_path, root=tmp_path / "real", mixes=(0.0,))
    changed = replace(base, **CHANGED[name])
    run = Run(base.fractions[0], 0.0, 0)
    other = Run(changed.fractions[0], 0.0, int(name == "seed"))
    assert downstream.check(base).path(run) != downstream.check(changed).path(other)
    assert downstream.check(base).path(run) == downstream.check(base).path(run)


def test_changed_files_change_the_runs_that_see_them(world, tmp_path):
    shutil.copytree(world / "real", tmp_path / "real")
    request = request_of(world, tmp_path, root=tmp_path / "real")
    runs = [Run(1.0, 0.0, 0), Run(1.0, 1.0, 0), Run(1.0, None, 0)]

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
    request = request_of(Path(), tmp_path / "a", mixes=mixes)
    workers = Workers(2, timeout=0.05)  # seconds, too few for any student
    here = ran(request)
    there = ran(replace(request, cache=tmp_path / "b", workers=workers))
    assert numbers(there) == numbers(here)


SCRIPT = """
import sys
from pathlib import Path
from tests.evaluation.test_downstream import numbers, ran, request_of
import torch
torch.set_num_threads(1)
ran(request_of(Path(sys.argv[1]), Path(sys.argv[2]), seeds=4))
"""


@pytest.mark.slow
def test_a_killed_experiment_goes_on(world, tmp_path):
    request = request_of(world, tmp_path / "killed", seeds=4)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
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


def write_plain(folder, real, keys, spoil=lambda image: image):
    """Photos and label maps of train pairs as a plain folder of samples."""
    for key in keys:
        for kind in ("images", "labels"):
            pixels = np.asarray(Image.open(real / kind / "train" / f"{key}.png"))
            target = folder / kind / f"{key}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(spoil(pixels) if kind == "images" else pixels).save(target)
    return folder


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
        ran(replace(request, mixes=("synthetic",)))


def test_samples_of_another_size_are_no_training(world, tmp_path):
    write_plain(tmp_path / "plain", world / "real", ("scene-00", "scene-01"))
    for kind in ("images", "labels"):
        path = tmp_path / "plain" / kind / "scene-01.png"
        Image.open(path).resize((32, 32), Image.Resampling.NEAREST).save(path)
    request = request_of(
        world, tmp_path, samples=(tmp_path / "plain",), unknown_generator=True, mixes=("synthetic",)
    )
    with pytest.raises(UserError, match="scene-01 is not of 32 x 64"):
        ran(request)


class ByColour(torch.nn.Module):
    """Reads the scenes of tests.helpers.tiny by their colour."""

    def forward(self, pixel_values):
        classes = torch.arange(len(NAMES))
        colours = torch.stack([classes * 50, 255 - classes * 40, classes * 20], dim=1)
        far = (pixel_values[:, None] - (colours / 127.5 - 1)[None, :, :, None, None]).square()
        return type("Output", (), {"logits": -far.sum(2)})()


def accuracy_of(confusion):
    return agreement(confusion).overall["accuracy"].value


def test_a_student_is_tested_on_the_tested_split(world, tmp_path):
    """All of its pixels that have a class, and no others."""
    found = downstream.check(request_of(world, tmp_path, mixes=(0.0,))).config
    confusion = SegmenterTrainer(found)._test(ByColour(), Normalisation())
    labelled = 0
    for path in (world / "real" / "labels" / "val").iterdir():
        labelled += int((np.asarray(Image.open(path)) < len(NAMES)).sum())
    assert confusion.matrix.sum() == labelled
    assert sum(confusion.pixels) == FEW["val"] * SIZE[0] * SIZE[1]
    assert accuracy_of(confusion) > 0.95
    shifted = SegmenterTrainer(found)._test(ByColour(), Normalisation((0.2,) * 3, (0.5,) * 3))
    assert accuracy_of(shifted) < accuracy_of(confusion)


def test_what_a_student_sees(world, tmp_path):
    """Real pairs and samples alike: whole bytes, evaluation ids, void where there is no class."""
    request = request_of(
        world, tmp_path, mixes=("synthetic",), flip=False, training=training(images=8, batch=4)
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    for run, expected in ((Run(1.0, 0.0, 5), "real"), (Run(1.0, None, 5), "synthetic")):
        batches = list(trainer._batches(run))
        assert len(batches) == trainer.config.steps == 2
        for images, learnt in batches:
            assert images.shape == (4, 3, *SIZE)
            assert images.dtype == torch.uint8
            assert learnt.dtype == torch.int64
            assert set(learnt.unique().tolist()) <= {*range(len(NAMES)), VOID}
        learnt = torch.cat([labels for _, labels in batches])
        assert (learnt == VOID).any() == True  # noqa: E712
        colours = torch.cat([images for images, _ in batches])[:, 0].float() / 50
        agree = (colours.round() == learnt)[learnt != VOID].float().mean()
        assert (agree > 0.7) == (expected == "real")  # a random generator shows nothing
    again = list(SegmenterTrainer(trainer.config)._batches(Run(1.0, None, 5)))
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in
        zip(one, two, strict=True)
    )  # fmt: skip
    many = replace(trainer.config, loaders=3)
    again = list(SegmenterTrainer(many)._batches(Run(1.0, None, 5)))
    assert all(torch.equal(one[0], two[0]) for one, two in zip(batches, again, strict=True))


def test_each_position_shows_its_pair_as_its_draw_says(world, tmp_path):
    """Twin of the loader, pair by pair: a part of the real pairs, and two sets of samples."""
    request = request_of(
        world,
        tmp_path,
        samples={0.3: (world / "third" / "samples",) * 2},
        fractions=(0.3,),
        training=training(images=16, batch=4),
    )
    found = downstream.check(request).config
    (samples, _) = found.samples[0.3]
    own = sorted(keys_of(world / "real", fraction=0.3))
    items = {i.key: i for i in datasets.items_for("folder", world / "real", "train")}
    expected = {}
    for seed in (0, 1):
        plan = draws(seed, 0.5, len(own), 2 * len(samples), 16)
        for position, (synthetic, index) in enumerate(zip(*plan, strict=True)):
            if synthetic:
                sample = samples.dataset.sample(int(index) % len(samples))
                pair = Pair(sample.image, sample.label)
            else:
                item = items[own[index]]
                pair = Pair(
                    datasets.read_image(item), datasets.read_label(item, found.space, "folder")
                )
            rng = np.random.default_rng((seed, 3, position))
            expected[seed, position] = augment(pair, rng, flip=True)
        assert set(plan.indices[plan.synthetic].tolist()) - set(range(len(samples)))
        seen = [
            (image, label)
            for batch in SegmenterTrainer(found)._batches(Run(0.3, 1.0, seed))
            for image, label in zip(*batch, strict=True)
        ]
        for position, (image, label) in enumerate(seen):
            pair = expected[seed, position]
            known = np.where(pair.label == 255, VOID, pair.label.astype(np.int64))
            assert image.permute(1, 2, 0).numpy().tolist() == pair.image.tolist()
            assert label.numpy().tolist() == known.tolist()


def test_students_of_a_seed_start_alike_and_differ_between_seeds(world, tmp_path):
    trainer = SegmenterTrainer(downstream.check(request_of(world, tmp_path)).config)
    one, other, third = (trainer._beginner(seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(not torch.equal(value, third[name]) for name, value in one.items())


EVALUATED = (1, 0, 255, 0, 1)  # of road, sky, building, tree, car


def test_students_learn_and_are_tested_in_evaluation_ids(world, tmp_path):
    space = labels.load_label_space(world / "real" / "classes.json")
    space = replace(space, evaluation=EVALUATED, evaluation_names=("up", "down"))
    request = request_of(
        world, tmp_path, space=space, mixes=(0.0,), training=training(images=8, batch=8)
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    ((_, learnt),) = trainer._batches(Run(1.0, 0.0, 0))
    assert set(learnt.unique().tolist()) == {0, 1, VOID}

    class Grouped(ByColour):
        def forward(self, pixel_values):
            own = super().forward(pixel_values).logits
            up, down = (own[:, [c for c in range(5) if EVALUATED[c] == e]] for e in (0, 1))
            logits = torch.stack([up.amax(1), down.amax(1)], dim=1)
            return type("Output", (), {"logits": logits})()

    confusion = trainer._test(Grouped(), Normalisation())
    scored = 0
    for path in (world / "real" / "labels" / "val").iterdir():
        scored += int(np.isin(np.asarray(Image.open(path)), [0, 1, 3, 4]).sum())
    assert confusion.matrix.sum() == scored
    assert accuracy_of(confusion) > 0.95
    assert trainer._beginner(0)[0].config.num_labels == 2


@pytest.mark.slow
def test_labels_in_input_and_in_evaluation_ids_teach_the_same(world, tmp_path):
    real = tmp_path / "real"
    shutil.copytree(world / "real", real)
    about = json.loads((real / "classes.json").read_text())
    about |= {"evaluation": list(EVALUATED), "evaluation_names": ["up", "down"]}
    (real / "classes.json").write_text(json.dumps(about))
    sections = []
    for name in ("input", "evaluation"):
        torch.manual_seed(0)
        make_samples(tmp_path / name, real, label_space=name)
        request = request_of(
            world,
            tmp_path / f"cache-{name}",
            root=real,
            space=labels.load_label_space(real / "classes.json"),
            samples=(tmp_path / name / "samples",),
            generators=(tmp_path / name / checkpoint.GENERATOR,),
            mixes=("synthetic",),
        )
        sections.append(ran(request))
    assert sections[0]["rows"] == sections[1]["rows"]
    assert list(sections[0]["rows"][0]["per_class"]) == ["up", "down"]


@pytest.mark.slow
def test_a_student_learns_from_samples_that_show_something(tmp_path):
    """One real pair is little; samples that show their layouts add to it, noise does not."""
    real = write_real(tmp_path / "real", num_train=1, num_val=4)
    write_real(tmp_path / "more", num_train=16, num_val=1)
    keys = [f"scene-{i:02d}" for i in range(1, 16)]
    write_plain(tmp_path / "good", tmp_path / "more", keys)
    rng = np.random.default_rng(0)
    write_plain(
        tmp_path / "noise",
        tmp_path / "more",
        keys,
        lambda image: rng.integers(256, size=image.shape, dtype=np.uint8),
    )

    def worth(samples):
        request = request_of(
            tmp_path,
            tmp_path / "cache",
            root=real,
            samples=(samples,),
            generators=(),
            unknown_generator=True,
            mixes=(0.0, 2.0),
            training=training(images=240, batch=4),
            seeds=3,
        )
        return ran(request)["rows"][1]["against_real"]

    good, noise = worth(tmp_path / "good"), worth(tmp_path / "noise")
    assert good["larger"]
    assert good["difference"] > 0.1
    assert noise["difference"] < 0


# Fine-tuning


def save_segmenter(folder, names=NAMES):
    Segmenter(
        segformer(8, names, 7),
        range(len(names)),
        names,
        normalisation=Normalisation(),
        provenance=Provenance("loaded", "random"),
        evaluation=True,
    ).save(folder)
    return str(folder)


def test_fine_tuning_starts_from_the_segmenter(world, tmp_path):
    folder = save_segmenter(tmp_path / "own")
    found = downstream.check(
        request_of(world, tmp_path, mixes=(0.0,), samples=(), segmenter=folder)
    ).config
    start, normalisation, rates = SegmenterTrainer(found)._beginner(0)
    theirs = segformer(8, NAMES, 7).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in start.state_dict().items())
    assert normalisation == Normalisation()
    groups = students._by_rate(start, *rates)
    assert sum(map(len, groups.values())) == len(list(start.parameters()))
    assert {id(p) for p in groups[rates[1]]} == {id(p) for p in start.decode_head.parameters()}
    trained, _, loss = SegmenterTrainer(found)._train(Run(1.0, 0.0, 0))
    assert math.isfinite(loss)
    assert not any(module.training for module in trained.modules())  # as it is tested
    assert any(not torch.equal(v, theirs[n]) for n, v in trained.state_dict().items())


def test_a_head_of_other_classes_is_drawn_anew(tmp_path):
    folder = save_segmenter(tmp_path / "other", names=("a", "b", "c"))
    one, other, third = (load_for_finetuning(folder, NAMES, seed)[0] for seed in (0, 0, 1))
    theirs = segformer(8, ("a", "b", "c"), 7).state_dict()
    for name, value in one.state_dict().items():
        same = name in theirs and theirs[name].shape == value.shape
        assert same == ("classifier" not in name)
        assert not same or torch.equal(value, theirs[name])
        assert torch.equal(value, other.state_dict()[name])
    head = "decode_head.classifier.weight"
    assert len(one.state_dict()[head]) == len(NAMES)
    assert not torch.equal(one.state_dict()[head], third.state_dict()[head])


def test_weights_of_the_segmenter_decide_the_runs(world, tmp_path):
    folder = save_segmenter(tmp_path / "own")
    request = request_of(world, tmp_path, mixes=(0.0,), segmenter=folder)
    before = downstream.check(request).path(Run(1.0, 0.0, 0))
    weights = tmp_path / "own" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert downstream.check(request).path(Run(1.0, 0.0, 0)) != before


def test_a_segmenter_that_knows_too_much_is_refused(world, tmp_path):
    real = world / "real"
    tested = Sources.of(datasets.items_for("folder", real, "val"))
    whole = Sources.of(datasets.items_for("folder", real, "train"))
    part = Sources.of(datasets.items_for("folder", real, "train", fraction=0.3))
    request = request_of(world, tmp_path, mixes=(0.0,))
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
    text = refusal(of("whole", fractions=(1.0, 0.3)))
    assert "learnt from 7 real pairs outside of the fraction 0.3" in text
    assert downstream.check(of("part", fractions=(1.0, 0.3))).notes == []
    (note,) = downstream.check(of("none")).notes
    assert "learnt from before is not known" in note


# Fractions


def test_sets_belong_to_the_fraction_of_their_generator(world, tmp_path):
    whole, third = world / "whole" / "samples", world / "third" / "samples"
    found, notes = downstream.match_samples((whole, third), (1.0, 0.3))
    assert found == {1.0: (str(whole),), 0.3: (str(third),)}
    assert notes == []
    assert downstream.match_samples((third, whole), (0.3, 1.0)) == (found, [])
    found, notes = downstream.match_samples((third, whole), (1.0,))
    assert found == {1.0: (str(whole),)}
    assert notes[0].startswith(f"{third}: made by a generator of 0.3 of the real pairs")
    request = request_of(world, tmp_path, samples=(whole, third), fractions=(1.0, 0.3), seeds=1)
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
    request = request_of(world, tmp_path, mixes=(0.0,), fractions=(0.3,))
    found = downstream.check(request).config
    assert {found.real.keys[i] for i in found.parts[0.3]} == keys_of(world / "real", fraction=0.3)


def test_a_fraction_without_samples(world, tmp_path):
    text = refusal(request_of(world, tmp_path, fractions=(1.0, 0.5)))
    assert "--real-fraction 0.5: no samples for it; make them: ecgan train" in text
    assert "--set data.fraction=0.5" in text
    downstream.check(request_of(world, tmp_path, fractions=(1.0, 0.5), mixes=(0.0,)))


# Leaks


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
    downstream.check(replace(request, mixes=(0.0,)))


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
            root=real,
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
        fractions=(0.3,),
    )
    text = refusal(request)
    assert "7 of 10 layouts" in text
    assert "are not of the 0.3 of the real pairs" in text
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
            fractions=(fraction,),
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
        edit_manifest(
            place, lambda m, f=file: m["fingerprint"].update(checkpoint=checkpoint.sha256(f))
        )
        request = request_of(
            world, tmp_path, samples=(place,), generators=(file,), fractions=(fraction,)
        )
        if fault:
            assert fault in refusal(request)
        else:
            assert downstream.check(request).notes == []
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


def test_a_generator_of_more_than_the_fraction_is_refused_by_its_recipe(world, tmp_path):
    request = request_of(world, tmp_path, fractions=(0.3,), generators=(), unknown_generator=True)
    whole = world / "whole" / "samples"
    text = refusal(replace(request, samples={0.3: (whole,)}))
    assert "was trained on 1 of the real pairs, more than the 0.3" in text


def test_a_generator_of_the_tested_split_is_refused(world, tmp_path):
    place = copy_samples(world / "whole", tmp_path / "bad", data={"split": "val"})
    request = request_of(world, tmp_path, samples=(place,), unknown_generator=True)
    assert "its generator was trained on the split val" in refusal(request)


def test_a_key_of_another_split_is_no_proof(tmp_path):
    """Trained on another split, scene-00 may be anyone's where the tested split has one too."""
    part = Part(
        1.0,
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
        found = leaks.Findings()
        leaks._check_seen("here", part, frozenset(seen), found, by_key=by_key)
        assert bool(found.faults) == refused


def test_an_unknown_generator_is_refused_unless_taken_on_request(world, tmp_path):
    request = request_of(world, tmp_path, generators=())
    text = refusal(request)
    assert "what its generator (SHA-256 " in text
    assert "--unknown-generator" in text
    (note,) = downstream.check(replace(request, unknown_generator=True)).notes
    assert "what its generator was trained on is not known" in note
    write_plain(tmp_path / "plain", world / "real", ("scene-00", "scene-01"))
    plain = replace(request, samples=(tmp_path / "plain",))
    assert "what its generator was trained on is not known" in refusal(plain)
    section = ran(replace(plain, unknown_generator=True, mixes=(1.0,), seeds=1))
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
        replace(request, samples=(world / "third/samples",), fractions=(0.3,))
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


def test_a_whole_part_with_instance_maps_is_known_as_such(world, tmp_path):
    real = shutil.copytree(world / "real", tmp_path / "real")
    for path in real.glob("labels/*/*.png"):
        folder = real / "instances" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(folder / path.name)
    make_pasted(tmp_path / "all", real, data={"instances": True}, n_styles=1)
    place = tmp_path / "all" / "samples"
    assert len(next(iter(leaks._layout_digests(str(place)).values()))) == 32, "two files"
    request = request_of(
        world, tmp_path, samples=(place,), generators=(tmp_path / "all" / checkpoint.GENERATOR,)
    )
    assert not any("--vary paste took objects" in n for n in downstream.check(request).notes)


def make_pasted(folder, real, data=(), **options):
    make_samples(folder, real, data=data)
    shutil.rmtree(folder / "samples")
    generate.run(
        generate.Request(
            folder / checkpoint.GENERATOR,
            folder / "samples",
            changes=("paste",),
            device="cpu",
            quiet=True,
            **options,
        )
    )


# Refusals


def test_all_faults_of_the_options_at_once(world, tmp_path):
    request = request_of(
        world,
        tmp_path,
        fractions=(0.0, 1.5),
        mixes=(-1.0, math.nan),
        seeds=0,
        test_split="train",
    )
    text = refusal(request)
    for part in (
        "--seeds 0: must be at least 1",
        "--real-fraction 0: must be above 0",
        "--real-fraction 1.5: must be above 0",
        "--mix -1.0: must be 0 or more",
        "--mix nan: must be 0 or more",
        "--split train: segmenters are trained on it",
    ):
        assert part in text
    assert "less than a batch" in refusal(request_of(world, tmp_path, training=training(images=1)))
    text = refusal(request_of(world, tmp_path, fractions=(), mixes=()))
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
    request = request_of(world, tmp_path, root=tmp_path / "real", mixes=(0.0,))
    assert "no pixel of split val has a class that is scored" in refusal(request)
    assert "no folder of" in refusal(replace(request, test_split="nowhere"))


def test_the_set_must_be_whole(world, tmp_path):
    shutil.copytree(world / "whole" / "samples", tmp_path / "half")
    (tmp_path / "half" / "manifest.json").unlink()
    assert "is not complete" in refusal(request_of(world, tmp_path, samples=(tmp_path / "half",)))


def test_where_a_layout_belongs():
    part = Part(
        0.5,
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


def test_runs_are_listed_once(world, tmp_path):
    request = request_of(world, tmp_path, mixes=(0.0, 0, 1.0, "synthetic"), fractions=(1.0, 1))
    assert len(request.runs) == 3 * 2
    assert experiment.Request is downstream.Request
