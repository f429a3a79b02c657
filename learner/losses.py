"""The mathematics of BiCoT-GRPO (T2I-R1, arXiv 2505.00703; GRPO: arXiv 2402.03300), as pure functions.

N samples; T token columns, those of the semantic CoT first, then those of the image.
With the ratio rho = exp(logp - old_logp) and the advantage A of its sample, a token's loss is

    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) + beta * k3

where k3 = exp(ref - logp) - (ref - logp) - 1 estimates the KL divergence from the reference model.
The loss of a step is one mean over the tokens of both CoTs. Here it stays a sum and a count, so
that whoever cuts a step into ranks and micro-batches divides once, by the count of the whole step
(the published code divides each piece by its own count, and so trains differently on a different
number of GPUs).
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from policy.errors import UserError
from policy.imports import load_named

if TYPE_CHECKING:
    from learner.config import LearnerConfig


@dataclass(frozen=True)
class BicotLoss:
    """`sum` is differentiable; loss = sum / count. `metrics` are masked means of the same tokens,
    so that weighted by `count` they add up over micro-batches and ranks like the loss itself."""

    sum: Tensor
    count: Tensor
    metrics: dict[str, Tensor]


def bicot_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    advantages: Tensor,
    token_weights: Tensor,
    *,
    beta: float = 0.01,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> BicotLoss:
    """The token losses of a batch, summed. All [N, T], but advantages [N].

    `token_weights` is each token's weight in the mean: 0 for padding, 1 for a token, other weights to
    make one CoT count more than the other. `ref_logps=None` means no KL term.
    """
    token_weights = token_weights.to(logps.dtype)
    real = token_weights > 0
    # Padding may hold anything, -inf too; 0 * inf would poison the sum and its gradient.
    log_ratio = torch.where(real, logps - old_logps, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages[:, None]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    token_loss = -torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(ratio)
    if ref_logps is not None:
        gap = torch.where(real, ref_logps - logps, 0.0)
        kl = gap.exp() - gap - 1
        token_loss = token_loss + beta * kl

    count = token_weights.sum()
    with torch.no_grad():
        per_token = {
            "kl": kl,
            "clip_fraction": (clipped * advantage < ratio * advantage).to(logps.dtype),
            "ratio": ratio,
            "logp": torch.where(real, logps, 0.0),
        }
        metrics = {
            name: (x * token_weights).sum() / count.clamp(min=1e-8) for name, x in per_token.items()
        }
    return BicotLoss((token_loss * token_weights).sum(), count, metrics)


@dataclass(frozen=True)
class LossInputs:
    """What a loss sees of N samples: both CoTs side by side, `cot_tokens` columns of text, then those
    of the image. All float32 [N, T], but advantages [N]. All log-probabilities are of one distribution
    (`learner.train_distribution`). Padding may hold anything: leave out where `token_weights` is 0."""

    logps: Tensor  # differentiable
    sampled_logps: Tensor
    reference_logps: Tensor | None
    advantages: Tensor
    token_weights: Tensor  # 0 for padding
    cot_tokens: int

    @property
    def columns(self) -> dict[str, slice]:
        """Of both CoTs, by name."""
        return {"cot": slice(0, self.cot_tokens), "image": slice(self.cot_tokens, None)}


@dataclass(frozen=True)
class LossResult:
    """`sum` is differentiable; the loss of a step is the sum of sums over the sum of `token_weights`,
    over all micro-batches and workers. `metrics`: a sum and a weight each, which add up likewise. Their
    names must be the same for every batch. Those of `loss/...` are the parts of the loss."""

    sum: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Loss(Protocol):
    def __call__(self, inputs: LossInputs, config: "LearnerConfig") -> LossResult: ...


def grpo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """BiCoT-GRPO: `bicot_loss` of both CoTs, with the metrics of each (`.../cot`, `.../image`), unless
    it weighs nothing."""
    total = inputs.logps.new_zeros(())
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    weights = {"cot": config.cot_weight, "image": config.image_weight}
    for phase, here in inputs.columns.items():
        reference = inputs.reference_logps
        loss = bicot_loss(
            inputs.logps[:, here],
            inputs.sampled_logps[:, here],
            None if reference is None else reference[:, here],
            inputs.advantages,
            inputs.token_weights[:, here],
            beta=config.kl_coef,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        total = total + loss.sum
        if weights[phase] == 0:
            continue  # nothing is known of it, which is not 0
        metrics[f"loss/{phase}"] = loss.sum.detach(), loss.count
        for name, mean in loss.metrics.items():
            metrics[f"{name}/{phase}"] = mean * loss.count, loss.count
    return LossResult(total, metrics)


LOSSES: dict[str, Loss] = {"grpo": grpo_loss}
"""By the name in `learner.loss`, which may also be the `package.module:function` of one's own."""


def load_loss(name: str) -> Loss:
    """Raises UserError for a name that is not known, or a function that cannot be loaded."""
    if ":" in name:
        return load_named(name, "learner.loss")
    if name not in LOSSES:
        near = get_close_matches(name, LOSSES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(LOSSES)}"
        raise UserError(f"learner.loss: {name!r} is unknown; {hint} (or write package.module:function)")
    return LOSSES[name]
