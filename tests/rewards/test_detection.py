"""The detector's formulas, as the paper has them: what must hold for all detections."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import UserError
from policy.records import ObjectCount, SpatialInfo
from rewards.detection import (
    Detection,
    count_score,
    existence_score,
    knows_relation,
    relation_score,
    spatial_score,
)
from tests.conftest import shared_file

DIRECTIONS = ("left of", "right of", "above", "below")
MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NOUNS = ("dog", "hot dog", "roll of tape")

# Eighths, so that sums and halves are exact and a tie is a tie.
eighth = st.integers(0, 8).map(lambda n: n / 8)
boxes = st.tuples(eighth, eighth, eighth, eighth).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
relations = st.sampled_from((*DIRECTIONS, "near"))
detections = st.lists(
    st.builds(Detection, st.sampled_from(NOUNS), eighth, st.tuples(eighth, eighth, eighth, eighth)),
    max_size=6,
)


def box(x: float, y: float, size: float = 0.2) -> tuple[float, float, float, float]:
    return x - size / 2, y - size / 2, x + size / 2, y + size / 2


# --- one relation ---


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [
        ("left of", 0.2, 0.5),
        ("on the left of", 0.2, 0.5),
        ("right of", 0.8, 0.5),
        ("on the right of", 0.8, 0.5),
        ("above", 0.5, 0.2),
        ("on top of", 0.5, 0.2),
        ("on the top of", 0.5, 0.2),
        ("below", 0.5, 0.8),
        ("on the bottom of", 0.5, 0.8),
        ("ABOVE", 0.5, 0.2),
        ("  next   to ", 0.3, 0.5),
        ("near", 0.3, 0.3),
        ("on side of", 0.5, 0.7),
    ],
)
def test_every_relation_can_be_right(relation, x, y):
    assert relation_score(box(x, y), box(0.5, 0.5), relation) == 1
    info = SpatialInfo("dog", "TV", relation)
    found = [Detection("dog", 0.4, (x, y, 0.2, 0.2)), Detection("tv", 0.9, (0.5, 0.5, 0.2, 0.2))]
    assert spatial_score(found, info) == 1


@pytest.mark.parametrize("relation", ["near", "next to", "on side of"])
def test_far_is_not_near(relation):
    assert relation_score(box(0.1, 0.1), box(0.9, 0.9), relation) == 0
    assert relation_score(box(0.1, 0.5), box(0.9, 0.5), relation) == 0, "far in one axis is far"


def test_a_right_direction_too_close_earns_the_iou():
    assert relation_score((0.2, 0.3, 0.7, 0.6), (0.3, 0.3, 0.8, 0.6), "left of") == pytest.approx(2 / 3)
    assert relation_score((0.3, 0.3, 0.8, 0.6), (0.2, 0.3, 0.7, 0.6), "left of") == 0


def test_boxes_without_an_area_are_judged_by_their_place():
    assert relation_score((0.2, 0.2, 0.2, 0.2), (0.5, 0.3, 0.5, 0.3), "left of") == 1
    assert relation_score((0.2, 0.2, 0.2, 0.2), (0.2, 0.2, 0.2, 0.2), "left of") == 0


@given(boxes, boxes, relations)
def test_a_relation_is_0_to_1(box1, box2, relation):
    assert 0 <= relation_score(box1, box2, relation) <= 1


@given(boxes, boxes, st.sampled_from(DIRECTIONS))
def test_seen_in_a_mirror_left_is_right(box1, box2, relation):
    def mirror(b):
        if relation in ("left of", "right of"):
            return 1 - b[2], b[1], 1 - b[0], b[3]
        return b[0], 1 - b[3], b[2], 1 - b[1]

    here = relation_score(box1, box2, relation)
    assert relation_score(mirror(box1), mirror(box2), MIRRORED[relation]) == pytest.approx(here)
    assert relation_score(box2, box1, MIRRORED[relation]) == pytest.approx(here)


@given(boxes, boxes)
def test_near_goes_both_ways_and_at_most_one_direction_is_right(box1, box2):
    assert relation_score(box1, box2, "near") == relation_score(box2, box1, "near")
    assert sum(relation_score(box1, box2, relation) > 0 for relation in DIRECTIONS) <= 1


@given(boxes, boxes, relations, st.sampled_from((0.25, 2, 512)), eighth, eighth)
def test_unit_and_place_make_no_difference(box1, box2, relation, scale, dx, dy):
    def move(b):
        return tuple(scale * (v + d) for v, d in zip(b, (dx, dy, dx, dy), strict=True))

    here = relation_score(box1, box2, relation)
    assert relation_score(move(box1), move(box2), relation) == pytest.approx(here)


@given(boxes, boxes, st.sampled_from(DIRECTIONS), st.integers(1, 16))
def test_what_is_right_stays_right_further_off(box1, box2, relation, eighths):
    far = eighths / 8
    dx, dy = {"left of": (-far, 0), "right of": (far, 0), "above": (0, -far), "below": (0, far)}[
        relation
    ]
    moved = (box1[0] + dx, box1[1] + dy, box1[2] + dx, box1[3] + dy)
    if relation_score(box1, box2, relation) == 1:
        assert relation_score(moved, box2, relation) == 1


def test_an_unknown_relation_is_an_error():
    with pytest.raises(UserError, match=r"relation 'behind' is not known; known are left of, "):
        relation_score(box(0, 0), box(1, 1), "behind")
    with pytest.raises(UserError, match="'behind' is not known"):
        spatial_score([], SpatialInfo("dog", "cat", "behind"))


def test_the_published_prompts_use_only_known_relations():
    rows = shared_file("prompts/t2i_r1_prompts.jsonl").read_text().splitlines()
    infos = [row["spatial_info"] for row in map(json.loads, rows) if row.get("spatial_info")]
    assert len(infos) == 2380
    assert all(knows_relation(info["locality"]) for info in infos)


# --- scores of whole images ---

WANTED = (ObjectCount("dog", 2), ObjectCount("roll of tape", 1))
LEFT = SpatialInfo("dog", "hot dog", "left of")


@given(detections, st.randoms())
def test_scores_are_0_to_1_and_the_order_of_detections_does_not_matter(found, random):
    def scores(d):
        return spatial_score(d, LEFT), count_score(d, WANTED), existence_score(d, NOUNS)

    shuffled = found.copy()
    random.shuffle(shuffled)
    assert scores(shuffled) == scores(found)
    assert all(0 <= score <= 1 for score in scores(found))


@given(detections, detections)
def test_more_detections_never_take_existence_away(some, more):
    assert existence_score(some + more, NOUNS) >= existence_score(some, NOUNS)


def test_a_missing_object_leaves_only_existence():
    assert spatial_score([], LEFT) == 0
    assert spatial_score([Detection("dog", 0.5, (0.5, 0.5, 0.1, 0.1))], LEFT) == pytest.approx(0.2)


def test_the_most_confident_detection_of_each_counts():
    dog = Detection("dog", 0.9, (0.2, 0.5, 0.1, 0.1))
    wrong, right = (Detection("hot dog", s, (x, 0.5, 0.1, 0.1)) for s, x in ((0.5, 0.1), (0.6, 0.8)))
    assert spatial_score([dog, wrong, right], LEFT) == 1
    assert spatial_score([dog, right], LEFT) == 1
    assert spatial_score([dog, wrong], LEFT) == pytest.approx(0.4)


def test_two_objects_of_one_noun():
    info = SpatialInfo("umbrella", "umbrellas", "above")
    one = Detection("umbrella", 0.8, (0.5, 0.2, 0.2, 0.2))
    again = Detection("umbrella", 0.7, (0.5, 0.21, 0.2, 0.2))
    other = Detection("umbrella", 0.6, (0.5, 0.8, 0.2, 0.2))
    assert spatial_score([one, again], info) == pytest.approx(0.2), "one object, seen twice"
    assert spatial_score([one, again, other], info) == spatial_score([other, one], info) == 1


def test_counts():
    def dogs(*xs):
        return [Detection("dog", 0.5, (x, 0.5, 0.1, 0.1)) for x in xs]

    assert count_score(dogs(0.2, 0.8), [ObjectCount("dogs", 2)]) == 1
    assert count_score(dogs(0.2, 0.2, 0.21, 0.8), [ObjectCount("dog", 2)]) == 1, "duplicates"
    assert count_score(dogs(0.2), [ObjectCount("dog", 2)]) == 0, "a wrong count earns nothing"
    assert count_score(dogs(0.2, 0.8), [ObjectCount("dog", 2), ObjectCount("cat", 1)]) == 0.5
    assert count_score([], [ObjectCount("dog", 0)]) == 1


def test_case_and_plurals():
    found = [Detection("Roll of  TAPE", 0.5, (0.5, 0.5, 0.1, 0.1))]
    assert existence_score(found, ["rolls of tape", "roll of tape"]) == 0.5
    assert existence_score(found, ["roll of tapes"]) == 1


def test_plain_tuples_and_mappings_will_do():
    found = [
        ("dog", 0.9, (0.2, 0.5, 0.2, 0.2)),
        {"phrase": "cat", "score": 0.8, "box": (0.8, 0.5, 0.2, 0.2)},
    ]
    assert spatial_score(found, {"obj1": "dog", "obj2": "cat", "locality": "left of"}) == 1
    assert count_score(found, [{"obj_name": "dog", "num": 1}]) == 1


def test_nothing_to_judge_is_an_error():
    with pytest.raises(UserError, match="numeracy_info is empty"):
        count_score([], [])
    with pytest.raises(UserError, match="there are no nouns"):
        existence_score([], [])
