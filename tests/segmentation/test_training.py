"""Loss and optimiser of segmenters."""

import math

import numpy as np
import pytest
import torch

from ecgan.segmentation import training


def test_loss_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    learnt = torch.randint(3, (2, 4, 4))
    learnt[0, :2] = training.VOID
    total, count = 0.0, 0
    for b, y, x in np.ndindex(2, 4, 4):
        if learnt[b, y, x] != training.VOID:
            own = logits[b, :, y, x].tolist()
            total += math.log(sum(map(math.exp, own))) - own[int(learnt[b, y, x])]
            count += 1
    assert training.pixel_loss(logits, learnt).item() == pytest.approx(total / count)
    logits.requires_grad_()
    nothing = training.pixel_loss(logits, torch.full_like(learnt, training.VOID))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


def test_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_0():
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = training.SegmenterOptimizer({0.5: [weight]}, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer._optimizer.param_groups[0]["lr"])
        optimizer.step(weight * 1000)
    expected = [0.5 * min(1, (step + 1) / 2) * (1 - step / 20) for step in range(20)]
    assert rates == pytest.approx(expected)
    assert optimizer._optimizer.param_groups[0]["lr"] == 0
