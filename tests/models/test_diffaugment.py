"""Augmentation of D's inputs."""

import pytest
import torch

from ecgan.models.discriminators.diffaugment import Draws, diffaugment, draw

MIDDLE = 0.5


def draws(num=1, **chosen):
    """Draws that change as little as possible, but for those that are chosen."""
    still = dict.fromkeys(Draws._fields, MIDDLE) | {"cut_y": 0.0, "cut_x": 0.0} | chosen
    return Draws(*(torch.full((num,), still[name]) for name in Draws._fields))


def test_draws_belong_to_their_key():
    together = draw(7, range(4))
    alone = draw(7, [2])
    for all_values, value in zip(together, alone, strict=True):
        assert all_values[2] == value[0]
    assert len({float(value) for value in together.brightness}) == 4
    assert draw(8, [2]).brightness != alone.brightness


@pytest.mark.parametrize(("value", "pixels"), [(0.0, -2), (MIDDLE, 0), (0.999, 2)])
def test_translation_pads_with_zeros(value, pixels):
    picture = torch.rand(1, 1, 16, 16) + 1
    moved = diffaugment(picture, draws(shift_x=value, shift_y=MIDDLE), colour=False)[0, 0, 8:]
    expected = torch.zeros(8, 16)
    for x in range(16):
        if 0 <= x - pixels < 16:
            expected[:, x] = picture[0, 0, 8:, x - pixels]
    assert torch.equal(moved, expected)


def test_cutout_is_a_hole_of_half_the_sides():
    cut = diffaugment(torch.ones(1, 2, 16, 32), draws(cut_y=0.5, cut_x=0.5), colour=False)
    expected = torch.ones(16, 32)
    expected[4:12, 8:24] = 0
    assert torch.equal(cut[0, 0], expected)
    assert torch.equal(cut[0, 1], expected)


def test_colour_changes_images_alone():
    image = torch.rand(1, 3, 16, 16)[:, :, 4:, 4:]
    kept = diffaugment(image, draws(brightness=0.9, contrast=0.1), colour=False)
    assert torch.equal(kept[..., 3:, :], image[..., 3:, :])

    def outside(**chosen):  # of the hole in the corner, sides 6, of which 3 pixels are inside
        return diffaugment(image, draws(**chosen), colour=True)[..., 3:, 3:]

    original = image[..., 3:, 3:]
    torch.testing.assert_close(outside(), original)
    torch.testing.assert_close(outside(brightness=0.75), original + 0.25)
    grey = original.mean(dim=1, keepdim=True)
    torch.testing.assert_close(outside(saturation=0.0), grey.expand_as(original))
    mean = image.mean()
    torch.testing.assert_close(outside(contrast=0.0), mean + 0.5 * (original - mean))


def test_condition_and_image_stay_aligned():
    keyed = draw(3, range(8))
    S = (torch.rand(8, 1, 16, 32) > 0.5).float()
    image = (2 * S - 1).expand(-1, 3, -1, -1)
    seen_S, seen = diffaugment(S, keyed, colour=False), diffaugment(image, keyed, colour=False)
    inside = seen[:, :1] != 0
    assert torch.equal(2 * seen_S[inside] - 1, seen[:, :1][inside])
    assert not seen_S[~inside].any()
    assert 0.3 < inside.float().mean() < 0.9


@pytest.mark.slow
def test_gradient_passes():
    picture = torch.rand(2, 3, 8, 16, dtype=torch.float64, requires_grad=True)
    keyed = draw(0, [0, 1])
    assert torch.autograd.gradcheck(lambda x: diffaugment(x, keyed, colour=True), picture)
