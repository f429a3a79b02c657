"""What changes from step to step: the learning rate, and coefficients that follow a target."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learner.config import LearnerConfig


def learning_rate(config: "LearnerConfig", done: int, steps: int) -> float:
    """The rate of the step after `done` of `steps`: up from 0 over `warmup_steps`, then by `schedule`;
    a falling schedule would reach 0 with the step after the last."""
    if done < config.warmup_steps:
        return config.lr * (done + 1) / config.warmup_steps
    progress = (done - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - progress)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr


@dataclass(frozen=True)
class Coefficients:
    """The weights of the KL term and of each CoT's entropy bonus in the next step's loss."""

    kl: float
    entropy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def at_start(cls, config: "LearnerConfig") -> "Coefficients":
        return cls(config.kl_coef, dict.fromkeys(("cot", "image"), config.entropy_coef))

    def after(self, metrics: Mapping[str, float], config: "LearnerConfig") -> "Coefficients":
        """The coefficients after a step with these metrics: each that has a target moves towards it."""
        kl, entropy = self.kl, dict(self.entropy)
        both = [metrics[name] for name in ("kl/cot", "kl/image") if name in metrics]
        if config.kl_target is not None and both:
            mean = sum(both) / len(both)
            kl = follow(kl, mean / config.kl_target, config.kl_coef)
        for phase, target in config.entropy_target.items():
            if now := metrics.get(f"entropy/{phase}"):
                # A bonus raises the entropy, so it grows where there is too little.
                entropy[phase] = follow(entropy[phase], target / now, config.entropy_coef)
        return Coefficients(kl, entropy)

    def metrics(self, config: "LearnerConfig") -> dict[str, float]:
        """The coefficients that follow a target, by name."""
        found = {} if config.kl_target is None else {"kl_coef": self.kl}
        return found | {f"entropy_coef/{p}": self.entropy[p] for p in config.entropy_target}


def follow(coef: float, excess: float, start: float) -> float:
    """A coefficient after one step: it grows while the value that it holds down is `excess` > 1 times
    its target, and shrinks below: by a tenth of the relative error, clipped to a fifth (arXiv
    1909.08593, section 2.2). It never falls under a hundredth of its start, so that it can recover in
    time."""
    error = min(max(excess - 1, -0.2), 0.2)
    return max(coef * (1 + 0.1 * error), start / 100)


@dataclass(frozen=True)
class StepSettings:
    """The settings of one step. `lr` None: unchanged."""

    coefficients: Coefficients
    lr: float | None = None

    @classmethod
    def of(
        cls, config: "LearnerConfig", coefficients: Coefficients, done: int, steps: int
    ) -> "StepSettings":
        """For the step after `done` of `steps`."""
        scheduled: Any = config.schedule != "constant" or config.warmup_steps
        return cls(coefficients, learning_rate(config, done, steps) if scheduled else None)
