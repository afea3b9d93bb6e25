"""The rule of the label filter (FreeMask): by hand, at its thresholds, and against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgan.segmentation.label_filter import (
    ClassLosses,
    Thresholds,
    judge,
    pixel_losses,
)
from tests.helpers import naive_data

CPU = torch.device("cpu")
IGNORE = 255
seeds = st.integers(0, 2**32 - 1)


def losses_of(*means):
    return ClassLosses(np.array(means, np.float64), np.ones(len(means), np.int64), 1)


def test_losses_are_minus_the_logarithm():
    probabilities = torch.tensor([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]).view(1, 2, 1, 3)
    label = torch.tensor([[[1, 0, IGNORE]]])
    found = pixel_losses(probabilities, label, IGNORE)
    torch.testing.assert_close(found, torch.tensor([[[math.log(2), 0.0, 0.0]]]))
    wrong = pixel_losses(probabilities, 1 - label.clamp(max=1), IGNORE)
    torch.testing.assert_close(
        wrong, torch.tensor([[[math.log(2), -math.log(1e-6), -math.log(0.25)]]])
    )


def test_one_sample_by_hand():
    label = np.array([[0, 0, 1, 1], [1, 2, IGNORE, 0]], np.uint8)
    losses = np.array([[0.1, 0.3, 0.2, 0.9], [0.5, 9.0, 0.0, 0.25]])
    probabilities = np.array([[0.9, 0.7, 0.8, 0.4], [0.6, 0.1, 1.0, 0.75]])
    means = losses_of(0.2, 0.4, np.nan)  # limits 0.25, 0.5 and none
    found = judge(losses, probabilities, label, means, Thresholds(), IGNORE)
    assert found.label.tolist() == [[0, IGNORE, 1, IGNORE], [1, 2, IGNORE, 0]]
    assert found.label.dtype == np.uint8
    # Class 2 is not known, and what is not labelled is not judged.
    assert found.consistency == pytest.approx((0.9 + 0.7 + 0.8 + 0.4 + 0.6 + 0.75) / 6)
    assert (found.kept_pixels, found.labelled_pixels) == (5, 7)
    assert found.kept_fraction == 5 / 7
    assert found.is_consistent
    assert label[0, 1] == 0  # the layout itself stays


def test_thresholds_keep_what_is_equal_to_them():
    label = np.zeros((1, 4), np.uint8)
    losses = np.array([[0.25, np.nextafter(0.25, 1), 0.5, 0.1]])
    ones = np.ones((1, 4))
    found = judge(losses, ones, label, losses_of(0.2), Thresholds(1.25, min_kept=0.5), IGNORE)
    assert found.label.tolist() == [[0, IGNORE, IGNORE, 0]]
    assert found.is_consistent
    strict = Thresholds(1.25, min_kept=0.51)
    assert not judge(losses, ones, label, losses_of(0.2), strict, IGNORE).is_consistent
    wide = judge(losses, ones, label, losses_of(0.2), Thresholds(3), IGNORE)
    assert wide.kept_pixels == 4


def test_class_of_which_little_is_kept_goes_altogether():
    label = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2]], np.uint8)
    losses = np.array([[0, 9, 9, 9, 0, 0, 9, 9, 9, 9]], np.float32)
    ones, means = np.ones((1, 10)), losses_of(1, 1, np.nan, 1)
    kept = judge(losses, ones, label, means, Thresholds(min_class_kept=0.5), IGNORE)
    assert kept.label.tolist() == [[IGNORE] * 4 + [1, 1, IGNORE, IGNORE, 2, 2]]
    assert (kept.kept_pixels, kept.kept_fraction) == (4, 0.4)
    assert not kept.is_consistent  # the image level sees what the class level left
    without = judge(losses, ones, label, means, Thresholds(), IGNORE)
    assert without.kept_pixels == 5
    assert without.is_consistent


@pytest.mark.parametrize("label", [[[IGNORE, IGNORE]], [[1, 1]]], ids=["unlabelled", "unknown"])
def test_where_nothing_can_be_judged_nothing_speaks_against_it(label):
    label = np.array(label, np.uint8)
    found = judge(
        np.full((1, 2), 9.0), np.zeros((1, 2)), label, losses_of(0.1, np.nan), Thresholds(), IGNORE
    )
    assert np.array_equal(found.label, label)
    assert (found.consistency, found.kept_fraction, found.is_consistent) == (1, 1, True)


def test_many_classes_have_labels_of_16_bits():
    label = np.array([[299, 255, 65535, 299]], np.uint16)
    means = np.full(300, np.nan)
    means[[255, 299]] = 0.1, 1.0
    losses, probabilities = np.array([[0.5, 0.5, 0, 2.0]]), np.array([[0.6, 0.6, 1, 0.1]])
    found = judge(losses, probabilities, label, losses_of(*means), Thresholds(), 65535)
    assert found.label.tolist() == [[299, 65535, 65535, 65535]]
    assert found.label.dtype == np.uint16
    assert found.consistency == pytest.approx(1.3 / 3)
    table = torch.full((1, 300, 1, 4), 0.5)
    ids = torch.from_numpy(label.astype(np.int64))[None]
    assert pixel_losses(table, ids, 65535)[0, 0].tolist() == pytest.approx(
        [math.log(2), math.log(2), 0, math.log(2)]
    )


@given(seeds, st.floats(0.2, 3), st.floats(0, 1))
def test_judgement_is_the_loops(seed, tolerance, min_class_kept):
    rng = np.random.default_rng(seed)
    N, shape = int(rng.integers(1, 5)), (3, 5)
    label = rng.integers(0, N, shape).astype(np.uint8)
    label[rng.random(shape) < 0.2] = IGNORE
    probabilities = rng.uniform(1e-3, 1, shape).astype(np.float32)
    losses = -np.log(probabilities)
    means = rng.gamma(2, 0.5, N)
    means[rng.random(N) < 0.2] = np.nan
    thresholds = Thresholds(tolerance, 0.6, min_class_kept)
    found = judge(losses, probabilities, label, losses_of(*means), thresholds, IGNORE)
    flat = [array.ravel().tolist() for array in (losses, probabilities, label)]
    expected = naive_data.judge(*flat, means.tolist(), tolerance, min_class_kept, IGNORE)
    assert found.label.ravel().tolist() == expected[0]
    assert found.consistency == pytest.approx(expected[1], rel=1e-12)
    assert 0 <= found.consistency <= 1
    assert found.kept_fraction == expected[2]
    assert found.is_consistent == (expected[2] >= 0.6)


def test_probabilities_a_digit_above_one_do_not_show():
    above = np.nextafter(np.float32(1), np.float32(2))
    label = np.zeros((1, 1), np.uint8)
    found = judge(np.zeros((1, 1)), np.full((1, 1), above), label, losses_of(1), Thresholds(), 255)
    assert found.consistency == 1
