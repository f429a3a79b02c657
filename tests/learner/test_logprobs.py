"""Chunks and recomputation change memory, never numbers."""

from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.janus.modeling_janus import JanusVQVAEHead

from learner.batch import make_batch
from learner.logprobs import JanusLogps, TokenLogps
from policy.model import load_janus


def plain_logps(head, hidden, ids, temperature, guidance, unconditional):
    """All logits at once, as one would write it first."""
    logits = head(hidden)
    rows = [logits]
    if unconditional is not None:
        away = head(unconditional)
        rows.append(away + guidance * (logits - away))
    return torch.stack([(r / temperature).log_softmax(-1).gather(1, ids[:, None])[:, 0] for r in rows])


def image_head(hidden: int, vocabulary: int) -> JanusVQVAEHead:
    config = SimpleNamespace(
        image_token_embed_dim=hidden,
        projection_dim=hidden,
        hidden_act="gelu",
        num_embeddings=vocabulary,
    )
    return JanusVQVAEHead(config)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    positions=st.integers(0, 40),
    chunk=st.integers(1, 50),
    guidance=st.sampled_from([None, 1.0, 5.0]),
    temperature=st.sampled_from([1.0, 0.7]),
    frozen=st.booleans(),
)
def test_any_chunk_size_gives_the_plain_values_and_gradients(
    seed, positions, chunk, guidance, temperature, frozen
):
    g = torch.Generator().manual_seed(seed)
    head = image_head(8, 30)
    head.requires_grad_(not frozen)
    ids = torch.randint(30, (positions,), generator=g)
    count = 1 if guidance is None else 2
    rows = [torch.randn(positions, 8, generator=g).requires_grad_() for _ in range(count)]
    upstream = torch.randn(count, positions, generator=g)
    unconditional = rows[1] if count == 2 else None
    ours = TokenLogps(head, temperature=temperature, guidance=guidance, chunk=chunk)
    results = []
    inputs = [*rows, *(p for p in head.parameters() if p.requires_grad)]
    for logps in (
        ours(rows[0], ids, unconditional),
        plain_logps(head, rows[0], ids, temperature, guidance, unconditional),
    ):
        gradients = torch.autograd.grad((logps * upstream).sum(), inputs)
        results.append([logps, *gradients])
    for mine, plain in zip(*results, strict=True):
        # Relative to the tensor: guidance 5 makes gradients of hundreds, whose sums differ in order.
        scale = max(1.0, plain.abs().max().item()) if plain.numel() else 1.0
        torch.testing.assert_close(mine, plain, atol=1e-6 * scale, rtol=1e-6)


@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("entropy", ["measure", "learn"])
def test_entropies_are_those_of_the_last_distribution(guidance, frozen, entropy):
    """With gradients through them only if they are learned from; none are measured for a reference."""
    torch.manual_seed(1)
    head = image_head(8, 30)
    head.requires_grad_(not frozen)
    ids = torch.randint(30, (11,))
    rows = [torch.randn(11, 8).requires_grad_() for _ in range(1 if guidance is None else 2)]
    away = rows[1] if guidance else None
    ours = TokenLogps(head, temperature=0.7, guidance=guidance, chunk=4, entropy=entropy)
    logits = head(rows[0])
    if guidance:
        logits = head(away) + guidance * (logits - head(away))
    wanted = torch.distributions.Categorical(logits=logits / 0.7).entropy()
    found = ours(rows[0], ids, away)
    torch.testing.assert_close(found[-1], wanted, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found[-1].sum(), rows[0], allow_unused=True)
    if entropy == "learn":
        (plain,) = torch.autograd.grad(wanted.sum(), rows[0])
        torch.testing.assert_close(gradient, plain, atol=1e-5, rtol=1e-4)
    else:
        assert gradient is None or (gradient == 0).all()
    logps = plain_logps(head, rows[0], ids, 0.7, guidance, away)
    torch.testing.assert_close(found[:-1], logps, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert len(ours(rows[0], ids, away)) == len(logps)


@pytest.mark.parametrize("guidance", [None, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_and_checkpointed_layers_change_nothing(policy_config, samples, guidance, dtype):
    """The whole Janus: every variant's values and gradients against those of one chunk, all kept."""
    config = policy_config.model_copy(update={"dtype": dtype})
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)

    def run(chunk, checkpointed):
        module = JanusLogps(load_janus(config), guidance=guidance, chunk_tokens=chunk)
        if checkpointed:
            module.checkpoint_layers()
        logps = module(batch)
        out = torch.cat([x.flatten() for x in logps if x is not None])
        (out * torch.linspace(-1, 1, len(out))).sum().backward()
        return out.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    values, gradients = run(10_000, False)
    assert any("lm_head" in name for name in gradients)
    # In bfloat16 a weight's gradient is rounded after every chunk that adds to it.
    share = 1e-6 if dtype == "float32" else 0.03
    for chunk, checkpointed in ((10_000, True), (13, False), (13, True)):
        ours, theirs = run(chunk, checkpointed)
        torch.testing.assert_close(ours, values, atol=1e-6, rtol=1e-6)
        assert theirs.keys() == gradients.keys()
        for name, gradient in theirs.items():
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(gradient, gradients[name], atol=max(scale, 1) * share, rtol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_no_logits_are_kept_for_backward(janus, samples, frozen):
    """What autograd saves is hidden states and weights: nothing as wide as a vocabulary."""
    for head in (janus.model.lm_head, janus.model.model.generation_head):
        head.requires_grad_(not frozen)
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
    weights = {p.data_ptr() for p in janus.model.parameters()}
    vocabularies = {
        janus.model.config.text_config.vocab_size,
        janus.model.config.vq_config.num_embeddings,
    }
    kept = WeakSet()

    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda it: it.tensor):
        logps = JanusLogps(janus, chunk_tokens=16)(batch)
    assert logps.image.requires_grad
    tensors = [it.tensor for it in kept if it.tensor.data_ptr() not in weights]
    wide = [t.shape for t in tensors if t.shape[-1:] and t.shape[-1] in vocabularies]
    assert tensors
    assert not wide


def test_padding_has_no_logits(janus, samples):
    """The text head sees the CoT tokens that were really drawn, and nothing else."""
    batch = make_batch(samples, [1.0] * len(samples), pad_id=0)
    seen = []
    module = JanusLogps(janus)
    module.text.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    logps = module(batch)
    assert seen == [int(batch.cot_mask.sum())]
    assert (logps.cot[~batch.cot_mask] == 0).all()


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_every_sequence_is_attended_to_causally_without_a_mask(janus, samples, guidance, monkeypatch):
    """What torch's flash kernel asks for; prompts and CoTs here are of different lengths."""
    calls = []
    attend = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, is_causal=False, **options):
        calls.append((attn_mask, is_causal))
        return attend(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    batch = make_batch(samples, [1.0] * len(samples), pad_id=janus.pad_id)
    assert not batch.cot_prompt_mask.all() or not batch.image_prompt_mask.all()
    JanusLogps(janus, guidance=guidance)(batch)
    passes = 2 if guidance is None else 3
    assert calls == [(None, True)] * passes * len(janus.model.model.language_model.layers)


def test_a_batch_gives_what_its_samples_give_alone(janus, samples):
    alone = []
    for sample in samples:
        out = JanusLogps(janus, guidance=2.0)(make_batch([sample], [1.0], pad_id=janus.pad_id))
        alone.append([x[0] for x in out if x is not None])
    out = JanusLogps(janus, guidance=2.0)(
        make_batch(samples, [1.0] * len(samples), pad_id=janus.pad_id)
    )
    for n, mine in enumerate(alone):
        for one, all_of_them in zip(mine, [x for x in out if x is not None], strict=True):
            torch.testing.assert_close(all_of_them[n, : len(one)], one, atol=1e-5, rtol=0)


def test_a_frozen_heads_logits_are_computed_once():
    """Backward asks the head for nothing again."""
    head = image_head(8, 30).requires_grad_(False)
    asked = []
    head.proj_out.register_forward_hook(lambda _module, _inputs, out: asked.append(len(out)))
    hidden = torch.randn(10, 8, requires_grad=True)
    TokenLogps(head, temperature=1.0, guidance=None, chunk=4)(hidden, torch.arange(10)).sum().backward()
    assert asked == [4, 4, 2]
