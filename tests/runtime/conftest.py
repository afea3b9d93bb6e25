"""A small Ray cluster, and where the jobs of a test run."""

import pytest


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of 2 CPUs and a GPU that need not be there."""
    ray = pytest.importorskip("ray")
    ray.init(
        address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False,
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request):
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    return request.param


@pytest.fixture(params=[pytest.param("ray", marks=pytest.mark.slow)])
def pool(request, local_ray):
    return request.param
