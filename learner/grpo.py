"""The mathematics of BiCoT-GRPO (T2I-R1, arXiv 2505.00703; GRPO: arXiv 2402.03300), as pure functions.

N samples in groups of G; T token columns, those of the semantic CoT first, then those of the image.
With the ratio rho = exp(logp - old_logp) and the advantage A of its sample, a token's loss is

    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) + beta * k3

where k3 = exp(ref - logp) - (ref - logp) - 1 estimates the KL divergence from the reference model.
The loss of a step is one mean over the tokens of both CoTs. Here it stays a sum and a count, so
that whoever cuts a step into ranks and micro-batches divides once, by the count of the whole step
(the published code divides each piece by its own count, and so trains differently on a different
number of GPUs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    mask: Tensor,
    *,
    beta: float = 0.01,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> BicotLoss:
    """The token losses of a batch, summed. All [N, T], but advantages [N].

    `mask` is each token's weight in the mean: 0 for padding, 1 for a token, other weights to make
    one CoT count more than the other. `ref_logps=None` means no KL term.
    """
    mask = mask.to(logps.dtype)
    real = mask > 0
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

    count = mask.sum()
    with torch.no_grad():
        per_token = {
            "kl": kl,
            "clip_fraction": (clipped * advantage < ratio * advantage).to(logps.dtype),
            "ratio": ratio,
            "logp": torch.where(real, logps, 0.0),
        }
        metrics = {name: (x * mask).sum() / count.clamp(min=1e-8) for name, x in per_token.items()}
    return BicotLoss((token_loss * mask).sum(), count, metrics)
