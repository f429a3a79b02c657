"""Everything that can be found wrong before anything is started or written."""

from dataclasses import dataclass
from pathlib import Path

from actors.rollout import choose_sampler
from cluster.commands.fetch import check_fetched
from cluster.config import RunConfig, dump_config
from cluster.estimate.store_memory import StoreNeed, store_need
from cluster.files import write_whole
from cluster.ray_session import existing_cluster
from cluster.watch.evaluation import Evaluator
from cluster.watch.wandb_log import check_wandb
from cluster.weight_sync import wants_broadcast
from learner.config import check_learner
from policy.model import check_policy
from policy.prompts import read_prompts
from policy.records import Prompt
from rewards.expert import check_experts


@dataclass(frozen=True)
class Inputs:
    """What a run reads: training prompts, and held-out prompts with their CoT checker."""

    prompts: list[Prompt]
    evaluator: Evaluator

    @property
    def all_prompts(self) -> list[Prompt]:
        return [*self.prompts, *self.evaluator.prompts]

    def store_need(self, config: RunConfig, *, learn: bool = True) -> StoreNeed:
        """What Ray's object store must hold."""
        return store_need(config, len(self.evaluator.prompts), learn=learn)


def validate_run(config: RunConfig) -> Inputs:
    """Raises UserError for the first thing that would stop the run later."""
    check_fetched(config.policy.templates, config.train.prompts, config.evaluate.prompts)
    check_policy(config.policy)
    check_learner(config.learner, config.policy)
    check_experts(config.rewards)
    wants_broadcast(config)
    if config.train.wandb:
        check_wandb()
    if not existing_cluster(config.ray):  # there the workers' machines may hold what this one does not
        choose_sampler(config.actors)
    held_out = read_prompts(config.evaluate.prompts)
    return Inputs(read_prompts(config.train.prompts), Evaluator.of(config.evaluate, held_out))


def run_folder(config: RunConfig, *, goes_on: bool = False) -> Path:
    """The run directory with its config.yaml: empty but for that, or, if an earlier run `goes_on`, as
    that one left it. An earlier run that does not is kept, as NAME.1, NAME.2, ..."""
    folder = config.folder
    if not goes_on and folder.exists() and any(folder.iterdir()):
        number = 1
        while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(kept)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", dump_config(config))
    return folder
