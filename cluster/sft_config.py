"""The configuration of `bicot sft`, a cold start on worked examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.config import NamedRun, RayConfig, read_tree, validated
from cluster.placement import Role
from cluster.watch.wandb_log import WandbConfig
from learner.config import LearnerConfig
from policy.paths import UserPath


class SftLearnerConfig(LearnerConfig):
    """The learner of training. Its keys mean the same, with the steps of `sft`; those of rewards,
    ratios, entropy and the reference model have no effect."""

    loss: str = "learner.sft:sft_loss"
    """A name in `learner.losses.LOSSES`, or `package.module:function` of your own."""
    kl_coef: float = Field(0.0, ge=0, le=0)
    """There is no reference model."""
    updates_per_batch: int = Field(1, ge=1, le=1)
    """A step learns from its examples once."""
    minibatches: int = Field(1, ge=1, le=1)
    """A step is one update."""
    train_distribution: Literal["conditional"] = "conditional"
    """Worked examples are not sampled with guidance."""


class SftSettings(BaseModel):
    """Worked examples, their number, and how often results are saved."""

    model_config = ConfigDict(extra="forbid")

    data: UserPath
    """A file of worked examples, JSON lines."""
    heldout: UserPath | None = None
    """Another one, on which the loss is measured; None: no evaluation."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps of the whole run."""
    batch_size: int = Field(32, ge=1)
    """Examples of one optimizer step; a multiple of `learner.ranks`."""
    drop_prompt: float = Field(0.1, ge=0, le=1)
    """Share of examples whose image prompt is the unconditional one, which guidance needs."""
    resize: bool = False
    """Cut pictures of another size than the model's to their middle square, and scale them. false: they
    are an error."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between evaluations on the held-out examples; there is always one before the first step and
    one after the last."""
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    resume: Literal["auto", "never"] = "auto"
    """auto: a run that did not reach its last step goes on from its newest checkpoint. never: it is
    put aside, and a new one starts."""
    max_skipped_steps: int = Field(5, ge=1)
    """How many steps in a row may have a gradient that is not finite before the run stops."""
    max_learner_restarts: int = Field(3, ge=0)
    """How often the learner may be lost at the same step before the run stops."""
    log: Literal["text", "json"] = "text"
    """Output without a terminal: lines for people, or a JSON object a line."""
    wandb: WandbConfig | None = None
    """Weights & Biases gets a copy of all numbers."""


class SftConfig(NamedRun):
    """The configuration of `bicot sft`."""

    learner: SftLearnerConfig = SftLearnerConfig()
    """DeepSpeed ranks, which train the model."""
    sft: SftSettings
    """The examples and the loop."""
    ray: RayConfig = RayConfig()
    """Which Ray cluster, and how long to wait for it."""

    @model_validator(mode="after")
    def _ranks_get_equal_shares(self):
        if self.sft.batch_size % self.learner.ranks:
            raise ValueError(
                f"sft.batch_size {self.sft.batch_size} is not a multiple of learner.ranks"
                f" {self.learner.ranks}"
            )
        return self

    @property
    def role(self) -> Role:
        """The learner's resources."""
        learner = self.learner
        asked = learner.num_cpus, learner.num_gpus, "PACK", learner.resources, learner.labels
        return Role("learner", learner.ranks, *asked)


def load_sft_config(path: str | Path, overrides: Sequence[str] = ()) -> SftConfig:
    """As `cluster.config.load_config`. Raises UserError."""
    path, tree = read_tree(path)
    return validated(SftConfig, tree, str(path), overrides)
