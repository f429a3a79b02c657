"""How a run stops, and how it goes on when its learner is lost."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from policy.errors import UserError, in_one_line

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command, given again, goes on."""


class Stopped(Exception):
    """The run stopped on request, after it had saved a checkpoint of `step`."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


_FAULTS_OF_CODE = (NameError, TypeError, AttributeError, ImportError, NotImplementedError)


class StopSignal:
    requested = False


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Inside this context, SIGTERM (`ray job stop`, Kubernetes) and SIGUSR1 (Slurm) are requests to
    stop. A second SIGTERM ends the command at once, as Ctrl-C does."""
    stop = StopSignal()

    def ask(signum, frame) -> None:
        if stop.requested and signum == signal.SIGTERM:
            raise KeyboardInterrupt
        stop.requested = True

    before = {which: signal.signal(which, ask) for which in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


class LearnerLost(Exception):
    """A rank died, hangs, or failed in a way that leaves the others waiting."""


@contextmanager
def learner_at_work():
    """Turns the errors of a lost learner into LearnerLost. A UserError, and a fault of the code, which
    would only come again, are raised unchanged."""
    try:
        yield
    except (RayActorError, GetTimeoutError, RayTaskError) as error:
        if isinstance(getattr(error, "cause", None), (UserError, *_FAULTS_OF_CODE)):
            raise
        raise LearnerLost(_in_short(error)) from error


class RollsBack(Protocol):
    """A run that can go back to its newest checkpoint."""

    def rollback(self, lost: LearnerLost) -> None: ...


def train_with_recovery(run: RollsBack, loop: Callable[[StopSignal], None]) -> None:
    """Run the loop, and again from the newest checkpoint whenever the learner is lost."""
    lost = None
    with catch_stop_signals() as stop:
        while True:
            try:
                if lost:
                    run.rollback(lost)
                return loop(stop)
            except LearnerLost as error:
                lost = error


def _in_short(error: Exception) -> str:
    if isinstance(error, RayActorError):
        return "a rank died"
    if isinstance(error, GetTimeoutError):
        return "no answer in learner.timeout_s"
    return in_one_line(error)[:300]
