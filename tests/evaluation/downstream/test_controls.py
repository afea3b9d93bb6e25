"""What samples are compared with: pasted photos, matched colours, labels of a student."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ecgan.data.datasets import Subset, sequences
from ecgan.errors import UserError
from ecgan.evaluation.downstream import comparison
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.downstream import student as students
from ecgan.evaluation.downstream.arms import WORDS, Arm, Run, Source
from ecgan.evaluation.downstream.comparison import (
    Compared,
    CurvePoint,
    Scored,
    block_counts,
    blocks,
    photos_worth,
)
from ecgan.evaluation.downstream.controls import (
    CopyPaste,
    Real,
    SelfTrained,
    Unlabelled,
    match_histogram,
)
from ecgan.evaluation.downstream.student import (
    SegmenterTrainer,
    draws,
    without_borders,
)
from ecgan.metrics.segmentation import PerImageConfusion, agreement
from ecgan.metrics.statistics import Difference
from ecgan.segmentation.training import VOID
from tests.helpers.downstream import arms, parts, ran, refusal, request_of, training
from tests.helpers.tiny import NAMES


def test_arms_by_their_words():
    assert Arm.of(0).source is Source.NOTHING
    assert Arm.of("2").share == pytest.approx(2 / 3)
    assert {word: Arm.of(word).share for word in WORDS} == {
        "pretrain": 1,
        "synthetic": 1,
        "copy-paste": 0.5,
        "histogram": 0.5,
        "self-training": 0.5,
    }
    for word in ("-1", "nan", "inf", "real"):
        with pytest.raises(ValueError, match=r"."):
            Arm.of(word)


def test_what_is_added_ends():
    found = draws(0, 0.5, 9, 9, 300, 200)
    assert found.added[:200].any()
    assert not found.added[200:].any()
    assert (found.added[:200] == draws(0, 0.5, 9, 9, 300).added[:200]).all()


@pytest.mark.slow
def test_copy_paste_pastes_photo_and_label_alike(world, tmp_path):
    """In the tiny photos a pixel's colour tells its class."""
    request = request_of(world, tmp_path, arms=arms("copy-paste"), samples=())
    found = downstream.check(request).config
    assert found.things == frozenset({NAMES.index("car")})
    real = Real(found.real, found.parts[Subset()])
    control = CopyPaste(real, found.things)
    changed = 0
    for index in range(len(control)):
        for seed in range(6):
            plain = real.pair(index, np.random.default_rng(seed))
            pasted = control.pair(index, np.random.default_rng(seed))
            again = control.pair(index, np.random.default_rng(seed))
            assert (pasted.image == again.image).all()
            moved = pasted.label != plain.label
            assert set(pasted.label[moved].tolist()) <= {NAMES.index("car")}
            inner = moved & ~_edges(moved)
            if inner.any():
                colours = np.rint(pasted.image[..., 0] / 50)
                assert (colours[inner] == NAMES.index("car")).mean() > 0.9
                changed += 1
            away = ~_near(moved)
            assert (pasted.image[away] == plain.image[away]).all()
    assert changed > 3


def _near(mask):
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _edges(mask):
    import cv2

    return cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0


def test_matched_histograms():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 120, (40, 50, 3)).astype(np.uint8)
    like = rng.integers(100, 256, (30, 30, 3)).astype(np.uint8)
    matched = match_histogram(image, like)
    for c in range(3):
        quantiles = np.linspace(0.05, 0.95, 10)
        ours, theirs = (np.quantile(one[..., c], quantiles) for one in (matched, like))
        assert np.abs(ours - theirs).max() < 4
        order = np.argsort(image[..., c].ravel(), kind="stable")
        assert (np.diff(matched[..., c].ravel()[order].astype(int)) >= 0).all()


def test_self_training_keeps_the_surest_of_every_class(world):
    """Rare classes keep their share: one threshold for all would drop them."""
    from ecgan import labels

    space = labels.load_label_space(world / "real" / "classes.json")
    photos = np.zeros((2, 10, 10, 3), np.uint8)
    probability = np.full((2, 5, 10, 10), 0.1, np.float32)
    rng = np.random.default_rng(0)
    probability[:, 0] = 0.9 + 0.1 * rng.random((2, 10, 10))
    probability[:, 1, 0, :] = 1.2 + 0.1 * rng.random((2, 10))
    probability[:, 0, 0, :] = 0.1
    probability[:, 1] *= 0.4
    probability[:, 1, 0, :] = 0.4 + 0.1 * rng.random((2, 10))
    read = iter(probability)
    found = SelfTrained.of(Unlabelled(photos), space, lambda _: next(read))
    for c, pixels in ((0, 180), (1, 20)):
        assert (found.labels == c).sum() == pytest.approx(0.7 * pixels, abs=2)  # equal levels
    kept = probability.max(1)[found.labels == 1]
    dropped = probability.max(1)[:, 0][found.labels[:, 0] == space.ignore_index]
    assert kept.min() >= dropped.max()


@pytest.mark.slow
def test_the_student_of_real_pairs_is_the_teacher(world, tmp_path, monkeypatch):
    """It is not trained again, and one that is trained for it finds the same."""
    trained = []
    fit = students.fit
    monkeypatch.setattr(students, "fit", lambda *a, **o: trained.append(a) or fit(*a, **o))
    photos = world / "real" / "images" / "train"
    request = request_of(
        world, tmp_path, samples=(), arms=arms(0, "self-training"), seeds=2, unlabelled=photos
    )
    config = downstream.check(request).config
    trainer = SegmenterTrainer(config)
    found = {run: trainer(run) for run in request.runs}
    assert len(trained) == 4
    assert not trainer._teachers
    last = request.runs[-1]
    alone = SegmenterTrainer(config)(last)
    assert len(trained) == 6
    assert alone | {"seconds": 0} == found[last] | {"seconds": 0}


def test_borders_are_void():
    label = np.zeros((6, 8), np.int64)
    label[:, 4:] = 3
    assert (without_borders(label, 0) == label).all()
    found = without_borders(label, 1)
    assert (found[:, 3:5] == VOID).all()
    assert (np.delete(found, (3, 4), 1) == np.delete(label, (3, 4), 1)).all()


def test_blocks_are_neighbours():
    keys = [f"a_{i:03}" for i in range(45)] + [f"b_{i}" for i in range(3)]
    found = blocks(keys)
    assert list(sequences(keys)) == ["a_", "b_"]
    assert [found[k] for k in ("a_000", "a_019", "a_020", "a_044", "b_2")] == [
        "a_#0",
        "a_#0",
        "a_#1",
        "a_#2",
        "b_#0",
    ]


def scored(draw, seed, miou, hits):
    """A result: two classes, blocks of 100 pixels each, of which so many are right."""
    rows = [[[h / 2, h / 2], [50, 50], [50, 50]] for h in hits]
    run = Run(Subset(pairs=4, draw=draw), Arm.of(1), seed)
    return Scored(run, miou, np.asarray(rows, float))


def test_a_difference_is_taken_within_draws():
    """Draws differ by far more than arms: paired, the gain shows all the same."""
    base = [scored(d, 0, 0.3 + 0.1 * d, [50] * 4) for d in range(4)]
    gains = (0.02, 0.03, 0.02, 0.03)
    other = [scored(d, 0, 0.3 + 0.1 * d + g, [53] * 4) for d, g in enumerate(gains)]
    found = comparison.compare(base, other)
    assert found.value == pytest.approx(np.mean(gains))
    assert found.is_significant
    error = np.std(gains, ddof=1) / 2
    assert found.high - found.value == pytest.approx(3.182 * error, rel=1e-3)


def test_test_photos_widen_the_interval():
    base = [scored(0, s, 0.5 + 0.001 * s, [50, 50, 50, 50]) for s in range(3)]
    even = [scored(0, s, 0.53 + 0.001 * s, [53, 53, 53, 53]) for s in range(3)]
    one_block = [scored(0, s, 0.53 + 0.001 * s, [62, 50, 50, 50]) for s in range(3)]
    narrow, wide = comparison.compare(base, even), comparison.compare(base, one_block)
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.is_significant
    assert not wide.is_significant
    assert comparison.compare(base[:1], even[:1]).low is None


def test_block_counts_add_up_to_the_whole():
    confusion = PerImageConfusion(3)
    rng = np.random.default_rng(0)
    for i in range(6):
        confusion.add(f"k{i}", f"b{i // 2}", rng.integers(0, 4, (8, 8)), rng.integers(0, 3, (8, 8)))
    rows = np.asarray(block_counts(confusion), float)
    assert rows.shape == (3, 3, 3)
    whole = comparison._mious(rows, np.ones((1, 3), int))[0]
    assert whole == pytest.approx(agreement(confusion).overall["miou"].value)


def test_sequences_of_test_photos_are_scored_one_by_one():
    """Each as if the others' photos were not there."""
    keys = [f"day_{i:02}" for i in range(25)] + [f"dusk_{i:02}" for i in range(3)]
    rng, block_of = np.random.default_rng(0), blocks(keys)
    whole, own = (
        PerImageConfusion(3),
        {"day_*": PerImageConfusion(3), "dusk_*": PerImageConfusion(3)},
    )
    for key in keys:
        maps = rng.integers(0, 3, (8, 8)), rng.integers(0, 3, (8, 8))
        for one in (whole, own[f"{key[:-2]}*"]):
            one.add(key, block_of[key], *maps)
    results = [{"blocks": block_counts(whole)}]
    found = downstream._by_sequence(keys, results)
    assert {name: one.mean for name, one in found.items()} == pytest.approx(
        {name: agreement(one).overall["miou"].value for name, one in own.items()}
    )
    counts = np.asarray(results[0]["blocks"], float)
    assert comparison.mean_iou(counts) == pytest.approx(agreement(whole).overall["miou"].value)
    alone = PerImageConfusion(3)
    alone.add("day_00", "day_#0", *maps)
    assert downstream._by_sequence(["day_00"], [{"blocks": block_counts(alone)}]) == {}


def test_worth_in_photos():
    curve = [CurvePoint(20, 0.30), CurvePoint(40, 0.36), CurvePoint(80, 0.36), CurvePoint(160, 0.4)]
    assert photos_worth(curve, 0.30) == pytest.approx(20)
    assert photos_worth(curve, 0.33) == pytest.approx(np.sqrt(20 * 40))
    assert photos_worth(curve, 0.36) == pytest.approx(40)
    assert photos_worth(curve, 0.41) is None
    assert photos_worth(curve, 0.29) is None
    assert photos_worth(curve[:1], 0.30) is None


GAIN = Difference(0.03, 0.01, 0.05, 0.01)
NONE = Difference(-0.01, -0.03, 0.01, 0.01)
CURVE = [CurvePoint(20, 0.30), CurvePoint(80, 0.40)]


@pytest.mark.parametrize(
    ("arm", "control", "against", "text"),
    [
        (
            1,
            "copy-paste",
            GAIN,
            "+3.0 points of mIoU against the control copy-paste (95 % interval",
        ),
        (1, 0, GAIN, "worth 12 more labelled photos"),
        (1, "copy-paste", NONE, "adds nothing here: the control copy-paste already does it"),
        (1, 0, NONE, "no difference that these runs could show: -1.0 points"),
        (1, 0, Difference(-0.05, -0.06, -0.04, 0.0), "harms here: -5.0 points"),
        (1, 0, Difference(0.03, None, None, None), "of single runs"),
        ("synthetic", 0, GAIN, "keeps 111 % of the photos' score (0.335 of 0.303) without a photo"),
    ],
)
def test_conclusions(arm, control, against, text):
    compared = Compared(Arm.of(arm), 20, 0.335, 0.303, Arm.of(control), against)
    assert text in comparison.conclusion(compared, CURVE)


@pytest.mark.slow
def test_draws_and_a_curve(world, tmp_path):
    """Rows join draws; the curve gives what a score is worth; copy-paste needs no samples."""
    sized = tuple(Subset(pairs=3, draw=d, draw_by="block") for d in range(2))
    request = request_of(
        world,
        tmp_path,
        samples=(),
        parts=sized,
        curve=(Subset(pairs=6), Subset()),
        arms=arms(0, "copy-paste"),
        seeds=1,
    )
    rows = ran(request)["rows"]
    assert [row["name"] for row in rows] == [
        "real only (3 pairs in one block)",
        "real (3 pairs in one block) + copy-paste",
        "real only (6 pairs)",
        "real only",
    ]
    assert [len(row["runs"]) for row in rows] == [2, 2, 1, 1]
    assert [run["draw"] for run in rows[0]["runs"]] == [0, 1]
    assert [row["real_images"] for row in rows] == [3, 3, 6, 10]
    gained = rows[1]["against_real"]["difference"]
    assert gained == pytest.approx(rows[1]["miou"]["mean"] - rows[0]["miou"]["mean"])


@pytest.mark.slow
def test_controls_of_photos_without_labels(world, tmp_path):
    others = arms(0, "histogram", "self-training")
    request = request_of(world, tmp_path, samples=(), arms=others, seeds=1)
    assert "--mix histogram: needs photos without labels; give --unlabelled" in refusal(request)
    real = world / "real" / "images"
    text = refusal(replace(request, unlabelled=real))
    assert "3 photos (first: view-00.png) of the split val, on which segmenters are tested" in text
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.png").write_bytes((real / "val/view-00.png").read_bytes()[:99])
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "odd" / "b.tif")
    os.mkfifo(tmp_path / "odd" / "c.png")
    (tmp_path / "odd" / "d.png").symlink_to("nowhere")
    text = refusal(replace(request, unlabelled=tmp_path / "odd"))
    for fault in ("a.png: truncated", "b.tif: values from nan", "c.png: a pipe", "d.png: no such"):
        assert f"--unlabelled {tmp_path}/odd/{fault}" in text
    rows = ran(replace(request, unlabelled=real / "train", parts=parts(0.3)))["rows"]
    assert [row["source"] for row in rows] == ["real", "histogram", "self-training"]
    assert all(row["against_real"] for row in rows[1:])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["probe", "unet", "scratch"])
def test_every_student_learns(world, tmp_path, architecture):
    request = request_of(
        world,
        tmp_path,
        arms=arms(0),
        samples=(),
        seeds=1,
        training=training(architecture=architecture, images=240, batch=8),
    )
    trainer = SegmenterTrainer(downstream.check(request).config)
    found = trainer(request.runs[0])
    assert found["miou"] > {"probe": 0.5, "unet": 0.4, "scratch": 0.3}[architecture]


def test_too_many_pairs_are_refused(world, tmp_path):
    request = request_of(world, tmp_path, parts=(Subset(pairs=11),), arms=arms(0), samples=())
    with pytest.raises(UserError, match=r"data\.pairs: 11: the training split has 10 pairs"):
        downstream.check(request)
