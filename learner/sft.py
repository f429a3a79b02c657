"""The loss of supervised fine-tuning: the negative log-likelihood of both CoTs of worked examples. The
learner uses it in place of `learner.losses.grpo_loss`."""

from typing import TYPE_CHECKING

import torch

from learner.losses import LossInputs, LossResult

if TYPE_CHECKING:
    from learner.config import LearnerConfig


def sft_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """-sum(token_weights * logps); `loss/cot` and `loss/image` are the means of each CoT, unless its
    weight is 0. Advantages, sampled and reference log-probabilities are ignored."""
    real = inputs.token_weights > 0
    # Padding may hold anything, -inf too; 0 * inf would poison the sum and its gradient.
    nll = -torch.where(real, inputs.logps, 0.0) * inputs.token_weights
    trained = {"cot": config.cot_weight, "image": config.image_weight}
    metrics = {
        f"loss/{phase}": (nll[:, here].sum().detach(), inputs.token_weights[:, here].sum())
        for phase, here in inputs.columns.items()
        if trained[phase] > 0
    }
    return LossResult(nll.sum(), metrics)
