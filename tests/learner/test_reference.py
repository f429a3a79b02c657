"""Wherever the reference model is, the KL term is the same."""

import numpy as np
import pytest
import ray
import torch

from learner.batch import make_batch
from learner.deepspeed_engine import offload
from learner.logprobs import JanusLogps
from policy.model import load_janus

pytestmark = pytest.mark.deepspeed


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-4)])
def test_every_kind_of_reference_gives_the_same_kl(policy_config, groups, start, dtype, tolerance):
    policy = policy_config.model_copy(update={"dtype": dtype})

    def some_steps(reference, ranks, stage):
        learner = start(policy=policy, reference=reference, ranks=ranks, zero_stage=stage)
        metrics = [ray.get(learner.step(groups))[0] for _ in range(4)]
        start.stop(learner)
        return np.array([[m["kl/cot"], m["kl/image"], m["loss"]] for m in metrics])

    copied = some_steps("copy", 1, 1)
    assert (copied[-1, :2] > 1e-4).all()
    for reference, ranks, stage in (("offload", 1, 1), ("sharded", 2, 3)):
        np.testing.assert_allclose(some_steps(reference, ranks, stage), copied, atol=tolerance)


def test_an_offloaded_model_keeps_its_parameters_at_home(policy_config, samples):
    """During a forward every parameter is a loan, and afterwards it is back in the host's memory."""
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
    plain = JanusLogps(load_janus(policy_config))
    module = JanusLogps(load_janus(policy_config))
    module.requires_grad_(False)
    homes = {name: p.data_ptr() for name, p in module.named_parameters()}
    offload(module, "cpu")
    with torch.no_grad():
        for mine, other in zip(module(batch), plain(batch), strict=True):
            assert mine is other is None or torch.equal(mine, other)
    assert {name: p.data_ptr() for name, p in module.named_parameters()} == homes
