"""Overlap and non-maximum suppression."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.matching import gap, iou, nms, to_xyxy

coordinate = st.integers(0, 16).map(lambda n: n / 16)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
scored = st.lists(st.tuples(boxes, coordinate), max_size=8)


def arrays(some):
    return np.array([b for b, _ in some]).reshape(-1, 4), np.array([s for _, s in some])


def test_known_overlaps():
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0
    assert gap((0, 0, 1, 1), (4, 5, 6, 6)) == 5
    assert to_xyxy((0.5, 0.5, 0.5, 0.25)) == (0.25, 0.375, 0.75, 0.625)


@given(boxes, boxes)
def test_iou_goes_both_ways_and_is_0_to_1(one, two):
    assert 0 <= iou(one, two) == iou(two, one) <= 1
    assert (gap(one, two) == 0) or iou(one, two) == 0


@given(scored)
def test_what_stays_stays_again_best_first_and_apart(some):
    xyxy, scores = arrays(some)
    stay = nms(xyxy, scores, 0.5)
    assert list(nms(xyxy[stay], scores[stay], 0.5)) == list(range(len(stay)))
    assert list(scores[stay]) == sorted(scores[stay], reverse=True)
    assert all(iou(xyxy[a], xyxy[b]) <= 0.5 for a in stay for b in stay if a != b)
    for gone in set(range(len(some))) - set(stay):
        assert any(iou(xyxy[gone], xyxy[s]) > 0.5 and scores[s] >= scores[gone] for s in stay)
