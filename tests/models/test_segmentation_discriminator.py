"""Discriminators that segment: on features of a frozen network, and OASIS's U-Net."""

import pytest
import torch

from ecgan.models.discriminators.segmentation import (
    GUARD_HALF_LIFE,
    FeatureDiscriminator,
    UNetDiscriminator,
    magnified,
)
from ecgan.models.pretrained.efficientnet_lite import LITE0_STAGES

WIDTHS = (24, 40, 112, 320)


def maps(num=2, size=(64, 128), scale=1.0):
    return [
        scale * torch.randn(num, width, size[0] // stride, size[1] // stride)
        for width, stride in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    ]


def test_widths_are_those_of_the_frozen_network():
    assert tuple(LITE0_STAGES[i][1] for i in (1, 2, 4, 6)) == WIDTHS


def test_logits_are_one_class_more_at_half_the_size():
    assert FeatureDiscriminator(5, 8)(maps()).shape == (2, 6, 32, 64)


@pytest.mark.parametrize("index", range(4))
def test_every_map_decides(index):
    network, seen = FeatureDiscriminator(5, 8), maps()
    before = network(seen)
    seen[index] = seen[index] + 1
    assert not torch.allclose(network(seen), before, atol=1e-4)


def test_maps_are_normalised_by_the_photos_alone():
    network, photos = FeatureDiscriminator(5, 8).eval(), [maps(2, scale=3.0), maps(1, scale=3.0)]
    network.measure(photos)
    for index in range(4):
        together = torch.cat([batch[index] for batch in photos]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(getattr(network, f"mean_{index}"), together.mean(dim=1))
        torch.testing.assert_close(getattr(network, f"deviation_{index}"), together.std(dim=1))
    one = maps(1)
    alone = network(one)
    beside = network([torch.cat([x, 9 + x]) for x in one])[:1]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-4)


def test_small_pictures_are_shown_at_twice_the_size():
    assert magnified(torch.zeros(1, 3, 96, 256)).shape == (1, 3, 192, 512)
    assert magnified(torch.zeros(1, 3, 160, 256)).shape == (1, 3, 160, 256)


def test_it_waits_while_it_always_wins():
    network, batch = FeatureDiscriminator(5, 8), GUARD_HALF_LIFE
    assert network.watch(torch.tensor(1.0), batch) == 1  # half
    assert network.called_made == 0.5
    learns = [network.watch(torch.tensor(1.0), batch).item() for _ in range(4)]
    assert learns == [1, 1, 1, 0]  # 0.75, 0.875, 0.9375, 0.96875
    assert network.watch(torch.tensor(0.0), batch) == 1


@pytest.mark.parametrize("size", [(32, 64), (96, 128), (64, 32)])
def test_the_u_net_gives_logits_for_every_pixel(size):
    network = UNetDiscriminator(5, 4)
    picture = torch.rand(2, 3, *size)
    logits = network([picture])
    assert logits.shape == (2, 6, *size)
    logits.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_u_net_has_the_widths_of_the_paper():
    network = UNetDiscriminator(5, 64)
    assert [block.conv_2.weight.shape[0] for block in network.down] == [
        128,
        128,
        256,
        256,
        512,
        512,
    ]
    assert [block.conv_2.weight.shape[0] for block in network.up] == [512, 256, 256, 128, 128, 64]
    assert [block.conv_1.weight.shape[1] for block in network.up] == [512, 1024, 512, 512, 256, 256]
