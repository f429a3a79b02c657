"""The rollout worker in a process of its own, with weights from the object store."""

import numpy as np
import pytest
import ray
import torch

from actors.config import ActorsConfig
from actors.image_stats import ImageSums
from actors.rollout import RolloutWorker
from actors.torch_sampler import TorchSampler
from policy.model import load_janus
from policy.records import Group, PublishedWeights, Work
from policy.weights import TensorSpec, pack, plan_buckets

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def actor(policy_config, sampling):
    handle = ray.remote(RolloutWorker).options(num_cpus=0.5)
    handle = handle.remote(policy_config, ActorsConfig(sampling=sampling), 0)
    yield handle
    ray.kill(handle)


@pytest.fixture
def groups(prompts):
    return [Group(prompt, 2) for prompt in prompts[:3]]


def draw(actor, groups, weights):
    refs = actor.generate.options(num_returns=len(groups) + 1).remote(Work.of([groups], weights))
    *drawn, report = ray.get(refs)
    return drawn, report


def publish(version, tensors, bucket_bytes=1000):
    specs = [TensorSpec.of(n, t) for n, t in tensors.items()]
    manifest = plan_buckets(specs, bucket_bytes)
    buckets = [ray.put(pack([tensors[spec.name] for spec in bucket])) for bucket in manifest]
    return PublishedWeights(version, ray.put([ray.put(manifest), *buckets]))


@pytest.fixture
def changed(policy_config):
    """Other weights for three parameters of the trunk."""
    model = load_janus(policy_config).model
    names = [n for n, _ in model.named_parameters() if n.endswith("self_attn.q_proj.weight")]
    return {n: model.get_parameter(n).detach().flip(0).clone() for n in ["lm_head.weight", *names]}


def test_every_group_is_an_object_of_its_own_and_the_report_adds_up(actor, groups):
    drawn, report = draw(actor, groups, None)
    assert [[s.id for s in group] for group in drawn] == [[o.sample_id for o in g] for g in groups]
    samples = [sample for group in drawn for sample in group]
    assert report.samples == len(samples) == 6
    assert report.cot_tokens == sum(len(s.cot_ids) for s in samples)
    assert report.image_tokens == 6 * 36
    assert report.images == ImageSums.of([np.stack([s.image for s in group]) for group in drawn])
    assert (report.images.images, report.images.pairs) == (6, 3)
    assert report.weights_version == 0


def test_a_pulled_version_draws_what_a_sampler_with_those_weights_draws(
    actor, groups, changed, policy_config, sampling
):
    drawn, report = draw(actor, groups, publish(5, changed))
    assert report.weights_version == 5
    janus = load_janus(policy_config)
    expected = TorchSampler(janus, sampling, run_seed=0)
    expected.load_weights(5, changed.items())
    wanted = expected.generate([order for group in groups for order in group])
    got = [sample for group in drawn for sample in group]
    assert {s.weights_version for s in got} == {5}
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a.cot_ids, b.cot_ids)
        np.testing.assert_array_equal(a.image_ids, b.image_ids)


def test_a_half_received_version_is_never_used(actor, groups, changed):
    before, _ = draw(actor, groups, None)
    whole = publish(6, changed)
    *most, _ = ray.get(whole.parts)
    short = PublishedWeights(6, ray.put(most))
    torn = PublishedWeights(6, ray.put([*most, ray.put(np.zeros(3, np.uint8))]))
    strange = publish(6, {**changed, "nobody.weight": torch.zeros(3)})
    for broken in (short, torn, strange):
        with pytest.raises(ray.exceptions.RayTaskError, match=r"incomplete|do not belong"):
            draw(actor, groups, broken)
    again, report = draw(actor, groups, None)
    assert report.weights_version == 0
    for a, b in zip(again, before, strict=True):
        assert [s.image.tobytes() for s in a] == [s.image.tobytes() for s in b]
    assert draw(actor, groups, whole)[1].weights_version == 6
