"""Confidence intervals of means over prompts, by bootstrap: prompts are resampled, each with all its
samples, because samples of one prompt are alike.

They cover another choice of prompts, not another seed of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
DRAWS = 2000
FEWEST = 5  # prompts; with fewer an interval would be a guess
_AT_ONCE = 2**20  # numbers in memory

ByPrompt = Mapping[str, Sequence[float]]
"""Prompt -> the values of its samples; a prompt without values does not count."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    @property
    def has_zero(self) -> bool:
        return self.low <= 0 <= self.high


def mean_interval(values: ByPrompt) -> Interval | None:
    """The interval of the mean over all samples; None for fewer than 5 prompts. The same values give
    the same interval, in whatever order the prompts come."""
    return interval_of_means([(values,)])


def difference_interval(before: ByPrompt, after: ByPrompt) -> Interval | None:
    """The interval of the mean of `after` less that of `before`. Paired: a prompt that both have is
    drawn for both, so that its difficulty cancels. None for fewer than 5 prompts on a side."""
    return interval_of_means([(before, after)])


def interval_of_means(tasks: Sequence[tuple[ByPrompt, ...]]) -> Interval | None:
    """The interval of the mean over tasks: of each task's mean, or of its difference of two (before,
    after). None if a task has too few prompts."""
    if not tasks or any(_fewest(sides) < FEWEST for sides in tasks):
        return None
    drawn = np.mean([_draws(sides, seed) for seed, sides in enumerate(tasks)], axis=0)
    tails = (1 - LEVEL) / 2
    low, high = np.nanquantile(drawn, [tails, 1 - tails])
    return Interval(float(low), float(high))


def _fewest(sides: Sequence[ByPrompt]) -> int:
    """The number of prompts with a value, on the side with the fewest."""
    return min(sum(len(found) > 0 for found in values.values()) for values in sides)


def _draws(sides: Sequence[ByPrompt], seed: int) -> np.ndarray:
    """Bootstrap means, float64 [2000]: each draws as many prompts as there are, with replacement. NaN
    for a draw without a value of a side."""
    prompts = sorted({prompt for values in sides for prompt, found in values.items() if len(found)})
    sums, counts = np.zeros((2, len(sides), len(prompts)))
    for side, values in enumerate(sides):
        found = [values.get(prompt, ()) for prompt in prompts]
        sums[side], counts[side] = [np.sum(each) for each in found], [len(each) for each in found]
    random = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(prompts))
    drawn = []
    for begin in range(0, DRAWS, rows):
        which = random.integers(len(prompts), size=(min(rows, DRAWS - begin), len(prompts)))
        with np.errstate(invalid="ignore"):
            means = sums[:, which].sum(-1) / counts[:, which].sum(-1)
        drawn.append(means[-1] - means[0] if len(sides) > 1 else means[0])
    return np.concatenate(drawn)
