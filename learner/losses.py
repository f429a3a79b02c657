"""The losses of GRPO and its kin over two chains of thought, as pure functions on tensors.

N samples; T token columns, those of the semantic CoT first, then those of the image. A loss sees whole
samples, so that a ratio may span a sample. With the ratio rho of a token (or of a sequence) and the
advantage A of its CoT, the loss of BiCoT-GRPO (T2I-R1, arXiv 2505.00703; GRPO: arXiv 2402.03300) is

    -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A) + kl_coef * k3

for each token, where k3 = exp(ref - logp) - (ref - logp) - 1 estimates the KL divergence from the
reference model. The others differ in the first term. A loss stays a sum: whoever cuts a step into ranks
and micro-batches divides once, by the count of the whole step (the published code divides each piece by
its own count, and so trains differently on a different number of GPUs). What the mean is over is
`learner.aggregation`, which is the tokens' weights (learner/batch.py), and not the losses' concern.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from learner.loss_defaults import Span
from policy.errors import UserError
from policy.imports import did_you_mean, load_named, with_place

if TYPE_CHECKING:
    from learner.config import LearnerConfig


@dataclass(frozen=True)
class LossInputs:
    """What a loss sees of N samples: both CoTs side by side, `cot_tokens` columns of text, then those
    of the image. All float32 [N, T]. All log-probabilities are of one distribution
    (`learner.train_distribution`). Padding may hold any values: leave out where `token_weights` is
    0."""

    logps: Tensor  # differentiable
    old_logps: Tensor  # before the first update of this batch, or the sampler's (`learner.old_logps`)
    sampled_logps: Tensor  # as the sampler returned them
    reference_logps: Tensor | None
    entropy: Tensor | None  # of the distribution at each token; differentiable where it is trained
    advantages: Tensor
    token_weights: Tensor  # 0 for padding
    cot_tokens: int
    kl_coef: float
    entropy_coefs: dict[str, float]  # of each CoT

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of both CoTs, by name."""
        return {"cot": slice(0, self.cot_tokens), "image": slice(self.cot_tokens, None)}

    @property
    def log_ratio(self) -> Tensor:
        """Each token's log-ratio, 0 on padding, which may hold -inf: 0 * inf would poison sum and
        gradient."""
        return torch.where(self.token_weights > 0, self.logps - self.old_logps, 0.0)


@dataclass(frozen=True)
class LossResult:
    """`sum` is differentiable; the loss of a step is the sum of sums over the step's count, over all
    micro-batches and workers. `metrics`: a sum and a weight each, which add up likewise. Their names
    must be the same for every batch. `loss/...` are the parts of the loss."""

    sum: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Loss(Protocol):
    def __call__(self, inputs: LossInputs, config: "LearnerConfig") -> LossResult: ...


class Objective(NamedTuple):
    """The first term of a loss, [N, T] each: what is minimised, the ratio, and where it is clipped."""

    losses: Tensor
    ratio: Tensor
    clipped: Tensor


# --- the losses ----------------------------------------------------------------------------------


def grpo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """BiCoT-GRPO (arXiv 2505.00703, eq. 5; arXiv 2402.03300, eq. 3)."""
    return with_shared_terms(inputs, config, _clipped(inputs.log_ratio, inputs.advantages, config))


def dr_grpo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): GRPO's term. The rest is in its defaults: a constant
    instead of a sample's length (`aggregation`), no standard deviation in the advantage."""
    return grpo_loss(inputs, config)


def dapo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """DAPO (arXiv 2503.14476, eq. 8): GRPO's term, clipped higher above than below, in a mean over
    tokens: its defaults. Its dynamic sampling is `train.resample_equal_groups`."""
    return grpo_loss(inputs, config)


def gspo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """GSPO (arXiv 2507.18071, eq. 5 to 7): one ratio for a sequence, the geometric mean of those of its
    tokens. A sequence is a CoT, or with `gspo_span: both` a whole sample."""
    log_ratio = sequence_mean(inputs, inputs.log_ratio, config.gspo_span)
    objective = _clipped(log_ratio, inputs.advantages, config)
    return with_shared_terms(inputs, config, objective, span=config.gspo_span)


def cispo_loss(inputs: LossInputs, config: "LearnerConfig") -> LossResult:
    """CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): the policy gradient of each token, times its
    clipped ratio, through which no gradient goes: a clipped token keeps its gradient."""
    ratio = inputs.log_ratio.detach().exp()
    weight = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    logps = torch.where(inputs.token_weights > 0, inputs.logps, 0.0)
    objective = Objective(-weight * inputs.advantages * logps, ratio, weight != ratio)
    return with_shared_terms(inputs, config, objective)


LOSSES: dict[str, Loss] = {
    "grpo": grpo_loss,
    "dr_grpo": dr_grpo_loss,
    "dapo": dapo_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
"""By the name in `learner.loss`, which may also be a user's `package.module:function`."""


def load_loss(name: str) -> Loss:
    """Raises UserError for a name that is not known, or a function that cannot be loaded."""
    if ":" in name:
        return load_named(name, "learner.loss")
    if name not in LOSSES:
        hint = did_you_mean(name, list(LOSSES)) or f"; there is {', '.join(LOSSES)}"
        raise UserError(f"learner.loss: {name!r} is unknown{hint} (or write package.module:function)")
    return LOSSES[name]


def check_loss(config: "LearnerConfig") -> None:
    """Loads the loss, and tries one of a user's own on two small samples, before any process starts.
    Raises UserError for a loss that is not known, that fails, or that nothing can be learned from."""
    loss, key = load_loss(config.loss), f"learner.loss: {config.loss}"
    if config.loss in LOSSES:
        return
    if not callable(loss):
        raise UserError(f"{key} is a {type(loss).__name__}, not a function")
    inputs = _two_samples(config)
    try:
        result = loss(inputs, config)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{key} fails on two small samples: {with_place(error)}") from error
    if not isinstance(result, LossResult):
        raise UserError(f"{key} returns a {type(result).__name__}, where a LossResult is needed")
    if not isinstance(result.sum, Tensor) or result.sum.dim() or not result.sum.requires_grad:
        raise UserError(f"{key}: its sum must be one number that depends on inputs.logps")


def _two_samples(config: "LearnerConfig") -> LossInputs:
    """Two samples of three text and four image tokens, the last text token of the second is padding."""
    logps = torch.full((2, 7), -1.0, requires_grad=True)
    weights = torch.ones(2, 7)
    weights[1, 2] = 0.0
    return LossInputs(
        logps=logps,
        old_logps=logps.detach().clone(),
        sampled_logps=logps.detach().clone(),
        reference_logps=None if config.reference_kind == "none" else logps.detach() - 0.1,
        entropy=torch.ones(2, 7),
        advantages=torch.tensor([[1.0], [-1.0]]).expand(2, 7),
        token_weights=weights,
        cot_tokens=3,
        kl_coef=config.kl_coef,
        entropy_coefs={"cot": 0.0, "image": 0.0},
    )


# --- what they are made of -----------------------------------------------------------------------


def clipped_objective(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Objective:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), elementwise."""
    ratio = log_ratio.exp()
    gain = ratio * advantages
    clipped_gain = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return Objective(-torch.minimum(gain, clipped_gain), ratio, clipped_gain < gain)


def k3(logps: Tensor, reference_logps: Tensor, real: Tensor) -> Tensor:
    """Each token's estimate of the KL divergence from the reference; 0 where not `real`."""
    gap = torch.where(real, reference_logps - logps, 0.0)
    return gap.exp() - gap - 1


def sequence_mean(inputs: LossInputs, values: Tensor, span: Span) -> Tensor:
    """The mean over the real tokens of each sequence, at each of its tokens: [N, T] -> [N, T]. A
    sequence is each CoT, or both together. `values` are 0 on padding."""
    spans = inputs.columns.values() if span == "each" else [slice(None)]
    real = (inputs.token_weights > 0).to(values.dtype)
    means = [
        (values[:, here].sum(1, keepdim=True) / real[:, here].sum(1, keepdim=True).clamp(min=1)).expand(
            -1, values[:, here].shape[1]
        )
        for here in spans
    ]
    return torch.cat(means, 1)


def importance_weights(
    inputs: LossInputs, config: "LearnerConfig", span: Span | None = None
) -> Tensor | None:
    """The weight that corrects each token's term for the policy that sampled it, [N, T]; None: no
    correction.

    With `old_logps: learner` the ratio does not involve the sampler, and w = exp(old - sampled)
    corrects for it (the decoupled objective, arXiv 2505.24298), truncated at `importance_cap`, or 0
    where it or its inverse is beyond the cap (`masked`). With `old_logps: sampler` the ratio itself
    corrects; `truncated` then keeps it below the cap where clipping does not, with a negative advantage
    (dual clip, arXiv 1912.09729), and `masked` leaves out what is beyond.
    """
    if config.importance == "none":
        return None
    learner = config.old_logps == "learner"
    newer = inputs.old_logps if learner else inputs.logps.detach()
    log_w = torch.where(inputs.token_weights > 0, newer - inputs.sampled_logps, 0.0)
    if span:
        log_w = sequence_mean(inputs, log_w, span)
    w, cap = log_w.exp(), config.importance_cap
    if config.importance == "masked":
        inside = (w <= cap) & (w >= 1 / cap)
        return torch.where(inside, w if learner else torch.ones_like(w), 0.0)
    return w.clamp(max=cap) if learner else (cap / w).clamp(max=1.0)


def _clipped(log_ratio: Tensor, advantages: Tensor, config: "LearnerConfig") -> Objective:
    return clipped_objective(log_ratio, advantages, config.clip_low, config.clip_high)


def with_shared_terms(
    inputs: LossInputs, config: "LearnerConfig", objective: Objective, span: Span | None = None
) -> LossResult:
    """The sum of an objective, corrected by `importance_weights`, the KL term and the entropy bonus;
    with the metrics of each CoT (`.../cot`, `.../image`), unless its weight is 0."""
    real = inputs.token_weights > 0
    losses = objective.losses
    by_token = {
        "clip_fraction": objective.clipped.to(losses.dtype),
        "ratio": objective.ratio,
        "logp": torch.where(real, inputs.logps, 0.0),
    }
    importance = importance_weights(inputs, config, span)
    if importance is not None:
        losses = losses * importance
        by_token["importance"] = importance
    by_token["kl"] = torch.zeros_like(losses)
    if inputs.reference_logps is not None:
        by_token["kl"] = k3(inputs.logps, inputs.reference_logps, real)
        losses = losses + inputs.kl_coef * by_token["kl"]
    if inputs.entropy is not None:
        by_token["entropy"] = torch.where(real, inputs.entropy, 0.0)

    total = inputs.logps.new_zeros(())
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    weight_of = {"cot": config.cot_weight, "image": config.image_weight}
    for phase, here in inputs.columns.items():
        weights = inputs.token_weights[:, here]
        of_phase = losses[:, here]
        if coef := inputs.entropy_coefs.get(phase):
            of_phase = of_phase - coef * by_token["entropy"][:, here]
        part = (of_phase * weights).sum()
        total = total + part
        if weight_of[phase] == 0:
            continue  # unknown, which is not 0
        count = weights.sum()
        metrics[f"loss/{phase}"] = part.detach(), count
        for name, values in by_token.items():
            metrics[f"{name}/{phase}"] = (values.detach()[:, here] * weights).sum(), count
    return LossResult(total, metrics)


# --- one call for both CoTs ----------------------------------------------------------------------


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
    """The token losses of GRPO, summed: what `grpo_loss` sums over both CoTs. All [N, T]; advantages
    [N], or one a token.

    `token_weights` is each token's weight in the mean: 0 for padding, 1 for a token, other weights to
    make one CoT count more than the other. `ref_logps=None` means no KL term.
    """
    token_weights = token_weights.to(logps.dtype)
    real = token_weights > 0
    log_ratio = torch.where(real, logps - old_logps, 0.0)
    by_token = advantages if advantages.dim() == 2 else advantages[:, None]
    losses, ratio, clipped = clipped_objective(log_ratio, by_token, clip_low, clip_high)
    kl = torch.zeros_like(ratio)
    if ref_logps is not None:
        kl = k3(logps, ref_logps, real)
        losses = losses + beta * kl

    count = token_weights.sum()
    with torch.no_grad():
        per_token = {
            "kl": kl,
            "clip_fraction": clipped.to(logps.dtype),
            "ratio": ratio,
            "logp": torch.where(real, logps, 0.0),
        }
        metrics = {
            name: (x * token_weights).sum() / count.clamp(min=1e-8) for name, x in per_token.items()
        }
    return BicotLoss((losses * token_weights).sum(), count, metrics)
