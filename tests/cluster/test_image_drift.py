"""Warnings of images that come to look unlike those that a run began with."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.pending import RolloutBatch
from cluster.watch.image_drift import FIRST, RECENT, WATCHED, ImageDrift
from cluster.watch.metrics import image_metrics

EDGES, ALIKE = "image/edge_density", "image/near_duplicates"


def drift_messages(values, name=EDGES, drift=None) -> list[tuple[int, str]]:
    drift = drift or ImageDrift()
    return [(n, line) for n, value in enumerate(values) for line in drift.new({name: value})]


def test_images_that_get_flat_are_reported_once_with_both_numbers():
    ((when, line),) = drift_messages([0.31] * FIRST + [0.12] * 100)
    assert line.startswith("the images get flatter: edge density 0.31 -> 0.12 (the first 20 steps,")
    assert when == FIRST + RECENT - 1


def test_a_spell_that_ends_may_begin_again():
    values = [0.3] * FIRST + [0.1] * 20 + [0.3] * 20 + [0.1] * 20
    assert len(drift_messages(values)) == 2
    halfway = [0.3] * FIRST + ([0.2] * 20 + [0.24] * 20) * 3
    assert len(drift_messages(halfway)) == 1


def test_what_varied_from_the_start_must_move_further():
    wild = list(np.tile([0.1, 0.5], FIRST // 2))
    assert drift_messages(wild + [0.45] * 50) == []
    assert len(drift_messages([0.3] * FIRST + [0.45] * 50)) == 1


def test_images_that_become_alike_are_reported_and_those_that_differ_are_not():
    ((_, line),) = drift_messages([0.0] * FIRST + [0.3] * 50, ALIKE)
    assert "more alike within a group: near duplicates within a group 0.00 -> 0.30" in line
    assert drift_messages([0.0] * FIRST + [0.05] * 50, ALIKE) == []
    assert drift_messages([0.5] * FIRST + [0.0] * 50, ALIKE) == []


@given(
    value=st.floats(0, 9),
    noise=st.lists(st.floats(-0.02, 0.02), min_size=50, max_size=200),
    name=st.sampled_from(list(WATCHED)),
)
def test_noise_of_a_hundredth_around_a_level_is_no_drift(value, noise, name):
    level = max(value, 0.2)
    assert drift_messages([level * (1 + each) for each in noise], name) == []


def test_a_run_that_goes_on_tells_nothing_twice_and_knows_how_it_began():
    lines = [{"step": n, "time": 1.0, EDGES: 0.3} for n in range(FIRST)]
    lines += [{"step": FIRST, "eval/reward": 0.5}, {"step": FIRST, EDGES: None}]
    assert len(drift_messages([0.1] * 30, drift=ImageDrift.after(lines))) == 1
    lines += [{EDGES: 0.1}] * 30
    assert drift_messages([0.1] * 30, drift=ImageDrift.after(lines)) == []


def test_a_step_without_images_has_no_numbers():
    assert image_metrics(RolloutBatch(pending=None)) == {}
