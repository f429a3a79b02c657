"""Advantages: how much better a sample is than the others of its group, as a pure function.

GRPO (arXiv 2402.03300) compares the samples of one prompt with each other, and so needs no value model.
"""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Literal["std", "none"] = "std", eps: float = 1e-4
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
