"""An order on its way: one object for the rollout actors and the judge alike. It never leaves the run's
cluster, whose processes unpickle each other's objects in any case."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policy.records import Batch
from policy.weights import PublishedWeights

SHARE = 32
"""So many batches are pickled as one. All as one would be hundreds for every actor to unpickle, and
each on its own takes the driver twice as long; Ray's own pickling of records, three times."""


@dataclass(frozen=True)
class Work:
    """Batches to be drawn with these weights (None: those that the actors were loaded with)."""

    weights: PublishedWeights | None
    shares: tuple[bytes, ...]

    @classmethod
    def of(cls, batches: Sequence[Batch], weights: PublishedWeights | None) -> "Work":
        starts = range(0, len(batches), SHARE)
        return cls(weights, tuple(pickle.dumps(batches[n : n + SHARE]) for n in starts))

    def batch(self, number: int) -> Batch:
        return pickle.loads(self.shares[number // SHARE])[number % SHARE]

    def __iter__(self) -> Iterator[Batch]:
        for share in self.shares:
            yield from pickle.loads(share)
