"""Adapters: they alone train, the rest of the system never hears of them."""

import numpy as np
import pytest
import ray
import torch

from actors.torch_sampler import TorchSampler
from learner.batch import make_batch
from learner.config import LoraSettings
from learner.logprobs import JanusLogps
from learner.lora import adapters_off, add_adapters, exports, lora_layers
from policy.errors import UserError
from policy.model import load_janus
from policy.records import SampleRequest
from policy.weights import unpack
from tests.learner.ranks import save, scored

pytestmark = pytest.mark.deepspeed

LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture
def adapted(janus):
    """A model whose adapters already do something."""
    add_adapters(janus, LoraSettings(**LORA))
    torch.manual_seed(1)
    for layer in lora_layers(janus.model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    return janus


def logps_of(janus, samples):
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
    with torch.no_grad():
        out = JanusLogps(janus)(batch)
    return torch.cat([out.cot, out.image], 1)


def test_merged_is_adapted_and_switched_off_is_the_original(policy_config, adapted, samples):
    original = load_janus(policy_config)
    with adapters_off(adapted.model):
        assert torch.equal(logps_of(adapted, samples), logps_of(original, samples))
    ours = logps_of(adapted, samples)
    assert (ours - logps_of(original, samples)).abs().max() > 0.01
    parameters = dict(original.model.named_parameters())
    everything = list(exports(adapted.model))
    assert {e.name for e in everything} == parameters.keys()
    with torch.no_grad():
        for export in everything:
            assert export.shape == parameters[export.name].shape
            parameters[export.name].copy_(export.whole())
    torch.testing.assert_close(logps_of(original, samples), ours, atol=1e-5, rtol=0)


def test_only_adapters_require_gradients(adapted):
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in n or ".lora_B." in n for n in trained)
    published = {e.name for e in exports(adapted.model) if e.trained}
    assert len(published) == len(trained) / 2 == 3 * 2  # three modules in each of two layers
    assert all(
        name.endswith((".q_proj.weight", ".v_proj.weight", ".down_proj.weight")) for name in published
    )


@pytest.mark.parametrize("target", ["q_prj", "embed_tokens", "mlp"])
def test_a_target_that_cannot_be_adapted_is_named(janus, target):
    with pytest.raises(UserError, match=f"no linear module '{target}'; it has down_proj, gate_proj"):
        add_adapters(janus, LoraSettings(target_modules=["q_proj", target]))


def train(start, groups, folder, **changes):
    """Three steps; the learner, metrics, and published weights."""
    learner = start(lora=LORA, lr=5e-2, **changes)
    metrics = [ray.get(learner.step(groups))[0] for _ in range(3)]
    published = learner.publish(1)
    manifest, *buckets = ray.get(ray.get(published.parts))
    tensors = dict(unpack(manifest, buckets))
    save(learner, folder)
    return learner, metrics, tensors


def test_samplers_and_files_get_merged_weights_at_every_stage(
    policy_config, start, groups, prompts, sampling, tmp_path
):
    before = load_janus(policy_config).model.state_dict()
    results = []
    for ranks, stage, extra in (
        (1, 1, {}),
        (2, 2, {"gradient_checkpointing": True, "logprob_chunk_tokens": 7}),
        (2, 3, {"gradient_checkpointing": True, "logprob_chunk_tokens": 7}),
    ):
        folder = tmp_path / f"saved{stage}"
        learner, metrics, tensors = train(start, groups, folder, ranks=ranks, zero_stage=stage, **extra)
        assert metrics[0]["kl/cot"] == metrics[0]["kl/image"] == 0
        assert metrics[2]["kl/image"] > 1e-4
        results.append(tensors)

        # A sampler with these weights draws what the learner finds to be exactly on-policy.
        sampler = TorchSampler(load_janus(policy_config), sampling, run_seed=3)
        sampler.load_weights(1, tensors.items())
        fresh = sampler.generate([SampleRequest(p, i) for p in prompts[:2] for i in range(2)])
        saved = load_janus(policy_config.model_copy(update={"path": str(folder)}))
        batch = make_batch(fresh, [0.0] * 4, pad_id=saved.pad_id)
        np.testing.assert_allclose(
            logps_of(saved, fresh)[batch.token_weights > 0],
            batch.sampled_logps[batch.token_weights > 0],
            atol=1e-5,
        )
        again = scored(fresh, np.array([[1, -1]] * 2, np.float32))
        then = ray.get(learner.step(again))[0]
        start.stop(learner)
        assert then["ratio/cot"] == pytest.approx(1, abs=1e-5)
        assert then["ratio/image"] == pytest.approx(1, abs=1e-5)
        drawn = float(np.mean([s.image_logps.mean() for s in fresh]))
        assert then["logp/image"] == pytest.approx(drawn, abs=1e-5)

        for name, tensor in saved.model.state_dict().items():
            assert torch.equal(tensor, tensors.get(name, before[name])), name
    for other in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=0)


def test_adapters_train_in_bfloat16(policy_config, start, groups, tmp_path):
    policy = policy_config.model_copy(update={"dtype": "bfloat16"})
    saved = tmp_path / "saved"
    _, metrics, tensors = train(start, groups, saved, policy=policy, ranks=2, zero_stage=3)
    assert np.isfinite([m["loss"] for m in metrics]).all()
    assert metrics[0]["kl/image"] == 0
    assert metrics[2]["kl/image"] > 1e-4
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    load_janus(policy.model_copy(update={"path": str(tmp_path / "saved")}))
