"""Computes the metrics of one step from the roles' reports."""

from collections.abc import Sequence

import numpy as np

from actors.image_stats import ImageSums
from cluster.pending import RolloutBatch, ScoredGroup
from rewards.expert import ExpertScores, Failure


def rewards_of(groups: Sequence[ScoredGroup]) -> np.ndarray:
    """float32 [groups, G]"""
    return np.concatenate([group.scores.rewards for group in groups]).reshape(len(groups), -1)


def rollout_metrics(
    rollout: RolloutBatch, version: int, kept: Sequence[ScoredGroup]
) -> dict[str, float]:
    """The metrics of a step before the update, which learns from the groups that were `kept`. `version`
    of the newest weights."""
    return {
        **reward_metrics(rollout.groups),
        **sampling_metrics(rollout, version),
        **expert_metrics(rollout),
        **image_metrics(rollout),
        "groups/filtered": float(len(rollout.groups) - len(kept)),
        "groups/resampled": float(rollout.resampled),
    }


def reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards over all samples of all scored groups; `reward/std` is the mean spread within a group,
    `reward/task/TYPE` the mean over the prompts of one task type."""
    if not groups:
        return {}
    rewards = rewards_of(groups)
    values = np.concatenate([g.scores.values for g in groups])
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std(1).mean()),
        "reward/strict_accuracy": float(np.concatenate([g.scores.passed for g in groups]).mean()),
    }
    for column, name in enumerate(groups[0].scores.experts):
        given = values[:, column][~np.isnan(values[:, column])]
        if len(given):
            metrics[f"reward/{name}"] = float(given.mean())
    types = np.array([group.prompt.task_type for group in groups])
    return metrics | {f"reward/task/{t}": float(rewards[types == t].mean()) for t in sorted(set(types))}


def expert_metrics(rollout: RolloutBatch) -> dict[str, float]:
    """How each expert did in a step, as `expert/NAME/...`, over all groups that it answered on.

    `std`, `min`, `max` (the mean is `reward/NAME`): of its scores, on its own scale. `applied`: the
    share of images that it applied to. `latency_s`: mean time of an answer on a group, tries included.
    `retries` and `failures`: how often a call was repeated, and groups that it did not score.
    `left_out`: 1 if all rewards of the step leave it out. `constant`: 1 if it gave all images, at least
    two, the same score. `not_finite`: groups where its last try still gave NaN or infinity.
    """
    metrics: dict[str, float] = {}
    for name in rollout.results[0].by_expert if rollout.results else ():
        results = [group.by_expert[name] for group in rollout.results]
        given = [o.outcome.values for o in results if isinstance(o.outcome, ExpertScores)]
        values = np.concatenate(given) if given else np.zeros(0, np.float32)
        given = values[~np.isnan(values)]
        numbers = {
            "retries": sum(o.retries for o in results),
            "failures": sum(o.failed for o in results),
            "left_out": name in rollout.left_out,
            "constant": len(given) > 1 and given.min() == given.max(),
            "not_finite": sum(
                isinstance(o.outcome, Failure) and o.outcome.not_a_score for o in results
            ),
            "latency_s": np.mean([o.seconds for o in results]),
        }
        if len(values):
            numbers["applied"] = len(given) / len(values)
        if len(given):
            numbers |= {"std": given.std(), "min": given.min(), "max": given.max()}
        metrics |= {f"expert/{name}/{key}": float(value) for key, value in numbers.items()}
    return metrics


def sampling_metrics(rollout: RolloutBatch, version: int) -> dict[str, float]:
    """Metrics of sampling. Tokens a second are those of all workers together, while the busiest one
    generates."""
    stats = rollout.stats
    samples = sum(s.samples for s in stats)
    staleness = [version - s.weights_version for s in stats for _ in range(s.samples)]
    return {
        "cot/tokens": sum(s.cot_tokens for s in stats) / samples,
        "cot/stopped": sum(s.cots_stopped for s in stats) / samples,
        "throughput/tokens_per_s": sum(s.cot_tokens + s.image_tokens for s in stats)
        / rollout.generate_s,
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(max(staleness)),
        "groups/dropped": float(len(rollout.dropped)),
        "actors/replaced": float(rollout.replaced),
    }


def image_metrics(rollout: RolloutBatch) -> dict[str, float]:
    """Statistics of a step's images, as `image/...` (actors.image_stats): means over all images of all
    workers; near duplicates over all pairs within groups."""
    together = sum((stats.images for stats in rollout.stats), ImageSums())
    return {f"image/{name}": value for name, value in together.means().items()}


def time_metrics(
    rollout: RolloutBatch, *, step_s: float, learn_s: float, publish_s: float
) -> dict[str, float]:
    """Where the step's wall time went, in seconds.

    `generate` is the busiest worker's; generating ahead (max_staleness > 0) may hide it behind `learn`.
    `publish` is putting the weights out and pulling them in. `wait` is how long the driver waited for
    samples beyond generating and pulling; `driver` is the rest: its own work.
    """
    samples, scores = rollout.waited_for_samples_s, rollout.waited_for_scores_s
    return {
        "throughput/samples_per_s": sum(s.samples for s in rollout.stats) / step_s,
        "time/step": step_s,
        "time/generate": rollout.generate_s,
        "time/score": scores,
        "time/learn": learn_s,
        "time/publish": publish_s + rollout.pull_s,
        "time/wait": max(0.0, samples - rollout.generate_s - rollout.pull_s),
        "time/driver": max(0.0, step_s - samples - scores - learn_s - publish_s),
    }
