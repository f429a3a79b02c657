"""The two losses of a batch: that of its semantic CoTs, and that of its images."""

from torch import Tensor

from learner.batch import Batch
from learner.config import LearnerConfig
from learner.grpo import BicotLoss, bicot_loss
from learner.logprobs import Logps


def phase_losses(
    batch: Batch, logps: Logps, reference: Logps | None, config: LearnerConfig
) -> tuple[BicotLoss, BicotLoss]:
    """CoT and image. `guidance: guided` compares the guided distribution with the guided one that the
    sampler drew from: never a ratio of two different things."""
    split = batch.cot.shape[1]
    guided = config.guidance == "guided"

    def loss(new: Tensor, old: Tensor, ref: Tensor | None, weights: Tensor) -> BicotLoss:
        return bicot_loss(
            new,
            old,
            ref,
            batch.advantages,
            weights,
            beta=config.beta,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )

    def image_of(out: Logps | None) -> Tensor | None:
        return out and (out.guided if guided else out.image)

    old_image = batch.guided_logps if guided else batch.sampled_logps[:, split:]
    cot = loss(
        logps.cot, batch.sampled_logps[:, :split], reference and reference.cot, batch.weights[:, :split]
    )
    image = loss(image_of(logps), old_image, image_of(reference), batch.weights[:, split:])
    return cot, image
