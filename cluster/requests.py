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
class Requested:
    """How far a run is in its stream: the number of the next group, and the groups that are already
    requested for later steps."""

    next: int = 0
    ahead: tuple[tuple[int, ...], ...] = field(default=())


class Requests:
    """The groups that are being generated, for this step and those after it."""

    def __init__(
        self, rollouts: "RolloutManager", stream: "GroupStream", per_step: int, so_far: Requested
    ):
        self._rollouts, self._stream, self._per_step = rollouts, stream, per_step
        self._next = so_far.next
        self._again = deque(so_far.ahead)  # requested before the checkpoint: they come first
        self._pending: deque[tuple[tuple[int, ...], PendingRollout]] = deque()

    def __len__(self) -> int:
        """How many steps are requested and not taken yet."""
        return len(self._pending)

    def ask(self, weights: PublishedWeights | None) -> None:
        """Request the groups of one more step."""
        numbers = self._again.popleft() if self._again else self._take(self._per_step)
        self._pending.append((numbers, self._request(numbers, weights)))

    def take(self) -> "PendingRollout":
        """The groups of the next step."""
        return self._pending.popleft()[1]

    def more(self, count: int, weights: PublishedWeights | None) -> "PendingRollout":
        """Request further groups for the step that was taken."""
        return self._request(self._take(count), weights)

    def so_far(self) -> Requested:
        """The position from which a resumed run has to begin."""
        pending = tuple(numbers for numbers, _ in self._pending)
        return Requested(self._next, (*pending, *self._again))

    def _take(self, count: int) -> tuple[int, ...]:
        first, self._next = self._next, self._next + count
        return tuple(range(first, self._next))

    def _request(self, numbers: tuple[int, ...], weights: PublishedWeights | None) -> "PendingRollout":
        return self._rollouts.request([self._stream[n] for n in numbers], weights)
