"""Canny with relative thresholds, against a Canny written as loops."""

import math

import cv2
import numpy as np
import pytest

from ecgan.data.transforms import canny_edges
from ecgan.demo.toy import draw_scene


def _naive_blur(grey):
    """Gaussian of 1.4 pixels, cut off at three sigma, mirrored at the borders."""
    taps = np.arange(-4, 5)
    weights = np.exp(-(taps**2) / (2 * 1.4**2))
    weights /= weights.sum()

    def along_rows(lines):
        padded = np.pad(lines, ((0, 0), (4, 4)), mode="reflect")
        return sum(
            w * padded[:, t + 4 : t + 4 + lines.shape[1]]
            for t, w in zip(taps, weights, strict=True)
        )

    return along_rows(along_rows(grey).T).T


def _naive_canny(smooth):
    """Sobel, non-maximum suppression, hysteresis; (H, W) as floats."""
    height, width = smooth.shape
    smooth = np.pad(smooth, 1, mode="edge")
    dx, dy = np.zeros((height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            (a, b, c), (d, _, f), (g, h, i) = smooth[y : y + 3, x : x + 3]
            dx[y, x] = c + 2 * f + i - a - 2 * d - g
            dy[y, x] = g + 2 * h + i - a - 2 * b - c
    strength = np.hypot(dx, dy)
    ring = np.pad(strength, 1)  # beyond the border nothing is stronger

    def is_crest(y, x):
        angle = math.degrees(math.atan2(dy[y, x], dx[y, x])) % 180
        diagonal = False
        if angle < 22.5 or angle > 157.5:
            step = 0, 1
        elif 67.5 < angle < 112.5:
            step = 1, 0
        else:
            step, diagonal = ((1, 1) if angle < 90 else (1, -1)), True
        here, ahead = ring[y + 1, x + 1], ring[y + 1 + step[0], x + 1 + step[1]]
        behind = ring[y + 1 - step[0], x + 1 - step[1]]
        # Of two equal neighbours the upper or left one counts; on diagonals, neither.
        return here > behind and (here > ahead or (here == ahead and not diagonal))

    low, high = 0.075 * strength.max(), 0.175 * strength.max()
    crest = {(y, x) for y in range(height) for x in range(width) if is_crest(y, x)}
    weak = {p for p in crest if strength[p] > low}
    found = {p for p in crest if strength[p] > high}
    waiting = list(found)
    while waiting:
        y, x = waiting.pop()
        near = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & weak - found
        found |= near
        waiting += near
    edges = np.zeros((height, width), np.uint8)
    for p in found:
        edges[p] = 255
    return edges


@pytest.mark.parametrize("seed", [0, 3])
def test_edges_are_those_of_the_naive_canny(seed):
    image, _ = draw_scene(seed, 48, 96)
    grey = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.4).astype(float)
    # OpenCV blurs in integers; one grey level moves a few edges, so the naive Canny starts there.
    assert np.abs(smooth - _naive_blur(grey.astype(float))).max() <= 1
    expected = _naive_canny(smooth)
    assert (expected > 0).sum() > 100
    # A gradient on the border between two directions may round to the other one.
    assert (canny_edges(image) != expected).sum() <= 2


def test_a_step_is_one_line_and_a_flat_image_has_none():
    step = np.full((24, 40, 3), 60, np.uint8)
    assert not canny_edges(step).any()
    step[:, 20:] = 180
    edges = canny_edges(step)
    assert set(np.unique(edges)) == {0, 255}
    assert ((edges > 0).sum(axis=1) == 1).all()
    assert set(np.nonzero(edges)[1]) <= {19, 20}


def test_thresholds_follow_the_contrast():
    """The same scene in a third of the light has mostly the same edges, and as many."""
    image, _ = draw_scene(1, 64, 128)
    dark = (image // 3).astype(np.uint8)
    bright, dim = canny_edges(image) > 0, canny_edges(dark) > 0
    assert (bright & dim).sum() > 0.8 * max(bright.sum(), dim.sum())
    assert dim.sum() == pytest.approx(bright.sum(), rel=0.1)
