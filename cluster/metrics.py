"""The numbers of one step, from what the roles reported."""

from collections.abc import Sequence

import numpy as np

from cluster.experience import Harvest, JudgedGroup


def reward_metrics(groups: Sequence[JudgedGroup]) -> dict[str, float]:
    """Over all samples of all judged groups; `reward/std` is the mean spread within a group."""
    if not groups:
        return {}
    rewards = np.concatenate([g.scores.rewards for g in groups])
    values = np.concatenate([g.scores.values for g in groups])
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(np.mean([g.scores.rewards.std() for g in groups])),
        "reward/strict_accuracy": float(np.concatenate([g.scores.passed for g in groups]).mean()),
    }
    for column, name in enumerate(groups[0].scores.experts):
        said = values[:, column][~np.isnan(values[:, column])]
        if len(said):
            metrics[f"reward/{name}"] = float(said.mean())
    return metrics


def sampling_metrics(harvest: Harvest, version: int) -> dict[str, float]:
    reports = harvest.reports
    samples = sum(r.samples for r in reports)
    staleness = [version - r.weights_version for r in reports for _ in range(r.samples)]
    return {
        "cot/tokens": sum(r.cot_tokens for r in reports) / samples,
        "cot/stopped": sum(r.cots_stopped for r in reports) / samples,
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(max(staleness)),
        "groups/dropped": float(len(harvest.failures)),
    }


def time_metrics(
    harvest: Harvest, *, step_s: float, learn_s: float, publish_s: float
) -> dict[str, float]:
    """Where the step's wall time went, in seconds.

    `sample` is the busiest actor's drawing; drawing ahead (max_staleness > 0) may hide it behind
    `learn`. `publish` is putting the weights out and pulling them in. `wait` is what the driver
    waited for draws beyond drawing and pulling; `driver` is what is left: its own work.
    """
    draws, scores = harvest.waited_for_draws_s, harvest.waited_for_scores_s
    return {
        "time/step": step_s,
        "time/sample": harvest.sample_s,
        "time/judge": scores,
        "time/learn": learn_s,
        "time/publish": publish_s + harvest.pull_s,
        "time/wait": max(0.0, draws - harvest.sample_s - harvest.pull_s),
        "time/driver": max(0.0, step_s - draws - scores - learn_s - publish_s),
    }
