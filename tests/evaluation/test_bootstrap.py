"""Intervals by bootstrap: what they keep whatever the numbers are, and how often they are right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.bootstrap import FEWEST, difference_interval, interval_of_means, mean_interval

NUMBERS = st.floats(-10, 10)
VALUES = st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=FEWEST, max_size=30).map(
    lambda found: {f"p{n}": values for n, values in enumerate(found)}
)


def mean(values) -> float:
    return float(np.mean([v for found in values.values() for v in found]))


@given(values=VALUES, by=NUMBERS)
def test_an_interval_lies_among_the_values_and_moves_with_them(values, by):
    found = mean_interval(values)
    every = [v for each in values.values() for v in each]
    assert min(every) - 1e-9 <= found.low <= found.high <= max(every) + 1e-9
    backwards = dict(reversed(values.items()))
    assert mean_interval(backwards) == found
    moved = mean_interval({prompt: [v + by for v in each] for prompt, each in values.items()})
    assert moved.low == pytest.approx(found.low + by, abs=1e-6)
    assert moved.high == pytest.approx(found.high + by, abs=1e-6)


@given(values=VALUES, by=NUMBERS)
def test_what_all_prompts_gain_alike_is_known_exactly(values, by):
    """For the same prompts are drawn for both sides."""
    found = difference_interval(values, {p: [v + by for v in each] for p, each in values.items()})
    assert (found.low, found.high) == (pytest.approx(by, abs=1e-6), pytest.approx(by, abs=1e-6))
    assert difference_interval(values, values).has_zero


@given(before=VALUES, after=VALUES)
def test_a_difference_the_other_way_round_is_its_mirror_image(before, after):
    """Also where the two have different prompts."""
    one, other = difference_interval(before, after), difference_interval(after, before)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))


def test_too_few_prompts_have_no_interval():
    few = {f"p{n}": [0.0, 1.0] for n in range(FEWEST - 1)}
    assert mean_interval(few) is None
    assert mean_interval(few | {"empty": []}) is None
    many = {f"p{n}": [0.0, 1.0] for n in range(FEWEST)}
    assert mean_interval(many) is not None
    assert difference_interval(few, many) is difference_interval(many, few) is None


def test_nineteen_of_twenty_intervals_hold_the_truth():
    """40 prompts with levels of their own, two samples each; the second run is 0.1 better."""
    random = np.random.default_rng(0)
    right = means = widths = apart = 0
    for _ in range(200):
        levels = random.normal(0.5, 0.3, 40)
        before, after = (
            {f"p{n}": list(level + random.normal(more, 0.2, 2)) for n, level in enumerate(levels)}
            for more in (0, 0.1)
        )
        change, level = difference_interval(before, after), mean_interval(before)
        right += change.low <= 0.1 <= change.high
        means += level.low <= 0.5 <= level.high
        widths += change.high - change.low
        apart += 2**0.5 * (level.high - level.low)
    assert 180 <= right <= 198
    assert 180 <= means <= 198
    assert widths < 0.8 * apart  # what it would be without pairs of prompts


@given(values=VALUES, by=NUMBERS)
def test_a_mean_over_tasks_is_drawn_within_each_task(values, by):
    """However many prompts each has."""
    flat = {f"q{n}": [by] for n in range(50)}
    found, alone = interval_of_means([(values,), (flat,)]), mean_interval(values)
    assert found.low == pytest.approx((alone.low + by) / 2, abs=1e-6)
    assert found.high == pytest.approx((alone.high + by) / 2, abs=1e-6)
    assert interval_of_means([(values,), ({"q": [by]},)]) is None
