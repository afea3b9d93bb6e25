"""Metrics against scikit-learn, SciPy's matrix root, torchmetrics and loops."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgan.metrics import distribution as metrics
from ecgan.metrics.distribution import gaussian

IGNORE = 255


def naive_frechet(x, y):
    """|mu - nu|^2 + tr(A + B - 2 (A B)^(1/2)), by SciPy's root of a matrix."""
    A, B = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(A @ B)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(A + B - 2 * root).real


def naive_kid(x, y):
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3, by loops."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def features(n, d, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
def test_frechet_distance_is_scipys(offset):
    x, y = features(60, 8, 0, offset), features(50, 8, 1, offset)
    ours = metrics.frechet_distance(gaussian(x), gaussian(y))
    # float64; an offset of 1e4 costs np.cov 8 of 16 digits of the squares
    assert ours == pytest.approx(naive_frechet(x, y), rel=1e-7)


def test_frechet_distance_of_fewer_images_than_features():
    x, y = features(20, 64, 0), features(15, 64, 1)
    ours = metrics.frechet_distance(gaussian(x), gaussian(y))
    ridge = 1e-9 * np.eye(64)
    A, B = np.cov(x, rowvar=False) + ridge, np.cov(y, rowvar=False) + ridge
    root = scipy.linalg.sqrtm(A @ B).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(A + B - 2 * root)
    assert ours == pytest.approx(expected, rel=1e-3)
    itself = gaussian(x)
    assert metrics.frechet_distance(itself, itself) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_is_symmetric_and_knows_a_shift():
    x = features(40, 6, 0)
    a, b = gaussian(x), gaussian(x + 2.0)
    assert metrics.frechet_distance(a, b) == pytest.approx(6 * 4.0)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_statistics_of_one_image_are_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        metrics.gaussian(np.ones((1, 3)))


class Given(torch.nn.Module):
    """torchmetrics' network where the features are there already."""

    num_features = 8

    def forward(self, x):
        return x


def test_frechet_distance_is_the_fid_of_torchmetrics_and_of_torch_fidelity():
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes a second to import

    x, y = features(60, 8, 0), features(50, 8, 1)
    a, b = gaussian(x), gaussian(y)
    ours = metrics.frechet_distance(a, b)
    theirs = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(x), real=True)
    theirs.update(torch.from_numpy(y), real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert (a.num_images, b.num_images) == (60, 50)
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    statistics = [{"mu": g.mean, "sigma": g.covariance} for g in (a, b)]
    found = fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert ours == pytest.approx(found["frechet_inception_distance"], rel=1e-6)


def test_a_singular_covariance_of_many_images_has_its_rank_only():
    x, y = features(60, 6, 0), features(50, 6, 1)
    twice = [np.concatenate([z, z[:, :3]], axis=1) for z in (x, y)]  # 9 features, of rank 6
    a, b = map(gaussian, twice)
    thin = np.linalg.qr(np.concatenate([np.eye(6), np.eye(6)[:, :3]], axis=1).T)
    same = [z @ thin.R.T for z in (x, y)]  # the same points, in their own space of 6
    expected = metrics.frechet_distance(*map(gaussian, same))
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    z = features(70, 9, 2)  # and against one that is not
    expected = naive_frechet(twice[0], z)
    assert metrics.frechet_distance(a, gaussian(z)) == pytest.approx(expected, rel=1e-6)
    constant = np.ones((20, 4))
    assert metrics.frechet_distance_of(constant, constant + 1) == 4  # no variance, 1 apart in each


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_images_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 4)), rng.normal(0.5, 1, size=(9, 4))
    for measure in (metrics.frechet_distance_of, metrics.precision_recall):
        expected = measure(x, y)
        shuffled = measure(rng.permutation(x), rng.permutation(y))
        assert shuffled == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_unbiased_mmd():
    x, y = features(8, 4, 0) / 4, features(8, 4, 1) / 4
    # Subsets of 4 of 8: their mean tends to the estimate on all, which is unbiased for both.
    result = metrics.kid(x, y, seed=3)
    assert result.subset_size == 4
    assert result.mean == pytest.approx(naive_kid(x, y), abs=4 * result.std / 10)
    assert result.std > 0
    assert metrics.kid(x, y, seed=3) == result
    assert metrics.kid(x, y, seed=4) != result


def test_kid_of_sets_without_variance_is_its_kernel():
    a, b = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.25, -0.5])
    x, y = np.tile(a, (5, 1)), np.tile(b, (6, 1))
    result = metrics.kid(x, y)
    # Every subset sees the same
    assert result.mean == pytest.approx(naive_kid(x, y), rel=1e-6)
    assert result.std == pytest.approx(0, abs=1e-6)
    assert result.subset_size == 2


def test_kid_of_too_few_images_is_refused():
    with pytest.raises(ValueError, match="KID needs at least 4 images of each set, got 3"):
        metrics.kid(features(9, 4, 0), features(3, 4, 0))


def test_kid_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    metrics.kid(features(6, 4, 0), features(6, 4, 1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("n", "m"), [(3, 4), (4, 30), (30, 3), (25, 40)])
def test_frechet_distance_of_features_is_that_of_their_statistics(n, m):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 8)), rng.normal(1, 2, size=(m, 8))
    expected = metrics.frechet_distance(gaussian(a), gaussian(b))
    assert metrics.frechet_distance_of(a, b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance_of(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="at least 2 images"):
        metrics.frechet_distance_of(a[:1], b)


# Precision and recall, diversity, edges, intervals, exchange


def naive_precision_recall(real, generated, k):
    """Share of points within a ball of the other set, by loops (Kynkaanniemi et al. 2019)."""

    def far(a, b):
        return float(np.sqrt(((a - b) ** 2).sum()))

    def share(points, centres):
        inside = 0
        for point in points:
            for i, centre in enumerate(centres):
                others = sorted(far(centre, c) for j, c in enumerate(centres) if j != i)
                if far(point, centre) <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    return share(generated, real), share(real, generated)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0, 3))
def test_precision_and_recall_are_those_of_loops_and_of_torch_fidelity(seed, k, offset):
    rng = np.random.default_rng(seed)
    real = rng.normal(size=(9, 3)).astype(np.float32)
    generated = (0.6 * rng.normal(size=(7, 3)) + offset).astype(np.float32)
    found = metrics.precision_recall(real, generated, k=k)
    assert found == pytest.approx(naive_precision_recall(real, generated, k))
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    theirs = prc.calculate_precision_recall_full(
        torch.from_numpy(generated).double(), torch.from_numpy(real).double(), k
    )
    assert found == pytest.approx(theirs)


@given(st.integers(0, 2**32 - 1))
def test_precision_and_recall_take_ties_and_copies_as_loops_do(seed):
    rng = np.random.default_rng(seed)
    real, generated = rng.integers(0, 4, (8, 2)), rng.integers(0, 4, (7, 2))  # many are alike
    found = metrics.precision_recall(real, generated, k=2)
    assert found == pytest.approx(naive_precision_recall(real, generated, 2))


def test_copies_are_found_whatever_products_round_to():
    photos = features(40, 50, 0, offset=30.0)
    copies = np.repeat(photos[:5], 6, axis=0)  # no ball has a radius
    found = metrics.precision_recall(photos, copies)
    assert found == (1.0, pytest.approx(5 / 40))
    # Other shapes, where products round otherwise
    assert [metrics.precision_recall(copies, photos[:n]).precision for n in (4, 5)] == [1.0, 1.0]
    near = copies + 1e-4 * features(30, 50, 1)  # what is next to a copy is none
    assert metrics.precision_recall(copies, near).precision == 0


def test_precision_and_recall_of_a_set_with_itself_and_far_away(monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 4)  # blocks change nothing
    x = features(30, 4, 0).astype(np.float32)
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    assert metrics.precision_recall(x, x + 1e3) == (0.0, 0.0)
    # Samples that are all alike lie within the photos, which do not lie within them
    assert metrics.precision_recall(x, np.repeat(x[:1], 9, axis=0)) == (1.0, pytest.approx(1 / 30))
    with pytest.raises(ValueError, match="more than 3 images, got 3"):
        metrics.precision_recall(x[:3], x)


def naive_lpips(a, b):
    """Squared differences of unit vectors, at every pixel of every stage."""
    stages = []
    for x, y in zip(a, b, strict=True):
        h, w = x.shape[1:]
        total = 0.0
        for i in range(h):
            for j in range(w):
                u, v = x[:, i, j], y[:, i, j]
                u, v = u / np.sqrt((u**2).sum()), v / np.sqrt((v**2).sum())
                total += ((u - v) ** 2).sum()
        stages.append(total / (h * w))
    return float(np.mean(stages))


def test_pairwise_distances_are_those_of_loops():
    rng = np.random.default_rng(3)
    maps = [rng.normal(size=(3, 4, 5, 6)), rng.normal(size=(3, 7, 2, 3))]
    stages = [torch.nn.functional.normalize(torch.from_numpy(m), dim=1) for m in maps]
    found = metrics.pairwise_distances(stages).tolist()
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [naive_lpips([m[i] for m in maps], [m[j] for m in maps]) for i, j in pairs]
    assert found == pytest.approx(expected, rel=1e-12)
