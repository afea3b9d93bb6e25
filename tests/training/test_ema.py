"""The averaged network and its batch statistics."""

import copy

import pytest
import torch

from ecgan.models.layers import channels_last
from ecgan.training.ema import EMA, decay, even_batch, reestimate_statistics
from tests.models.test_models import IGNORE, make_generator, make_layouts


def train(network):
    """Pretend to: other weights, other statistics."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
        network(*make_layouts(2), IGNORE)


def test_decay_halves_a_weight_over_its_half_life():
    share = 1.0
    for step in range(100):
        share *= decay(10, images_seen=1_000_000 + 10 * step, half_life=1000)
    assert share == pytest.approx(0.5)


def test_an_average_is_laid_out_as_what_it_follows():
    """So that all weights are followed in one go, not each by itself."""
    network = make_generator()
    kept = EMA(copy.deepcopy(network), half_life=10).module
    channels_last(network)
    for own, trained in zip(kept.parameters(), network.parameters(), strict=True):
        assert own.stride() == trained.stride()


def test_decay_does_not_depend_on_the_batch():
    one_by_one = 1.0
    for _ in range(8):
        one_by_one *= decay(1, images_seen=10**6, half_life=100)
    assert one_by_one == pytest.approx(decay(8, images_seen=10**6, half_life=100))


def test_decay_is_ramped_and_can_be_off():
    assert decay(8, images_seen=8, half_life=10_000) < 1e-6
    assert decay(8, images_seen=800, half_life=10_000) == pytest.approx(0.5 ** (8 / 40))
    assert decay(8, images_seen=8_000_000, half_life=0) == 0
    first_weights = 1.0
    for step in range(1, 1251):  # the run that a constant 0.999 would leave 29 % of
        first_weights *= decay(16, images_seen=16 * step, half_life=10_000)
    assert first_weights < 1e-6


def test_average_is_the_formula():
    network = make_generator()
    average = EMA(copy.deepcopy(network), half_life=100)
    expected = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(1, 5):
        train(network)
        average.update(network, batch=4, images_seen=4 * step)
        stays = 0.5 ** (4 / min(100, 0.05 * 4 * step))
        for name, parameter in network.named_parameters():
            expected[name] = stays * expected[name] + (1 - stays) * parameter.detach()
    averaged = dict(average.module.named_parameters())
    torch.testing.assert_close(averaged, expected, check_device=False)
    buffers = dict(average.module.named_buffers())
    assert any("parametrizations" in name for name in buffers)  # the vectors of spectral norm
    for name, buffer in network.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    assert not average.module.training


def test_average_is_restored_from_its_state():
    network = make_generator()
    average = EMA(copy.deepcopy(network), half_life=100)
    other = EMA(make_generator(), half_life=100)
    train(network)
    average.update(network, batch=4, images_seen=400)
    other.module.load_state_dict(average.module.state_dict())
    for a, b in zip(average.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("style", [False, True])
def test_reestimated_statistics_are_the_mean_over_batches(style):
    generator = make_generator(style=style)
    norm = generator.trunk.blocks[5].spade_2.norm
    batches = [(make_layouts(2)[0], torch.randn(2, 256) if style else None) for _ in range(3)]
    inputs = []
    hook = norm.register_forward_hook(lambda _module, args, _out: inputs.append(args[0]))
    reestimate_statistics(generator, batches)
    hook.remove()
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs])
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))


def test_reestimation_forgets_what_was_there_and_changes_nothing_else():
    generator = make_generator()
    generator.trunk.blocks[2].eval()
    before = copy.deepcopy(generator)
    batches = [(make_layouts(2)[0], None)]
    random_state = torch.get_rng_state()
    reestimate_statistics(generator, batches)
    assert torch.equal(torch.get_rng_state(), random_state)
    once = copy.deepcopy(generator.state_dict())
    reestimate_statistics(generator, batches)
    for name, value in generator.state_dict().items():
        assert torch.equal(value, once[name]), name
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before.state_dict()[name]), name
    for module, old in zip(generator.modules(), before.modules(), strict=True):
        assert module.training == old.training
        assert getattr(module, "momentum", None) == getattr(old, "momentum", None)


@pytest.mark.slow
def test_reestimation_lets_averaged_weights_make_what_training_would():
    """In evaluation mode it makes of a batch what batch statistics make; before, it does not."""
    generator = make_generator(spectral_norm="none")
    S, labels = make_layouts(32)
    untouched = copy.deepcopy(generator).eval()(S, labels, IGNORE).image
    reestimate_statistics(generator, [(S, None)])
    trained_mode = copy.deepcopy(generator)(S, labels, IGNORE).image
    in_evaluation = generator.eval()(S, labels, IGNORE).image
    # Not equal: running variances are the unbiased ones, over 64 values at the trunk's start.
    assert (in_evaluation - trained_mode).abs().mean() < 0.03
    assert (untouched - trained_mode).abs().mean() > 0.15


@pytest.mark.parametrize(
    ("items", "batch", "expected"),
    [(9, 8, 7), (16, 8, 8), (5, 2, 3), (1, 1, 1), (7, 3, 4), (9, 1, 1)],
)
def test_no_last_batch_of_one(items, batch, expected):
    size = even_batch(items, batch)
    assert size == expected
    assert batch == 1 or items % size != 1
