import httpx
import pytest

from rewards.gateway import start_gateway
from rewards.serving import deploy_experts, shutdown_experts
from tests.rewards.asking_the_gateway import CONFIG


@pytest.fixture(scope="module")
def serving(local_ray):
    """A Serve that is gone when the module is done."""
    yield
    shutdown_experts()


@pytest.fixture(scope="module")
def http(serving):
    deploy_experts(CONFIG)
    with httpx.Client(base_url=start_gateway(CONFIG), timeout=30) as client:
        yield client
