"""Rewards: combines the scores of many experts into one number a sample. Pure functions;
rewards/client.py calls the experts.

A score enters the reward as it is, from a fixed range, or by running statistics. A reward is the
weighted mean of the scores of all experts that apply. If an expert fails on a group, the group has no
reward or, by configuration, the expert is left out for all groups of the step: all rewards of a step
come from the same experts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy.records import Scores
from rewards.config import ExpertConfig, RangeConfig, RewardsConfig
from rewards.expert import ExpertScores, Failure, GroupResults, concat


@dataclass(frozen=True)
class Scale:
    """How an expert's score enters the reward: less `offset`, over `span`."""

    offset: float = 0.0
    span: float = 1.0


@dataclass(frozen=True)
class RunningStats:
    """Statistics of all scores so far: count, mean, and sum of squared distances from it (Welford)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_more(self, values: np.ndarray) -> "RunningStats":
        """A copy updated with `values`, float [N] without NaN (Chan, Golub and LeVeque 1979)."""
        if not len(values):
            return self
        values = values.astype(np.float64)
        mean, squares = float(values.mean()), float(((values - values.mean()) ** 2).sum())
        count = self.count + len(values)
        apart = mean - self.mean
        return RunningStats(
            count,
            self.mean + apart * len(values) / count,
            self.squares + squares + apart**2 * self.count * len(values) / count,
        )

    @property
    def scale(self) -> Scale:
        """The scale to mean 0 and deviation 1. Scores that were all the same are only moved to 0."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return Scale(self.mean, std if std > 1e-8 * max(1.0, abs(self.mean)) else 1.0)


def scale_of(entry: ExpertConfig, so_far: RunningStats) -> Scale:
    """The scale of an expert with this configuration."""
    if isinstance(entry.normalize, RangeConfig):
        return Scale(entry.normalize.low, entry.normalize.high - entry.normalize.low)
    return so_far.scale if entry.normalize == "running" else Scale()


def update_running_stats(
    running: Mapping[str, RunningStats], groups: Sequence[GroupResults], config: RewardsConfig
) -> dict[str, RunningStats]:
    """The statistics of the experts that are normalised by them, with a step's scores added."""
    grown = {}
    for name, entry in config.experts.items():
        if entry.normalize == "running":
            stats = running.get(name, RunningStats())
            for group in groups:
                if isinstance(given := group.by_expert[name].outcome, ExpertScores):
                    stats = stats.with_more(given.values[~np.isnan(given.values)])
            grown[name] = stats
    return grown


def weighted_mean(
    sample_ids: Sequence[str],
    by_expert: Mapping[str, ExpertScores],
    weights: Mapping[str, float],
    pass_thresholds: Mapping[str, float],
    scales: Mapping[str, Scale] | None = None,
    credits: Mapping[str, str] | None = None,
) -> Scores:
    """Rewards: the weighted mean over the experts that apply and have a weight above 0, each score on
    its scale (default: its own). A CoT's own reward is the mean over the experts that it gets credit
    from (`credits`: both, cot or image; default: both).

    A sample has passed if each of those experts gave it its pass threshold or more. Raises ValueError
    for a sample that no such expert applies to, or if an expert scored another number of samples.
    """
    names = tuple(by_expert)
    for name, scores in by_expert.items():
        if len(scores.values) != len(sample_ids):
            few = f"{len(scores.values)} of {len(sample_ids)}"
            raise ValueError(f"expert {name} scored {few} samples")
    values = np.stack([by_expert[name].values for name in names], axis=1).astype(np.float32)
    weight = np.array([weights[name] for name in names])
    mark = np.array([pass_thresholds[name] for name in names], np.float32)
    scale = [(scales or {}).get(name, Scale()) for name in names]
    offset, span = np.array([s.offset for s in scale]), np.array([s.span for s in scale])

    counts = ~np.isnan(values) & (weight > 0)  # bool [N, E]
    if not (some := counts.any(1)).all():
        bad = sample_ids[int(some.argmin())]
        raise ValueError(f"sample {bad}: no expert with a weight above 0 applies")
    scaled = (values - offset) / span
    rewards = _mean(scaled, counts, weight)
    by_cot = None
    credited = [(credits or {}).get(name, "both") for name in names]
    if set(credited) != {"both"}:
        own = [counts & [c in ("both", cot) for c in credited] for cot in ("cot", "image")]
        by_cot = np.stack([_mean(scaled, mine, weight) for mine in own], axis=1).astype(np.float32)
    passed: Any = np.where(counts, values >= mark, True).all(1)
    lines = [by_expert[name].explanation or ("",) * len(sample_ids) for name in names]
    boxes = [by_expert[name].boxes or ((),) * len(sample_ids) for name in names]
    return Scores(
        sample_ids=tuple(sample_ids),
        experts=names,
        values=values,
        rewards=rewards.astype(np.float32),
        passed=passed,
        explanation=tuple(zip(*lines, strict=True)),
        boxes=tuple(zip(*boxes, strict=True)),
        rewards_by_cot=by_cot,
    )


def _mean(scaled: np.ndarray, counts: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted mean of the scores that count, float [N, E] -> [N]; NaN where none does."""
    share = np.where(counts, weight, 0.0)
    some = counts.any(1)
    share[some] /= share[some].max(1, keepdims=True)
    total = (share * np.where(counts, scaled, 0.0)).sum(1)
    return np.divide(total, share.sum(1), out=np.full(len(total), np.nan), where=some)


@dataclass(frozen=True)
class GroupRewards:
    """One entry a group: its scores, or why it has none. `left_out`: the experts that no group of the
    step has scores of, each with its first failure."""

    scores: tuple[Scores | str, ...]
    left_out: dict[str, Failure]


def compute_rewards(
    groups: Sequence[GroupResults], config: RewardsConfig, running: Mapping[str, RunningStats]
) -> GroupRewards:
    """The rewards of all groups of a step together. `running` normalises those experts that it names.

    The scores of an expert that is left out are NaN, as those of one that does not apply.
    """
    left_out: dict[str, Failure] = {}
    for group in groups:
        for name, result in group.by_expert.items():
            if isinstance(result.outcome, Failure) and config.experts[name].on_failure == "leave_out":
                left_out.setdefault(name, result.outcome)
    reasons = [_why_not(group, config, left_out) for group in groups]
    answered = [group for group, why in zip(groups, reasons, strict=True) if why is None]
    scores = iter(_scores(answered, config, left_out, running) if answered else ())
    return GroupRewards(tuple(next(scores) if why is None else why for why in reasons), left_out)


def _why_not(group: GroupResults, config: RewardsConfig, left_out: Mapping[str, Failure]) -> str | None:
    """Why a group has no reward, if it has none."""
    answered = {name: result for name, result in group.by_expert.items() if name not in left_out}
    for result in answered.values():
        if result.failed:
            return str(result.outcome)
    if left_out:
        weighty = [o.scores.values for name, o in answered.items() if config.experts[name].weight > 0]
        if not weighty or np.isnan(weighty).all(0).any():
            return f"no other expert scores it while {', '.join(left_out)} is left out"
    return None


def _scores(
    groups: Sequence[GroupResults],
    config: RewardsConfig,
    left_out: Mapping[str, Failure],
    running: Mapping[str, RunningStats],
) -> list[Scores]:
    """Scores of groups that all have a reward, computed in one call: a step may have hundreds."""
    by_expert, marks = {}, {}
    for name, result in groups[0].by_expert.items():
        marks[name] = result.pass_threshold
        by_expert[name] = concat(
            [_absent(g) if name in left_out else g.by_expert[name].scores for g in groups]
        )
    weights = {name: config.experts[name].weight for name in by_expert}
    scales = {
        name: scale_of(config.experts[name], running.get(name, RunningStats())) for name in by_expert
    }
    ids = [sample_id for group in groups for sample_id in group.sample_ids]
    credits = {name: config.experts[name].credits for name in by_expert}
    whole = weighted_mean(ids, by_expert, weights, marks, scales, credits)
    ends = np.cumsum([len(group.sample_ids) for group in groups]).tolist()
    return [whole.part(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _absent(group: GroupResults) -> ExpertScores:
    return ExpertScores(np.full(len(group.sample_ids), np.nan, np.float32))
