"""Agreement of predictions with layouts, against torchmetrics, scikit-learn and loops."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgan.metrics import segmentation

IGNORE = 255


def confusion_of(labels, predictions, num_classes, layouts=None):
    confusion = segmentation.PerImageConfusion(num_classes)
    for index, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        layout = layouts[index] if layouts else f"k{index}"
        right = float(((label == prediction) & (label < num_classes)).sum())
        confusion.add(f"k{index}", layout, label, prediction, label_probability=right)
    return confusion


def random_maps(rng, n, num_classes, *, ignored=True, size=(5, 6)):
    labels = rng.integers(0, num_classes, (n, *size)).astype(np.uint8)
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, num_classes))
    if ignored:
        labels[rng.random(labels.shape) < 0.2] = IGNORE
    return labels, predictions.astype(np.int64)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 5))
def test_agreement_is_torchmetrics_and_sklearns(seed, num_classes, n):
    from torchmetrics.classification import MulticlassJaccardIndex  # takes a second to import

    labels, predictions = random_maps(np.random.default_rng(seed), n, num_classes)
    labels[0, 0, 0] = 0  # something is labelled
    counted = confusion_of(labels, predictions, num_classes)
    result = segmentation.agreement(counted).overall

    scored = labels != IGNORE
    confusion = sklearn.metrics.confusion_matrix(
        labels[scored], predictions[scored], labels=range(num_classes)
    )
    assert np.array_equal(np.sum(counted.labelled, axis=0), confusion.sum(axis=1))
    assert np.array_equal(np.sum(counted.predicted, axis=0), confusion.sum(axis=0))
    hits = confusion.diagonal().sum()
    assert result["accuracy"].value == pytest.approx(hits / scored.sum(), rel=1e-12)
    assert result["accuracy_with_void"].value == pytest.approx(hits / labels.size, rel=1e-12)
    jaccard = MulticlassJaccardIndex(num_classes, ignore_index=IGNORE)
    expected = jaccard(torch.from_numpy(predictions), torch.from_numpy(labels).long())
    assert result["miou"].value == pytest.approx(float(expected), rel=1e-5)  # theirs is float32


@given(st.integers(0, 2**32 - 1))
def test_order_of_images_and_names_of_classes_change_nothing(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = random_maps(rng, 6, 4)
    one = segmentation.agreement(confusion_of(labels, predictions, 4)).overall
    order, names = rng.permutation(6), np.array([*rng.permutation(4), *[IGNORE] * 252])
    other = segmentation.agreement(
        confusion_of(names[labels][order].astype(np.uint8), names[predictions][order], 4)
    ).overall
    for name in segmentation.AGREEMENTS:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-12, nan_ok=True)


def test_perfect_and_hopeless_predictions():
    label = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    perfect = segmentation.agreement(confusion_of(label, label.astype(int), 4)).overall
    assert all(estimate.value == 1 for estimate in perfect.values())
    hopeless = segmentation.agreement(confusion_of(label, np.full((1, 2, 2), 9), 4)).overall
    assert all(estimate.value == 0 for estimate in hopeless.values())


def test_class_that_never_occurs_is_not_averaged():
    label = np.zeros((1, 2, 2), np.uint8)
    result = segmentation.agreement(confusion_of(label, label.astype(int), 3))
    assert result.overall["miou"].value == 1
    assert np.isnan(result.iou[2].value)


def test_prediction_of_no_class_counts_as_wrong():
    label = np.zeros((1, 2, 2), np.uint8)
    prediction = np.array([[[0, 0], [0, IGNORE]]])
    confusion = confusion_of(label, prediction, 2)
    assert segmentation.agreement(confusion).overall["accuracy"].value == 0.75
    assert [counts.tolist() for counts in (*confusion.labelled, *confusion.predicted)] == [
        [4, 0],
        [3, 0],
    ]


def test_image_without_labels_counts_only_as_void():
    labels = np.full((2, 2, 2), IGNORE, np.uint8)
    labels[0] = 0
    confusion = confusion_of(labels, np.zeros((2, 2, 2), int), 2)
    result = segmentation.agreement(confusion).overall
    assert result["accuracy"].value == 1
    assert result["accuracy_with_void"].value == 0.5
    assert np.isnan(confusion.accuracies()[1])


def accuracy_confusion(rng, n, pixels, layouts=None):
    """Images of which each pixel is read rightly with probability 0.7."""
    confusion = segmentation.PerImageConfusion(2)
    for index in range(n):
        prediction = (rng.random((1, pixels)) >= 0.7).astype(int)
        layout = layouts[index] if layouts else str(index)
        confusion.add(str(index), layout, np.zeros((1, pixels), np.uint8), prediction)
    return confusion


def test_interval_is_that_of_a_binomial_proportion():
    n, pixels = 400, 25
    confusion = accuracy_confusion(np.random.default_rng(1), n, pixels)
    value, low, high = segmentation.agreement(confusion).overall["accuracy"]
    width = 2 * 1.96 * np.sqrt(0.7 * 0.3 / (n * pixels))
    assert low < value < high
    # 200 resamples give the ends of the interval to about a tenth of its width.
    assert high - low == pytest.approx(width, rel=0.25)


def test_interval_keeps_the_styles_of_a_layout_together():
    rng = np.random.default_rng(2)
    apart = accuracy_confusion(rng, 60, 16)
    # The same images four times over tell nothing new: the interval must not shrink.
    repeated = segmentation.PerImageConfusion(2)
    for style in range(4):
        for index in range(60):
            repeated.keys.append(f"{index}-{style}")
            repeated.layouts.append(str(index))
            repeated.true_positives.append(apart.true_positives[index])
            repeated.labelled.append(apart.labelled[index])
            repeated.predicted.append(apart.predicted[index])
            repeated.pixels.append(apart.pixels[index])
            repeated.label_probability.append(apart.label_probability[index])
    one, four = (segmentation.agreement(t).overall["accuracy"] for t in (apart, repeated))
    assert four.value == pytest.approx(one.value)
    # Layouts are sorted by name in both; the draws are the same.
    assert (four.low, four.high) == pytest.approx((one.low, one.high))


def test_interval_is_repeatable_and_needs_two_layouts():
    labels, predictions = random_maps(np.random.default_rng(3), 5, 3)
    confusion = confusion_of(labels, predictions, 3)
    assert repr(segmentation.agreement(confusion)) == repr(segmentation.agreement(confusion))
    alone = segmentation.agreement(confusion_of(labels[:1], predictions[:1], 3)).overall["miou"]
    assert np.isnan(alone.low)
    assert np.isnan(alone.high)


def test_select_is_counting_those_alone():
    labels, predictions = random_maps(np.random.default_rng(4), 6, 3)
    confusion = confusion_of(labels, predictions, 3)
    part = confusion.select(frozenset({"k1", "k4"}))
    alone = confusion_of(labels[[1, 4]], predictions[[1, 4]], 3)
    assert segmentation.agreement(part).overall["miou"].value == pytest.approx(
        segmentation.agreement(alone).overall["miou"].value
    )
    assert part.keys == ["k1", "k4"]


def naive_scores(labels, predictions, N):
    """IoU of each class, accuracy without and with void pixels, pixel by pixel."""
    hits, union, right, labelled = [0] * N, [0] * N, 0, 0
    for t, p in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if t >= N:
            continue
        labelled += 1
        right += t == p
        for c in range(N):
            hits[c] += t == c and p == c
            union[c] += c in (t, p)
    iou = [h / u if u else float("nan") for h, u in zip(hits, union, strict=True)]
    return iou, right / labelled, right / labels.size


@given(st.integers(2, 5), st.integers(0, 1000))
def test_confusion_matrix_against_loops_and_sklearn(N, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N + 1, (2, 4, 5)).astype(np.uint8)
    labels[labels == N] = IGNORE
    labels[0, 0, 0] = 0
    predictions = rng.integers(0, N, labels.shape)
    whole = confusion_of(labels, predictions, N)
    first, second = (confusion_of(labels[k : k + 1], predictions[k : k + 1], N) for k in (0, 1))
    first.extend(second)
    np.testing.assert_array_equal(first.matrix, whole.matrix)
    assert whole.matrix.dtype == np.int64

    iou, accuracy, with_void = naive_scores(labels, predictions, N)
    for overall, found in map(segmentation.agreement, (first, whole)):
        np.testing.assert_allclose([one.value for one in found], iou)
        assert overall["miou"].value == pytest.approx(np.nanmean(iou))
        assert overall["accuracy"].value == pytest.approx(accuracy)
        assert overall["accuracy_with_void"].value == pytest.approx(with_void)

    seen = labels != IGNORE
    np.testing.assert_array_equal(
        whole.matrix[:, :N],
        sklearn.metrics.confusion_matrix(labels[seen], predictions[seen], labels=range(N)),
    )


def test_confusion_matrix_at_the_edges():
    nothing = confusion_of(np.full((1, 2, 2), IGNORE, np.uint8), np.zeros((1, 2, 2), int), 3)
    scores = segmentation.agreement(nothing).overall
    assert np.isnan(scores["miou"].value)
    assert np.isnan(scores["accuracy"].value)
    scores, iou = segmentation.agreement(
        confusion_of(np.array([[0, 0, 1]]), np.array([[0, 2, IGNORE]]), 3)
    )
    # 0: 1 of 2; 1: predicted as no class; 2: predicted, but never there
    np.testing.assert_allclose([one.value for one in iou], [0.5, 0.0, 0.0])
    assert scores["accuracy"].value == pytest.approx(1 / 3)


def naive_edges(edge, canny, tolerance):
    def near(pixels, i, j):
        rows = range(max(0, i - tolerance), min(len(pixels), i + tolerance + 1))
        columns = range(max(0, j - tolerance), min(len(pixels[0]), j + tolerance + 1))
        return any(pixels[a][b] for a in rows for b in columns)

    drawn, found = (edge >= 128).tolist(), (canny > 0).tolist()
    counts = [0, 0, 0, 0]
    for i in range(len(drawn)):
        for j in range(len(drawn[0])):
            counts[0] += drawn[i][j] and near(found, i, j)
            counts[1] += drawn[i][j]
            counts[2] += found[i][j] and near(drawn, i, j)
            counts[3] += found[i][j]
    return tuple(counts)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_edge_agreement_is_that_of_loops(seed, tolerance):
    rng = np.random.default_rng(seed)
    edge = rng.choice([0, 127, 128, 255], (7, 9), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    canny = rng.choice([0, 255], (7, 9), p=[0.8, 0.2]).astype(np.uint8)
    assert segmentation.edge_agreement(edge, canny, tolerance) == naive_edges(
        edge, canny, tolerance
    )


def test_edges_match_within_a_share_of_the_diagonal():
    edge, canny = np.zeros((2, 96, 128), np.uint8)
    edge[50, 20], canny[51, 21] = 255, 255
    assert segmentation.edge_agreement(edge, canny) == (1, 1, 1, 1)  # 0.0075 x 160 pixels: 1
    canny[51, 21], canny[52, 20] = 0, 255
    assert segmentation.edge_agreement(edge, canny) == (0, 1, 0, 1)
    wide = np.zeros((2, 480, 640), np.uint8)
    wide[0, 50, 20], wide[1, 56, 20] = 255, 255
    assert segmentation.edge_agreement(*wide) == (1, 1, 1, 1)  # 6 pixels


def test_every_mean_of_classes_is_over_the_same_ones():
    """24 images, each with a class of its own, which half of the images get right."""
    labels = np.zeros((24, 4, 4), np.int64)
    labels[:, 2:] = 1 + np.arange(24)[:, None, None]
    predictions = labels.copy()
    predictions[::2] = 0
    counted = confusion_of(labels, predictions, 25)
    miou = segmentation.agreement(counted).overall["miou"]
    assert miou.low <= miou.value <= miou.high
    some = np.isin(np.arange(25), [2, 4, 6, 8])  # of images 1, 3, 5 and 7, which are right
    for low_to_high in segmentation.agreement(counted, classes=some).overall["miou"]:
        assert low_to_high == 1.0


def test_a_class_that_is_only_predicted_in_a_draw_counts_as_in_all():
    labels = np.zeros((2, 2, 2), np.int64)
    labels[0] = 1
    predictions = np.ones_like(labels)  # class 1 is predicted in the second image, too
    miou = segmentation.agreement(confusion_of(labels, predictions, 2)).overall["miou"]
    assert miou.value == 0.25
    assert miou.low <= miou.value <= miou.high
