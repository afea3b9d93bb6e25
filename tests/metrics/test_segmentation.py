"""Agreement of readings with layouts, against torchmetrics and scikit-learn; intervals, reading."""

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.classification
from hypothesis import given
from hypothesis import strategies as st

from ecgan.metrics import segmentation

IGNORE = 255


def tally_of(labels, readings, num_classes, layouts=None):
    tally = segmentation.Tally(num_classes)
    for index, (label, reading) in enumerate(zip(labels, readings, strict=True)):
        layout = layouts[index] if layouts else f"k{index}"
        right = float(((label == reading) & (label < num_classes)).sum())
        tally.add(f"k{index}", layout, label, reading, trusted=right)
    return tally


def random_maps(rng, n, num_classes, *, ignored=True, size=(5, 6)):
    labels = rng.integers(0, num_classes, (n, *size)).astype(np.uint8)
    readings = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, num_classes))
    if ignored:
        labels[rng.random(labels.shape) < 0.2] = IGNORE
    return labels, readings.astype(np.int64)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5))
def test_agreement_is_torchmetrics_and_sklearns(seed, num_classes, n):
    labels, readings = random_maps(np.random.default_rng(seed), n, num_classes)
    labels[0, 0, 0] = 0  # something is labelled
    tally = tally_of(labels, readings, num_classes)
    result = segmentation.agreement(tally).overall

    scored = labels != IGNORE
    confusion = sklearn.metrics.confusion_matrix(
        labels[scored], readings[scored], labels=range(num_classes)
    )
    assert np.array_equal(np.sum(tally.labelled, axis=0), confusion.sum(axis=1))
    assert np.array_equal(np.sum(tally.read, axis=0), confusion.sum(axis=0))
    hits = confusion.diagonal().sum()
    assert result["accuracy"].value == pytest.approx(hits / scored.sum(), rel=1e-12)
    assert result["accuracy_with_void"].value == pytest.approx(hits / labels.size, rel=1e-12)
    jaccard = torchmetrics.classification.MulticlassJaccardIndex(num_classes, ignore_index=IGNORE)
    expected = jaccard(torch.from_numpy(readings), torch.from_numpy(labels).long())
    assert result["miou"].value == pytest.approx(float(expected), rel=1e-5)  # theirs is float32


@given(st.integers(0, 2**32 - 1))
def test_order_of_images_and_names_of_classes_change_nothing(seed):
    rng = np.random.default_rng(seed)
    labels, readings = random_maps(rng, 6, 4)
    one = segmentation.agreement(tally_of(labels, readings, 4)).overall
    order, names = rng.permutation(6), np.array([*rng.permutation(4), *[IGNORE] * 252])
    other = segmentation.agreement(
        tally_of(names[labels][order].astype(np.uint8), names[readings][order], 4)
    ).overall
    for name in segmentation.AGREEMENTS:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-12, nan_ok=True)


def test_perfect_and_hopeless_readings():
    label = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    perfect = segmentation.agreement(tally_of(label, label.astype(int), 4)).overall
    assert all(estimate.value == 1 for estimate in perfect.values())
    hopeless = segmentation.agreement(tally_of(label, np.full((1, 2, 2), 9), 4)).overall
    assert all(estimate.value == 0 for estimate in hopeless.values())


def test_class_that_never_occurs_is_not_averaged():
    label = np.zeros((1, 2, 2), np.uint8)
    result = segmentation.agreement(tally_of(label, label.astype(int), 3))
    assert result.overall["miou"].value == 1
    assert np.isnan(result.iou[2].value)


def test_reading_of_no_class_counts_as_wrong():
    label = np.zeros((1, 2, 2), np.uint8)
    reading = np.array([[[0, 0], [0, IGNORE]]])
    tally = tally_of(label, reading, 2)
    assert segmentation.agreement(tally).overall["accuracy"].value == 0.75
    assert [counts.tolist() for counts in (*tally.labelled, *tally.read)] == [[4, 0], [3, 0]]


def test_image_without_labels_counts_only_as_void():
    labels = np.full((2, 2, 2), IGNORE, np.uint8)
    labels[0] = 0
    tally = tally_of(labels, np.zeros((2, 2, 2), int), 2)
    result = segmentation.agreement(tally).overall
    assert result["accuracy"].value == 1
    assert result["accuracy_with_void"].value == 0.5
    assert np.isnan(tally.accuracies()[1])


def accuracy_tally(rng, n, pixels, layouts=None):
    """Images of which each pixel is read rightly with probability 0.7."""
    tally = segmentation.Tally(2)
    for index in range(n):
        reading = (rng.random((1, pixels)) >= 0.7).astype(int)
        layout = layouts[index] if layouts else str(index)
        tally.add(str(index), layout, np.zeros((1, pixels), np.uint8), reading)
    return tally


def test_interval_is_that_of_a_binomial_proportion():
    n, pixels = 400, 25
    tally = accuracy_tally(np.random.default_rng(1), n, pixels)
    value, low, high = segmentation.agreement(tally).overall["accuracy"]
    width = 2 * 1.96 * np.sqrt(0.7 * 0.3 / (n * pixels))
    assert low < value < high
    # 200 resamples give the ends of the interval to about a tenth of its width.
    assert high - low == pytest.approx(width, rel=0.25)


def test_interval_keeps_the_styles_of_a_layout_together():
    rng = np.random.default_rng(2)
    apart = accuracy_tally(rng, 60, 16)
    # The same images four times over tell nothing new: the interval must not shrink.
    repeated = segmentation.Tally(2)
    for style in range(4):
        for index in range(60):
            repeated.keys.append(f"{index}-{style}")
            repeated.layouts.append(str(index))
            repeated.hits.append(apart.hits[index])
            repeated.labelled.append(apart.labelled[index])
            repeated.read.append(apart.read[index])
            repeated.pixels.append(apart.pixels[index])
            repeated.trusted.append(apart.trusted[index])
    one, four = (segmentation.agreement(t).overall["accuracy"] for t in (apart, repeated))
    assert four.value == pytest.approx(one.value)
    # Layouts are sorted by name in both; the draws are the same.
    assert (four.low, four.high) == pytest.approx((one.low, one.high))


def test_interval_is_repeatable_and_needs_two_layouts():
    labels, readings = random_maps(np.random.default_rng(3), 5, 3)
    tally = tally_of(labels, readings, 3)
    assert repr(segmentation.agreement(tally)) == repr(segmentation.agreement(tally))
    alone = segmentation.agreement(tally_of(labels[:1], readings[:1], 3)).overall["miou"]
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)


def test_select_is_counting_those_alone():
    labels, readings = random_maps(np.random.default_rng(4), 6, 3)
    tally = tally_of(labels, readings, 3)
    part = tally.select(frozenset({"k1", "k4"}))
    alone = tally_of(labels[[1, 4]], readings[[1, 4]], 3)
    assert segmentation.agreement(part).overall["miou"].value == pytest.approx(
        segmentation.agreement(alone).overall["miou"].value
    )
    assert part.keys == ["k1", "k4"]
