"""What a replica counts of itself, and what the counts of several say together."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends of the latency histogram; one more bucket holds what is slower."""
WINDOW_S = 60.0
_RECENT = 1000


@dataclass(frozen=True)
class ReplicaStats:
    """One replica since it started. A request's latency is from its arrival at the replica to its
    answer, waiting included; failures are not in the latencies."""

    replica: str
    pass_mark: float
    requests: int
    images: int
    failures: int
    held: int
    """Requests that wait or are being scored now."""
    images_per_s: float
    """Over the last minute."""
    buckets: tuple[int, ...]
    """Latencies by BUCKETS_S."""
    seconds: float
    """Sum of all latencies."""
    recent_s: tuple[float, ...] = field(repr=False)
    """The latest latencies."""


@dataclass
class Counted:
    """A request while it is answered. `images`: those that the expert was really asked about."""

    images: int = 0


class Meter:
    """Counts the requests of one replica; in one thread."""

    def __init__(self):
        self._started = time.monotonic()
        self._requests = self._images = self._failures = self._held = 0
        self._seconds = 0.0
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._window: deque[tuple[float, int]] = deque()  # when, how many images

    @contextmanager
    def request(self) -> Iterator[Counted]:
        """Around the answering of one request."""
        counted = Counted()
        began = time.monotonic()
        self._held += 1
        self._requests += 1
        try:
            yield counted
        except BaseException:  # counted, not held up: also a caller that goes away
            self._failures += 1
            raise
        else:
            self._answered(counted.images, time.monotonic() - began)
        finally:
            self._held -= 1

    def _answered(self, images: int, seconds: float) -> None:
        self._images += images
        self._seconds += seconds
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._recent.append(seconds)
        self._window.append((time.monotonic(), images))
        self._forget()

    def _forget(self) -> None:
        while self._window and self._window[0][0] < time.monotonic() - WINDOW_S:
            self._window.popleft()

    def stats(self, replica: str, pass_mark: float) -> ReplicaStats:
        self._forget()
        span = max(1.0, min(WINDOW_S, time.monotonic() - self._started))
        return ReplicaStats(
            replica=replica,
            pass_mark=pass_mark,
            requests=self._requests,
            images=self._images,
            failures=self._failures,
            held=self._held,
            images_per_s=sum(images for _, images in self._window) / span,
            buckets=tuple(self._buckets),
            seconds=self._seconds,
            recent_s=tuple(self._recent),
        )


def latency(replicas: Sequence[ReplicaStats], share: float) -> float | None:
    """The latency in seconds that `share` of the latest answers kept to; None: there were none."""
    recent = [seconds for stats in replicas for seconds in stats.recent_s]
    return float(np.quantile(recent, share)) if recent else None
