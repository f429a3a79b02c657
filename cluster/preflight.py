"""Everything that can be found wrong before anything is started or written."""

from dataclasses import dataclass
from pathlib import Path

from cluster.config import RunConfig
from cluster.evaluate import Evaluator
from learner.config import check_learner
from policy.janus import check_policy
from policy.prompts import read_prompts
from policy.records import Prompt
from rewards.config import check_experts


@dataclass(frozen=True)
class Inputs:
    """What a run reads: training prompts, and held-out prompts with their plan judge."""

    prompts: list[Prompt]
    evaluator: Evaluator

    @property
    def all_prompts(self) -> list[Prompt]:
        return [*self.prompts, *self.evaluator.prompts]


def check_inputs(config: RunConfig) -> Inputs:
    """Raises UserError for the first thing that would stop the run later."""
    check_policy(config.policy)
    check_learner(config.learner, config.policy)
    check_experts(config.rewards)
    held_out = read_prompts(config.evaluate.prompts)
    return Inputs(read_prompts(config.train.prompts), Evaluator.of(config.evaluate, held_out))


def fresh_folder(folder: Path) -> None:
    """Make an empty run directory. An earlier run's is kept, under NAME.1, NAME.2, ..."""
    if folder.exists() and any(folder.iterdir()):
        number = 1
        while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(kept)
    folder.mkdir(parents=True, exist_ok=True)
