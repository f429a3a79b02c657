"""Checkpoints of a run: each is complete or absent. A run resumes from the newest sound one.

    checkpoints/step_000100/         a model in transformers layout, as `--policy` takes it, and
                learner/             DeepSpeed's state: parameters, optimizer, schedule
                state.json           the rest, and size and SHA-256 of every file; written last, so a
                                     folder without it is no checkpoint

A checkpoint is written under another name while training goes on, and renamed when it is complete.
After a rollback, `truncate_after` cuts the run's JSON lines back to the step of its checkpoint.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from ray.exceptions import RayTaskError

from cluster.files import by_step, first_fault
from cluster.requests import StreamPosition
from learner.async_checkpoint import ENGINE_FOLDER, file_digest, take_digests, to_universal
from learner.deepspeed_engine import Resume
from learner.schedules import Coefficients
from policy.errors import UserError
from policy.jsonl import parse_object, read_bytes, read_lines
from rewards.rewards import RunningStats

if TYPE_CHECKING:
    from learner.group import LearnerGroup


def truncate_after(path: Path, step: int) -> int:
    """Cut off a file of JSON lines after the last line of this step or an earlier one: later steps go,
    and a torn line. Returns how many lines were cut."""
    if not path.exists():
        return 0
    lines = read_lines(path)
    kept = max((n for n, line in enumerate(lines, 1) if _is_until(step, line)), default=0)
    os.truncate(path, min(path.stat().st_size, sum(len(line) + 1 for line in lines[:kept])))
    return len(lines) - kept


def _is_until(step: int, line: bytes) -> bool:
    try:
        at = parse_object(line, "").get("step")
    except UserError:
        return False
    return type(at) is int and at <= step


log = logging.getLogger(__name__)
FORMAT = 3
_PART = ".part"


@dataclass(frozen=True)
class State:
    """What a run needs to go on, beside the learner's own state. There is no random state to save: the
    order of prompts is a function of the seed, and tokens are chosen by hash."""

    step: int
    weights_version: int
    ranks: int
    config: dict[str, Any]
    expert_stats: dict[str, RunningStats] = field(default_factory=dict)
    """Statistics of experts with `normalize: running`."""
    requested: StreamPosition | None = None
    """How far the run was in its stream of groups. (Formats before 3 had none: it followed from
    `step`.)"""
    coefficients: Coefficients | None = None
    """Those of the next step, some of which are adapted from step to step."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Key -> fingerprint of the files that it names and the run reads."""
    format: int = FORMAT
    files: dict[str, int] = field(default_factory=dict)
    """Size of every file, in bytes."""
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file. (Format 1 had sizes alone.)"""


_STATE = TypeAdapter(State)


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    state: State

    def resume(self, ranks: int) -> Resume:
        """The learner's state for `ranks` ranks; converts a checkpoint that another number wrote."""
        universal = ranks != self.state.ranks
        if universal:
            to_universal(self.folder)
        return Resume(str(self.folder.absolute()), universal)


class CheckpointManager:
    """Writes checkpoints in the background, one at a time, and keeps the newest `keep`."""

    def __init__(self, folder: Path, keep: int, tell: Callable[[str], None]):
        self.folder = folder
        self._keep = keep
        self._tell = tell
        self._state: State | None = None
        self._part = folder
        self.begun = 0
        """The step of the checkpoint that was begun last."""
        self._stalled_s = 0.0
        self._took: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def begin(self, learner: "LearnerGroup", state: State) -> None:
        """Returns when the learner has copied its state to memory. Waits first for a write that is
        still under way."""
        self.wait(learner)
        self._sweep()
        # Under a new name: a rank that was given up may still write into the last one's folder.
        self._part = self.folder / f"{_name(state.step)}.{uuid.uuid4().hex[:8]}{_PART}"
        started = time.perf_counter()
        try:
            # The engine's folder too: if one rank alone cannot make it, the others wait for it.
            (self._part / ENGINE_FOLDER).mkdir(parents=True)
            learner.begin_save(str(self._part.absolute()))
        except (OSError, RayTaskError) as error:
            self._failed(state.step, error)
            return
        self._state, self.begun = state, state.step
        self._stalled_s = time.perf_counter() - started

    def poll(self, learner: "LearnerGroup") -> None:
        """Finish the checkpoint under way if all of it is written. Reports and gives up one that cannot
        be written; earlier ones stay."""
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

    def wait(self, learner: "LearnerGroup", pause: Callable[[], None] = lambda: None) -> None:
        """Wait until no write is under way."""
        while self._state is not None:
            self.poll(learner)
            pause()

    def metrics(self) -> dict[str, float]:
        """Times of a checkpoint that was finished since the last call, if one was: how long training
        waited for it, and how long the slowest rank wrote."""
        took, self._took = self._took, {}
        return took

    def abandon(self) -> None:
        """Drop the write under way: its learner is gone."""
        if self._state is not None:
            self._state = None
            self._sweep()

    def _finish(self, state: State) -> None:
        digests = take_digests(self._part)
        files = [p for p in self._part.rglob("*") if p.is_file()]
        names = {str(p.relative_to(self._part)): p for p in files}
        whole = replace(
            state,
            files={name: p.stat().st_size for name, p in names.items()},
            sha256={name: digests.get(name) or file_digest(p) for name, p in names.items()},
        )
        with (self._part / "state.json").open("w", encoding="utf-8") as file:
            json.dump(asdict(whole), file)
            file.flush()
            os.fsync(file.fileno())
        target = self.folder / _name(state.step)
        if target.exists():
            shutil.rmtree(target)
        self._part.rename(target)
        # Checkpoints of later steps are those that could not be resumed: they do not count here.
        past = [path for step, path in by_step(self.folder, "step") if step <= state.step]
        for old in past[: -self._keep]:
            shutil.rmtree(old)

    def _failed(self, step: int, error: Exception) -> None:
        self._sweep()
        why = getattr(error, "cause", None) or error
        self._tell(f"the checkpoint of step {step} could not be written: {why}; those before it stay")

    def _sweep(self) -> None:
        for left in self.folder.glob(f"*{_PART}"):
            shutil.rmtree(left, ignore_errors=True)


def newest(folder: Path, tell: Callable[[str], None], *, read_all: bool = True) -> Checkpoint | None:
    """The newest sound checkpoint of `folder`; reports torn ones. Without `read_all` only sizes of
    files are checked.

    Raises UserError for one that a newer version of this program wrote.
    """
    for _, path in reversed(by_step(folder, "step")):
        try:
            return load(path, read_all=read_all)
        except _Torn as torn:
            tell(f"{path} is not whole ({torn}): an earlier one is used")
    return None


def load(path: Path, *, read_all: bool = True) -> Checkpoint:
    """Raises UserError for a checkpoint of a newer version."""
    try:
        content = read_bytes(path / "state.json")
        found = parse_object(content, "state.json").get("format")
    except UserError as error:
        raise _Torn(str(error)) from None
    if type(found) is int and found > FORMAT:
        raise UserError(
            f"{path}: written by a newer version of bicot (format {found}, this one reads {FORMAT})"
        )
    try:
        state = _STATE.validate_json(content, strict=True)
    except ValidationError as error:
        raise _Torn(f"state.json: {first_fault(error)}") from None
    if path.name != _name(state.step):
        raise _Torn(f"state.json is of step {state.step}")
    try:
        for wrong in _wrong_files(path, state, read_all):
            raise _Torn(wrong)
    except OSError as error:
        raise _Torn(f"{error.filename}: {error.strerror}") from None
    return Checkpoint(path, state)


def _wrong_files(path: Path, state: State, read_all: bool) -> Iterator[str]:
    for name, size in state.files.items():
        file = path / name
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has {file.stat().st_size} bytes instead of {size}"
    if read_all:
        with ThreadPoolExecutor() as pool:
            found = pool.map(file_digest, [path / name for name in state.sha256])
            for (name, digest), now in zip(state.sha256.items(), found, strict=True):
                if now != digest:
                    yield f"{name} does not hold what was written (SHA-256)"


class _Torn(Exception):
    """A checkpoint is not complete."""


def _name(step: int) -> str:
    return f"step_{step:06d}"
