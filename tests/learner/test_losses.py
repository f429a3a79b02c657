import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from learner.advantages import group_advantages
from learner.losses import bicot_loss
from tests.conftest import shared_file

finite = st.floats(-100, 100, width=32)
groups = st.integers(1, 8).flatmap(
    lambda size: st.lists(st.lists(finite, min_size=size, max_size=size), min_size=1, max_size=4)
)


@given(groups, st.floats(-5, 5, width=32), st.sampled_from(["std", "none"]))
def test_advantages_sum_to_zero_and_ignore_a_shift(rewards, shift, scale):
    size = len(rewards[0])
    flat = torch.tensor(rewards, dtype=torch.float64).flatten()
    advantages = group_advantages(flat, size, scale=scale)
    assert advantages.shape == flat.shape
    assert torch.isfinite(advantages).all()
    assert torch.allclose(advantages.view(-1, size).sum(1), torch.zeros(1, dtype=flat.dtype), atol=1e-6)
    assert torch.allclose(group_advantages(flat + shift, size, scale=scale), advantages, atol=1e-4)


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])
    expected = torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert torch.allclose(group_advantages(rewards, 3, scale="none"), expected)
    assert torch.allclose(group_advantages(rewards, 3), expected / (1 + 1e-4))


def test_a_group_of_one_gets_nothing():
    assert group_advantages(torch.tensor([3.0, -1.0]), 1).tolist() == [0.0, 0.0]


def test_rewards_that_form_no_groups_are_refused():
    with pytest.raises(ValueError, match="do not form groups of 4"):
        group_advantages(torch.zeros(6), 4)
    with pytest.raises(ValueError, match="do not form groups of 0"):
        group_advantages(torch.zeros(6), 0)
    with pytest.raises(ValueError, match="scale must be"):
        group_advantages(torch.zeros(6), 2, scale="variance")


def batch(seed, n=6, t=9, spread=0.3):
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(n, t, generator=g, dtype=torch.float64) * 3
    new = (old + spread * torch.randn(n, t, generator=g, dtype=torch.float64)).requires_grad_()
    ref = old + spread * torch.randn(n, t, generator=g, dtype=torch.float64)
    advantages = torch.randn(n, generator=g, dtype=torch.float64)
    mask = torch.rand(n, t, generator=g) < 0.7
    mask[:, 0] = True
    return new, old, ref, advantages, mask


def plain_loss(new, old, ref, advantages, mask, beta, low, high):
    """The same, token by token, as the paper writes it."""
    total, count = 0.0, 0
    for n in range(len(advantages)):
        for t in range(new.shape[1]):
            if not mask[n, t]:
                continue
            ratio = torch.exp(new[n, t] - old[n, t])
            a = advantages[n]
            gain = torch.minimum(ratio * a, torch.clamp(ratio, 1 - low, 1 + high) * a)
            d = ref[n, t] - new[n, t]
            total = total - gain + beta * (torch.exp(d) - d - 1)
            count += 1
    return total, count


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.01, 0.5]), st.sampled_from([0.0, 0.1, 0.2]))
def test_the_loss_is_the_formula_and_so_is_its_gradient(seed, beta, clip):
    new, old, ref, advantages, mask = batch(seed)
    loss = bicot_loss(new, old, ref, advantages, mask, beta=beta, clip_low=clip, clip_high=2 * clip)
    total, count = plain_loss(new, old, ref, advantages, mask, beta, clip, 2 * clip)
    assert torch.allclose(loss.sum, total)
    assert loss.count == count
    (ours,) = torch.autograd.grad(loss.sum, new)
    (plain,) = torch.autograd.grad(total, new)
    assert torch.allclose(ours, plain)
    assert (ours[~mask] == 0).all()


@given(st.integers(0, 1000), st.lists(st.integers(1, 5), min_size=0, max_size=3))
def test_sums_and_metrics_add_up_over_any_cut_of_the_batch(seed, cuts):
    new, old, ref, advantages, mask = batch(seed)
    whole = bicot_loss(new, old, ref, advantages, mask)
    edges = sorted({0, *cuts, len(advantages)})
    parts = [
        bicot_loss(new[a:b], old[a:b], ref[a:b], advantages[a:b], mask[a:b]) for a, b in pairwise(edges)
    ]
    assert torch.allclose(sum(p.sum for p in parts), whole.sum)
    assert torch.isclose(sum(p.count for p in parts), whole.count)
    for name, mean in whole.metrics.items():
        assert torch.isclose(sum(p.metrics[name] * p.count for p in parts) / whole.count, mean)


def test_what_lies_in_the_padding_changes_nothing():
    new, old, ref, advantages, mask = batch(3)
    clean = bicot_loss(new, old, ref, advantages, mask)
    dirty_values = [x.detach().masked_fill(~mask, float("-inf")) for x in (new, old, ref)]
    dirty_new = dirty_values[0].requires_grad_()
    dirty = bicot_loss(dirty_new, *dirty_values[1:], advantages, mask)
    assert torch.equal(dirty.sum, clean.sum)
    assert torch.isfinite(torch.autograd.grad(dirty.sum, dirty_new)[0]).all()
    assert all(torch.equal(dirty.metrics[k], clean.metrics[k]) for k in clean.metrics)


def test_on_policy_the_gradient_is_that_of_the_plain_policy_gradient():
    new, _, _, advantages, mask = batch(5)
    loss = bicot_loss(new, new.detach(), None, advantages, mask)
    (gradient,) = torch.autograd.grad(loss.sum, new)
    assert torch.allclose(gradient, -advantages[:, None] * mask)
    assert loss.metrics["kl"] == 0
    assert loss.metrics["clip_fraction"] == 0
    assert torch.isclose(loss.metrics["ratio"], torch.ones((), dtype=torch.float64))


def test_a_weight_in_the_mask_counts_a_token_that_often():
    new, old, ref, advantages, mask = batch(7)
    weights = mask * torch.tensor([3.0] * 4 + [1.0] * 5)
    weighted = bicot_loss(new, old, ref, advantages, weights)
    first, rest = (
        bicot_loss(new[:, s], old[:, s], ref[:, s], advantages, mask[:, s])
        for s in (slice(0, 4), slice(4, None))
    )
    assert torch.isclose(weighted.sum, 3 * first.sum + rest.sum)
    assert torch.isclose(weighted.count, 3 * first.count + rest.count)


@pytest.mark.parametrize("case", ["main_2x8", "zero_std_group", "beta_0"])
def test_the_published_implementations_numbers(case):
    """Rewards to advantages to loss and gradients; there the ratio is 1, for old = new."""
    about = json.loads(shared_file("vectors/grpo/grpo_math.json").read_text())[case]
    tensors = load_file(shared_file("vectors/grpo/grpo_math.safetensors"))
    v = {k.removeprefix(f"{case}."): t for k, t in tensors.items() if k.startswith(f"{case}.")}
    advantages = group_advantages(v["rewards"], about["num_generations"])
    assert torch.allclose(advantages, v["advantages"], atol=1e-5)

    logps = torch.cat([v["text_logps"], v["image_logps"]], 1).requires_grad_()
    ref = torch.cat([v["text_ref_logps"], v["image_ref_logps"]], 1) if about["beta"] else None
    mask = v["completion_mask"]
    loss = bicot_loss(logps, logps.detach(), ref, advantages, mask, beta=about["beta"])
    assert (loss.sum / loss.count).item() == pytest.approx(about["loss"], abs=1e-5)
    if ref is not None:
        assert loss.metrics["kl"].item() == pytest.approx(about["mean_kl"], abs=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum / loss.count, logps)
    expected = torch.cat([v["grad_text_logps"], v["grad_image_logps"]], 1)
    assert torch.allclose(gradient, expected, atol=1e-6)
