"""Activation checkpointing of the trunk: the same numbers, the same state, less memory."""

import itertools
from functools import cache

import pytest
import torch

from ecgan.errors import UserError
from ecgan.models.encoder import Trunk, second_pass
from ecgan.recipe import label_space, load_recipe, parse_recipe
from ecgan.runtime.torch_private import TorchSpectralNorm
from ecgan.training import estimate

SIZE = (32, 64)


def trunk(checkpointed, *, style, spectral_norm="default"):
    torch.manual_seed(0)
    made = Trunk(
        5, 4, SIZE, upsamplings=5, style_dim=8 if style else None, spectral_norm=spectral_norm
    ).double()
    made.checkpointed = checkpointed
    return made


def two_steps(network, *, style):
    """Losses, gradients and buffers after two steps of a plain optimiser."""
    torch.manual_seed(1)
    S = torch.rand(2, 5, *SIZE, dtype=torch.float64)
    z = torch.randn(2, 8, dtype=torch.float64) if style else None
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        features, taps = network(S, z)
        loss = features.square().mean() + taps[3].mean()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in network.parameters())]
        optimizer.step()
    return [*found, *(buffer.clone() for buffer in network.buffers())]


@cache
def plain_steps(spectral_norm, *, style):
    return two_steps(trunk(0, style=style, spectral_norm=spectral_norm), style=style)


@pytest.mark.slow
@pytest.mark.parametrize("style", [False, True])
@pytest.mark.parametrize(
    ("checkpointed", "spectral_norm"),
    [*itertools.product([3, 7], ["default", "all", "none"]), (1, "default")],
)
def test_steps_are_the_same_to_the_bit(checkpointed, spectral_norm, style):
    plain = plain_steps(spectral_norm, style=style)
    again = two_steps(trunk(checkpointed, style=style, spectral_norm=spectral_norm), style=style)
    assert len(plain) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_trunk_is_left_training():
    network = trunk(7, style=False)
    two_steps(network, style=False)
    assert all(module.training for module in network.modules())
    assert any(isinstance(module, TorchSpectralNorm) for module in network.modules())


def test_a_second_pass_counts_no_batch_whatever_the_norm_is():
    """Also where ranks share their statistics, whose norms are no BatchNorm2d."""
    block = torch.nn.SyncBatchNorm.convert_sync_batchnorm(trunk(1, style=False).blocks[0])
    norms = [m for m in block.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert norms
    with second_pass(block):
        for norm in norms:
            norm.running_mean.add_(1)
            norm.num_batches_tracked.add_(1)
    assert not any(norm.running_mean.any() or norm.num_batches_tracked for norm in norms)


def test_blocks_are_computed_again_only_for_gradients():
    network = trunk(2, style=False)
    calls = []
    for index, block in enumerate(network.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    S = torch.rand(1, 5, *SIZE, dtype=torch.float64)
    network(S)[0].sum().backward()
    assert sorted(calls) == [0, 1, 2, 3, 4, 5, 5, 6, 6]
    calls.clear()
    with torch.no_grad():
        network(S)
    assert calls == [*range(7)]


def estimated(recipe, images, *, checkpointing):
    """Bytes of a training in bfloat16, parameters included."""
    changed = {"checkpointing": checkpointing, "precision": "bfloat16"}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=changed)})
    space = label_space(recipe.data)
    trained = sum(estimate.parameters(recipe, space).values())
    return estimate.memory(recipe, space, images, trained)


@pytest.mark.slow
def test_the_estimate_knows_it():
    recipe = load_recipe("demo", ["data.classes=[a, b]"])
    assert estimated(recipe, 16, checkpointing=3) < 0.8 * estimated(recipe, 16, checkpointing=0)


@pytest.mark.slow
def test_the_large_recipe_leaves_half_of_an_80_gb_card_to_what_is_not_counted():
    recipe = load_recipe("cityscapes_512x1024")
    at_once = recipe.train.batch // recipe.train.accumulate
    found = estimated(recipe, at_once, checkpointing=recipe.train.checkpointing)
    assert 10e9 < found < 40e9
    assert estimated(recipe, at_once, checkpointing=0) > 1.4 * found


def test_not_together_with_compile():
    with pytest.raises(UserError, match="checkpointing: not together with compile"):
        parse_recipe({"train": {"compile": True, "checkpointing": 1}}, "test")
