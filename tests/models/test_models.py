"""The networks: sizes against the design's table, parts, styles, gradients."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ecgan.models.contrastive import ContrastiveHead
from ecgan.models.discriminators.patch import Discriminator
from ecgan.models.encoder import Spade, Trunk
from ecgan.models.generator import (
    EdgeGuidedBranches,
    Generator,
    _pixels,
    edge_transfer,
    reweight_classes,
)
from ecgan.models.layers import ExactSpectralNorm, channels_last, convolution, initialised
from ecgan.models.style import StyleEncoder, reparameterise
from tests import naive

N, IGNORE = 3, 255
HEIGHT, WIDTH = 32, 64


def make_generator(**parts):
    numbers = {"channels": 4, "upsamplings": 5, "height": HEIGHT, "width_px": WIDTH}
    return Generator(**{"num_classes": N, "num_conditions": N + 1, **numbers, **parts})


@pytest.mark.parametrize("style", [False, True])
def test_features_are_laid_out_as_weights_are(style):
    """Channels last all the way: each block follows its input, and a style starts as a vector."""
    network = make_generator(style=style)
    channels_last(network)
    S = make_layouts(2)[0].contiguous(memory_format=torch.channels_last)
    features, taps = network.trunk(S, torch.randn(2, 256) if style else None)
    for x in (features, *taps):
        assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 4, 3), (6, 2, 1)])
def test_spectral_norms_are_torchs_to_the_bit(shape):
    c_in, c_out, kernel = shape

    def steps(normalised):
        torch.manual_seed(0)
        layer = normalised(torch.nn.Conv2d(c_in, c_out, kernel))
        for _ in range(3):
            layer(torch.randn(1, c_in, 4, 4)).square().sum().backward()
        with torch.no_grad():
            layer.parametrizations.weight.original.zero_()  # the smallest norm of all
        layer(torch.randn(1, c_in, 4, 4))
        return [*layer.state_dict().values(), *(p.grad for p in layer.parameters())]

    def by_torch(layer):
        torch.nn.init.xavier_normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        return torch.nn.utils.parametrizations.spectral_norm(layer)

    own = steps(lambda layer: initialised(layer, spectral=True))
    for x, y in zip(own, steps(by_torch), strict=True):
        assert torch.equal(x, y)


def test_spectral_norms_are_not_taken_in_half_precision(monkeypatch):
    seen = []
    monkeypatch.setattr(
        ExactSpectralNorm,
        "_power_method",
        lambda *_: seen.append(torch.is_autocast_enabled("cpu")),
    )
    layer = convolution(3, 4, spectral=True)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.rand(1, 3, 5, 5)).dtype == torch.bfloat16
    assert seen == [False]


def make_layouts(num):
    """Labels with an unlabelled corner, and their condition."""
    labels = torch.randint(N, (num, HEIGHT // 8, WIDTH // 8))
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :8, :8] = N
    S = torch.nn.functional.one_hot(labels, N + 1).permute(0, 3, 1, 2).float()
    return S, labels.masked_fill(labels == N, IGNORE)


def count(network, *inputs):
    """Parameters (millions) and multiply-adds (1e9) of one image, without computing any."""
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        network(*inputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return parameters / 1e6, flops.get_total_flops() / 2e9


TABLE = {
    "cityscapes": ((35, 36, 256, 512, 6), (93.05, 281.28), (0.11872, 15.527), (5.60, 10.47)),
    "ade20k": ((150, 151, 256, 256, 5), (96.49, 181.15), (0.65198, 42.696), (5.84, 7.83)),
    "coco_stuff": ((182, 184, 256, 256, 5), (97.48, 191.14), (0.88834, 58.181), (5.91, 8.53)),
}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", TABLE)
def test_sizes_are_those_of_the_table(dataset):
    (num_classes, num_conditions, height, width, upsamplings), *expected = TABLE[dataset]
    with torch.device("meta"):
        trunk = Trunk(num_conditions, 64, (height, width), upsamplings=upsamplings,
                      style_dim=None, spectral_norm="none")  # fmt: skip
        generator = Generator(
            num_classes=num_classes, num_conditions=num_conditions, height=height, width_px=width,
            upsamplings=upsamplings, spectral_norm="none", class_specific=False,
        )  # fmt: skip
        to_rgb = torch.nn.Conv2d(64, 3, 3, padding=1)
        discriminator = Discriminator(num_conditions)
        S = torch.empty(1, num_conditions, height, width)
        image, features = torch.empty(1, 3, height, width), torch.empty(1, 64, height, width)
    trunk_size = torch.tensor(count(trunk, S))
    spade = trunk_size + torch.tensor(count(to_rgb, features))
    parts = torch.tensor(count(generator, S, None, IGNORE)) - trunk_size
    judge = torch.tensor(count(discriminator, S, image))
    for size, wanted in zip((spade, parts, judge), expected, strict=True):
        torch.testing.assert_close(size, torch.tensor(wanted), rtol=0.01, atol=0)


@pytest.mark.parametrize("upsamplings", [5, 6])
def test_shapes_and_taps(upsamplings):
    generator = make_generator(height=64, width_px=128, upsamplings=upsamplings)
    S = torch.zeros(2, N + 1, 64, 128)
    made = generator(S, torch.zeros(2, 64, 128, dtype=torch.int64), IGNORE)
    for picture in (made.image, made.refined, made.coarse, made.edge, made.class_image):
        assert picture.shape == (2, 3, 64, 128)
    assert made.taps[0] is made.features
    assert len(made.taps) == len(generator.tap_channels) == 7
    for tap, (channels, downscale) in zip(made.taps, generator.tap_channels, strict=True):
        assert tap.shape == (2, channels, 64 // downscale, 128 // downscale)


def test_edge_transfer_is_eq_1():
    edge, image = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([1.0, -0.5, 0.25])
    expected = [1.5, -0.5 * (1 + 0.7310586), 0.25 * (1 + 0.1192029)]
    torch.testing.assert_close(edge_transfer(edge, image), torch.tensor(expected))


def test_an_edge_map_that_has_gone_black_learns_on():
    """With the slope, which is one of the gradient alone."""
    branches = EdgeGuidedBranches(16, edge_generator=True, edge_transfer=True, spectral=False)
    torch.nn.init.constant_(branches.edge_branch.to_picture.bias, -50.0)  # tanh is -1 there
    F = torch.randn(2, 16, 8, 8)
    found = {}
    for slope in (0.0, 0.05):
        branches.edge_slope = slope
        branches.zero_grad()
        edge = branches(F)[1]
        (edge * torch.arange(3.0)[:, None, None]).sum().backward()
        found[slope] = edge.detach(), branches.edge_branch.to_picture.bias.grad.clone()
    assert torch.equal(found[0.0][0], found[0.05][0])
    assert torch.equal(found[0.0][1], torch.zeros(3))
    torch.testing.assert_close(found[0.05][1], 0.05 * torch.arange(3.0) * F[:, 0].numel())


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=8), st.floats(0, 1))
def test_the_slope_of_the_edges_is_added_to_that_of_tanh(values, slope):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    _pixels(x, slope).sum().backward()
    expected = [naive.slope_of_edges(value, slope) for value in values]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64))


def test_reweight_classes_is_eq_2():
    F_c = torch.randn(2, N, 3, 4)
    result = reweight_classes(F_c)
    for b, n in itertools.product(range(2), range(N)):
        gamma = 1 / (1 + torch.exp(-F_c[b, n].sum() / 12))
        torch.testing.assert_close(result[b, n], F_c[b, n] * gamma + F_c[b, n])


def test_spade_is_its_definition():
    layer = Spade(5, N, 8, spectral=False)
    x, S = torch.randn(2, 5, 4, 6), torch.randn(2, N, 4, 6)
    gamma, beta = layer.modulation(S)
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = (x - mean) / (variance + 1e-5).sqrt() * (1 + gamma) + beta
    torch.testing.assert_close(layer(x, (gamma, beta)), expected)


PARTS = {
    "no Ge": {"edge_generator": False, "edge_transfer": False},
    "no Gt": {"edge_transfer": False},
    "no Gs": {"semantic_preserving": False},
    "no heads": {"class_specific": False},
    "fused": {"output": "fused"},
    "fused without Gs": {"output": "fused", "semantic_preserving": False},
    "style": {"style": True},
    "spectral norm everywhere": {"spectral_norm": "all"},
    "no spectral norm": {"spectral_norm": "none"},
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_every_part_can_be_switched_and_every_weight_learns(parts):
    generator = make_generator(**parts)
    S, labels = make_layouts(2)
    z = torch.randn(2, 256) if generator.style else None
    made = generator(S, labels, IGNORE, z)
    assert (made.edge is None) == ("edge_generator" in parts)
    assert (made.refined is None) == ("semantic_preserving" in parts)
    assert (made.class_image is None) == ("class_specific" in parts)
    if made.refined is None and "output" not in parts:
        assert made.image is made.coarse
    pictures = [made.image, made.refined, made.coarse, made.edge, made.class_image]
    sum((picture * torch.randn_like(picture)).sum() for picture in pictures if picture is not None
        ).backward()  # fmt: skip
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


def test_first_pictures_are_in_the_linear_part_of_tanh():
    made = make_generator(channels=16)(*make_layouts(2), IGNORE)
    largest = 1 + 1 / (1 + math.exp(-1))  # of the coarse image, Eq. 1
    for picture in (made.image, made.coarse / largest, made.edge, made.class_image):
        assert picture.std() > 0.02
        assert (picture.abs() > 0.95).float().mean() < 0.1


def test_fusion_leaves_unlabelled_pixels_to_the_refined_image():
    generator = make_generator(output="fused")
    S, labels = make_layouts(2)
    made = generator(S, labels, IGNORE)
    unlabelled = (labels == IGNORE)[:, None].expand_as(made.image)
    assert torch.equal(made.image[unlabelled], made.refined[unlabelled])
    F = torch.cat([made.features, made.refined, made.class_image], dim=1)
    weights = generator.fusion.to_weights(F).softmax(dim=1)
    fused = weights[:, :1] * made.refined + weights[:, 1:] * made.class_image
    torch.testing.assert_close(made.image[~unlabelled], fused[~unlabelled])


def test_under_autocast_pictures_stay_float32():
    generator = make_generator().eval()
    S, labels = make_layouts(1)
    with torch.autocast("cpu", torch.bfloat16):
        made = generator(S, labels, IGNORE)
    assert made.features.dtype == torch.bfloat16
    exact = generator(S, labels, IGNORE)
    for name in ("image", "coarse", "edge", "class_image"):
        assert getattr(made, name).dtype == torch.float32
        torch.testing.assert_close(getattr(made, name), getattr(exact, name), atol=0.05, rtol=0)


def test_generator_is_restored_from_its_state():
    generator, other = make_generator(spectral_norm="all"), make_generator(spectral_norm="all")
    S, labels = make_layouts(2)
    generator(S, labels, IGNORE)
    other.load_state_dict(generator.state_dict())
    image = generator.eval()(S, labels, IGNORE).image
    assert torch.equal(image, other.eval()(S, labels, IGNORE).image)


def test_heads_are_normalised_one_by_one():
    generator = make_generator(spectral_norm="all")
    with torch.no_grad():
        generator.class_specific.parametrizations.weight_1.original[0] *= 100
    for _ in range(50):
        weight = generator.class_specific.weight_1.detach()
    for head in weight:
        assert torch.linalg.matrix_norm(head.flatten(1), 2) == pytest.approx(1, abs=1e-3)


def test_spectral_norm_is_where_it_should_be():
    def normalised(network):
        return {name.rsplit(".parametrizations")[0] for name, _ in network.named_parameters()
                if "parametrizations" in name}  # fmt: skip

    default = normalised(make_generator())
    assert len(default) == 7 * 2 + 4
    assert all(".conv_" in name for name in default)
    everything = make_generator(spectral_norm="all")
    weights = [name for name, p in everything.named_parameters() if p.ndim >= 2
               and not name.startswith("class_specific.bias")]  # fmt: skip
    assert all("parametrizations" in name for name in weights)
    assert not normalised(make_generator(spectral_norm="none"))
    assert normalised(Discriminator(N, 4)) == {
        f"scales.{scale}.inner.{layer}" for scale in range(2) for layer in range(3)
    }
    assert len(normalised(Discriminator(N, 4, "all"))) == 2 * 5
    assert not normalised(Discriminator(N, 4, "none"))


def test_discriminator_judges_several_pictures_of_a_condition_at_once():
    discriminator = Discriminator(N + 1, 4).eval()
    S, _ = make_layouts(2)
    pictures = torch.rand(3, 2, 3, HEIGHT, WIDTH) * 2 - 1
    together = discriminator(S, pictures.flatten(0, 1))
    assert [len(maps) for maps in together] == [5, 5]
    assert [x.shape[1] for x in together[0]] == [4, 8, 16, 32, 1]
    for r, picture in enumerate(pictures):
        alone = discriminator(S, picture)
        for all_maps, maps in zip(together, alone, strict=True):
            for both, one in zip(all_maps, maps, strict=True):
                torch.testing.assert_close(both.unflatten(0, (3, 2))[r], one)


def test_discriminator_sees_condition_and_picture_and_every_weight_learns():
    discriminator = Discriminator(N + 1, 4)
    S, _ = make_layouts(2)
    picture = torch.rand(2, 3, HEIGHT, WIDTH)
    scores = discriminator(S, picture)[0][-1]
    assert not torch.allclose(scores, discriminator(S.flip(0), picture)[0][-1])
    sum((x * torch.randn_like(x)).sum() for maps in discriminator(S, picture) for x in maps
        ).backward()  # fmt: skip
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.abs().max() > 1e-4, name


@pytest.mark.parametrize("size", [(32, 64), (300, 200)])
def test_style_encoder(size):
    encoder = StyleEncoder(2)
    mu, log_var = encoder(torch.rand(2, 3, *size) * 2 - 1)
    assert mu.shape == log_var.shape == (2, 256)
    noise = torch.randn(2, 256)
    z = reparameterise(mu, log_var, noise)
    torch.testing.assert_close(z, mu + torch.sqrt(log_var.exp()) * noise)
    z.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


def test_contrastive_head_gives_unit_embeddings_at_the_stride():
    head = ContrastiveHead(4)
    features = torch.randn(2, 4, 16, 32)
    embeddings = head(features, stride=4)
    assert embeddings.shape == (2, 64, 4, 8)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 8))
    cell = features[1, :, 4:8, 8:12].mean(dim=(1, 2))[None, :, None, None]
    torch.testing.assert_close(head(cell)[0, :, 0, 0], embeddings[1, :, 1, 2])
