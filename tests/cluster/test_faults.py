"""Processes and nodes are taken from a run; it ends with the weights of one in peace."""

import signal

import pytest
from ray.cluster_utils import Cluster

from cluster.ledger import faults, read_ledger
from tests.cluster.live_run import LiveRun

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def assert_all_accounted_for(run: LiveRun, groups: int) -> None:
    """Every group once, in its order, and learned from."""
    entries = read_ledger(run.folder)
    assert faults(entries) == []
    assert [e.group for e in entries] == list(range(groups))
    assert {e.outcome for e in entries} <= {"trained", "filtered"}


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    run = LiveRun(tmp_path_factory.mktemp("calm"), 16)
    run.wait_for_success()
    return run


@pytest.mark.timeout(600)
def test_a_run_in_trouble_ends_as_one_in_peace(peace, tmp_path):
    """Every kind of process is killed or stopped, alone and two at once."""
    run = LiveRun(tmp_path / "rough", 16)
    run.reach(1)
    run.strike("ray::RolloutWorker")
    run.reach(2)
    run.strike("ray::RolloutWorker", signal.SIGSTOP)
    run.reach(4)
    run.strike("ray::ServeReplica:expert_objects")
    run.reach(5)
    run.strike("ray::ServeController")
    run.reach(6)
    run.strike("ray::LearnerWorker")
    run.reach(9)
    run.strike("ray::LearnerWorker", signal.SIGSTOP)
    run.reach(12)
    run.strike("ray::RewardWorker")
    run.reach(13)
    run.strike("ray::RewardWorker", signal.SIGSTOP)
    run.strike("ray::RolloutWorker")
    run.reach(14)
    run.process.kill()
    run.wait()
    again = LiveRun(tmp_path / "rough", 16)
    output = again.wait_for_success()
    for text in (
        "is lost; its groups are generated again",
        "hangs; its groups",
        "the reward worker hangs; a new one scores its groups again",
        "the learner was lost in step",
        "goes on from step",
    ):
        assert text in output

    assert again.model(16) == peace.model(16)
    assert_all_accounted_for(again, groups=3 * 16)


@pytest.mark.timeout(400)
def test_a_node_is_lost_with_all_that_ran_on_it(peace, tmp_path):
    """A rollout worker, perhaps with replicas of experts beside it."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "resources": {"learner": 2}, "include_dashboard": False},
    )
    try:
        nodes = [cluster.add_node(num_cpus=2, resources={"rollout": 2}) for _ in range(2)]
        run = LiveRun(
            tmp_path / "rough",
            8,
            f"ray.address={cluster.address}",
            "actors.resources.rollout=1",
            "learner.resources.learner=1",
            env={"RAY_AUTH_MODE": "disabled"},  # as conftest.py has it for all that is started here
        )
        run.reach(3)
        cluster.remove_node(nodes[0], allow_graceful=False)
        output = run.wait_for_success()
    finally:
        cluster.shutdown()
    assert "is lost; its groups are generated again" in output
    assert run.model(8) == peace.model(8)
    assert_all_accounted_for(run, groups=3 * 8)
