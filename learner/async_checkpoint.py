"""Writes DeepSpeed's checkpoints while training goes on.

Tensors are copied to host memory, where later steps do not change them, and a thread writes the files
from there (`learner/snapshot_engine.py` has DeepSpeed do so), and computes their SHA-256 while it
writes. For another number of ranks a checkpoint is converted to DeepSpeed's universal format: one file
a parameter.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import torch

from policy.errors import UserError

ENGINE_FOLDER = "learner"
UNIVERSAL_FOLDER = "learner_universal"
"""Folders in a checkpoint: DeepSpeed's state, and the same for another number of ranks."""


class HostCopies:
    """Copies in host memory. The next checkpoint reuses the memory, because filling fresh memory takes
    longer; so the files of the last one must be written by then."""

    def __init__(self):
        self._held: dict[str, torch.Tensor] = {}

    def of(self, value: Any, name: str) -> Any:
        """The same structure, with its tensors copied; later steps do not change it. `name` identifies
        the structure."""
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


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashed:
    """A file that is written from its beginning to its end, and the digest of its bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: memoryview) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


_DIGESTS = ".sha256"
"""Suffix of the file, in the format of `sha256sum`, in which a rank lists the digests of its files."""


class Writer:
    """Runs one write after the other in a thread."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future] = []
        self._digests: dict[Path, str] = {}
        self.copies = HostCopies()
        self.busy_s = 0.0
        """Seconds that the thread has spent writing, in all."""

    def add(self, write: Callable[[], Any]) -> None:
        self._pending.append(self._thread.submit(self._timed, write))

    def _timed(self, write: Callable[[], Any]) -> None:
        started = time.perf_counter()
        write()
        self.busy_s += time.perf_counter() - started

    def save(self, value: Any, path: str) -> None:
        """As `torch.save` does. Raises OSError for a disk that is full."""
        with open(path, "wb") as file:
            hashed: Any = _Hashed(file)  # torch asks for no more than `write` and `flush`
            try:
                torch.save(value, hashed)
            except RuntimeError as error:  # torch's own, after the OSError
                raise error.__context__ or error from None
        self._digests[Path(path)] = hashed.sha256.hexdigest()

    def digest_model(self, folder: Path) -> None:
        """Compute the digests of the files beside the engine's, which were written elsewhere."""
        self._digests |= {path: file_digest(path) for path in folder.iterdir() if path.is_file()}

    def write_digests(self, folder: Path, rank: int) -> None:
        """The last of a rank's writes: `take_digests` reads it."""
        lines = [f"{digest}  {path.relative_to(folder)}\n" for path, digest in self._digests.items()]
        (folder / f"{rank}{_DIGESTS}").write_text("".join(lines))

    def give_up(self) -> None:
        """Wait for the write under way, and drop it whether it succeeds or not."""
        wait(self._pending)
        self._pending = []
        self._digests = {}

    def finished(self) -> bool:
        """Whether all is written. Raises the first error, and drops all other writes."""
        if not all(future.done() for future in self._pending):
            return False
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()
        return True


def take_digests(folder: Path) -> dict[str, str]:
    """File's name -> SHA-256, from the lists that the ranks wrote, which are deleted."""
    found: dict[str, str] = {}
    for listing in folder.glob(f"*{_DIGESTS}"):
        for line in listing.read_text().splitlines():
            digest, _, name = line.partition("  ")
            found[name] = digest
        listing.unlink()
    return found


_CONVERT_LIMIT_S = 4 * 3600.0  # it reads and writes all of the optimizer's state once
_CONVERT = """
import runpy, sys
from learner.snapshot_engine import plain_values_only
from policy.errors import UserError
try:
    with plain_values_only():
        runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__")
except UserError as error:
    sys.exit(str(error))
"""


def to_universal(folder: Path) -> None:
    """Write `learner_universal/` beside `learner/` in a checkpoint, anew if it is there.

    Runs in a process of its own: DeepSpeed's converter changes names in the directory and its own
    globals. Raises UserError with the last line of its output if it fails.
    """
    part, target = folder / f"{UNIVERSAL_FOLDER}.part", folder / UNIVERSAL_FOLDER
    for old in (part, target):
        shutil.rmtree(old, ignore_errors=True)
    options = {"input_folder": folder / ENGINE_FOLDER, "output_folder": part}
    command = [sys.executable, "-P", "-c", _CONVERT, "--inject_missing_state"]
    for name, value in {**options, "num_extract_workers": 1, "num_merge_workers": 1}.items():
        command += [f"--{name}", str(value)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=_CONVERT_LIMIT_S)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise UserError(f"{folder}: cannot be made ready for another number of ranks: {last}")
    part.rename(target)
