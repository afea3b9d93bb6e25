"""The real data set and the samples that all of these tests share."""

import pytest

from ecgan.evaluation.downstream import copies
from tests.helpers.downstream import make_samples, write_real


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A real data set, and samples of generators of all of it and of a third of it."""
    root = tmp_path_factory.mktemp("downstream")
    write_real(root / "real")
    make_samples(root / "whole", root / "real")
    make_samples(root / "third", root / "real", fraction=0.3)
    return root


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """The copy check sees small pictures here."""
    monkeypatch.setattr(copies, "_SIDE", 128)
