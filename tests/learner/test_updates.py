"""Several updates a batch, off-policy corrections and schedules, on real DeepSpeed ranks."""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from learner.batch import make_batch
from learner.group import TrainingGroups
from learner.logprobs import JanusLogps
from learner.losses import LOSSES, LossInputs
from learner.schedules import Coefficients, StepSettings
from policy.model import load_janus
from tests.learner.ranks import ADVANTAGES, settings, weights_of

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]

EVERYTHING = {
    "loss": "gspo",
    "clip_low": 0.002,
    "clip_high": 0.002,
    "updates_per_batch": 2,
    "minibatches": 2,
    "old_logps": "learner",
    "importance": "truncated",
    "importance_cap": 1.01,
    "entropy_coef": 0.01,
    "cot_weight": 2.0,
}


def off_policy(samples):
    """The same samples as if a policy a little apart had drawn them."""
    rng = np.random.default_rng(0)

    def moved(logps):
        return (logps + 0.05 * rng.normal(size=logps.shape)).astype(np.float32)

    return [
        replace(
            s,
            cot_logps=moved(s.cot_logps),
            image_logps=moved(s.image_logps),
            image_guided_logps=moved(s.image_guided_logps),
        )
        for s in samples
    ]


def by_cot(advantages):
    """Another advantage for each CoT."""
    return np.stack([advantages, advantages[:, ::-1] * 0.5], -1).astype(np.float32)


def plain_step(policy_config, samples, config, lr):
    """One step of it with nothing but PyTorch: whole mini-batches, logits all at once."""
    janus, frozen = load_janus(policy_config), load_janus(policy_config)
    for name in config.freeze:
        janus.model.get_submodule(name).requires_grad_(False)
    trained = {n: p for n, p in janus.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr, betas=config.adam_betas, weight_decay=0.0)
    advantages = by_cot(ADVANTAGES)
    parts = []
    for first in range(config.minibatches):
        numbers = range(first, len(advantages), config.minibatches)
        rows = [samples[2 * n + k] for n in numbers for k in range(2)]
        batch = make_batch(
            rows,
            advantages[list(numbers)].reshape(-1, 2).tolist(),
            pad_id=janus.pad_id,
            cot_weight=config.cot_weight,
            image_weight=config.image_weight,
            aggregation=config.aggregation,
        )
        with torch.no_grad():
            old, reference = (JanusLogps(model)(batch) for model in (janus, frozen))
        parts.append((batch, *(torch.cat([x.cot, x.image], 1) for x in (old, reference))))
    losses = []
    for batch, old, reference in parts * config.updates_per_batch:
        new = JanusLogps(janus, entropy="learn")(batch)
        result = LOSSES[config.loss](
            LossInputs(
                logps=torch.cat([new.cot, new.image], 1),
                old_logps=old,
                sampled_logps=batch.sampled_logps,
                reference_logps=reference,
                entropy=torch.cat([new.cot_entropy, new.image_entropy], 1),
                advantages=batch.token_advantages,
                token_weights=batch.token_weights,
                cot_tokens=batch.cot.shape[1],
                kl_coef=config.kl_coef,
                entropy_coefs=dict.fromkeys(("cot", "image"), config.entropy_coef),
            ),
            config,
        )
        loss = result.sum / batch.counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
        optimizer.step()
        losses.append((result.sum.item(), batch.counts.sum().item()))
    sums, counts = zip(*losses, strict=True)
    return sum(sums) / sum(counts), {n: p.detach() for n, p in trained.items()}


@pytest.mark.parametrize(
    ("ranks", "stage", "micro_batches"),
    [(1, 1, 1), pytest.param(2, 3, 3, marks=pytest.mark.slow)],
    ids=["one rank", "two sharded ranks"],
)
def test_all_of_it_together_is_plain_training(
    policy_config,
    samples,
    start,
    ranks,
    stage,
    micro_batches,
):
    """Two updates on each of two mini-batches, a ratio over sequences, corrections, an entropy bonus,
    advantages by CoT: the same however it is cut, and the same as plain PyTorch."""
    config, stale = settings(**EVERYTHING), off_policy(samples)
    loss, plain = plain_step(policy_config, stale, config, lr=1e-3)
    learner = start(ranks=ranks, zero_stage=stage, logprob_chunk_tokens=7, **EVERYTHING)
    refs = [ray.put(stale[n : n + 2]) for n in range(0, len(stale), 2)]
    work = TrainingGroups.of(refs, by_cot(ADVANTAGES))
    at = StepSettings(Coefficients.at_start(config), lr=1e-3)
    metrics = ray.get(learner.step(work, micro_batches, at))[0]
    assert metrics["step/updates"] == 4
    assert metrics["lr"] == pytest.approx(1e-3)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    trained = weights_of(learner)
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, plain[name], atol=2e-5, rtol=0)
    assert metrics["sampler_gap/cot"] == pytest.approx(0.04, abs=0.01)  # 0.05 sigma: of the first
    assert metrics["sampler_gap_max/image"] > 0.1
    assert 0 < metrics["clip_fraction/image"] < 1
    assert metrics["importance/image"] < 1.01
    assert metrics["entropy/cot"] > 0


def test_one_update_against_the_learners_own_probabilities_is_exactly_on_policy(
    samples,
    start,
):
    """However stale the samples are; the distance to the sampler is reported beside it."""
    learner = start(ranks=1, old_logps="learner")
    stale = off_policy(samples)
    refs = [ray.put(stale[n : n + 2]) for n in range(0, len(stale), 2)]
    metrics = ray.get(learner.step(TrainingGroups.of(refs, ADVANTAGES)))[0]
    for phase in ("cot", "image"):
        assert metrics[f"ratio/{phase}"] == 1.0
        assert metrics[f"clip_fraction/{phase}"] == 0.0
        assert metrics[f"sampler_gap/{phase}"] > 0.02


def test_more_minibatches_than_groups_are_as_many_as_there_are(groups, start):
    learner = start(ranks=1, minibatches=3)
    two = replace(groups, indices=[0, 2], advantages=ADVANTAGES[[0, 2]])
    metrics = ray.get(learner.step(two))[0]
    assert metrics["step/updates"] == 2
    assert metrics["step/skipped"] == 0
