"""DeepSpeed's checkpoint engine, for checkpoints that are written while training goes on.

In a file of its own because it imports DeepSpeed, which the driver and the commands do without.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from learner.async_checkpoint import Writer
from policy.errors import UserError

_KNOWN = [LossScaler, ZeroStageEnum, fragment_address]
"""DeepSpeed's own classes in its checkpoints; everything else in them is tensors and plain values."""


@contextmanager
def plain_values_only() -> Iterator[None]:
    """Inside this context `torch.load` reads only tensors and plain values, whatever its arguments:
    DeepSpeed's converter and its universal load would run code from a file. Raises UserError for other
    files."""
    load = torch.load

    def safely(file, *args, **options):
        try:
            return load(file, *args, **{**options, "weights_only": True})
        except pickle.UnpicklingError:
            raise UserError(f"{file}: holds more than tensors and plain values; not read") from None

    torch.load = safely  # type: ignore[assignment]  # inside this context only
    try:
        with torch.serialization.safe_globals(_KNOWN):
            yield
    finally:
        torch.load = load


class SnapshotEngine(CheckpointEngine):
    """Takes the place of DeepSpeed's own: the same files, from a copy."""

    def __init__(self, writer: Writer):
        super().__init__()
        self._writer = writer

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        copy = self._writer.copies.of(state_dict, os.path.basename(path))
        self._writer.add(lambda: self._writer.save(copy, path))

    def load(self, path: str, map_location=None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False  # `save` copies a tensor's values, not the storage behind it
