"""What the tests of learners share: ranks that take turns, and groups to learn from."""

import pytest

from tests.learner.ranks import ADVANTAGES, RankPool, scored, settings


@pytest.fixture(scope="package")
def rank_pool(local_ray):
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture
def start(policy_config, rank_pool):
    """Starts a learner as `RankPool.start` does; other arguments are `ranks.settings`'. Those that a
    test leaves end with it; `start.stop` ends one before."""
    started = []

    def begin(*, policy=policy_config, resume=None, fresh=False, **changes):
        started.append(rank_pool.start(policy, settings(**changes), resume, fresh=fresh))
        return started[-1]

    def stop(learner):
        started.remove(learner)
        rank_pool.stop(learner)

    begin.stop = stop
    yield begin
    for learner in started:
        rank_pool.stop(learner)


@pytest.fixture
def groups(samples):
    return scored(samples, ADVANTAGES)
