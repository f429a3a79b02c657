"""The numbers that curves are drawn from."""

import pytest

from cluster.watch.curves import series, short, smooth, thin, ticks


def test_a_resumed_run_replaces_the_steps_that_it_repeats():
    steps = [(1, 1.0), (2, 1.0), (3, 1.0), (2, 5.0), (4, None)]
    lines = [{"step": step, "time": 0.0, "loss": value} for step, value in steps]
    assert series(lines) == {"loss": [(1, 1.0), (2, 5.0)]}


def test_smoothing_and_thinning_keep_a_straight_line():
    line = [(step, 2.0 * step) for step in range(1000)]
    assert smooth(line)[500] == (500, 1000.0)
    assert smooth(line[:10]) == line[:10]
    assert len(thin(line, 400)) == 334
    assert sum(value for _, value in thin(line, 100)) / 100 == pytest.approx(999.0)


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.06) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.03, 0.031) == [-0.02, 0, 0.02]
    assert [short(x) for x in (0, 0.5, -12.34, 1234.5, 1e-5, 2.5e6)] == [
        "0", "0.5", "-12.3", "1,234", "1e-5", "2.5e6",
    ]  # fmt: skip
