"""Each loss of `learner.loss` against its formula, sample by sample, and what all have in common."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch import aggregate
from learner.config import LearnerConfig
from learner.losses import LOSSES, LossInputs, bicot_loss, importance_weights, load_loss

SPLIT = 4  # columns of the semantic CoT
N, T = 5, 9
seeds = st.integers(0, 1000)


def inputs(seed=0, *, stale=0.3, moved=0.3, reference=True, cot_weight=1.0, **changes) -> LossInputs:
    """Ragged CoTs, whole images; the sampler's policy, the one before the update, and the present one
    all differ."""
    g = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(N, T, generator=g, dtype=torch.float64)

    sampled = -torch.rand(N, T, generator=g, dtype=torch.float64) * 3
    old = sampled + stale * noise()
    weights = torch.ones(N, T, dtype=torch.float64)
    lengths = torch.randint(1, SPLIT + 1, (N, 1), generator=g)
    weights[:, :SPLIT] = (torch.arange(SPLIT) < lengths) * cot_weight
    values = {
        "logps": (old + moved * noise()).requires_grad_(),
        "old_logps": old,
        "sampled_logps": sampled,
        "reference_logps": sampled + noise() if reference else None,
        "entropy": noise().abs(),
        "advantages": noise(),
        "token_weights": weights,
        "cot_tokens": SPLIT,
        "kl_coef": 0.05,
        "entropy_coefs": {"cot": 0.0, "image": 0.0},
    }
    return LossInputs(**(values | changes))


def clipped(ratio, advantage, config):
    low, high = 1 - config.clip_low, 1 + config.clip_high
    return -min(ratio * advantage, min(max(ratio, low), high) * advantage, key=lambda x: x.item())


def token_ratio(x, n, t):
    return (x.logps[n, t] - x.old_logps[n, t]).exp()


def sequence_ratio(x, n, t, span):
    inside = range(T) if span == "both" else range(SPLIT) if t < SPLIT else range(SPLIT, T)
    tokens = [k for k in inside if x.token_weights[n, k] > 0]
    return (sum(x.logps[n, k] - x.old_logps[n, k] for k in tokens) / len(tokens)).exp()


def plain(x: LossInputs, config: LearnerConfig):
    """The loss as a paper writes it, token by token."""
    total = 0.0
    for n, t in product(range(N), range(T)):
        weight, advantage = x.token_weights[n, t], x.advantages[n, t]
        if weight == 0:
            continue
        if config.loss == "gspo":
            term = clipped(sequence_ratio(x, n, t, config.gspo_span), advantage, config)
        elif config.loss == "cispo":
            ratio = token_ratio(x, n, t).detach()
            ratio = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            term = -ratio * advantage * x.logps[n, t]
        else:
            term = clipped(token_ratio(x, n, t), advantage, config)
        if x.reference_logps is not None:
            gap = x.reference_logps[n, t] - x.logps[n, t]
            term = term + x.kl_coef * (gap.exp() - gap - 1)
        total = total + weight * term
    return total


CASES = [{"loss": name} for name in LOSSES] + [
    {"loss": "gspo", "gspo_span": "both", "clip_low": 0.1, "clip_high": 0.2},
    {"loss": "cispo", "clip_low": 0.1, "clip_high": 0.1},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
@given(seeds, st.booleans())
@settings(max_examples=15)
def test_a_loss_is_its_formula_and_so_is_its_gradient(case, seed, reference):
    config = LearnerConfig(**case)
    x = inputs(seed, reference=reference)
    result, wanted = load_loss(config.loss)(x, config), plain(x, config)
    assert torch.allclose(result.sum, wanted)
    (ours,) = torch.autograd.grad(result.sum, x.logps)
    (theirs,) = torch.autograd.grad(wanted, x.logps)
    assert torch.allclose(ours, theirs)
    assert (ours[x.token_weights == 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
@given(seeds, st.integers(1, N - 1))
@settings(max_examples=10)
def test_sums_and_metrics_of_parts_add_up(name, seed, edge):
    config = LearnerConfig(loss=name, importance="truncated", old_logps="learner")
    x = inputs(seed)
    whole = LOSSES[name](x, config)
    parts = [LOSSES[name](cut(x, rows), config) for rows in (slice(0, edge), slice(edge, N))]
    assert torch.allclose(sum(p.sum for p in parts), whole.sum)
    for key, (total, count) in whole.metrics.items():
        assert torch.allclose(sum(p.metrics[key][0] for p in parts), total), key
        assert torch.allclose(sum(p.metrics[key][1] for p in parts), count), key


def cut(x: LossInputs, rows: slice) -> LossInputs:
    return LossInputs(**{k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in vars(x).items()})


@pytest.mark.parametrize("name", LOSSES)
def test_what_lies_in_the_padding_changes_nothing(name):
    config = LearnerConfig(loss=name, importance="masked", old_logps="learner", entropy_coef=0.1)
    coefs = {"cot": 0.1, "image": 0.1}
    clean = inputs(3, entropy_coefs=coefs)
    padding = clean.token_weights == 0
    assert padding.any()
    dirt = {
        key: getattr(clean, key).detach().masked_fill(padding, float("-inf"))
        for key in ("logps", "old_logps", "sampled_logps", "reference_logps", "entropy")
    }
    dirt["logps"].requires_grad_()
    dirty = LossInputs(**(vars(clean) | dirt))
    wanted, found = LOSSES[name](clean, config), LOSSES[name](dirty, config)
    assert torch.equal(found.sum, wanted.sum)
    assert torch.isfinite(torch.autograd.grad(found.sum, dirty.logps)[0]).all()
    assert found.metrics == wanted.metrics


@given(seeds)
@settings(max_examples=10)
def test_grpo_is_bicot_loss_of_both_cots(seed):
    x, config = inputs(seed), LearnerConfig(clip_low=0.1, clip_high=0.3)
    whole = bicot_loss(
        x.logps,
        x.old_logps,
        x.reference_logps,
        x.advantages,
        x.token_weights,
        beta=x.kl_coef,
        clip_low=0.1,
        clip_high=0.3,
    )
    result = LOSSES["grpo"](x, config)
    assert torch.allclose(result.sum, whole.sum)
    clip = sum(result.metrics[f"clip_fraction/{phase}"][0] for phase in ("cot", "image"))
    assert torch.isclose(clip / whole.count, whole.metrics["clip_fraction"])


def test_on_policy_all_have_the_plain_policy_gradient():
    """Of a first update with `old_logps: learner`: the ratio is 1, whatever it is over."""
    for name in LOSSES:
        x = inputs(1, moved=0.0, reference=False)
        result = LOSSES[name](x, LearnerConfig(loss=name, old_logps="learner"))
        (gradient,) = torch.autograd.grad(result.sum, x.logps)
        wanted = -x.advantages * x.token_weights
        if name == "gspo":  # each token's is its sequence's mean
            wanted = gspo_gradient(x)
        assert torch.allclose(gradient, wanted), name
        for phase in ("cot", "image"):
            total, count = result.metrics[f"ratio/{phase}"]
            assert torch.isclose(total, count), name
            assert result.metrics[f"clip_fraction/{phase}"][0] == 0, name


def gspo_gradient(x: LossInputs):
    wanted = torch.zeros(N, T, dtype=torch.float64)
    for n, here in product(range(N), (range(SPLIT), range(SPLIT, T))):
        tokens = [t for t in here if x.token_weights[n, t] > 0]
        mean = sum(-x.advantages[n, t] for t in tokens) / len(tokens)
        wanted[n, tokens] = mean
    return wanted


# --- who sampled ---


@pytest.mark.parametrize("how", ["truncated", "masked"])
@given(seeds)
@settings(max_examples=10)
def test_importance_corrects_for_the_sampler(how, seed):
    config = LearnerConfig(old_logps="learner", importance=how, importance_cap=1.5)
    x = inputs(seed, stale=1.0)
    w = (x.old_logps - x.sampled_logps).exp()
    kept = (w <= 1.5) & (w >= 1 / 1.5)
    wanted = w.clamp(max=1.5) if how == "truncated" else w * kept
    real = x.token_weights > 0
    assert torch.allclose(importance_weights(x, config)[real], wanted[real])
    bare = LOSSES["grpo"](x, config.model_copy(update={"importance": "none"}))
    weighed = LOSSES["grpo"](cut(x, slice(None)), config)
    assert not torch.allclose(weighed.sum, bare.sum)
    kl = "kl/image"  # the KL term is not weighed
    assert torch.allclose(weighed.metrics[kl][0], bare.metrics[kl][0])


def test_where_the_sampler_is_the_old_policy_the_ratio_never_passes_the_cap():
    """With a negative advantage clipping leaves a ratio unbounded; the weights bound it."""
    x = inputs(2, stale=0.0, moved=2.0)
    x = LossInputs(**(vars(x) | {"old_logps": x.sampled_logps}))
    ratio = x.log_ratio.exp().detach()
    assert ratio.max() > 3
    truncated = LearnerConfig(importance="truncated", importance_cap=2.0)
    assert torch.allclose(importance_weights(x, truncated) * ratio, ratio.clamp(max=2.0))
    masked = importance_weights(x, LearnerConfig(importance="masked", importance_cap=2.0))
    assert torch.equal(masked, ((ratio <= 2) & (ratio >= 0.5)).double())


def test_entropy_is_a_bonus_of_each_cot_by_its_own_coefficient():
    config = LearnerConfig(entropy_coef=0.1)
    plain_x, x = inputs(4), inputs(4, entropy_coefs={"cot": 0.3, "image": 0.0})
    without, with_bonus = (LOSSES["grpo"](each, config) for each in (plain_x, x))
    bonus = (x.entropy * x.token_weights)[:, :SPLIT].sum()
    assert torch.allclose(with_bonus.sum, without.sum - 0.3 * bonus)
    assert torch.allclose(without.metrics["entropy/cot"][0], bonus)


def test_a_cot_without_weight_tells_no_metrics_and_gets_no_gradient():
    for name in LOSSES:
        x = inputs(6, cot_weight=0.0)
        result = LOSSES[name](x, LearnerConfig(loss=name, cot_weight=0))
        assert {key.rpartition("/")[2] for key in result.metrics} == {"image"}
        (gradient,) = torch.autograd.grad(result.sum, x.logps)
        assert (gradient[:, :SPLIT] == 0).all()
        assert (gradient[:, SPLIT:] != 0).any()


# --- what a mean is over ---


@given(seeds, st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.5, 1.0]))
def test_each_aggregation_is_its_mean(seed, cot_weight, image_weight):
    g = torch.Generator().manual_seed(seed)
    losses = torch.randn(N, T, generator=g)
    lengths = torch.randint(1, SPLIT + 1, (N, 1), generator=g)
    real = (torch.arange(SPLIT) < lengths).float()
    cot, image = cot_weight * real, image_weight * torch.ones(N, T - SPLIT)
    both = torch.cat([cot, image], 1)

    def mean(how, length=1.0):
        weights, counts = aggregate(cot, image, how, length)
        assert (weights[:, :SPLIT][real == 0] == 0).all()
        return (weights * losses).sum() / counts.sum()

    by_sample = [(w * x).sum() for w, x in zip(both, losses, strict=True)]
    assert torch.isclose(mean("token_mean"), sum(by_sample) / both.sum(), atol=1e-6)
    of_each = [s / w.sum() for s, w in zip(by_sample, both, strict=True)]
    assert torch.isclose(mean("sample_mean"), sum(of_each) / N, atol=1e-6)
    assert torch.isclose(mean("constant", 40.0), sum(by_sample) / 40 / N, atol=1e-6)
    of_cot = [losses[n, : int(lengths[n])].mean() for n in range(N)]
    of_image = losses[:, SPLIT:].mean(1)
    total = cot_weight * sum(of_cot) + image_weight * of_image.sum()
    assert torch.isclose(mean("cot_mean"), total / N / (cot_weight + image_weight), atol=1e-6)


def test_a_sample_without_tokens_counts_for_nothing():
    for how in ("token_mean", "sample_mean", "cot_mean", "constant"):
        weights, counts = aggregate(torch.zeros(2, 3), torch.zeros(2, 4), how, 10.0)
        assert weights.sum() == counts.sum() == 0
        assert not math.isnan(weights.sum().item())


def test_a_loss_brings_its_own_defaults_and_a_key_wins_over_them():
    dapo, gspo = LearnerConfig(loss="dapo"), LearnerConfig(loss="gspo", clip_low=0.1)
    assert (dapo.clip_low, dapo.clip_high, dapo.aggregation) == (0.2, 0.28, "token_mean")
    assert (gspo.clip_low, gspo.clip_high, gspo.aggregation) == (0.1, 4e-4, "cot_mean")
    assert LearnerConfig(loss="gspo", gspo_span="both").aggregation == "sample_mean"
    assert LearnerConfig(loss="dr_grpo").advantage_scale == "none"
    again = LearnerConfig.model_validate(gspo.model_dump(mode="json"))
    assert again == gspo
