"""What a rollout actor tells of its work."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawReport:
    """What the driver needs to know of a batch without fetching it."""

    weights_version: int
    samples: int
    cot_tokens: int
    cots_stopped: int
    image_tokens: int
    pull_s: float
    draw_s: float
    group_tokens: tuple[int, ...]
    """Of each group, both CoTs together."""
