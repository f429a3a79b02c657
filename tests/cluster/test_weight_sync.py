"""Weights from a real learner to real rollout workers, by broadcast and through the store."""

from importlib.util import find_spec

import numpy as np
import pytest
import ray

from actors.config import ActorsConfig
from actors.rollout import RolloutWorker
from actors.sampler import SamplingConfig
from actors.vllm.config import VLLMConfig
from cluster.config import RunConfig
from cluster.weight_sync import WeightSync, wants_broadcast
from learner.config import LearnerConfig
from learner.group import LearnerGroup, TrainingGroups
from policy.errors import UserError
from policy.records import PublishedWeights, SampleRequest
from tests.actors.test_rollout import draw

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]

SAMPLING = SamplingConfig(guidance=2.0, max_cot_tokens=8)
SAMPLERS = ["torch", "vllm"] if find_spec("vllm") else ["torch", "torch"]


def config(policy, **learner) -> RunConfig:
    settings = {"lr": 1e-2, "num_cpus": 0.5, "timeout_s": 60, "bucket_mb": 0.2, **learner}
    return RunConfig.model_construct(
        policy=policy,
        actors=ActorsConfig(count=2, sampling=SAMPLING),
        learner=LearnerConfig(**settings),
    )


@pytest.fixture
def actors(roomy_policy):
    settings = VLLMConfig(kv_cache_mb=8)
    handles = [
        ray.remote(RolloutWorker)
        .options(num_cpus=0.5)
        .remote(roomy_policy, ActorsConfig(sampler=name, sampling=SAMPLING, vllm=settings), 0)
        for name in SAMPLERS
    ]
    ray.get([actor.ready.remote() for actor in handles])
    yield handles
    for actor in handles:
        ray.kill(actor)


def images(actor, groups, weights):
    drawn, report = draw(actor, groups, weights)
    return report.weights_version, [s.image_ids.tolist() for group in drawn for s in group]


@pytest.mark.slow
def test_a_broadcast_brings_what_the_store_brings_and_a_lost_actor_ends_it(
    roomy_policy, actors, prompts, caplog
):
    run = config(roomy_policy, transport="broadcast", ranks=2, zero_stage=3)
    run.learner.deepspeed = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    learner = LearnerGroup.start(roomy_policy, run.learner, temperature=1.0, guidance=2.0)
    sync = WeightSync(run, learner, actors)
    assert sync.broadcasts
    groups = [[SampleRequest(p, n) for n in range(2)] for p in prompts[:2]]
    before, _ = draw(actors[0], groups, None)
    learn = TrainingGroups.of(list(map(ray.put, before)), np.array([[1, -1]] * 2, np.float32))
    ray.get(learner.step(learn))

    sent = sync.publish(1)
    assert sent.parts is None
    found = [images(actor, groups, sent) for actor in actors]
    assert found[0] == found[1]
    assert found[0][1] != [s.image_ids.tolist() for group in before for s in group]

    late = ray.remote(RolloutWorker).options(num_cpus=0.5)
    late = late.remote(roomy_policy, ActorsConfig(sampler="torch", sampling=SAMPLING), 0)
    with pytest.raises(ray.exceptions.RayTaskError, match="was broadcast"):
        draw(late, groups, sent)
    stored = learner.publish(1)
    assert images(late, groups, stored) == found[0]

    ray.kill(actors[1])
    ray.get(learner.step(learn))
    again = sync.publish(2)
    assert not sync.broadcasts
    assert "the object store instead" in caplog.text
    assert images(actors[0], groups, again) == images(late, groups, again)
    assert images(late, groups, again)[0] == 2
    ray.kill(late)
    learner.stop()


def test_what_can_be_broadcast(roomy_policy):
    on_gpus = config(roomy_policy, num_gpus=1.0)
    on_gpus.actors.num_gpus = 1.0
    assert wants_broadcast(on_gpus)
    assert not wants_broadcast(config(roomy_policy))
    assert wants_broadcast(config(roomy_policy, transport="broadcast"))
    with pytest.raises(UserError, match="between GPUs or between CPUs"):
        wants_broadcast(config(roomy_policy, num_gpus=1.0, transport="broadcast"))


class CountingLearner:
    """Stands for a learner, where only versions matter."""

    def join_broadcast(self, handles):
        pass

    def broadcast(self):
        return []

    def publish(self, version, incarnation):
        return PublishedWeights(version, "in the store", incarnation)


def test_who_missed_a_broadcast_is_given_the_newest_version_under_its_own_number(roomy_policy, caplog):
    """A broadcast leaves nothing behind, so the version before cannot be had any more."""
    handles = []
    sync = WeightSync(config(roomy_policy, transport="broadcast"), CountingLearner(), handles)
    assert sync.publish(3) == PublishedWeights(3)
    assert sync.publish(4) == PublishedWeights(4)
    assert sync.pullable() == PublishedWeights(4, "in the store")
    assert sync.publish(5) == PublishedWeights(5), "the members are all there: broadcasts go on"

    handles.append("a new worker")
    assert sync.publish(6) == PublishedWeights(6, "in the store")
    assert not sync.broadcasts
    assert "a rollout worker was replaced" in caplog.text
