"""How scores enter the reward: as they are, from a fixed range, or by running statistics."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewards.config import ExpertConfig, RangeConfig, RewardsConfig
from rewards.expert import Judgement
from rewards.opinions import Opinions


@dataclass(frozen=True)
class Scale:
    """How an expert's score enters the reward: less `offset`, over `span`."""

    offset: float = 0.0
    span: float = 1.0


@dataclass(frozen=True)
class RunningStats:
    """Of all scores so far: how many, their mean, the sum of squared distances from it (Welford)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_more(self, values: np.ndarray) -> "RunningStats":
        """And those of `values`, float [N] without NaN (Chan, Golub and LeVeque 1979)."""
        if not len(values):
            return self
        values = values.astype(np.float64)
        mean, squares = float(values.mean()), float(((values - values.mean()) ** 2).sum())
        count = self.count + len(values)
        apart = mean - self.mean
        return RunningStats(
            count,
            self.mean + apart * len(values) / count,
            self.squares + squares + apart**2 * self.count * len(values) / count,
        )

    @property
    def scale(self) -> Scale:
        """Scores that were all the same are only moved to 0."""
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        return Scale(self.mean, std if std > 1e-8 * max(1.0, abs(self.mean)) else 1.0)


def scale_of(entry: ExpertConfig, so_far: RunningStats) -> Scale:
    """How the scores of an expert that is configured so enter the reward."""
    if isinstance(entry.normalize, RangeConfig):
        return Scale(entry.normalize.low, entry.normalize.high - entry.normalize.low)
    return so_far.scale if entry.normalize == "running" else Scale()


def heard_so_far(
    running: Mapping[str, RunningStats], groups: Sequence[Opinions], config: RewardsConfig
) -> dict[str, RunningStats]:
    """The statistics of the experts that are normalised by them, with a step's scores added."""
    grown = {}
    for name, entry in config.experts.items():
        if entry.normalize == "running":
            stats = running.get(name, RunningStats())
            for group in groups:
                if isinstance(said := group.by_expert[name].said, Judgement):
                    stats = stats.with_more(said.values[~np.isnan(said.values)])
            grown[name] = stats
    return grown
