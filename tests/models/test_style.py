"""Style encoders, the prior of the photos' styles, and how styles enter the trunk."""

import numpy as np
import pytest
import torch

from ecgan.models.generator import STYLE_DIM, Generator
from ecgan.models.style import (
    StatisticsEncoder,
    StyleEncoder,
    StylePrior,
    reparameterise,
    style_moments,
)
from tests import naive


def posteriors(num, spread=3.0):
    """Means that vary along two directions, and variances of about a tenth."""
    directions = torch.linalg.qr(torch.randn(STYLE_DIM, 2))[0].T
    means = torch.randn(num, 2) * torch.tensor([spread, 1.5]) @ directions + 0.5
    return means, torch.randn(num, STYLE_DIM) * 0.1 - 2.3


def test_a_style_of_the_prior_matches_its_definition():
    prior = StylePrior.fitted([posteriors(40)]).double()
    noise = torch.randn(STYLE_DIM, dtype=torch.float64)
    numbers = [prior.mean, prior.axes, prior.deviations, prior.residual]
    expected = naive.style_of(noise.tolist(), *(x.tolist() for x in numbers), 0.7)
    assert prior(noise, 0.7).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_moments_are_those_of_styles_drawn_for_the_photos():
    means, log_variances = (x.double() for x in posteriors(30))
    mean, covariance = style_moments(means, log_variances)
    noise = torch.randn(4_000, *means.shape, dtype=torch.float64)
    drawn = reparameterise(means, log_variances, noise).flatten(0, 1).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T, bias=True), covariance, atol=0.03)


def test_styles_of_the_prior_spread_as_the_photos_do():
    means, log_variances = posteriors(200)
    prior = StylePrior.fitted(
        [(means[:150], log_variances[:150]), (means[150:], log_variances[150:])]
    )
    assert len(prior.axes) == 32
    torch.testing.assert_close(prior.axes @ prior.axes.T, torch.eye(32), atol=1e-5, rtol=0)
    mean, covariance = style_moments(means.double(), log_variances.double())
    drawn = prior(torch.randn(20_000, STYLE_DIM)).double()
    torch.testing.assert_close(drawn.mean(dim=0), mean, atol=0.1, rtol=0)
    top = prior.axes[:2].double()
    expected = top @ covariance @ top.T
    torch.testing.assert_close(top @ drawn.T.cov() @ top.T, expected, atol=0.3, rtol=0)
    assert drawn.var(dim=0).sum() == pytest.approx(covariance.trace().item(), rel=0.05)


@pytest.mark.parametrize(("num", "axes"), [(1, 0), (3, 0), (8, 2), (128, 32), (500, 32)])
def test_few_photos_have_few_axes(num, axes):
    prior = StylePrior.fitted([posteriors(num)])
    assert len(prior.axes) == axes
    assert prior(torch.randn(5, STYLE_DIM)).isfinite().all()


def test_temperature_0_leaves_what_no_axis_explains():
    prior = StylePrior.fitted([posteriors(100)])
    noise = torch.randn(2_000, STYLE_DIM)
    cold, warm = prior(noise, 0.0), prior(noise, 2.0)
    assert (cold @ prior.axes.T).var(dim=0).max() < 1e-6
    ratio = (warm @ prior.axes.T).std(dim=0) / (prior(noise) @ prior.axes.T).std(dim=0)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))


def test_the_same_photos_in_other_batches_give_the_same_prior():
    means, log_variances = posteriors(60)
    whole = StylePrior.fitted([(means, log_variances)])
    parts = StylePrior.fitted(zip(means.split(7), log_variances.split(7), strict=True))
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("encoder", [StyleEncoder, StatisticsEncoder])
@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
def test_encoders_take_any_size_and_look_at_the_image(encoder, size):
    network, images = encoder(4), torch.rand(2, 3, *size) * 2 - 1
    mean, log_variance = network(images)
    assert mean.shape == log_variance.shape == (2, STYLE_DIM)
    assert not torch.allclose(mean[0], mean[1], atol=1e-3)
    mean.sum().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "log" not in n)


def test_light_and_colour_are_part_of_the_style_of_statistics():
    """Instance norm takes most of them out of the other one."""
    image = torch.rand(1, 3, 64, 64) * 0.5
    darker = image * 0.5 - 0.3

    def change(network):
        (mean, _), (other, _) = network(image), network(darker)
        return ((mean - other).norm() / mean.norm()).item()

    assert change(StatisticsEncoder(8)) > 2 * change(StyleEncoder(8))


def test_a_flat_image_has_a_style_with_a_gradient():
    image = torch.zeros(1, 3, 32, 32, requires_grad=True)
    StatisticsEncoder(4)(image)[0].sum().backward()
    assert image.grad.isfinite().all()


def generator(injection):
    torch.manual_seed(0)
    made = Generator(
        num_classes=3, num_conditions=4, height=32, width_px=64, channels=4, upsamplings=5,
        style=True, style_injection=injection,
    )  # fmt: skip
    return made.eval()


def test_styles_in_the_blocks_change_nothing_at_first_and_then_every_block():
    S, z = torch.rand(1, 4, 32, 64), torch.randn(2, STYLE_DIM)
    labels = torch.zeros(1, 32, 64, dtype=torch.int64)
    plain, modulated = generator("start"), generator("blocks")
    with torch.no_grad():
        modulated.load_state_dict(plain.state_dict() | {
            k: v for k, v in modulated.state_dict().items() if "style_modulations" in k
        })  # fmt: skip
        before = plain(S, labels, 3, z[:1])
        assert torch.equal(modulated(S, labels, 3, z[:1]).image, before.image)
        for modulation in modulated.trunk.style_modulations:
            modulation.linear.weight.normal_(std=0.05)
            changed = modulated(S, labels, 3, z[:1])
            assert not torch.equal(changed.image, before.image)
            before = changed


def test_styles_that_modulate_alone_leave_the_start_to_the_layout():
    labels = torch.zeros(1, 32, 64, dtype=torch.int64)
    S, z = torch.rand(1, 4, 32, 64), torch.randn(2, STYLE_DIM)
    made = generator("modulation")
    with torch.no_grad():
        first = made(S, labels, 3, z[:1])
        assert torch.equal(made(S, labels, 3, z[1:]).image, first.image)
        assert not torch.equal(made(S.flip(3), labels, 3, z[:1]).image, first.image)
        for modulation in made.trunk.style_modulations:
            before = made(S, labels, 3, z[:1]).image
            modulation.linear.weight.normal_(std=0.05)
            own, other = (made(S, labels, 3, one).image for one in z.split(1))
            assert not torch.equal(own, before)
            assert not torch.equal(own, other)
