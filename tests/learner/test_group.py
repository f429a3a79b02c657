"""Real DeepSpeed ranks as Ray actors."""

import os
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray
import torch

from learner.batch import make_batch
from learner.group import LearnerGroup
from learner.logprobs import JanusLogps
from learner.losses import bicot_loss
from policy.errors import UserError
from policy.model import load_janus
from tests.learner.ranks import (
    ADVANTAGES,
    FREEZE,
    five_steps,
    save,
    scored,
    settings,
    weights_of,
)

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]


def plain_training(policy_config, samples, config):
    """Five steps of the same with nothing but PyTorch: the whole batch, one optimizer."""
    janus, frozen = load_janus(policy_config), load_janus(policy_config)
    for name in config.freeze:
        janus.model.get_submodule(name).requires_grad_(False)
    trained = {n: p for n, p in janus.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), config.lr, betas=config.adam_betas, weight_decay=0.0
    )
    batch = make_batch(
        samples,
        ADVANTAGES.ravel().tolist(),
        pad_id=janus.pad_id,
        cot_weight=config.cot_weight,
        image_weight=config.image_weight,
    )
    losses = []
    for _ in range(5):
        new = JanusLogps(janus)(batch)
        with torch.no_grad():
            ref = JanusLogps(frozen)(batch)
        loss = bicot_loss(
            torch.cat([new.cot, new.image], 1),
            batch.sampled_logps,
            torch.cat([ref.cot, ref.image], 1),
            batch.token_advantages,
            batch.token_weights,
            beta=config.kl_coef,
        )
        optimizer.zero_grad()
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
        optimizer.step()
        losses.append((loss.sum / loss.count).item())
    return losses, {n: p.detach() for n, p in trained.items()}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_and_micro_batches_change_nothing(policy_config, samples, groups, start, stage):
    """1 rank x 1 micro-batch, 2 ranks x 4, and plain PyTorch: equal after five steps. The two ranks
    recompute layers and heads; 7 positions a chunk, so that they differ in their number of chunks."""
    frugal = {"logprob_chunk_tokens": 7, "gradient_checkpointing": True}
    weights = {"cot_weight": 2.0, "image_weight": 0.5}
    losses, plain = plain_training(policy_config, samples, settings(**weights))
    for ranks, micro_batches, how in ((1, 1, {}), (2, 4, frugal)):
        learner = start(ranks=ranks, zero_stage=stage, **weights, **how)
        metrics, trained = five_steps(learner, groups, micro_batches)
        assert [m["loss"] for m in metrics] == pytest.approx(losses, abs=1e-5)
        assert trained.keys() == plain.keys()
        for name, tensor in trained.items():
            torch.testing.assert_close(tensor, plain[name], atol=1e-5, rtol=0)
        start.stop(learner)


def test_a_rank_without_work_keeps_step(groups, start):
    """One group on two ranks: the other walks along with batches that weigh nothing."""
    one, two = start(ranks=1), start(ranks=2)
    third = replace(groups, indices=[2], advantages=ADVANTAGES[2:3])
    _, alone = five_steps(one, third, None)
    _, together = five_steps(two, third, None)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=0)


def test_frozen_parts_stay_and_are_not_published(policy_config, groups, start, tmp_path):
    before = load_janus(policy_config).model.state_dict()
    learner = start(ranks=2, zero_stage=3, freeze=[*FREEZE, "lm_head"], weight_decay=0.1)
    _, trained = five_steps(learner, groups, None)
    frozen = (*FREEZE, "lm_head")
    assert not any(name.startswith(frozen) for name in trained)
    save(learner, tmp_path / "saved")
    saved = load_janus(policy_config.model_copy(update={"path": str(tmp_path / "saved")}))
    for name, tensor in saved.model.state_dict().items():
        expected = trained.get(name, before[name])
        assert torch.equal(tensor, expected), name
    assert not torch.equal(
        trained["model.language_model.norm.weight"], before["model.language_model.norm.weight"]
    )
    assert not (tmp_path / "saved.part").exists()


def test_metrics_are_separate_for_each_phase(groups, start):
    learner = start(ranks=1, cot_weight=0.0)
    metrics = [ray.get(learner.step(groups))[0] for _ in range(3)][-1]
    for name in ("loss", "kl", "clip_fraction", "ratio", "logp", "sampler_gap", "sampler_gap_max"):
        assert f"{name}/image" in metrics
        assert f"{name}/cot" not in metrics  # it weighs nothing, and so nothing is known of it
    assert metrics["loss"] == pytest.approx(metrics["loss/image"])
    assert metrics["guidance_gap"] > 0
    assert metrics["kl/image"] > 0
    assert metrics["lr"] == pytest.approx(2e-4)


def test_guided_training_is_on_policy_for_the_guided_distribution(groups, start):
    """The first ratio is 1 only if the learner computes what the sampler drew from."""
    plain = start(ranks=1, train_distribution="guided")
    frugal = start(
        ranks=2,
        train_distribution="guided",
        zero_stage=3,
        logprob_chunk_tokens=5,
        gradient_checkpointing=True,
    )
    for learner in (plain, frugal):
        metrics = ray.get(learner.step(groups))[0]
        assert metrics["ratio/image"] == pytest.approx(1.0, abs=1e-5)
        assert 0 < metrics["sampler_gap/image"] < metrics["sampler_gap_max/image"] < 1e-4
        assert metrics["sampler_gap_beyond_clip/image"] == 0
        assert metrics["kl/image"] == pytest.approx(0.0, abs=1e-6)
    one, two = weights_of(plain), weights_of(frugal)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_the_gap_to_the_sampler_is_measured(groups, start):
    """The first step is on-policy and shows rounding alone. With a learning rate that throws the policy
    far off, tokens of the old samples lie beyond the clip range in the second."""
    learner = start(ranks=2, lr=0.05)
    first, second = (ray.get(learner.step(groups))[0] for _ in range(2))
    for phase in ("cot", "image"):
        assert first[f"sampler_gap_max/{phase}"] < 1e-4
        assert first[f"sampler_gap_beyond_clip/{phase}"] == 0
        assert second[f"sampler_gap_max/{phase}"] > second[f"sampler_gap/{phase}"] > 1e-2
        assert second[f"sampler_gap_beyond_clip/{phase}"] > 0


def test_ranks_that_cannot_start_say_why_in_one_line(policy_config):
    config = settings(deepspeed={"optimizer": {"type": "Nonsense", "params": {"lr": 1e-4}}})
    with pytest.raises(UserError, match=r"^the learner does not start: .*Nonsense") as error:
        LearnerGroup.start(policy_config, config, temperature=1.0, guidance=2.0)
    assert "\n" not in str(error.value)


def test_no_kl_weight_means_no_kl(groups, start):
    learner = start(ranks=1, kl_coef=0.0)
    metrics = [ray.get(learner.step(groups))[0] for _ in range(2)][-1]
    assert metrics["kl/cot"] == metrics["kl/image"] == 0


def test_a_loss_of_ones_own_trains(samples, groups, start):
    learner = start(ranks=1, kl_coef=0.0, loss="tests.learner.own_loss:unclipped_loss")
    first, second = (ray.get(learner.step(groups))[0] for _ in range(2))
    tokens = np.array([len(s.cot_ids) + len(s.image_ids) for s in samples], np.float64)
    wanted = -(ADVANTAGES.ravel() * tokens).sum() / tokens.sum()  # of ratios that are 1
    assert first["loss"] == pytest.approx(wanted, abs=1e-4)
    assert second["loss"] < first["loss"]
    assert first["grad_norm"] > 0


def test_samples_that_are_lost_are_named_before_anything_is_learned(samples, groups, start):
    learner = start(ranks=2)
    refs = ray.get(groups.samples)
    holder = ray.remote(num_cpus=0)(Holder).remote()
    [gone] = ray.get(holder.put.remote())
    ray.kill(holder)
    while had(gone):  # the news of its end takes a moment
        time.sleep(0.05)
    lost = replace(groups, samples=ray.put([refs[0], gone, refs[2], gone]))
    assert learner.fetch(lost) == [1, 3]
    assert learner.fetch(groups) == []
    assert ray.get(learner.step(groups))[0]["step/skipped"] == 0


def had(ref):
    try:
        ray.get(ref)
    except ray.exceptions.ObjectLostError:
        return False
    return True


class Holder:
    def put(self):
        return [ray.put(np.zeros(2**18))]  # too large to travel inside the reference


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_loss_that_is_not_finite_skips_the_step(samples, groups, start, stage):
    """And leaves no trace: an optimizer that had counted it would go 5e-5 less far in the next step."""
    learner, other = (start(ranks=1, zero_stage=stage) for _ in range(2))
    before = weights_of(learner)
    bad = scored(samples[:2], np.array([[np.nan, 1.0]], np.float32))
    assert ray.get(learner.step(bad))[0]["step/skipped"] == 1
    after = weights_of(learner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    one, two = (ray.get(each.step(groups))[0] for each in (learner, other))
    assert one["step/skipped"] == 0
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    found, wanted = weights_of(learner), weights_of(other)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)


def test_deepspeeds_own_scheduler_and_optimizer_are_used(groups, start):
    learner = start(
        ranks=1,
        deepspeed={
            "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "torch_adam": True}},
            "scheduler": {
                "type": "WarmupLR",
                "params": {
                    "warmup_min_lr": 0,
                    "warmup_max_lr": 3e-4,
                    "warmup_num_steps": 4,
                    "warmup_type": "linear",
                },
            },
        },
    )
    rates = [ray.get(learner.step(groups))[0]["lr"] for _ in range(5)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] == pytest.approx(3e-4)


def test_bfloat16_trains(policy_config, groups):
    """In processes of its own, as a run's learner has them."""
    config = policy_config.model_copy(update={"dtype": "bfloat16"})
    learner = LearnerGroup.start(config, settings(ranks=2), temperature=1.0, guidance=2.0)
    losses = [ray.get(learner.step(groups))[0]["loss"] for _ in range(3)]
    trained = weights_of(learner)
    learner.stop()
    assert np.isfinite(losses).all()
    assert {t.dtype for t in trained.values()} == {torch.bfloat16}


def test_a_rank_that_hangs_while_it_publishes_is_waited_for_no_longer_than_allowed(start):
    learner = start(timeout_s=10)
    process = psutil.Process(ray.get(learner.ranks[0].__ray_call__.remote(lambda rank: os.getpid())))
    weights_of(learner)
    process.suspend()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        learner.publish(2)
    process.resume()
    weights_of(learner, 3)
