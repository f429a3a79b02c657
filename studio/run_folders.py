"""The run directories that a page may look at, and which of their files.

Names come from clients. A run is a folder right below the folder of runs, or that folder itself; a
picture is a file of an image's type whose real path, links resolved, lies in its run.
"""

import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import Literal

from cluster.yaml_text import read_yaml
from policy.errors import UserError
from policy.jsonl import read_text
from policy.lock import lock_holder
from policy.paths import home
from studio.runs import METRICS, RunSummary, list_runs

State = Literal["running", "finished", "stopped"]
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_ACTIVE_S = 600  # a run on another machine whose files changed since counts as running


class NotThere(UserError):
    """The run or file asked for does not exist, or may not be looked at."""


class RunFolders:
    """A folder of runs (or one run)."""

    def __init__(self, root: Path):
        """Raises UserError if there is no such folder."""
        self.root = home(str(root)).resolve()
        self._is_run = (self.root / METRICS).is_file()
        list_runs(self.root)

    def all(self) -> list[RunSummary]:
        """All runs, last written first; without those that links lead out to."""
        return [run for run in list_runs(self.root) if self._may_be_seen(run.folder)]

    def folder(self, run: str) -> Path:
        """Raises NotThere."""
        if self._is_run and run == self.root.name:
            return self.root
        folder = self.root / run
        plain = re.fullmatch(r"[^/\\\x00]{1,255}", run) and run not in (".", "..")
        if not plain or not self._may_be_seen(folder) or not (folder / METRICS).is_file():
            raise NotThere(f"there is no run {run[:100]!r}")
        return folder

    def inside(self, path: str) -> Path:
        """A folder below the folder of runs, by its relative path. Raises NotThere."""
        folder = self.root / path
        if "\0" in path or not self._may_be_seen(folder) or not folder.is_dir():
            raise NotThere(f"there is no folder {path[:100]!r}")
        return folder

    def picture(self, path: str) -> tuple[Path, str]:
        """A picture below the folder of runs, by its relative path, and its media type. Raises
        NotThere."""
        file = self.root / path
        kind = KINDS.get(file.suffix.lower())
        try:
            real = file.resolve(strict=True)
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, ValueError, RuntimeError):  # not there; a NUL; links in a circle
            regular = False
        if not kind or not regular or not real.is_relative_to(self.root):
            raise NotThere(f"there is no picture {path[:100]!r}")
        return real, kind

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _may_be_seen(self, folder: Path) -> bool:
        try:
            return folder.resolve().is_relative_to(self.root)
        except (OSError, ValueError, RuntimeError):
            return False


def last_step(folder: Path) -> int | None:
    """How many steps a run is to take; None where its configuration does not say."""
    train = read_config(folder).get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if type(steps) is int else None


def read_config(folder: Path) -> dict:
    """A run's `config.yaml`; empty if there is none to read."""
    path = folder / "config.yaml"
    try:
        tree = read_yaml(read_text(path), str(path))
    except UserError:
        return {}
    return tree if isinstance(tree, dict) else {}


def state(run: RunSummary, steps: int | None) -> State:
    """Running while the process that its lock names lives; if that is on another machine, while the run
    wrote something in the last ten minutes. Finished once its last step is taken."""
    holder = lock_holder(run.folder)
    if holder:
        process, machine = holder
        here = machine == socket.gethostname()
        if _lives(process) if here else time.time() - run.written < _ACTIVE_S:
            return "running"
    step = run.last.get("step", -1)
    over = step >= steps if steps is not None else not holder and (run.folder / "report.html").exists()
    return "finished" if over else "stopped"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
