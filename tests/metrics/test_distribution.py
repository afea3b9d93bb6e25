"""Metrics against scikit-learn, SciPy's matrix root, torchmetrics and loops."""

import numpy as np
import pytest
import scipy.linalg
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.image.fid import FrechetInceptionDistance

from ecgan.errors import UserError
from ecgan.metrics import distribution as metrics
from ecgan.metrics.distribution import ConfusionMatrix, FeatureStatistics

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


def features(n, d, seed, offset=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + offset


def gaussian(x):
    return FeatureStatistics.of(x).gaussian()


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


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 9))
def test_statistics_know_no_batches_and_merge(sizes, seed):
    x = features(sum(sizes) + 2, 5, seed, offset=100.0)
    whole = FeatureStatistics.of(x)
    parts, merged, first = FeatureStatistics(5), FeatureStatistics(5), 0
    for size in [*sizes, 2]:
        part = x[first : first + size].astype(np.float64)
        parts.update(part)
        merged.merge(FeatureStatistics.of(part))
        first += size
    for other in (parts, merged):
        assert other.count == whole.count == len(x)
        for ours, expected in zip(
            other.mean_and_covariance(), (x.mean(0), np.cov(x, rowvar=False)), strict=True
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_statistics_of_one_image_are_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        FeatureStatistics.of(np.ones((1, 3))).mean_and_covariance()


class Given(torch.nn.Module):
    """torchmetrics' network where the features are there already."""

    num_features = 8

    def forward(self, x):
        return x


def test_frechet_distance_is_the_fid_of_torchmetrics_and_of_torch_fidelity():
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


@given(st.integers(2, 5), st.integers(0, 1000))
def test_confusion_matrix_against_loops_and_sklearn(N, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N + 1, (2, 4, 5)).astype(np.uint8)
    labels[labels == N] = IGNORE
    labels[0, 0, 0] = 0
    predictions = rng.integers(0, N, labels.shape)
    matrix, first, second = ConfusionMatrix(N), ConfusionMatrix(N), ConfusionMatrix(N)
    matrix.update(labels, torch.from_numpy(predictions))
    first.update(labels[0], predictions[0])
    second.update(labels[1], predictions[1])
    first.merge(second)
    np.testing.assert_array_equal(first.counts, matrix.counts)
    assert matrix.counts.dtype == np.int64

    iou, accuracy, with_void = naive_scores(labels, predictions, N)
    np.testing.assert_allclose(matrix.iou(), iou)
    assert matrix.miou() == pytest.approx(np.nanmean(iou))
    assert first.accuracy() == matrix.accuracy() == pytest.approx(accuracy)
    assert first.accuracy_with_void() == matrix.accuracy_with_void() == pytest.approx(with_void)

    seen = labels != IGNORE
    np.testing.assert_array_equal(
        matrix.counts[:, :N],
        sklearn.metrics.confusion_matrix(labels[seen], predictions[seen], labels=range(N)),
    )
    jaccard = MulticlassJaccardIndex(N, ignore_index=IGNORE)
    expected = jaccard(torch.from_numpy(predictions), torch.from_numpy(labels.astype(np.int64)))
    assert matrix.miou() == pytest.approx(float(expected), abs=1e-6)


def test_confusion_matrix_at_the_edges():
    matrix = ConfusionMatrix(3)
    assert np.isnan(matrix.miou())
    assert np.isnan(matrix.accuracy())
    matrix.update(np.array([0, 0, 1]), np.array([0, 2, IGNORE]))
    # 0: 1 of 2; 1: read as no class; 2: read, but never there
    np.testing.assert_allclose(matrix.iou(), [0.5, 0.0, 0.0])
    assert matrix.accuracy() == pytest.approx(1 / 3)


def test_inception_weights_are_checked(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match=r"inception_weights.*no such file"):
        metrics.InceptionFeatures(tmp_path / "none.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05"):
        metrics.InceptionFeatures(bad)
    torch.save({"a": torch.zeros(1)}, bad)
    with pytest.raises(UserError, match=r"pt_inception-2015-12-05"):
        metrics.InceptionFeatures(bad)


@pytest.mark.slow
def test_inception_features_take_images_in_our_range(tmp_path):
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = extractor.FeatureExtractorInceptionV3.__new__(extractor.FeatureExtractorInceptionV3)
    original = extractor.load_state_dict_from_url

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        raise StopError

    extractor.load_state_dict_from_url = stop
    try:
        with pytest.raises(StopError):
            network.__init__("inception", ["2048"])
    finally:
        extractor.load_state_dict_from_url = original
    saved = network.state_dict()  # random weights of the right shapes
    path = tmp_path / "inception.pth"
    torch.save(saved, path)
    ours = metrics.InceptionFeatures(path)
    images = torch.rand(2, 3, 40, 60) * 2 - 1
    result = ours(images)
    assert result.shape == (2, metrics.InceptionFeatures.dim)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(result, ours.network(pixels)[0])
    assert not any(p.requires_grad for p in ours.parameters())


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


def test_statistics_are_exchanged_with_pytorch_fid(tmp_path):
    x = features(40, 5, 1)
    own = gaussian(x)
    metrics.write_npz(tmp_path / "deep" / "x.npz", own)
    back = metrics.read_npz(tmp_path / "deep" / "x.npz", 5)
    assert np.array_equal(back.mean, own.mean)
    assert np.array_equal(back.covariance, own.covariance)
    assert back.num_images is None
    with np.load(tmp_path / "deep" / "x.npz") as file:
        assert sorted(file) == ["mu", "sigma"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    theirs = metrics.read_npz(tmp_path / "theirs.npz", 5)
    np.savez(tmp_path / "single.npz", mu=np.zeros(5, np.float32), sigma=np.eye(5, dtype="f4"))
    assert metrics.read_npz(tmp_path / "single.npz", 5).covariance.dtype == np.float64
    assert metrics.frechet_distance(theirs, own) == pytest.approx(0, abs=1e-9)
    y = gaussian(features(30, 5, 2))
    assert metrics.frechet_distance(theirs, y) == pytest.approx(
        metrics.frechet_distance_of(x, features(30, 5, 2)), rel=1e-9
    )


def test_statistics_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    own = gaussian(features(9, 3, 1))
    with pytest.raises(UserError, match=r"x\.npz: cannot be written: "):
        metrics.write_npz(tmp_path / "file" / "x.npz", own)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"x\.npz: cannot be written: No space left"):
        metrics.write_npz(tmp_path / "x.npz", own)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def damaged(path):
    np.savez_compressed(path, mu=np.zeros(5), sigma=np.eye(5))
    content = bytearray(path.read_bytes())
    content[60:80] = b"\xff" * 20
    path.write_bytes(content)


def bare(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(5))


NOT_NPZ = r"^[^ ]+x\.npz: not an npz file of mean \(mu\) and covariance \(sigma\); give one that"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), r"covariance \(sigma\) \(Is a directory\); give one that"),
        (damaged, NOT_NPZ),
        (bare, NOT_NPZ),
        (
            lambda path: np.savez(path, mu=np.array(list("abcde")), sigma=np.eye(5)),
            NOT_NPZ,
        ),
        (
            lambda path: np.savez(path, mu=np.full(5, np.nan), sigma=np.eye(5)),
            "mu or sigma has NaN or infinity",
        ),
        (
            lambda path: np.savez(path, mu=np.zeros(5), sigma=np.full((5, 5), np.inf)),
            "mu or sigma has NaN or infinity",
        ),
        (lambda path: path.write_bytes(b"no npz"), NOT_NPZ),
        (lambda path: np.savez(path, mu=np.zeros(5)), "expected mu and sigma"),
        (
            lambda path: np.savez(path, mu=np.zeros(4), sigma=np.eye(4)),
            r"mu \(4,\) and sigma \(4, 4\); expected \(5,\)",
        ),
        (
            lambda path: np.savez(path, mu=np.array([None] * 5), sigma=np.eye(5)),
            NOT_NPZ,
        ),
    ],
)
def test_other_npz_files_are_refused(tmp_path, write, message):
    write(tmp_path / "x.npz")
    with pytest.raises(UserError, match=message):
        metrics.read_npz(tmp_path / "x.npz", 5)


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
    assert metrics.edge_agreement(edge, canny, tolerance) == naive_edges(edge, canny, tolerance)


def test_edges_match_within_a_share_of_the_diagonal():
    edge, canny = np.zeros((2, 96, 128), np.uint8)
    edge[50, 20], canny[51, 21] = 255, 255
    assert metrics.edge_agreement(edge, canny) == (1, 1, 1, 1)  # 0.0075 x 160 pixels: 1
    canny[51, 21], canny[52, 20] = 0, 255
    assert metrics.edge_agreement(edge, canny) == (0, 1, 0, 1)
    wide = np.zeros((2, 480, 640), np.uint8)
    wide[0, 50, 20], wide[1, 56, 20] = 255, 255
    assert metrics.edge_agreement(*wide) == (1, 1, 1, 1)  # 6 pixels
