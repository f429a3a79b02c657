"""Progress of a start: whoever waits for processes reports it, and a listener shows it to people."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[Sequence[str], Sequence[str]], None]
"""Called with the names of what is ready, and of what is still loading."""
_LOOK_EVERY_S = 1.0


def _ignore(ready: Sequence[str], loading: Sequence[str]) -> None: ...


_listener: ContextVar[Listener] = ContextVar("listener", default=_ignore)


@contextmanager
def reporting_to(listener: Listener) -> Iterator[None]:
    """Inside this context, `report` calls this listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(ready: Sequence[str], loading: Sequence[str]) -> None:
    """Report what is ready; called every second or so while anything is loading."""
    _listener.get()(ready, loading)


def wait_for(
    replies: Mapping[str, Any],
    wait: Callable[..., tuple[list[Any], list[Any]]],
    get: Callable[..., Any],
    limit_s: float,
) -> None:
    """Wait for replies, and `report` those who gave them by the keys of `replies`. `wait` and `get` are
    Ray's: raises what `get` raises for the first reply that is an error, and at the limit for a missing
    one."""
    deadline = time.monotonic() + limit_s
    waiting = list(replies.values())
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = wait(waiting, num_returns=1, timeout=min(_LOOK_EVERY_S, left))
        get(done, timeout=limit_s)
        loading = [name for name, reply in replies.items() if reply in waiting]
        report([name for name in replies if name not in loading], loading)
        if waiting and left == 0.0:
            get(waiting, timeout=0)
            return
