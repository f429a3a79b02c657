"""Confidence intervals of means over prompts, by bootstrap: prompts are drawn again, each with all its
samples, for samples of one prompt are alike.

They say what another choice of prompts would have given, and nothing of another seed of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
DRAWS = 2000
FEWEST = 5  # prompts; of fewer an interval would be a guess
_AT_ONCE = 2**20  # numbers in memory

ByPrompt = Mapping[str, Sequence[float]]
"""Prompt -> the values of its samples; a prompt without values has no say."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        return self.low <= 0 <= self.high


def mean_interval(values: ByPrompt) -> Interval | None:
    """Of the mean over all samples; None for fewer than 5 prompts. The same values give the same
    interval, in whatever order the prompts come."""
    prompts = sorted(prompt for prompt, found in values.items() if len(found))
    return _interval(len(prompts), [_sums(values, prompts)])


def difference_interval(before: ByPrompt, after: ByPrompt) -> Interval | None:
    """Of the mean of `after` less that of `before`. Paired: a prompt that both have is drawn for both,
    so that what makes it easy or hard cancels. None for fewer than 5 prompts on a side."""
    prompts = sorted(p for p in {*before, *after} if len(before.get(p, ())) or len(after.get(p, ())))
    sides = [_sums(before, prompts), _sums(after, prompts)]
    if any((counts > 0).sum() < FEWEST for _, counts in sides):
        return None
    return _interval(len(prompts), sides)


_Sums = tuple[np.ndarray, np.ndarray]


def _sums(values: ByPrompt, prompts: Sequence[str]) -> _Sums:
    """float64 [P] twice: of each prompt the sum of its values, and their number."""
    found = [values.get(prompt, ()) for prompt in prompts]
    return np.array([np.sum(each) for each in found]), np.array([float(len(each)) for each in found])


def _interval(prompts: int, sides: Sequence[_Sums]) -> Interval | None:
    """Of the last side's mean, less the first one's if there are two."""
    if prompts < FEWEST:
        return None
    random = np.random.default_rng(0)
    drawn, left = [], DRAWS
    while left:
        rows = min(left, max(1, _AT_ONCE // prompts))
        which = random.integers(prompts, size=(rows, prompts))
        with np.errstate(invalid="ignore"):  # a draw that holds no value of a side
            means = [sums[which].sum(1) / counts[which].sum(1) for sums, counts in sides]
        drawn.append(means[-1] - means[0] if len(sides) > 1 else means[0])
        left -= rows
    tails = (1 - LEVEL) / 2
    low, high = np.nanquantile(np.concatenate(drawn), [tails, 1 - tails])
    return Interval(float(low), float(high))
