"""What the tests of benchmarks share."""

import pytest
import ray


@pytest.fixture
def no_ray(monkeypatch):
    """Nothing may start a Ray or connect to one. (Another test's may be there.)"""

    def refuse(*args, **kwargs):
        raise AssertionError("this started Ray")

    monkeypatch.setattr(ray, "init", refuse)
