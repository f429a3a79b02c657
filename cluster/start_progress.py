"""Shows the progress of a start: which processes are ready, and how long the others have been
loading."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

from rich.console import Console
from rich.text import Text

from policy.starting import reporting_to

PRINT_EVERY_S = 15.0
_NAMED = 4


class StartProgress:
    """Use as a context manager, and `begin` each part of the start. In a terminal: a status line;
    elsewhere (a job's log) a line every 15 s while anything is loading."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._clock = clock
        self._status = console.status("starting")
        self._stack = ExitStack()
        self.begin("starting")

    def __enter__(self) -> Self:
        self._stack.enter_context(self._status)
        self._stack.enter_context(reporting_to(self))
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def begin(self, what: str) -> None:
        """Name the next part of the start, e.g. "starting experts"."""
        self._what = what
        self._begun = self._printed = self._clock()
        self._status.update(what)

    def __call__(self, ready: Sequence[str], loading: Sequence[str]) -> None:
        if not loading:
            return
        now = self._clock()
        line = in_a_line(self._what, ready, loading, now - self._begun)
        if self._console.is_terminal:
            self._status.update(Text(line))
        elif now - self._printed >= PRINT_EVERY_S:
            self._printed = now
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def in_a_line(what: str, ready: Sequence[str], loading: Sequence[str], seconds: float) -> str:
    """ "starting experts: 2 of 3 ready; detector loading for 45 s"; only the first of many names."""
    names = ", ".join(loading[:_NAMED])
    if len(loading) > _NAMED:
        names += f" and {len(loading) - _NAMED} more"
    total = len(ready) + len(loading)
    return f"{what}: {len(ready)} of {total} ready; {names} loading for {seconds:.0f} s"
