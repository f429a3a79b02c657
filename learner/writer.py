"""Writes a checkpoint's files in a thread, while training goes on, from copies in memory."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from learner.host_copies import HostCopies


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
