"""Checkpoints of a run: whole or not there, the newest that is sound is the one to go on from.

    checkpoints/step_000100/         a model in transformers layout, as `--policy` takes it, and
                learner/             DeepSpeed's state: parameters, optimizer, schedule
                state.json           the rest; written last, so a folder without it is no checkpoint

A checkpoint is written under another name while training goes on, and renamed when all of it is there.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

from learner.convert import to_universal
from learner.engine import Resume
from learner.group import LearnerGroup
from policy.errors import UserError

log = logging.getLogger(__name__)
FORMAT = 1
_PART = ".part"


@dataclass(frozen=True)
class State:
    """What a run needs to go on, beside the learner's own state. There is no random state to keep:
    prompts come in an order that is a function of the seed, and tokens are drawn by hash."""

    step: int
    weights_version: int
    ranks: int
    config: dict[str, Any]
    expert_stats: dict[str, Any] = field(default_factory=dict)
    """Of experts whose scores are normalised by what they said so far."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of the files that the run reads, by the key that names them."""
    format: int = FORMAT
    files: dict[str, int] = field(default_factory=dict)
    """Size of every file, in bytes."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    state: State

    def resume(self, ranks: int) -> Resume:
        """For a learner of `ranks` ranks; converts a checkpoint that another number wrote."""
        universal = ranks != self.state.ranks
        if universal:
            to_universal(self.folder)
        return Resume(str(self.folder.absolute()), universal)


class Keeper:
    """Writes checkpoints in the background, one at a time, and keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int, tell: Callable[[str], None]):
        self.folder = folder
        self._keep = keep
        self._tell = tell
        self._state: State | None = None
        self.begun = 0
        """The step of the last checkpoint that was begun."""
        self._stalled_s = 0.0
        self._took: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{_PART}"):
            shutil.rmtree(left)

    def begin(self, learner: LearnerGroup, state: State) -> None:
        """Returns when the learner has copied its state to memory. A write that is still under way is
        waited for first."""
        self.wait(learner)
        part = self._part(state.step)
        started = time.perf_counter()
        try:
            part.mkdir()
            learner.begin_save(str(part.absolute()))
        except (OSError, RayTaskError) as error:
            self._failed(state.step, error)
            return
        self._state, self.begun = state, state.step
        self._stalled_s = time.perf_counter() - started

    def poll(self, learner: LearnerGroup) -> None:
        """Finish the checkpoint under way if all of it is written. One that cannot be written is told
        of and given up; those before it stay."""
        if self._state is None:
            return
        step = self._state.step
        try:
            if (write_s := learner.saved()) is None:
                return
            self._finish(self._state)
            self._took = {"checkpoint/stall_s": self._stalled_s, "checkpoint/write_s": write_s}
        except (OSError, RayTaskError) as error:
            self._failed(step, error)
        self._state = None

    def wait(self, learner: LearnerGroup, pause: Callable[[], None] = lambda: None) -> None:
        """Until nothing is under way."""
        while self._state is not None:
            self.poll(learner)
            pause()

    def metrics(self) -> dict[str, float]:
        """Of a checkpoint that was finished since this was asked last, if one was: how long training
        stood still for it, and how long the slowest rank wrote."""
        took, self._took = self._took, {}
        return took

    def abandon(self) -> None:
        """The learner is gone, and with it what it was writing."""
        if self._state is not None:
            shutil.rmtree(self._part(self._state.step), ignore_errors=True)
            self._state = None

    def _finish(self, state: State) -> None:
        part = self._part(state.step)
        sizes = {str(p.relative_to(part)): p.stat().st_size for p in part.rglob("*") if p.is_file()}
        whole = State(**{**vars(state), "files": sizes})
        with (part / "state.json").open("w", encoding="utf-8") as file:
            json.dump(asdict(whole), file)
            file.flush()
            os.fsync(file.fileno())
        target = self.folder / _name(state.step)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        for old in sorted(self.folder.glob("step_*[0-9]"))[: -self._keep]:
            shutil.rmtree(old)

    def _failed(self, step: int, error: Exception) -> None:
        shutil.rmtree(self._part(step), ignore_errors=True)
        why = getattr(error, "cause", None) or error
        self._tell(f"the checkpoint of step {step} could not be written: {why}; those before it stay")

    def _part(self, step: int) -> Path:
        return self.folder / f"{_name(step)}{_PART}"


def newest(folder: Path, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint of `folder`; tells of those that are not.

    Raises UserError for one that a newer version of this program wrote.
    """
    for path in sorted(folder.glob("step_*[0-9]"), reverse=True):
        try:
            return load(path)
        except _Torn as torn:
            tell(f"{path} is not whole ({torn}): an earlier one is used")
    return None


def load(path: Path) -> Checkpoint:
    """Raises UserError for a checkpoint of a newer version."""
    try:
        raw = json.loads((path / "state.json").read_text(encoding="utf-8"))
        found = raw["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Torn(f"state.json: {error}") from None
    if found > FORMAT:
        raise UserError(
            f"{path}: written by a newer version of bicot (format {found}, this one reads {FORMAT})"
        )
    try:
        state = State(**raw)
    except TypeError as error:
        raise _Torn(f"state.json: {error}") from None
    for wrong in _wrong_files(path, state.files):
        raise _Torn(wrong)
    return Checkpoint(path, state)


def _wrong_files(path: Path, files: dict[str, int]) -> Iterator[str]:
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} bytes instead of {size}"


class _Torn(Exception):
    """A checkpoint that is not whole."""


def _name(step: int) -> str:
    return f"step_{step:06d}"
