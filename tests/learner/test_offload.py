"""Optimizer state in host memory."""

import pytest
import ray
import torch

from tests.learner.ranks import five_steps

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]


def fused(rank) -> bool:
    """The one that makes no temporaries on a GPU, and takes a ninth of the time on a CPU."""
    return rank.engine.basic_optimizer.defaults["fused"]


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_takes_the_same_steps(start, groups, stage):
    zero = {"stage3_param_persistence_threshold": 0}
    offloaded = {"zero_optimization": {**zero, "offload_optimizer": {"device": "cpu"}}}
    results = []
    for deepspeed in ({"zero_optimization": zero}, offloaded):
        learner = start(ranks=2, zero_stage=stage, deepspeed=deepspeed)
        assert all(ray.get([rank.__ray_call__.remote(fused) for rank in learner.ranks]))
        metrics, weights = five_steps(learner, groups, None)
        results.append(([m["loss"] for m in metrics], weights))
        start.stop(learner)
    (wanted, plain), (found, there) = results
    assert found == pytest.approx(wanted, abs=1e-5)
    for name, tensor in plain.items():
        torch.testing.assert_close(there[name], tensor, atol=1e-5, rtol=0)
