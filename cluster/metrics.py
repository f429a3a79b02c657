"""The numbers of one step, from what the roles reported."""

from collections.abc import Sequence

import numpy as np

from cluster.experience import Harvest, JudgedGroup
from rewards.expert import Judgement


def rewards_of(groups: Sequence[JudgedGroup]) -> np.ndarray:
    """float32 [groups, G]"""
    return np.concatenate([group.scores.rewards for group in groups]).reshape(len(groups), -1)


def reward_metrics(groups: Sequence[JudgedGroup]) -> dict[str, float]:
    """Over all samples of all judged groups; `reward/std` is the mean spread within a group."""
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
        said = values[:, column][~np.isnan(values[:, column])]
        if len(said):
            metrics[f"reward/{name}"] = float(said.mean())
    return metrics


def expert_metrics(harvest: Harvest) -> dict[str, float]:
    """How each expert did in a step, as `expert/NAME/...`, over all groups that it answered on.

    `std`, `min`, `max` (the mean is `reward/NAME`): of its scores, on its own scale. `applied`: the
    share of images that it applied to. `latency_s`: mean time of an answer on a group, tries included.
    `retries` and `failures`: how often it was asked again, and groups that it gave no answer on.
    `left_out`: 1 where no reward of the step hears it. `constant`: 1 where it gave all images, two at
    least, one and the same score. `not_finite`: groups where it gave NaN or infinity to the end.
    """
    metrics: dict[str, float] = {}
    for name in harvest.opinions[0].by_expert if harvest.opinions else ():
        opinions = [group.by_expert[name] for group in harvest.opinions]
        said = [o.said.values for o in opinions if isinstance(o.said, Judgement)]
        values = np.concatenate(said) if said else np.zeros(0, np.float32)
        given = values[~np.isnan(values)]
        numbers = {
            "retries": sum(o.retries for o in opinions),
            "failures": sum(o.failed for o in opinions),
            "left_out": name in harvest.left_out,
            "constant": len(given) > 1 and given.min() == given.max(),
            "not_finite": sum(o.failed and o.said.not_a_score for o in opinions),
            "latency_s": np.mean([o.seconds for o in opinions]),
        }
        if len(values):
            numbers["applied"] = len(given) / len(values)
        if len(given):
            numbers |= {"std": given.std(), "min": given.min(), "max": given.max()}
        metrics |= {f"expert/{name}/{key}": float(value) for key, value in numbers.items()}
    return metrics


def sampling_metrics(harvest: Harvest, version: int) -> dict[str, float]:
    """Tokens a second are those of all actors together, while the busiest one draws."""
    reports = harvest.reports
    samples = sum(r.samples for r in reports)
    staleness = [version - r.weights_version for r in reports for _ in range(r.samples)]
    return {
        "cot/tokens": sum(r.cot_tokens for r in reports) / samples,
        "cot/stopped": sum(r.cots_stopped for r in reports) / samples,
        "throughput/tokens_per_s": sum(r.cot_tokens + r.image_tokens for r in reports)
        / harvest.sample_s,
        "staleness/mean": float(np.mean(staleness)),
        "staleness/max": float(max(staleness)),
        "groups/dropped": float(len(harvest.dropped)),
        "actors/replaced": float(harvest.replaced),
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
        "throughput/samples_per_s": sum(r.samples for r in harvest.reports) / step_s,
        "time/step": step_s,
        "time/sample": harvest.sample_s,
        "time/judge": scores,
        "time/learn": learn_s,
        "time/publish": publish_s + harvest.pull_s,
        "time/wait": max(0.0, draws - harvest.sample_s - harvest.pull_s),
        "time/driver": max(0.0, step_s - draws - scores - learn_s - publish_s),
    }
