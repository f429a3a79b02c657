"""Turns scored groups into an update: selects groups, computes advantages, takes a learner step."""

from collections.abc import Sequence

import ray
from ray import ObjectRef

from cluster.pending import RolloutBatch, ScoredGroup
from cluster.run import Run
from learner.advantages import bicot_advantages, has_signal
from learner.group import TrainingGroups
from learner.schedules import StepSettings


def collect_groups(run: Run) -> tuple[RolloutBatch, list[ScoredGroup], list[ObjectRef]]:
    """The groups of a step, those of them to learn from, and what the learner prepares meanwhile. If
    too few have unequal rewards, further ones are requested: at most `train.resample_equal_groups` (the
    dynamic sampling of DAPO, arXiv 2503.14476, section 3.2)."""
    config, rollouts = run.config.train, run.workers.rollouts
    pending = run.requests.next_step()
    prepared = run.learner.prepare(pending.samples)  # while groups are generated and scored
    rollout = rollouts.collect(pending)
    kept = groups_with_signal(run, rollout.groups)
    left = config.resample_equal_groups
    while (missing := min(config.groups_per_step - len(kept), left)) > 0:
        left -= missing
        more = run.requests.request_more(missing, run.weights)
        prepared += run.learner.prepare(more.samples)
        rollout.add(rollouts.collect(more))
        kept = groups_with_signal(run, rollout.groups)
    return rollout, kept, prepared


def groups_with_signal(run: Run, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The groups to learn from. A group whose rewards are all equal gives no gradient but the KL
    term's, and may be left out."""
    run.check_staleness(groups)
    if not run.config.train.filter_equal_groups:
        return list(groups)
    weights, how = run.config.rewards.weights, run.config.learner.advantages
    return [group for group in groups if has_signal(group.scores, weights, how)]


def update(
    run: Run, rollout: RolloutBatch, groups: list[ScoredGroup], prepared: Sequence[ObjectRef]
) -> tuple[list[ScoredGroup], dict[str, float]]:
    """The updates of one step on some groups of a rollout. `prepared` is what the learner has prepared.

    Returns the groups that were learned from, and metrics. Samples that were lost since they were
    scored are generated and scored again first, so that rewards are those of the samples: the groups
    may be others then, or none.
    """
    config = run.config.learner
    training = training_groups(run, rollout, groups, prepared)
    while lost := run.learner.fetch(training):
        run.workers.rollouts.repeat(rollout, lost)
        groups = groups_with_signal(run, rollout.groups)
        if not groups:
            return groups, {}
        training = training_groups(run, rollout, groups, prepared)
    steps = run.config.train.steps
    settings = StepSettings.of(config, run.coefficients, run.step - 1, steps)
    metrics = ray.get(run.learner.step(training, settings=settings), timeout=config.timeout_s)[0]
    metrics |= run.coefficients.metrics(config)  # the coefficients of this step
    if not metrics["step/skipped"]:
        run.coefficients = run.coefficients.after(metrics, config)
    return groups, metrics


def training_groups(
    run: Run, rollout: RolloutBatch, groups: Sequence[ScoredGroup], prepared: Sequence[ObjectRef]
) -> TrainingGroups:
    """Groups of a rollout with their advantages, as the learner takes them."""
    config, rewards = run.config.learner, run.config.rewards
    advantages = bicot_advantages(
        [group.scores for group in groups],
        rewards.weights,
        rewards.credits,
        how=config.advantages,
        scale=config.advantage_scale,
    )
    return TrainingGroups(
        rollout.pending.samples,
        [group.index for group in groups],
        advantages,
        tokens=[group.tokens for group in groups],
        prepared=prepared,
    )
