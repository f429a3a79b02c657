"""A run that is asked to make way: it ends its step, leaves a checkpoint, and can be gone on with."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command, given again, goes on."""


class Stopped(Exception):
    """The run stopped as it was asked to, after `step`, of which there is a checkpoint."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


class Request:
    asked = False


@contextmanager
def heed() -> Iterator[Request]:
    """Inside, SIGTERM (`ray job stop`, Kubernetes) and SIGUSR1 (Slurm) are requests. A second SIGTERM
    ends the command at once, as Ctrl-C does."""
    request = Request()

    def ask(signum, frame) -> None:
        if request.asked and signum == signal.SIGTERM:
            raise KeyboardInterrupt
        request.asked = True

    before = {which: signal.signal(which, ask) for which in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield request
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
