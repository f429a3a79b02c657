"""The rules that every sampler keeps (actors/sampler.py), on a tiny random Janus."""

import dataclasses

import numpy as np
import pytest
import torch

from actors.sampler import SamplingConfig
from actors.torch_sampler import TorchSampler
from learner.batch import make_batch
from learner.logprobs import JanusLogps
from policy.errors import UserError
from policy.records import SampleRequest


def drawn(sample):
    """What was chosen, without the floats beside it."""
    return (sample.id, sample.cot_ids.tolist(), sample.image_ids.tolist())


@pytest.fixture
def orders(prompts):
    return [SampleRequest(prompt, index) for prompt in prompts for index in range(2)]


def test_no_sample_depends_on_its_batch_mates(janus, sampling, orders):
    sampler = TorchSampler(janus, sampling, run_seed=0)
    together = sampler.generate(orders)
    assert len({len(s.cot_prompt_ids) for s in together}) > 1
    assert len({len(s.image_prompt_ids) for s in together}) > 1
    for order, sample in list(zip(orders, together, strict=True))[::5]:
        (alone,) = sampler.generate([order])
        assert drawn(alone) == drawn(sample)
        np.testing.assert_allclose(alone.image_logps, sample.image_logps, atol=1e-5)
        # The decoder takes eight images at a time, and rounds its floats to levels.
        np.testing.assert_allclose(alone.image.astype(int), sample.image.astype(int), atol=1)
    shuffled = sampler.generate(orders[::-1])
    assert [drawn(s) for s in shuffled[::-1]] == [drawn(s) for s in together]


def test_tokens_depend_on_seed_prompt_and_index_alone(janus, sampling, orders):
    once = TorchSampler(janus, sampling, run_seed=0).generate(orders)
    again = TorchSampler(janus, sampling, run_seed=0).generate(orders)
    other = TorchSampler(janus, sampling, run_seed=1).generate(orders)
    assert [drawn(s) for s in once] == [drawn(s) for s in again]
    assert all(a.image_ids.tolist() != b.image_ids.tolist() for a, b in zip(once, other, strict=True))
    pairs = zip(once[::2], once[1::2], strict=True)
    assert all(a.image_ids.tolist() != b.image_ids.tolist() for a, b in pairs)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_logps_are_those_of_a_teacher_forced_forward(janus, orders, temperature, guidance):
    """Conditional and guided, over the whole vocabulary, at the configured temperature."""
    config = SamplingConfig(guidance=guidance, temperature=temperature, max_cot_tokens=12)
    samples = TorchSampler(janus, config, run_seed=0).generate(orders)
    batch = make_batch(samples, [0.0] * len(samples), pad_id=janus.pad_id)
    with torch.no_grad():
        logps = JanusLogps(janus, temperature=temperature, guidance=guidance)(batch)
    split = batch.cot.shape[1]
    mask = batch.cot_mask
    assert torch.allclose(logps.cot[mask], batch.sampled_logps[:, :split][mask], atol=1e-5)
    assert torch.allclose(logps.image, batch.sampled_logps[:, split:], atol=1e-5)
    assert torch.allclose(logps.guided, batch.guided_logps, atol=2e-5)
    gap = (batch.guided_logps - batch.sampled_logps[:, split:]).abs().max()
    assert (gap == 0) == (guidance == 1.0)


def test_a_cot_ends_at_its_end_token_or_is_cut_at_the_front(janus, sampling, orders):
    samples = TorchSampler(janus, sampling, run_seed=0).generate(orders)
    for sample in samples:
        ids = sample.cot_ids.tolist()
        assert janus.eos_id not in ids[:-1]
        assert (sample.finish_reason == "stop") == (ids[-1] == janus.eos_id)
        assert len(ids) == len(sample.cot_logps)
        if sample.finish_reason == "length":
            assert len(ids) == sampling.max_cot_tokens
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    config = SamplingConfig(guidance=2.0, max_cot_tokens=sampling.max_cot_tokens + 6)
    for short, long in zip(samples, TorchSampler(janus, config, 0).generate(orders), strict=True):
        assert long.cot_ids[: len(short.cot_ids)].tolist() == short.cot_ids.tolist()


def test_greedy_takes_the_likeliest_tokens(janus, prompts):
    config = SamplingConfig(guidance=2.0, temperature=0.0, max_cot_tokens=12)
    sampler = TorchSampler(janus, config, run_seed=0)
    one, other = sampler.generate([SampleRequest(prompts[0], 0), SampleRequest(prompts[0], 5)])
    assert one.cot_ids.tolist() == other.cot_ids.tolist()
    assert one.image_ids.tolist() == other.image_ids.tolist()


def test_loaded_weights_change_samples_and_wrong_ones_change_nothing(janus, sampling, orders):
    sampler = TorchSampler(janus, sampling, run_seed=0)
    before = [drawn(s) for s in sampler.generate(orders)]
    name, parameter = "lm_head.weight", janus.model.lm_head.weight.detach().clone()
    for wrong in ([("nobody.weight", parameter)], [(name, parameter[:2])]):
        with pytest.raises(ValueError, match="do not belong to this model"):
            sampler.load_weights(7, [(name, parameter * 0), *wrong])
    assert [drawn(s) for s in sampler.generate(orders)] == before
    assert sampler.weights_version == 0
    sampler.load_weights(8, [(name, parameter.flip(0))])
    after = sampler.generate(orders)
    assert [drawn(s) for s in after] != before
    assert {s.weights_version for s in after} == {8}


def test_a_prompt_longer_than_the_context_is_an_error(janus, sampling, prompts):
    long = dataclasses.replace(prompts[0], text=" ".join(["red"] * 200))
    with pytest.raises(UserError, match="do not fit the model's context of 128"):
        TorchSampler(janus, sampling, run_seed=0).generate(
            [SampleRequest(prompts[1], 0), SampleRequest(long, 0)]
        )


def test_who_listens_hears_every_token_as_it_is_drawn(janus, sampling, orders):
    sampler = TorchSampler(janus, sampling, run_seed=0)
    prompts = [janus.cot_prompt_ids(order.prompt.text) for order in orders[:8]]
    keys = list(range(8))
    snapshots: list[list[list[int]]] = []

    def listen(ids):
        snapshots.append([list(row) for row in ids])

    cots = sampler.generate_cots(prompts, keys, listen)
    assert cots == sampler.generate_cots(prompts, keys)
    assert snapshots == [[row[:n] for row in cots.ids] for n in range(1, max(map(len, cots.ids)) + 1)]
    snapshots.clear()
    images = sampler.generate_images(prompts, keys, listen).ids.tolist()
    assert images == sampler.generate_images(prompts, keys).ids.tolist()
    assert snapshots == [[row[:n] for row in images] for n in range(1, janus.image_tokens + 1)]


def test_without_thinking_the_model_is_asked_for_the_prompt_as_it_stands(janus, prompts, sampling):
    sampler = TorchSampler(janus, sampling, run_seed=0)
    requests = [SampleRequest(prompt, 0) for prompt in prompts[:2]]
    thinking, plain = sampler.generate(requests), sampler.generate(requests, think=False)
    for prompt, one, other in zip(prompts, thinking, plain, strict=False):
        words = sampler.janus.tokenizer.decode(other.image_prompt_ids)
        expected = f"User: {prompt.text}\n\nAssistant:<begin_of_image>"
        assert other.image_prompt_ids.tolist() == sampler.janus.tokenizer(expected).input_ids, words
        assert other.cot_text == "" and other.finish_reason == "none"
        assert len(other.cot_ids) == len(other.cot_logps) == len(other.cot_prompt_ids) == 0
        assert one.cot_text and (one.image_logps != other.image_logps).any()
        assert other.image_ids.shape == one.image_ids.shape
