"""Which implementation of the operations a test runs."""

import pytest


@pytest.fixture
def kernels(monkeypatch):
    """Triton for all but float64, in tiles far smaller than the inputs."""
    from ecgan.ops.triton import class_conv as triton_class_conv
    from ecgan.ops.triton import contrast as triton_contrast
    from ecgan.ops.triton import onehot
    from ecgan.ops.triton import similarity as triton_similarity
    from ecgan.ops.triton.pairs import Blocks

    monkeypatch.setenv("ECGAN_KERNELS", "triton")
    for module in (triton_contrast, triton_similarity):
        monkeypatch.setattr(module, "blocks", lambda stored: Blocks(32, 32, 4, 2))
    monkeypatch.setattr(triton_class_conv, "PIECE", 32)
    for module in (triton_class_conv, onehot):
        monkeypatch.setattr(module, "PIXELS", 16)


@pytest.fixture(params=["torch", "triton"])
def implementation(kernels, monkeypatch, request):
    monkeypatch.setenv("ECGAN_KERNELS", request.param)
