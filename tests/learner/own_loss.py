"""A loss as a user writes one: the README's."""

import torch

from learner.losses import LossInputs, LossResult


def unclipped_loss(inputs: LossInputs, config) -> LossResult:
    real = inputs.token_weights > 0  # padding may hold anything
    ratio = torch.where(real, inputs.logps - inputs.old_logps, 0.0).exp()
    losses = -ratio * inputs.advantages * inputs.token_weights
    return LossResult(losses.sum(), {})
