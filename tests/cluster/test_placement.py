"""Roles find their nodes on a cluster of several, or an error names at once what is missing."""

import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import missing
from tests.cluster.commands import environment
from tests.conftest import ROOT

pytestmark = pytest.mark.ray

AMOUNTS = st.integers(0, 8)
NODES = st.lists(st.fixed_dictionaries({"CPU": AMOUNTS, "GPU": AMOUNTS}), max_size=5)


@given(NODES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 10))
def test_what_fits_one_by_one_is_not_missing(nodes, cpus, gpus, count):
    left = [dict(node) for node in nodes]
    placed = 0
    for node in left:
        while node["CPU"] >= cpus and node["GPU"] >= gpus and placed < count:
            node["CPU"], node["GPU"], placed = node["CPU"] - cpus, node["GPU"] - gpus, placed + 1
    shortage = missing({"CPU": cpus, "GPU": gpus}, count, nodes)
    assert (shortage is None) == (placed == count)


def test_what_is_missing_is_named():
    nodes = [{"CPU": 8}, {"CPU": 8}, {"CPU": 4, "rollout": 1}]
    assert missing({"CPU": 2, "rollout": 1}, 2, nodes) == (
        "the nodes hold 1 of them, having 2 x 8 CPU, 0 rollout; 1 x 4 CPU, 1 rollout"
    )
    assert missing({"CPU": 0.5}, 40, nodes) is None


CLUSTER = """
    import time
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for kind in ("rollout", "rollout", "learner"):
        cluster.add_node(num_cpus=2, resources={kind: 2}, labels={"meant-for": kind})
    ray.init(address=cluster.address, log_to_driver=False)

    from cluster.config import RayConfig
    from cluster.placement import Role, reserve
    from policy.errors import UserError

    def nodes_of(group):
        table = ray.util.placement_group_table(group)
        return list(table["bundles_to_node_id"].values())

    rollouts = nodes_of(reserve(Role("rollout", 2, 0.5, 0, "SPREAD", {"rollout": 1}), RayConfig()))
    assert len(set(rollouts)) == 2, rollouts
    learners = nodes_of(reserve(Role("learner", 2, 0.5, 0, "PACK", {"learner": 1}), RayConfig()))
    assert len(set(learners)) == 1 and learners[0] not in rollouts, (learners, rollouts)

    labelled = Role("more", 2, 0.5, 0, "SPREAD", labels={"meant-for": "learner"})
    assert set(nodes_of(reserve(labelled, RayConfig()))) == set(learners)

    def refused(role, config):
        started = time.monotonic()
        try:
            reserve(role, config)
        except UserError as error:
            return str(error), time.monotonic() - started
        raise AssertionError("there should be no room")

    message, took = refused(Role("learner", 1, 0.5, 4, "PACK"), RayConfig())
    assert "no room for learner, 1 x 0.5 CPU, 4 GPU: the nodes hold 0 of them" in message, message
    assert "ray.wait_for_nodes_s" in message and took < 5, message
    nowhere = Role("expert", 1, 0.5, 0, "PACK", labels={"meant-for": "expert"})
    message, took = refused(nowhere, RayConfig())
    assert "1 x 0.5 CPU on nodes with meant-for=expert: there are no such nodes" in message, message
    assert took < 5
    busy = Role("rollout", 3, 0.5, 0, "SPREAD", {"rollout": 1})
    message, _ = refused(busy, RayConfig(start_timeout_s=1))
    assert "the cluster has enough, but others use it" in message and "2 rollout" in message, message

    late = cluster.add_node(num_cpus=1, resources={"expert": 1}, wait=False)
    reserve(Role("expert", 1, 0.5, 0, "PACK", {"expert": 1}), RayConfig(wait_for_nodes_s=60))
    ray.shutdown()
    cluster.shutdown()
    print("all well")
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_roles_on_a_head_and_three_nodes():
    """In a process of its own: the cluster's processes are this test's alone."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLUSTER)],
        cwd=ROOT,
        env=environment() | {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "120"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("all well"), done.stdout + done.stderr
