import pytest

from rewards.serving import shutdown_experts


@pytest.fixture(scope="module")
def serving(local_ray):
    """A Serve that is gone when the module is done."""
    yield
    shutdown_experts()
