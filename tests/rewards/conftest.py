import pytest
import ray

from rewards.serving import shutdown_experts


@pytest.fixture(scope="package")
def cluster():
    """A local Ray for all tests of this folder; Serve is started by those who need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def serving(cluster):
    """A Serve that is gone when the module is done."""
    yield
    shutdown_experts()
