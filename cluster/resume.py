"""Resuming a run: from which checkpoint, and which settings may have changed since."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.checkpoint import Checkpoint, newest
from cluster.config import RunConfig
from cluster.fingerprints import fingerprints
from policy.errors import UserError

MAY_CHANGE = (
    "name",
    "algorithm",
    "runs_dir",
    "ray",
    "evaluate",
    "train.steps",
    "train.save_every",
    "train.keep_checkpoints",
    "train.show_every",
    "train.log",
    "train.wandb",
    "train.resume",
    "train.max_skipped_steps",
    "train.max_learner_restarts",
    "actors.count",
    "actors.num_cpus",
    "actors.num_gpus",
    "actors.resources",
    "actors.labels",
    "actors.sampler",
    "actors.vllm",
    "actors.batch_size",
    "actors.timeout_s",
    "actors.load_timeout_s",
    "actors.max_redraws",
    "learner.ranks",
    "learner.num_cpus",
    "learner.num_gpus",
    "learner.resources",
    "learner.labels",
    "learner.micro_batch_tokens",
    "learner.logprob_chunk_tokens",
    "learner.gradient_checkpointing",
    "learner.transport",
    "learner.bucket_mb",
    "learner.timeout_s",
    "rewards.gateway",
    "rewards.retries",
    "rewards.timeout_s",
    "serve",
    "sft.heldout",
    "sft.steps",
    "sft.evaluate_every",
    "sft.save_every",
    "sft.keep_checkpoints",
    "sft.log",
    "sft.wandb",
    "sft.resume",
    "sft.max_skipped_steps",
    "sft.max_learner_restarts",
)
"""Settings of place and speed, which do not affect what is learned. Of an expert's keys only those that
define it do."""
_OF_AN_EXPERT = ("use", "options", "dtype", "weight", "credits", "normalize", "on_failure")


def where_to_start(config: RunConfig, tell: Callable[[str], None]) -> Checkpoint | None:
    """`resume_point` of a training run."""
    return resume_point(config.folder, config, "train", fingerprints(config), tell)


def resume_point(
    folder: Path,
    config: BaseModel,
    loop: str,
    read: dict[str, str],
    tell: Callable[[str], None],
) -> Checkpoint | None:
    """The checkpoint to resume from, which is reported; None: there is none, or the earlier run is
    complete. A run that reached its last step and was killed before its report is not complete.

    `loop` is the part of the configuration that has `steps` and `resume`; `read` the fingerprints of
    the files that the run reads. Raises UserError, naming the keys, if the earlier run had other
    settings.
    """
    settings = config.model_dump(mode="json")
    if settings[loop]["resume"] == "never":
        return None
    checkpoint = newest(folder / "checkpoints", tell)
    left = settings[loop]["steps"] - checkpoint.state.step if checkpoint else 0
    if checkpoint is None or left < 0 or (left == 0 and not _lacks_report(checkpoint)):
        return None
    then, now = _leaves(_with_new_keys(checkpoint.state.config, type(config))), _leaves(settings)
    changed = [
        key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and affects_training(key)
    ]
    other = [key for key, mark in checkpoint.state.fingerprints.items() if read.get(key, mark) != mark]
    if not changed and other:
        raise UserError(
            f"{folder} holds a run that stopped at step {checkpoint.state.step}, and the files"
            f" of {', '.join(other)} are no longer the ones that it read; bring those back, give this"
            f" run another name=..., or {loop}.resume=never to put that one aside"
        )
    if changed:
        listed = ", ".join(f"{key} ({then.get(key)} there, {now.get(key)} here)" for key in changed[:5])
        raise UserError(
            f"{folder} holds a run that stopped at step {checkpoint.state.step}, of other"
            f" settings: {listed}; give this run another name=..., or {loop}.resume=never to put that"
            " one aside"
        )
    tell(f"{folder} goes on from step {checkpoint.state.step}")
    return checkpoint


def _with_new_keys(config: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """An earlier run's configuration, with newer keys at their defaults, which are how it ran;
    unchanged if keys were removed since."""
    try:
        return model.model_validate(config).model_dump(mode="json")
    except ValidationError:
        return config


def _lacks_report(checkpoint: Checkpoint) -> bool:
    """Whether the run that ended with this checkpoint was killed before it wrote its report."""
    run = checkpoint.folder.parent.parent
    report, written = run / "report.html", (checkpoint.folder / "state.json").stat().st_mtime
    made = report.exists() and report.stat().st_mtime >= written
    return (run / "metrics.jsonl").exists() and not made


def affects_training(key: str) -> bool:
    if key.startswith("rewards.experts."):
        return key.split(".")[3] in _OF_AN_EXPERT
    return not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    found: dict[str, Any] = {}
    for name, branch in tree.items():
        found |= _leaves(branch, f"{prefix}.{name}" if prefix else name)
    return found
