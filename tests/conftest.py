"""What every test shares: one thread, a seed, no deadline, a free port, CamVid if it is there."""

import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: the first call into torch takes far longer than the next. Derandomised: a red run
# in CI is red on every machine.
settings.register_profile("ecgan", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ecgan")
torch.set_num_threads(1)  # sums on several threads may round differently from run to run


@pytest.fixture
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing of a test gets into the user's cache, nor the other way round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def camvid():
    """The folder of CamVid (README, "Tests"); its photos may not be distributed."""
    path = os.environ.get("ECGAN_CAMVID")
    if not path:
        pytest.skip("ECGAN_CAMVID does not name CamVid's folder")
    return Path(path)
