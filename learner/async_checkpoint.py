"""DeepSpeed's checkpoints, written while training goes on.

Tensors are copied to host memory, where later steps do not reach them, and a thread writes the files
from there (`learner/snapshot_engine.py` has DeepSpeed do so). For another number of ranks a checkpoint
is converted to DeepSpeed's universal format, one file a parameter."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from policy.errors import UserError

ENGINE_FOLDER = "learner"
UNIVERSAL_FOLDER = "learner_universal"
"""In a checkpoint: DeepSpeed's state, and the same for another number of ranks."""


class HostCopies:
    """Copies in host memory. The next checkpoint reuses the memory, because filling fresh memory takes
    longer; so the files of the last one must be written by then."""

    def __init__(self):
        self._held: dict[str, torch.Tensor] = {}

    def of(self, value: Any, name: str) -> Any:
        """The same structure, with its tensors copied; later steps do not change it. `name` tells it
        from other structures."""
        if isinstance(value, torch.Tensor):
            held = self._held.get(name)
            if held is None or (held.shape, held.dtype) != (value.shape, value.dtype):
                held = self._held[name] = torch.empty(value.shape, dtype=value.dtype)
            return held.copy_(value.detach())
        if isinstance(value, dict):
            return type(value)((key, self.of(item, f"{name}/{key}")) for key, item in value.items())
        if isinstance(value, torch.Size) or hasattr(value, "_fields"):
            return value
        if isinstance(value, list | tuple):
            return type(value)(self.of(item, f"{name}/{n}") for n, item in enumerate(value))
        return value


class Writer:
    """Runs one write after the other in a thread."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future] = []
        self.copies = HostCopies()
        self.busy_s = 0.0
        """Seconds that the thread has spent writing, in all."""

    def add(self, write: Callable[[], Any]) -> None:
        self._pending.append(self._thread.submit(self._timed, write))

    def _timed(self, write: Callable[[], Any]) -> None:
        started = time.perf_counter()
        write()
        self.busy_s += time.perf_counter() - started

    def give_up(self) -> None:
        """Let what is under way come to its end, well or not, and forget it."""
        wait(self._pending)
        self._pending = []

    def finished(self) -> bool:
        """Whether all is written. Raises the first error, and forgets the rest with it."""
        if not all(future.done() for future in self._pending):
            return False
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()
        return True


def to_universal(folder: Path) -> None:
    """Write `learner_universal/` beside `learner/` in a checkpoint; nothing to do if it is there.

    In a process of its own: DeepSpeed's converter changes the directory's names and its own globals.
    Raises UserError with its last words if it fails.
    """
    if (folder / UNIVERSAL_FOLDER).exists():
        return
    part = folder / f"{UNIVERSAL_FOLDER}.part"
    options = {"input_folder": folder / ENGINE_FOLDER, "output_folder": part}
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    for name, value in {**options, "num_extract_workers": 1, "num_merge_workers": 1}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise UserError(f"{folder}: cannot be made ready for another number of ranks: {last}")
    part.rename(folder / UNIVERSAL_FOLDER)
