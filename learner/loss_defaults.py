"""Settings of each loss in its paper; apart from the losses, so that a configuration needs no torch."""

from dataclasses import dataclass
from typing import Literal

Aggregation = Literal["token_mean", "sample_mean", "cot_mean", "constant"]
"""What a loss is a mean over: `learner.batch.aggregate`."""
Span = Literal["each", "both"]
"""What has one ratio in GSPO: each CoT, or both together."""


@dataclass(frozen=True)
class Defaults:
    """Defaults of `learner`'s keys of these names."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "token_mean"
    advantage_scale: Literal["std", "none"] = "std"


def defaults_of(loss: str, gspo_span: Span = "each") -> Defaults:
    """The defaults of a loss; GRPO's for a loss of one's own."""
    if loss == "dr_grpo":  # arXiv 2503.20783, section 3.2
        return Defaults(aggregation="constant", advantage_scale="none")
    if loss == "dapo":  # arXiv 2503.14476, section 4.1
        return Defaults(clip_high=0.28)
    if loss == "gspo":  # arXiv 2507.18071, section 5.1
        return Defaults(3e-4, 4e-4, "cot_mean" if gspo_span == "each" else "sample_mean")
    if loss == "cispo":
        # No lower bound. The upper one is ScaleRL's (arXiv 2510.13786), for the paper gives none:
        # ratios up to 5.
        return Defaults(clip_low=1.0, clip_high=4.0)
    return Defaults()
