"""Style spread and top octave against loops, and where the answer is known."""

import math

import numpy as np
import pytest
import torch

from ecgan.metrics import styles
from ecgan.metrics.texture import top_octave_share
from tests import naive

E, LEAST = 3, 6


def world(num_layouts, num_styles, num_photos, seed=0):
    """Images and labels of layouts with styles, and of photos: a random colour for each class."""
    rng = np.random.default_rng(seed)

    def image(label):
        colours = rng.normal(size=(E + 1, 3)) * [[0.4], [0.5], [1.0], [1.0]]
        return colours[label] + rng.normal(0, 0.05, (*label.shape, 3))

    layouts = [rng.integers(E + 1, size=(8, 8)) for _ in range(num_layouts)]
    layouts[0][layouts[0] == 1] = 0  # not every class is everywhere
    made = [[(image(label), label) for _ in range(num_styles)] for label in layouts]
    photos = [rng.integers(E + 1, size=(8, 8)) for _ in range(num_photos)]
    return made, [(image(label), label) for label in photos]


def sums(images):
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in images])).permute(0, 3, 1, 2)
    labels = np.stack([label for _, label in images])
    labels[labels == E] = 255
    return styles.class_sums(styles.class_means(pixels, labels, E))


def spread(layouts, photos):
    found = np.stack([styles.scatter(sums(group)) for group in layouts])
    names = [str(number) for number in range(len(layouts))]
    halves = sums(photos[::2]) + sums(photos[1::2])  # sums of parts add up
    return styles.style_spread(found, names, styles.scatter(halves))


def plain(images):
    return [(p.reshape(-1, 3).tolist(), label.reshape(-1).tolist()) for p, label in images]


@pytest.fixture(autouse=True)
def _least(monkeypatch):
    monkeypatch.setattr(styles, "LEAST_PIXELS", LEAST)


def test_style_spread_is_its_definition():
    layouts, photos = world(4, 3, 7)
    found = spread(layouts, photos)
    overall, ratios = naive.style_spread([plain(g) for g in layouts], plain(photos), E, LEAST)
    assert found.overall.value == pytest.approx(overall, rel=1e-9)
    assert found.per_class == pytest.approx(ratios, rel=1e-9)
    assert found.overall.low < found.overall.value < found.overall.high


def test_copies_have_no_spread_and_unrelated_photos_one():
    layouts, photos = world(3, 1, 300)
    copies = spread([group * 4 for group in layouts], photos)
    assert copies.overall.value == pytest.approx(0, abs=1e-9)
    unrelated, _ = world(60, 8, 0, seed=1)
    # 420 degrees of freedom against 299: the ratio's own deviation is about 0.1
    assert spread(unrelated, photos).overall.value == pytest.approx(1, abs=0.25)


def test_a_class_that_hardly_varies_has_no_ratio_and_no_say():
    layouts, photos = world(3, 4, 50)
    grey = [(np.where(label[..., None] == 0, 0.1, p), label) for p, label in photos]
    found = spread(layouts, grey)
    assert np.isnan(found.per_class[0])
    assert np.isfinite(found.per_class[1:]).all()
    assert 0.3 < found.overall.value < 3


def test_labels_are_read_at_the_centres_of_a_maps_pixels(monkeypatch):
    monkeypatch.setattr(styles, "LEAST_PIXELS", 64)  # 4 pixels of this map
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    label = np.full((1, 16, 16), 255)
    label[0, 2::4, 10] = 0  # centres of the third column
    assert styles.class_means(maps, label, 1).item() == (2 + 6 + 10 + 14) / 4
    label[0, 2, 10] = 255
    assert np.isnan(styles.class_means(maps, label, 1).item())


def test_without_a_class_of_both_there_is_no_spread():
    layouts, photos = world(2, 1, 5)
    with pytest.raises(ValueError, match="two styles"):
        spread(layouts, photos)


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_top_octave_is_its_definition(size):
    image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
    expected = naive.top_octave_share(image[0].permute(1, 2, 0).tolist())
    assert top_octave_share(image).item() == pytest.approx(expected, rel=1e-9)


def test_top_octave_of_known_pictures():
    noise = torch.randn(4, 3, 96, 128)
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    ramp, checks = (x - y) / 128, (-1.0) ** (x + y)
    waves = (2 * math.pi * x / 8).sin(), (2 * math.pi * y / 3).sin()
    pictures = torch.stack([torch.full_like(x, 0.3), ramp, *waves, checks])
    flat, smooth, low, high, board = top_octave_share(pictures[:, None].expand(-1, 3, -1, -1))
    assert top_octave_share(noise).mean().item() == pytest.approx(1 - math.pi / 16, abs=0.02)
    assert flat == 0
    assert smooth < 1e-4
    assert low < 1e-4
    assert high > 0.999
    assert board > 0.999
