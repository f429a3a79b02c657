"""Advantages: how much better a sample is than the others of its group, as pure functions.

GRPO (arXiv 2402.03300) compares the samples of one prompt with each other, and so needs no value model.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policy.records import Scores

Scaling = Literal["std", "none"]


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Scaling = "std", eps: float = 1e-4
) -> Tensor:
    """Each reward relative to its group: [N] -> [N], groups contiguous.

    Reward minus group mean, over the group's unbiased standard deviation + eps (`scale="std"`), or the
    difference alone (`scale="none"`). A group of one has nothing to compare with and gets 0.

    Raises ValueError if N is not a multiple of `group_size` or `scale` is unknown.
    """
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {list(rewards.shape)} do not form groups of {group_size}")
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', not {scale!r}")
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(1, keepdim=True)
    if group_size == 1:
        return torch.zeros_like(rewards)
    if scale == "std":
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    return advantages.reshape(-1)


def gdpo_advantages(
    scores: Tensor, weights: Tensor, group_size: int, *, scale: Scaling = "std", eps: float = 1e-4
) -> Tensor:
    """GDPO (arXiv 2601.05242, section 3): each expert's scores relative to their group, then the
    weighted mean of these, normalised over all samples: [N, E], NaN where an expert does not apply, and
    [E] -> [N], groups contiguous.

    Two experts that contradict each other, which a mean would hide, stay visible, and an expert on a
    wide scale counts no more than one on a narrow scale. Here the experts that apply get a weighted
    mean, where the paper has a sum, so that prompts with few experts count as much.
    """
    applies = ~scores.view(-1, group_size, scores.shape[1]).isnan().any(1)
    applies = applies.repeat_interleave(group_size, 0)
    columns = [
        group_advantages(column, group_size, scale=scale, eps=eps)
        for column in torch.where(applies, scores, 0.0).unbind(1)
    ]
    share = torch.where(applies, weights, 0.0)
    mean = (torch.stack(columns, 1) * share).sum(1) / share.sum(1).clamp(min=1e-12)
    return (mean - mean.mean()) / (mean.std(correction=0) + eps)


def bicot_advantages(
    scores: Sequence[Scores],
    weights: Mapping[str, float],
    credits: Mapping[str, str],
    *,
    how: Literal["group", "gdpo"] = "group",
    scale: Scaling = "std",
) -> np.ndarray:
    """The advantages of groups of G samples from their experts' scores: float32 [groups, G], or where
    the CoTs get credit from different experts, [groups, G, 2]: one for the semantic CoT, one for the
    image. A CoT without an expert in a group gets 0.

    Args: `weights` and `credits` (both, cot or image) by expert.
    """
    size = len(scores[0].rewards)
    by_cot = any(credits[name] != "both" for name in scores[0].experts)
    columns = []
    for cot in ("cot", "image") if by_cot else ("both",):
        if how == "gdpo":
            mine = [weights[n] * (credits[n] in ("both", cot)) for n in scores[0].experts]
            values = torch.from_numpy(np.concatenate([s.values for s in scores]))
            columns.append(gdpo_advantages(values, torch.tensor(mine), size, scale=scale))
        else:
            rewards = torch.from_numpy(np.concatenate([compared(s)[:, len(columns)] for s in scores]))
            columns.append(group_advantages(rewards.nan_to_num(), size, scale=scale))
    shape = (len(scores), size, 2) if by_cot else (len(scores), size)
    return torch.stack(columns, -1).reshape(shape).numpy()


def compared(scores: Scores) -> np.ndarray:
    """The rewards that are compared within a group, float32 [G, 1], or [G, 2], one for each CoT."""
    return scores.rewards[:, None] if scores.rewards_by_cot is None else scores.rewards_by_cot


def has_signal(
    scores: Scores, weights: Mapping[str, float], how: Literal["group", "gdpo"] = "group"
) -> bool:
    """Whether any compared value differs within a group; else the group gives no gradient but the KL
    term's."""
    columns = compared(scores)
    if how == "gdpo":
        columns = scores.values[:, [weights[name] > 0 for name in scores.experts]]
    return bool((np.ptp(np.nan_to_num(columns), axis=0) > 0).any())
