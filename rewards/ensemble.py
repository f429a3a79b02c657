"""Many experts' judgements as one reward. Pure functions: who asks the experts is in rewards/panel.py.

Promised: a reward is the weighted mean of what the experts that apply really said. A group of samples
that an expert gave no answer on has no reward at all, or, where the expert is configured so, it is left
out for all groups of the step: rewards of a step are always made of the same experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from policy.records import Scores
from rewards.asking import joined
from rewards.config import RewardsConfig
from rewards.expert import Judgement
from rewards.opinions import Failure, Opinions
from rewards.scale import RunningStats, Scale, scale_of


def combine(
    sample_ids: Sequence[str],
    judgements: Mapping[str, Judgement],
    weights: Mapping[str, float],
    pass_marks: Mapping[str, float],
    scales: Mapping[str, Scale] | None = None,
) -> Scores:
    """Rewards: the weighted mean over the experts that apply and weigh more than 0, each score on its
    scale (default: its own).

    A sample has passed if each of those experts gave it its pass mark or more. Raises ValueError
    for a sample that no such expert applies to, or if an expert judged another number of samples.
    """
    names = tuple(judgements)
    for name, judgement in judgements.items():
        if len(judgement.values) != len(sample_ids):
            few = f"{len(judgement.values)} of {len(sample_ids)}"
            raise ValueError(f"expert {name} judged {few} samples")
    values = np.stack([judgements[name].values for name in names], axis=1).astype(np.float32)
    weight = np.array([weights[name] for name in names])
    mark = np.array([pass_marks[name] for name in names], np.float32)
    scale = [(scales or {}).get(name, Scale()) for name in names]
    offset, span = np.array([s.offset for s in scale]), np.array([s.span for s in scale])

    counts = ~np.isnan(values) & (weight > 0)  # bool [N, E]
    if not (some := counts.any(1)).all():
        bad = sample_ids[int(some.argmin())]
        raise ValueError(f"sample {bad}: no expert with a weight above 0 applies")
    share = np.where(counts, weight, 0.0)
    share /= share.max(1, keepdims=True)
    rewards = (share * np.where(counts, (values - offset) / span, 0.0)).sum(1) / share.sum(1)
    passed = np.where(counts, values >= mark, True).all(1)
    lines = [judgements[name].evidence or ("",) * len(sample_ids) for name in names]
    boxes = [judgements[name].boxes or ((),) * len(sample_ids) for name in names]
    return Scores(
        sample_ids=tuple(sample_ids),
        experts=names,
        values=values,
        rewards=rewards.astype(np.float32),
        passed=passed,
        evidence=tuple(zip(*lines, strict=True)),
        boxes=tuple(zip(*boxes, strict=True)),
    )


@dataclass(frozen=True)
class Settled:
    """One entry a group: its scores, or why it has none. `left_out`: the experts that no group of the
    step heard, each with its first failure."""

    scores: tuple[Scores | str, ...]
    left_out: dict[str, Failure]


def settle(
    groups: Sequence[Opinions], config: RewardsConfig, running: Mapping[str, RunningStats]
) -> Settled:
    """The rewards of all groups of a step together. `running` normalises those experts that it names.

    An expert that is left out is NaN in the scores, as one that does not apply.
    """
    left_out: dict[str, Failure] = {}
    for group in groups:
        for name, opinion in group.by_expert.items():
            if opinion.failed and config.experts[name].on_failure == "leave_out":
                left_out.setdefault(name, opinion.said)
    reasons = [_why_not(group, config, left_out) for group in groups]
    heard = [group for group, why in zip(groups, reasons, strict=True) if why is None]
    scores = iter(_scores(heard, config, left_out, running) if heard else ())
    return Settled(tuple(next(scores) if why is None else why for why in reasons), left_out)


def _why_not(group: Opinions, config: RewardsConfig, left_out: Mapping[str, Failure]) -> str | None:
    """Why a group has no reward, if it has none."""
    heard = {name: opinion for name, opinion in group.by_expert.items() if name not in left_out}
    for opinion in heard.values():
        if opinion.failed:
            return str(opinion.said)
    if left_out:
        weighty = [o.said.values for name, o in heard.items() if config.experts[name].weight > 0]
        if not weighty or np.isnan(weighty).all(0).any():
            return f"nobody else judges it while {', '.join(left_out)} is left out"
    return None


def _scores(
    groups: Sequence[Opinions],
    config: RewardsConfig,
    left_out: Mapping[str, Failure],
    running: Mapping[str, RunningStats],
) -> list[Scores]:
    """Of groups that all have a reward: combined as one, for a step may have hundreds, and taken apart
    again."""
    judgements, marks = {}, {}
    for name, opinion in groups[0].by_expert.items():
        marks[name] = opinion.pass_mark
        judgements[name] = joined(
            [_absent(g) if name in left_out else g.by_expert[name].said for g in groups]
        )
    weights = {name: config.experts[name].weight for name in judgements}
    scales = {
        name: scale_of(config.experts[name], running.get(name, RunningStats())) for name in judgements
    }
    ids = [sample_id for group in groups for sample_id in group.sample_ids]
    whole = combine(ids, judgements, weights, marks, scales)
    ends = np.cumsum([len(group.sample_ids) for group in groups]).tolist()
    return [whole.part(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def _absent(group: Opinions) -> Judgement:
    return Judgement(np.full(len(group.sample_ids), np.nan, np.float32))
