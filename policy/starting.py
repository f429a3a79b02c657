"""How far a start is: who waits for processes tells, and who shows it to people listens."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Listener = Callable[[Sequence[str], Sequence[str]], None]
"""Called with the names of what is ready, and of what is still loading."""
_LOOK_EVERY_S = 1.0


def _nobody(ready: Sequence[str], loading: Sequence[str]) -> None: ...


_listener: ContextVar[Listener] = ContextVar("listener", default=_nobody)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within, `tell` calls this listener."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def tell(ready: Sequence[str], loading: Sequence[str]) -> None:
    """Say how far it is; every second or so while anything is loading."""
    _listener.get()(ready, loading)


def wait_for(
    replies: Mapping[str, Any],
    wait: Callable[..., tuple[list[Any], list[Any]]],
    get: Callable[..., Any],
    limit_s: float,
) -> None:
    """Wait for replies, by what to call those who give them, and `tell`. `wait` and `get` are Ray's:
    raises what `get` raises for the first reply that is an error, and at the limit for one that is not
    there."""
    deadline = time.monotonic() + limit_s
    waiting = list(replies.values())
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = wait(waiting, num_returns=1, timeout=min(_LOOK_EVERY_S, left))
        get(done, timeout=limit_s)
        loading = [name for name, reply in replies.items() if reply in waiting]
        tell([name for name in replies if name not in loading], loading)
        if waiting and left == 0.0:
            get(waiting, timeout=0)
            return
