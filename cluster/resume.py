"""Whether a run goes on where an earlier one with its name stopped, and from which checkpoint."""

from collections.abc import Callable
from typing import Any

from cluster.checkpoint import Checkpoint, newest
from cluster.config import RunConfig
from cluster.fingerprints import fingerprints
from policy.errors import UserError

MAY_CHANGE = (
    "name",
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
)
"""Settings that say where and how fast, not what is learned. Of an expert only what it is counts."""
_OF_AN_EXPERT = ("use", "options", "weight", "normalize", "applies", "on_failure")


def where_to_start(config: RunConfig, tell: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to go on from; None: there is none, or the earlier run reached its end.

    Raises UserError, naming the keys, if the earlier run was of other settings.
    """
    if config.train.resume == "never":
        return None
    checkpoint = newest(config.folder / "checkpoints", tell)
    if checkpoint is None or checkpoint.state.step >= config.train.steps:
        return None
    then, now = _leaves(checkpoint.state.config), _leaves(config.model_dump(mode="json"))
    changed = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key) and _binds(key)]
    now_read = fingerprints(config)
    other = [
        key for key, mark in checkpoint.state.fingerprints.items() if now_read.get(key, mark) != mark
    ]
    if not changed and other:
        raise UserError(
            f"{config.folder} holds a run that stopped at step {checkpoint.state.step}, and the files"
            f" of {', '.join(other)} are no longer the ones that it read; bring those back, give this"
            " run another name=..., or train.resume=never to put that one aside"
        )
    if changed:
        listed = ", ".join(f"{key} ({then.get(key)} there, {now.get(key)} here)" for key in changed[:5])
        raise UserError(
            f"{config.folder} holds a run that stopped at step {checkpoint.state.step}, of other"
            f" settings: {listed}; give this run another name=..., or train.resume=never to put that"
            " one aside"
        )
    return checkpoint


def _binds(key: str) -> bool:
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
