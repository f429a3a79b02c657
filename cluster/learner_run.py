"""What a run of the learner needs, whatever it learns from: checkpoints, and the way back to one."""

import time
from abc import ABC, abstractmethod
from typing import Protocol

from cluster.checkpoint import Checkpoint, CheckpointManager, State, newest
from cluster.recovery import LearnerLost, Stopped, learner_at_work
from learner.group import LearnerGroup
from policy.errors import UserError


class Limits(Protocol):
    """How much a run bears; `train` and `sft` of the configuration."""

    max_skipped_steps: int
    max_learner_restarts: int


class Says(Protocol):
    def say(self, line: str) -> None: ...


class LearnerRun(ABC):
    """A run at `step`. Subclasses say what is restored and what goes into a checkpoint."""

    checkpoints: CheckpointManager
    progress: Says
    step: int = 0
    skipped: int = 0
    """Steps in a row, up to now, whose gradient was not finite."""
    lost_at: list[int]
    """The steps in which the learner was lost."""

    @property
    @abstractmethod
    def learner(self) -> LearnerGroup:
        """The present one: it is replaced when it is lost."""

    @property
    @abstractmethod
    def limits(self) -> Limits: ...

    @abstractmethod
    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        """End what is left of the learner, and start one from a checkpoint; None: from the model."""

    @abstractmethod
    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Restore step and records from a checkpoint that the learner has loaded; None: the start."""

    @abstractmethod
    def state(self) -> State:
        """What a checkpoint says of the run beside the learner's own state."""

    def rollback(self, lost: LearnerLost) -> None:
        """Rebuild the learner from the newest checkpoint, and continue from its step. Raises `lost`
        again after `max_learner_restarts` losses at the same step."""
        self.lost_at.append(self.step)
        if self.lost_at.count(self.step) > self.limits.max_learner_restarts:
            raise lost
        started = time.monotonic()
        self.checkpoints.abandon()
        checkpoint = newest(self.checkpoints.folder, self.progress.say)
        with learner_at_work():
            self.restart_learner(checkpoint)
        self.restore(checkpoint)
        self.progress.say(
            f"the learner was lost in step {self.lost_at[-1]} ({lost}); it was built again from step"
            f" {self.step} in {time.monotonic() - started:.0f} s"
        )

    def check_skipped(self, skipped: bool) -> None:
        """Count steps in a row that changed nothing. Raises UserError when there are too many."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped >= self.limits.max_skipped_steps:
            raise UserError(
                f"the gradient was not finite in {self.skipped} steps in a row, up to step {self.step};"
                f" the last good checkpoint is in {self.checkpoints.folder}"
            )

    def save(self) -> None:
        """Begin a checkpoint of where the run stands."""
        self.checkpoints.begin(self.learner, self.state())

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        with learner_at_work():
            self.checkpoints.wait(self.learner, pause=lambda: time.sleep(0.05))

    def leave_checkpoint(self) -> None:
        """A checkpoint of this step, whole on disk."""
        with learner_at_work():
            if self.checkpoints.begun != self.step:
                self.save()
        self.finish()

    def stop(self) -> None:
        """Leave a checkpoint of this step, and raise Stopped."""
        self.leave_checkpoint()
        raise Stopped(self.step)
