"""Requests the groups of a run's stream: in order, and with `max_staleness` some steps ahead."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policy.records import PublishedWeights

if TYPE_CHECKING:
    from cluster.pending import PendingRollout
    from cluster.rollouts import RolloutManager
    from policy.prompts import GroupStream


@dataclass(frozen=True)
class StreamPosition:
    """How far a run is in its stream: the number of the next group, and the groups that are already
    requested for later steps."""

    next: int = 0
    ahead: tuple[tuple[int, ...], ...] = field(default=())


class GroupRequests:
    """The groups that are being generated, for this step and those after it."""

    def __init__(
        self, rollouts: "RolloutManager", stream: "GroupStream", per_step: int, position: StreamPosition
    ):
        self._rollouts, self._stream, self._per_step = rollouts, stream, per_step
        self._next = position.next
        self._waiting = deque(position.ahead)  # requested before the checkpoint: they come first
        self._pending: deque[tuple[tuple[int, ...], PendingRollout]] = deque()

    def __len__(self) -> int:
        """How many steps are requested and not collected yet."""
        return len(self._pending)

    def request_step(self, weights: PublishedWeights | None) -> None:
        """Request the groups of one more step."""
        numbers = self._waiting.popleft() if self._waiting else self._numbers(self._per_step)
        self._pending.append((numbers, self._request(numbers, weights)))

    def next_step(self) -> "PendingRollout":
        """The groups of the next step."""
        return self._pending.popleft()[1]

    def request_more(self, count: int, weights: PublishedWeights | None) -> "PendingRollout":
        """Request further groups for the step that `next_step` gave."""
        return self._request(self._numbers(count), weights)

    def position(self) -> StreamPosition:
        """The position from which a resumed run has to begin."""
        pending = tuple(numbers for numbers, _ in self._pending)
        return StreamPosition(self._next, (*pending, *self._waiting))

    def _numbers(self, count: int) -> tuple[int, ...]:
        first, self._next = self._next, self._next + count
        return tuple(range(first, self._next))

    def _request(self, numbers: tuple[int, ...], weights: PublishedWeights | None) -> "PendingRollout":
        return self._rollouts.request([self._stream[n] for n in numbers], weights)
