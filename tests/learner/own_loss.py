"""A loss as a user writes one."""

from learner.losses import LossInputs, LossResult


def unclipped_loss(inputs: LossInputs, config) -> LossResult:
    losses = -inputs.log_ratio.exp() * inputs.advantages * inputs.token_weights
    return LossResult(losses.sum(), {})
