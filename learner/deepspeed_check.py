"""Checks whether DeepSpeed accepts settings, in a process of its own: importing it takes seconds,
prints text, and chooses a device. `python -m learner.deepspeed_check` reads settings, and prints a
fault.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from policy.errors import UserError

OURS = {
    "train_batch_size": "the batch of a step is train.groups_per_step x train.group_size",
    "train_micro_batch_size_per_gpu": "learner.micro_batch_tokens cuts a step",
    "gradient_accumulation_steps": "learner.micro_batch_tokens cuts a step",
    "managed_gradient_accumulation": "the loss is divided by the tokens of the whole step",
}
"""Settings that would change what a step is, and the keys that set it instead."""
_LIMIT_S = 300


def check_deepspeed(
    user: dict[str, Any], settings: dict[str, Any], dtype: str, *, on_gpu: bool
) -> None:
    """Refuse settings that DeepSpeed would not take, would not read, or that work against the rest.

    Args:
        user: `learner.deepspeed` as given. settings: the same over the defaults. dtype: of the policy.

    Raises:
        UserError: names the key.
    """
    for key, value in _leaves(user):
        if value == "auto":
            raise UserError(f"learner.deepspeed: {key}: auto is for other trainers: set it, or drop it")
    for key, instead in OURS.items():
        if key in user:
            raise UserError(f"learner.deepspeed: {key} is not yours to set: {instead}; drop it")
    for key in ("zero_optimization", "bf16", "fp16"):
        if not isinstance(settings[key], dict):
            raise UserError(f"learner.deepspeed: {key}: must be a mapping, not {settings[key]!r}")
    for half, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        enabled = settings[half].get("enabled")
        if enabled is not (dtype == name):
            raise UserError(
                f"learner.deepspeed: {half}.enabled is {enabled}, with policy.dtype {dtype}: drop it,"
                " and set policy.dtype"
            )
    if dtype == "float16" and not on_gpu:
        raise UserError(
            "policy.dtype float16 needs GPUs to learn on: set learner.num_gpus, or another policy.dtype"
        )
    if user:
        _ask_deepspeed(settings)


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    children = (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    )
    for key, value in children:
        yield from _leaves(value, f"{prefix}{key}.")
    if not isinstance(tree, dict | list):
        yield prefix.removesuffix("."), tree


def _ask_deepspeed(settings: dict[str, Any]) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "learner.deepspeed_check"],
        input=json.dumps(settings, default=str),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1"},
    )
    answer = asked.stdout.splitlines()[-1:]
    if asked.returncode or not answer:
        raise RuntimeError(f"DeepSpeed could not be asked about its settings: {asked.stderr[-2000:]}")
    if fault := json.loads(answer[0]):
        raise UserError(f"learner.deepspeed: {fault}")


class _Read(dict):
    """Remembers which of its keys were asked for."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__(settings)
        self.keys_read: set[str] = set()

    def get(self, key, default=None):
        self.keys_read.add(key)
        return super().get(key, default)

    def __contains__(self, key):
        self.keys_read.add(key)
        return super().__contains__(key)

    def __getitem__(self, key):
        self.keys_read.add(key)
        return super().__getitem__(key)


def fault_of(settings: dict[str, Any]) -> str | None:
    """What DeepSpeed finds wrong, or a key that it never reads, in a line; None: nothing."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    for name in ("optimizer", "scheduler"):
        if unknown := settings.get(name, {}).keys() - {"type", "params", "legacy_fusion"}:
            return f"{name}.{min(unknown)}: DeepSpeed has no such setting; {name} has type and params"
    read = _Read(settings)
    try:
        DeepSpeedConfig(read)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (DeepSpeedConfigError, AssertionError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if unknown := settings.keys() - read.keys_read:
        return f"{min(unknown)}: DeepSpeed has no such setting"
    return None


if __name__ == "__main__":
    fault = fault_of(json.load(sys.stdin))
    print(json.dumps(fault))
