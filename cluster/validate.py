"""Checks a run before anything is started or written."""

from dataclasses import dataclass
from pathlib import Path

from actors.rollout import choose_sampler
from cluster.commands.fetch import check_fetched
from cluster.config import NamedRun, RunConfig, dump_config
from cluster.estimate.store_memory import StoreNeed, store_need
from cluster.ray_session import existing_cluster
from cluster.watch.benchmarks import BenchmarkSlice
from cluster.watch.evaluation import Evaluator
from cluster.watch.starts import note_start
from cluster.watch.wandb_log import check_wandb
from cluster.weight_sync import wants_broadcast
from learner.config import check_learner
from policy.errors import UserError
from policy.model import PolicyModel, check_policy, countable_janus, positions_needed
from policy.paths import write_whole
from policy.prompts import numbered_prompts, plain_prompt
from policy.records import Prompt
from rewards.expert import check_experts


@dataclass(frozen=True)
class Inputs:
    """What a run reads: training prompts, held-out prompts with their CoT checker, and prompts of
    benchmarks."""

    prompts: list[Prompt]
    evaluator: Evaluator
    benchmarks: list[BenchmarkSlice]

    @property
    def all_prompts(self) -> list[Prompt]:
        return [*self.prompts, *self.evaluator.prompts]

    def store_need(self, config: RunConfig, *, learn: bool = True) -> StoreNeed:
        """What Ray's object store must hold."""
        largest = max((benchmark.images for benchmark in self.benchmarks), default=0)
        return store_need(config, len(self.evaluator.prompts), learn=learn, benchmark=largest)


def validate_run(config: RunConfig, *, learn: bool = True) -> Inputs:
    """Raises UserError for the first thing that would stop the run later. Benchmarks are checked if the
    run does `learn`."""
    check_fetched(config.policy.templates, config.train.prompts, config.evaluate.prompts)
    check_policy(config.policy)
    check_learner(config.learner, config.policy)
    check_experts(config.rewards)
    wants_broadcast(config)
    if config.train.wandb:
        check_wandb()
    if not existing_cluster(config.ray):  # its machines may hold files that this one does not
        choose_sampler(config.actors)
    janus, max_cot_tokens = countable_janus(config.policy), config.actors.sampling.max_cot_tokens
    held_out, prompts = (
        prompts_that_fit(path, janus, max_cot_tokens)
        for path in (config.evaluate.prompts, config.train.prompts)
    )
    benchmarks = BenchmarkSlice.all_of(config) if learn else []
    for benchmark in benchmarks:
        check_benchmark(benchmark, janus, max_cot_tokens)
    return Inputs(prompts, Evaluator.of(config.evaluate, held_out), benchmarks)


def check_benchmark(benchmark: BenchmarkSlice, janus: PolicyModel | None, max_cot_tokens: int) -> None:
    """Raises UserError for a judge that cannot be built or has no server to ask, or a prompt that is
    `too_long`."""
    if benchmark.judges is not None:
        check_experts(benchmark.judges, "evaluate.judges")
        for name, entry in benchmark.judges.experts.items():
            if lacking := [key for key in ("url", "model") if entry.options.get(key) == ""]:
                raise UserError(
                    f"evaluate.judges.{name}.options.{lacking[0]}: {benchmark.benchmark.title} is"
                    " judged by a model on a server: name its url, which ends in /v1, and its model"
                )
    for item in benchmark.items:
        if why := too_long(plain_prompt(item.text), janus, max_cot_tokens):
            raise UserError(f"{benchmark.name}: prompt {item.key}: {why}")


def prompts_that_fit(
    path: str, janus: PolicyModel | None, max_cot_tokens: int, *, plain: bool = False
) -> list[Prompt]:
    """The prompts of a file, with `plain` also simple ones (`numbered_prompts`). Raises UserError, with
    the line, for one that is `too_long`."""
    found = numbered_prompts(path, plain=plain)
    for line, prompt in found:
        if why := too_long(prompt, janus, max_cot_tokens):
            raise UserError(f"{path}:{line}: {why}")
    return [prompt for _, prompt in found]


def too_long(prompt: Prompt, janus: PolicyModel | None, max_cot_tokens: int) -> str | None:
    """Why a prompt does not fit the model's context together with its semantic CoT and its image; None
    if it fits, or if there is no model to count with."""
    if janus is None:
        return None
    needed = positions_needed(janus, prompt.text, max_cot_tokens)
    if needed <= janus.max_positions:
        return None
    return (
        "the prompt is too long: with a semantic CoT of"
        f" actors.sampling.max_cot_tokens={max_cot_tokens} it takes {needed} tokens, and the"
        f" model's context is {janus.max_positions}"
    )


def run_folder(config: NamedRun, *, goes_on: bool = False) -> Path:
    """Make the run directory with its config.yaml and starts.jsonl: otherwise empty or, if an earlier
    run `goes_on`, as that one left it. Any other earlier run is renamed to NAME.1, NAME.2, ..."""
    folder = config.folder
    if not goes_on and folder.exists() and any(folder.iterdir()):
        number = 1
        while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(kept)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.yaml", dump_config(config))
    note_start(folder)
    return folder
