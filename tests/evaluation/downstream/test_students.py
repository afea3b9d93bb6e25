"""What a student of a downstream experiment sees, learns and is tested on."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ecgan import checkpoint, labels
from ecgan.data import datasets
from ecgan.data.datasets import DataFolder, Subset
from ecgan.errors import UserError
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream import student as students
from ecgan.evaluation.downstream.arms import Arm, Run
from ecgan.evaluation.downstream.controls import Pair
from ecgan.evaluation.downstream.student import SegmenterTrainer, augment, draws
from ecgan.metrics.segmentation import agreement
from ecgan.segmentation.loading import load_for_finetuning
from ecgan.segmentation.segmenter import Normalisation, segformer
from ecgan.segmentation.training import VOID
from tests.helpers import folder_items
from tests.helpers.downstream import (
    FEW,
    arms,
    keys_of,
    make_samples,
    parts,
    ran,
    request_of,
    training,
    write_plain,
    write_real,
)
from tests.helpers.segmenters import ByColour, save_segmenter
from tests.helpers.tiny import NAMES, SIZE

A_RUN = Run(Subset(), Arm.of(0), 3)

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
        assert found.added[p] == synthetic
        assert found.indices[p] == order[place]


@pytest.mark.parametrize("mix", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_share_of_samples(mix, seed):
    share, total = Arm.of(mix).share, 4000
    assert share == pytest.approx(mix / (1 + mix))
    found = draws(seed, share, 10, 30, total)
    error = math.sqrt(share * (1 - share) / total)
    assert found.added.mean() == pytest.approx(share, abs=4 * error)


def test_more_samples_take_the_place_of_real_pairs():
    less, more, none, all_ = (draws(1, share, 9, 9, 300) for share in (0.5, 0.8, 0.0, 1.0))
    assert not (less.added & ~more.added).any()
    assert not none.added.any()
    assert all_.added.all()
    assert draws(2, 0.5, 9, 9, 300).added.tolist() != less.added.tolist()
    real = less.indices[~less.added]
    assert real.tolist() == none.indices[: len(real)].tolist()  # the same row of real pairs


def test_every_pair_is_drawn_once_an_epoch():
    found = draws(0, 0.5, 6, 4, 400)
    for synthetic, count in ((False, 6), (True, 4)):
        own = found.indices[found.added == synthetic]
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


def test_samples_of_another_size_are_no_training(world, tmp_path):
    write_plain(tmp_path / "plain", world / "real", ("scene-00", "scene-01"))
    for kind in ("images", "labels"):
        path = tmp_path / "plain" / kind / "scene-01.png"
        Image.open(path).resize((32, 32), Image.Resampling.NEAREST).save(path)
    request = request_of(
        world,
        tmp_path,
        samples=(tmp_path / "plain",),
        unknown_generator=True,
        arms=arms("synthetic"),
    )
    with pytest.raises(UserError, match=r"scene-01 is 32 x 32 .* the first sample is 32 x 64"):
        ran(request)


ALONE = Run(Subset(), Arm.of("synthetic"), 5)


def seen_by(trainer, run):
    return list(trainer._batches(run, trainer._added(run)))


def accuracy_of(confusion):
    return agreement(confusion).overall["accuracy"].value


def test_a_student_is_tested_on_the_tested_split(world, tmp_path):
    """All of its pixels that have a class, and no others."""
    found = downstream.check(request_of(world, tmp_path, arms=arms(0.0))).config
    confusion = SegmenterTrainer(found)._test(A_RUN, ByColour(), Normalisation())
    labelled = 0
    for path in (world / "real" / "labels" / "val").iterdir():
        labelled += int((np.asarray(Image.open(path)) < len(NAMES)).sum())
    assert confusion.matrix.sum() == labelled
    assert sum(confusion.pixels) == FEW["val"] * SIZE[0] * SIZE[1]
    assert accuracy_of(confusion) > 0.95
    shifted = SegmenterTrainer(found)._test(
        A_RUN, ByColour(), Normalisation((0.2,) * 3, (0.5,) * 3)
    )
    assert accuracy_of(shifted) < accuracy_of(confusion)


def test_what_a_student_sees(world, tmp_path, monkeypatch):
    """Real pairs and samples alike: whole bytes, evaluation ids, void where there is no class."""
    monkeypatch.setattr(students, "RECOLOURED", 0)
    request = request_of(
        world, tmp_path, arms=arms("synthetic"), flip=False, training=training(images=8, batch=4)
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    for run, expected in ((Run(Subset(), Arm.of(0), 5), "real"), (ALONE, "synthetic")):
        batches = seen_by(trainer, run)
        assert len(batches) == trainer.config.steps == 2
        for images, learnt, weights in batches:
            assert weights.tolist() == [1] * 4
            assert images.shape == (4, 3, *SIZE)
            assert images.dtype == torch.uint8
            assert learnt.dtype == torch.int64
            assert set(learnt.unique().tolist()) <= {*range(len(NAMES)), VOID}
        learnt = torch.cat([labels for _, labels, _ in batches])
        assert (learnt == VOID).any() == True  # noqa: E712
        colours = torch.cat([images for images, _, _ in batches])[:, 0].float() / 50
        agree = (colours.round() == learnt)[learnt != VOID].float().mean()
        assert (agree > 0.7) == (expected == "real")  # a random generator shows nothing
    again = seen_by(SegmenterTrainer(trainer.config), ALONE)
    assert all(
        torch.equal(a, b) for one, two in zip(batches, again, strict=True) for a, b in
        zip(one, two, strict=True)
    )  # fmt: skip
    many = replace(trainer.config, loaders=3)
    again = seen_by(SegmenterTrainer(many), ALONE)
    assert all(torch.equal(one[0], two[0]) for one, two in zip(batches, again, strict=True))


def test_samples_end_weigh_and_lose_their_borders(world, tmp_path):
    settings = {"mix_until": 0.5, "sample_weight": 0.25, "border": 1}
    request = request_of(
        world,
        tmp_path,
        arms=arms(0, "pretrain"),
        training=training(images=16, batch=4, **settings),
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    plain = replace(trainer.config, training=training(images=16, batch=4, mix_until=0.5))
    run = Run(Subset(), Arm.of("pretrain"), 0)
    ours, others = seen_by(trainer, run), seen_by(SegmenterTrainer(plain), run)
    assert [weights.tolist() for *_, weights in ours] == [[0.25] * 4] * 2 + [[1.0] * 4] * 2
    for step, ((_, label, _), (_, whole, _)) in enumerate(zip(ours, others, strict=True)):
        lost = (label == VOID) & (whole != VOID)
        assert lost.any() == (step < 2)
        assert (label == whole)[~lost].all()


def test_each_position_shows_its_pair_as_its_draw_says(world, tmp_path):
    """Twin of the loader, pair by pair: a part of the real pairs, and two sets of samples."""
    request = request_of(
        world,
        tmp_path,
        samples=(world / "third" / "samples",) * 2,
        parts=parts(0.3),
        training=training(images=16, batch=4),
    )
    found = downstream.check(request).config
    (samples, _) = found.samples[Subset(0.3)]
    own = sorted(keys_of(world / "real", fraction=0.3))
    items = {i.key: i for i in folder_items.items_for("folder", world / "real", "train")}
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
            image, label = augment(pair, rng, flip=True)
            rng = np.random.default_rng((seed, 5, position))
            expected[seed, position] = Pair(students.recolour(image, rng), label)
        assert set(plan.indices[plan.added].tolist()) - set(range(len(samples)))
        seen = [
            (image, label)
            for batch in seen_by(SegmenterTrainer(found), Run(Subset(0.3), Arm.of(1), seed))
            for image, label, _ in zip(*batch, strict=True)
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
        world, tmp_path, space=space, arms=arms(0.0), training=training(images=8, batch=8)
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    ((_, learnt, _),) = seen_by(trainer, Run(Subset(), Arm.of(0), 0))
    assert set(learnt.unique().tolist()) == {0, 1, VOID}

    class Grouped(ByColour):
        def forward(self, pixel_values):
            own = super().forward(pixel_values).logits
            up, down = (own[:, [c for c in range(5) if EVALUATED[c] == e]] for e in (0, 1))
            logits = torch.stack([up.amax(1), down.amax(1)], dim=1)
            return type("Output", (), {"logits": logits})()

    confusion = trainer._test(A_RUN, Grouped(), Normalisation())
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
            folder=DataFolder("folder", real),
            space=labels.load_label_space(real / "classes.json"),
            samples=(tmp_path / name / "samples",),
            generators=(tmp_path / name / checkpoint.GENERATOR,),
            arms=arms("synthetic"),
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
            folder=DataFolder("folder", real),
            samples=(samples,),
            generators=(),
            unknown_generator=True,
            arms=arms(0.0, 2.0),
            training=training(images=240, batch=4),
            seeds=3,
        )
        return ran(request)["rows"][1]["against_real"]

    good, noise = worth(tmp_path / "good"), worth(tmp_path / "noise")
    assert good["larger"]
    assert good["difference"] > 0.1
    assert noise["difference"] < good["difference"] / 4
    assert not noise["larger"] or noise["difference"] < 0


# Fine-tuning


@pytest.mark.slow
def test_fine_tuning_starts_from_the_segmenter(world, tmp_path):
    folder = save_segmenter(tmp_path / "own")
    found = downstream.check(
        request_of(world, tmp_path, arms=arms(0.0), samples=(), segmenter=folder)
    ).config
    start, normalisation, rates = SegmenterTrainer(found)._beginner(0)
    theirs = segformer(8, NAMES, 7).state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in start.state_dict().items())
    assert normalisation == Normalisation()
    groups = students._by_rate(start, list(start.parameters()), *rates)
    assert sum(map(len, groups.values())) == len(list(start.parameters()))
    assert {id(p) for p in groups[rates[1]]} == {id(p) for p in start.decode_head.parameters()}
    trained, _, loss = SegmenterTrainer(found)._train(Run(Subset(), Arm.of(0), 0))
    assert math.isfinite(loss)
    assert not any(module.training for module in trained.modules())  # as it is tested
    assert any(not torch.equal(v, theirs[n]) for n, v in trained.state_dict().items())


@pytest.mark.slow
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


@pytest.mark.parametrize("named", [True, False])
def test_a_student_that_overflows_gives_no_numbers(world, tmp_path, named):
    folder = save_segmenter(tmp_path / "own") if named else None
    request = request_of(world, tmp_path, arms=arms(0.0), samples=(), segmenter=folder)
    trainer = SegmenterTrainer(downstream.check(request).config)
    network = segformer(8, NAMES, 0).eval()
    for weights in network.parameters():
        weights.data.mul_(1e30)
    photo = np.zeros((32, 64, 3), np.uint8)
    for call in (
        lambda: trainer._test(A_RUN, network, Normalisation()),
        lambda: trainer._probabilities(A_RUN, network, Normalisation(), photo),
    ):
        with pytest.raises(UserError, match="real only, seed 3: its predictions are NaN") as error:
            call()
        assert (f"--segmenter {folder}" in str(error.value)) == named
