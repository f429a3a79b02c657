"""The one thread of a replica that builds its model and calls it."""

import asyncio
import faulthandler
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OneThread:
    """Runs one piece of work after another. A process has one of these: a piece over the limit ends the
    process."""

    def __init__(self, whose: str, limit_s: float):
        """`whose`: what runs in the thread, for error messages. `limit_s`: how long a piece may
        take."""
        self._whose, self._limit_s = whose, limit_s
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def start_with(self, build: Callable[[], T]) -> T:
        """The first piece of work, however long it takes; waits for it."""
        return self._pool.submit(self._staying, build).result()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. A hang ends the process, with a traceback in its log: the
        thread cannot be stopped, and Serve starts another process."""

        def watched() -> T:
            faulthandler.dump_traceback_later(self._limit_s, exit=True)
            try:
                return self._staying(work)
            finally:
                faulthandler.cancel_dump_traceback_later()

        return await asyncio.get_running_loop().run_in_executor(self._pool, watched)

    def _staying(self, work: Callable[[], T]) -> T:
        """Turns SystemExit into an error like any other. By itself it would end the event loop but not
        the process."""
        try:
            return work()
        except (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError) as error:
            raise RuntimeError(f"{self._whose} raised {error!r}") from error
