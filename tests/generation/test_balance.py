"""Counts of layouts: by hardness, by target shares; against loops and what is in reach."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ecgan.errors import UserError
from ecgan.generation import balance
from tests.helpers import naive_data

seeds = st.integers(0, 2**32 - 1)
NAMES = ("road", "sky", "pedestrian", "traffic light")


def layouts(seed, L=12, N=4, *, even=False, size=400):
    """Pixels of each class, (L, N); even: all layouts are labelled throughout, else in part."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.full(N, 0.4), L)
    labelled = np.full(L, size) if even else rng.integers(size // 8, size, L)
    return np.stack([rng.multinomial(n, p) for n, p in zip(labelled, chances, strict=True)])


# Hardness


@given(seeds, st.integers(1, 8), st.integers(1, 5))
def test_hardness_is_the_loops(seed, L, N):
    rng = np.random.default_rng(seed)
    pixels, losses = layouts(seed, L, N), rng.gamma(1, 1, N)
    losses[rng.random(N) < 0.3] = np.nan
    expected = naive_data.hardness(pixels.tolist(), losses.tolist())
    assert balance.hardness(pixels, losses) == pytest.approx(expected, rel=1e-12)


def test_hardness_by_hand():
    pixels = np.array([[3, 1, 0], [0, 0, 7], [0, 0, 0], [0, 2, 5]])
    losses = np.array([0.1, 0.9, np.nan])
    assert balance.hardness(pixels, losses) == pytest.approx([0.3, 0, 0, 0.9])


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 2.0, 9.0]), min_size=1, max_size=40),
    st.integers(1, 900),
    st.integers(1, 25),
)
def test_hardness_counts_are_the_loops(hardness, total, max_styles):
    counts = balance.hardness_counts(np.array(hardness), total, max_styles)
    assert counts.tolist() == naive_data.hardness_counts(hardness, total, max_styles)
    assert counts.dtype == np.int64


def test_a_total_of_all_weights_gives_freemasks_counts():
    hardness = np.array([0.4, 0.1, 0.3, 0.2])
    # Of four, ranks 0, 1, 2, 3 from the easiest: 1 + 0, 1 + 5, 1 + 10, 1 + 15.
    assert balance.hardness_counts(hardness, 34, 20).tolist() == [16, 1, 11, 6]
    # Round(20 * 39 / 40) is 20 (half to even of 19.5), and 21 is cut to 20.
    many = balance.hardness_counts(np.arange(40.0), 0, 20)
    assert many.sum() == 0
    rank = np.arange(40)
    weights = np.minimum(1 + np.round(rank / 2), 20).astype(int)
    assert (weights.min(), weights.max()) == (1, 20)
    assert np.array_equal(balance.hardness_counts(np.arange(40.0), int(weights.sum()), 20), weights)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.integers(0, 2000), st.integers(1, 20))
def test_harder_layouts_never_get_fewer(hardness, total, max_styles):
    values = np.array(hardness)
    counts = balance.hardness_counts(values, total, max_styles)
    assert counts.sum() == total
    assert counts.min() >= int(total >= len(values))
    assert (np.diff(counts[np.argsort(values, kind="stable")]) >= 0).all()


def test_another_total_is_in_proportion():
    hardness = np.arange(20.0)
    weights = balance.hardness_counts(hardness, 20 + sum(range(20)), 20)
    assert weights.tolist() == list(range(1, 21))
    assert np.array_equal(balance.hardness_counts(hardness, 3 * weights.sum(), 20), 3 * weights)
    few = balance.hardness_counts(hardness, 5, 20)
    assert few.tolist() == [0] * 15 + [1] * 5


# Targets


@st.composite
def reachable(draw, even):
    """Layouts, a total, a bound, and the shares that some counts within the bound have."""
    seed = draw(seeds)
    L = draw(st.integers(3, 12))
    pixels = layouts(seed, L, even=even)
    rng = np.random.default_rng(seed + 1)
    max_styles = draw(st.integers(2, 12))
    wish = rng.uniform(0.25, max_styles - 0.25, L)
    total = max(1, int(wish.sum()))
    return pixels, total, max_styles, balance.shares(pixels, wish * total / wish.sum())


@pytest.mark.parametrize("even", [True, False])
@settings(max_examples=10)
@given(st.data())
def test_one_target_is_the_loops(even, data):
    pixels, total, max_styles, reached = data.draw(reachable(even))
    target = float(np.clip(reached[0], 0.001, 0.999))
    expected = naive_data.tilted_quotas(pixels.tolist(), 0, target, total, max_styles)
    near = naive_data.shares(pixels.tolist(), expected)[0]
    assume(near == pytest.approx(target, abs=1e-9))  # the loops' tilt has a bound
    found, _ = balance._quotas(pixels, {0: target}, total, max_styles)
    assert found.sum() == pytest.approx(total, rel=1e-9)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@given(seeds, st.integers(3, 30))
def test_two_targets_are_met_by_the_most_even_weights(seed, L):
    """The optimum's conditions: shares are met, log-weights are linear in the layouts' shares."""
    pixels = layouts(seed, L, even=True)
    wish = np.random.default_rng(seed + 1).uniform(1, 3, L)
    targets = dict(enumerate(np.clip(balance.shares(pixels, wish)[:2], 1e-4, 0.99)))
    found, _ = balance._quotas(pixels, targets, 10 * L, 10_000)
    assert balance.shares(pixels, found)[:2] == pytest.approx([*targets.values()], abs=1e-6)
    share = pixels[:, :2] / pixels.sum(axis=1, keepdims=True)
    linear = np.column_stack([share, np.ones(L)])
    logs = np.log(found)
    fitted = linear @ np.linalg.lstsq(linear, logs, rcond=None)[0]
    assert logs == pytest.approx(fitted, abs=1e-6)


@given(seeds, st.floats(1.1, 8))
def test_the_duals_slope_is_that_of_its_value(seed, cap):
    rng = np.random.default_rng(seed)
    x, mass = rng.normal(size=(9, 2)), rng.dirichlet(np.full(9, 5))
    tilt, centre, step = rng.normal(size=(3, 2))
    _, gradient = balance._dual(tilt, x, mass, cap, centre)
    up, _ = balance._dual(tilt + 1e-6 * step, x, mass, cap, centre)
    down, _ = balance._dual(tilt - 1e-6 * step, x, mass, cap, centre)
    assert (up - down) / 2e-6 == pytest.approx(gradient @ step, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@given(reachable(even=True))
def test_a_target_is_met_to_half_a_sample(case):
    pixels, total, max_styles, reached = case
    target = float(np.clip(reached[0], 1e-4, 0.9999))
    counts = balance.target_counts(pixels, {0: target}, total, max_styles)
    assert counts.sum() == total
    assert 0 <= counts.min() <= counts.max() <= max_styles
    share = pixels[:, 0] / pixels.sum(axis=1)
    bound = np.ptp(share) / (2 * total) + 1e-5
    assert balance.shares(pixels, counts)[0] == pytest.approx(target, abs=bound)


@pytest.mark.slow
@given(seeds, st.integers(2, 10), st.floats(0.0001, 0.9999), st.integers(1, 4))
def test_out_of_reach_the_nearest_is_taken(seed, L, target, max_styles):
    """With equally many labelled pixels, the ends are the layouts with the most and the fewest."""
    pixels = layouts(seed, L, even=True)
    total = max(1, L * max_styles // 2)
    ordered = np.argsort(pixels[:, 0], kind="stable")
    ends = []
    for order in (ordered, ordered[::-1]):
        counts = np.zeros(L, np.int64)
        counts[order] = np.clip(total - max_styles * np.arange(L), 0, max_styles)
        ends.append(balance.shares(pixels, counts)[0])
    found = balance.target_counts(pixels, {0: target}, total, max_styles)
    nearest = float(np.clip(target, *ends))
    share = pixels[:, 0] / 400
    assert found.sum() == total
    assert found.max() <= max_styles
    assert balance.shares(pixels, found)[0] == pytest.approx(
        nearest, abs=np.ptp(share) / (2 * total) + 1e-4
    )


@pytest.mark.slow
@given(seeds, st.integers(1, 12), st.integers(1, 60), st.integers(1, 8))
def test_counts_sum_up_and_keep_the_bound(seed, L, total, max_styles):
    pixels = layouts(seed, L)
    total = min(total, L * max_styles)
    rng = np.random.default_rng(seed)
    targets = {c: float(t) for c, t in enumerate(rng.dirichlet(np.ones(4))[:3] * 0.99 + 1e-6)}
    counts = balance.target_counts(pixels, targets, total, max_styles)
    assert counts.dtype == np.int64
    assert counts.sum() == total
    assert 0 <= counts.min() <= counts.max() <= max_styles


@pytest.mark.slow
@given(seeds, st.floats(0.001, 0.9))
def test_shares_move_towards_the_target(seed, target):
    pixels = layouts(seed, 10, even=True)
    even = balance.shares(pixels, np.ones(10))[0]
    counts = balance.target_counts(pixels, {0: target}, 2000, 1000)
    assert abs(balance.shares(pixels, counts)[0] - target) <= abs(even - target) + 1e-3


def test_rare_class_comes_more_often_and_nothing_else_changes():
    """Ten layouts, two of them with a class of which there are 5 %; they are otherwise alike."""
    pixels = np.tile([95, 5, 0], (10, 1))
    pixels[[3, 7]] = [70, 5, 25]
    assert balance.shares(pixels, np.ones(10, np.int64))[2] == pytest.approx(0.05)
    counts = balance.target_counts(pixels, {2: 0.1}, 100, 50)
    assert counts.tolist() == [8, 7, 8, 20, 7, 8, 7, 20, 8, 7]
    assert balance.shares(pixels, counts)[2] == pytest.approx(0.1)
    fewer = balance.target_counts(pixels, {2: 0.1}, 5, 50)
    assert (fewer.sum(), fewer[[3, 7]].sum()) == (5, 2)


def test_layouts_with_few_labelled_pixels_weigh_less():
    """The first has the most of the class, the bound of samples, and few pixels."""
    pixels = np.array([[30, 20], [35, 15], [320, 80], [600, 200], [380, 20], [390, 10]])
    found, _ = balance._quotas(pixels, {1: 0.2}, 24, 7)
    assert found == pytest.approx(
        naive_data.tilted_quotas(pixels.tolist(), 1, 0.2, 24, 7), abs=1e-4
    )
    assert found[0] == pytest.approx(7)
    assert balance.shares(pixels, found)[1] == pytest.approx(0.2, abs=1e-6)


def test_layouts_without_labels_are_no_way_out():
    """They have no share of anything: a class that is rare everywhere is not 'met' by them."""
    pixels = np.array([[0, 0], [0, 0], [0, 0], [90, 10], [80, 20]])
    counts = balance.target_counts(pixels, {1: 0.6}, 8, 4)
    assert counts.tolist() == [0, 0, 0, 4, 4]
    nothing = balance.target_counts(np.zeros((4, 2), np.int64), {1: 0.6}, 6, 4)
    assert sorted(nothing.tolist()) == [1, 1, 2, 2]


def test_a_class_that_never_occurs_changes_nothing():
    pixels = layouts(0, 6)
    pixels[:, 3] = 0
    assert balance.target_counts(pixels, {3: 0.2}, 12, 20).tolist() == [2] * 6
    both = balance.target_counts(pixels, {3: 0.2, 0: 0.4}, 60, 40)
    assert np.array_equal(both, balance.target_counts(pixels, {0: 0.4}, 60, 40))


def test_more_than_every_style_of_every_layout_is_refused():
    pixels = layouts(0, 5)
    full = balance.target_counts(pixels, {0: 0.5}, 20, 4)
    assert full.tolist() == [4] * 5
    with pytest.raises(UserError, match=r"21 samples of 5 layouts .* at most 20,"):
        balance.target_counts(pixels, {0: 0.5}, 21, 4)


def test_fewer_samples_than_layouts_follow_the_shares_too():
    """Largest remainders would take the layouts with the largest weights alone."""
    rng = np.random.default_rng(0)
    rare = rng.integers(0, 40, 400)
    pixels = np.stack([1000 - rare, rare], axis=1)
    target = 1.2 * rare.mean() / 1000
    counts = balance.target_counts(pixels, {1: target}, 100, 20)
    assert counts.max() <= 1
    assert balance.shares(pixels, counts)[1] == pytest.approx(target, rel=0.02)


@given(seeds, st.integers(1, 6))
def test_shares_are_the_loops(seed, L):
    pixels = layouts(seed, L)
    counts = np.random.default_rng(seed).integers(0, 3, L)
    expected = naive_data.shares(pixels.tolist(), counts.tolist())
    assert balance.shares(pixels, counts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_many_layouts_and_classes():
    rng = np.random.default_rng(0)
    pixels = np.empty((200_000, 20), np.int64)
    for c in range(20):
        pixels[:, c] = 1000 * rng.gamma(0.05, 1, len(pixels)) / (c + 1)
    even = balance.shares(pixels, np.ones(len(pixels), np.int64))
    targets = {c: 2 * even[c] for c in (12, 19)}
    counts = balance.target_counts(pixels, targets, 500_000, 20)
    assert counts.sum() == 500_000
    assert counts.max() <= 20
    assert balance.shares(pixels, counts)[[12, 19]] == pytest.approx([*targets.values()], rel=0.01)


# Options


def test_targets_are_read():
    assert balance.parse_targets(["pedestrian=0.02", "traffic light = 1e-3"], NAMES) == {
        2: 0.02,
        3: 0.001,
    }
    assert balance.parse_targets(["a=b=0.5"], ["a=b"]) == {0: 0.5}
    assert balance.parse_targets([], NAMES) == {}


def test_faults_of_targets_come_together():
    texts = ["pedestrain=0.1", "sky", "road=0", "road=1", "sky=nan", "sky=x", "zebra=0.1"]
    with pytest.raises(UserError) as fault:
        balance.parse_targets([*texts, "pedestrian=0.6", "road=0.4", "road=0.4"], NAMES)
    lines = str(fault.value).split("\n  ")
    assert lines == [
        "--target:",
        "pedestrain=0.1: no class is named 'pedestrain' (did you mean pedestrian?)",
        "sky: expected CLASS=SHARE, e.g. traffic light=0.02",
        "road=0: expected a share of the labelled pixels between 0 and 1",
        "road=1: expected a share of the labelled pixels between 0 and 1",
        "sky=nan: expected a share of the labelled pixels between 0 and 1",
        "sky=x: expected a share of the labelled pixels between 0 and 1",
        "zebra=0.1: no class is named 'zebra'",
        "road=0.4: road has a target already; give one",
        "the shares sum to 1; together they must be below 1, since the other classes need pixels "
        "too",
    ]
