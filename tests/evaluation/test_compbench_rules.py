"""T2I-CompBench's formulas: small cases, properties, and all that the published scripts gave."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.compbench_rules import (
    Found,
    attribute_score,
    count_score,
    depth_score,
    found_of,
    kind_of,
    mean_of_images,
    position,
    spatial_score,
    three_in_one,
)
from evaluation.compbench_text import Count, Relation, counts, prompt_of_file, simple_relation
from policy.errors import UserError
from tests.conftest import shared_file
from tests.evaluation.test_compbench_text import cases, known_objects

LEFT, MIDDLE, RIGHT = (
    (0.0, 100.0, 40.0, 140.0),
    (30.0, 100.0, 70.0, 140.0),
    (200.0, 100.0, 240.0, 140.0),
)
POINT = (5.0, 5.0, 5.0, 5.0)
NEAR = Relation("cat", "dog", "near")
sides = st.floats(0, 479).map(round).flatmap(lambda a: st.tuples(st.just(a), st.integers(a, 479)))
boxes = st.tuples(sides, sides).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))


def outcome(score):
    """A score, or what the published script ends with."""
    try:
        return score()
    except UserError as error:
        return str(error).split()[-1]


# --- attributes ---


def test_attributes_are_a_product_of_printed_numbers():
    assert attribute_score([0.50004, 0.5]) == 0.25
    assert attribute_score([]) == 1.0
    assert attribute_score([0.9] * 8) == 0.4305
    assert attribute_score([0.00004, 1.0]) == 0.0


def test_published_attributes():
    for case in cases("blip_score"):
        scores = [attribute_score([float(p) for _, p in i["asked"]]) for i in case["images"]]
        assert [f"{score:.4f}" for score in scores] == case["out"]["answers"]
        assert mean_of_images(scores) == case["out"]["average"]


# --- positions ---


def test_positions():
    assert position("on the left of", LEFT, RIGHT) == 1.0
    assert position("on the right of", RIGHT, LEFT) == 1.0
    assert position("on the right of", LEFT, RIGHT) == 0.0
    assert position("on the top of", LEFT, RIGHT) == 0.0
    assert position("on the left of", LEFT, MIDDLE) == pytest.approx(0.1 / (10 / 70))
    assert position("on the top of", (0, 0, 9, 9), (0, 50, 9, 59)) == 1.0
    assert position("on the bottom of", (0, 50, 9, 59), (0, 0, 9, 9)) == 1.0
    assert position("near", (0, 0, 40, 40), (160, 300, 200, 340)) == 0.5
    assert position("next to", (0, 0, 40, 40), (149, 400, 189, 440)) == 1.0
    assert position(None, LEFT, RIGHT) == 0.0


def test_two_boxes_without_an_area():
    assert position("near", POINT, POINT) == 1.0
    assert position("on the left of", POINT, (9.0, 5.0, 9.0, 5.0)) == 1.0
    with pytest.raises(UserError, match="ends with ZeroDivisionError"):
        position("near", POINT, POINT, published_rules=True)


@given(boxes, boxes)
def test_a_relation_and_its_opposite_agree(first, second):
    for one, other in (("on the left of", "on the right of"), ("on the top of", "on the bottom of")):
        assert position(one, first, second) == position(other, second, first)
        assert 0 <= position(one, first, second) <= 1
        assert not (position(one, first, second) and position(one, second, first))
    assert position("near", first, second) == position("near", second, first)
    both = [position(name, first, second) for name in ("on the left of", "on the top of")]
    assert 0.0 in both


def test_published_positions():
    for case in cases("determine_position"):
        boxes = tuple(case["box1"]), tuple(case["box2"])
        found = outcome(lambda c=case, b=boxes: position(c["relation"], *b, published_rules=True))
        assert found == case["out"], case


# --- spatial ---


def test_half_is_confidence_and_half_is_position():
    found = [Found("cat", LEFT, 0.8), Found("dog", MIDDLE, 0.6), Found("dog", RIGHT, 0.5)]
    assert spatial_score(NEAR, found) == pytest.approx(0.25 * 0.8 + 0.25 * 0.6 + 0.5)
    assert spatial_score(Relation("dog", "cat", "on the left of"), found) == 0.0
    assert spatial_score(NEAR, found[:1]) == 0.0
    assert spatial_score(NEAR, []) == 0.0


def test_a_prompt_that_cannot_be_read_has_no_score():
    found = [Found("cat", LEFT, 0.8), Found("dog", RIGHT, 0.6)]
    for unread in (Relation("cat", "dog", None), Relation(None, None, "near")):
        assert spatial_score(unread, found) is None
        assert spatial_score(unread, found, published_rules=True) == 0.0
    assert depth_score(Relation("cat", "dog", None), found, [1, 2]) is None


def test_two_things_of_one_name_are_two_boxes():
    twice = Relation("cat", "cat", "on the left of")
    found = [Found("cat", RIGHT, 0.9), Found("cat", LEFT, 0.8)]
    assert spatial_score(twice, found) == pytest.approx(0.25 * 0.9 + 0.25 * 0.8 + 0.5)
    assert spatial_score(twice, found[:1]) == 0.0
    assert spatial_score(twice, found, published_rules=True) == 0.0


detections = st.lists(
    st.tuples(st.sampled_from(["cat", "dog", "cup"]), boxes, st.floats(0, 1, width=32)), max_size=6
)


@given(detections, st.sampled_from(["near", "on the left of", "on the top of"]))
def test_spatial_scores_are_0_or_from_one_half_to_1(rows, name):
    found = found_of(rows)
    score = spatial_score(Relation("cat", "dog", name), found)
    assert score == 0 or 0.5 <= score <= 1
    if not {"cat", "dog"} <= {thing.label for thing in found}:
        assert score == 0
    # The two rules part where there is a fault only.
    plain = outcome(lambda: spatial_score(Relation("cat", "dog", name), found, published_rules=True))
    assert plain in (score, "ZeroDivisionError")


def published_spatial(image):
    prompt, found = prompt_of_file(image["file"]), found_of(image["detections"])
    return outcome(
        lambda: spatial_score(
            simple_relation(prompt, published_rules=True), found, published_rules=True
        )
    )


def test_published_spatial_scores():
    for case in cases("spatial_image"):
        assert published_spatial(case) == case["out"], case
    for case in cases("spatial_average"):
        scores = [published_spatial(image) for image in case["images"]]
        assert scores == case["out"]["answers"]
        assert mean_of_images(scores) == case["out"]["average"]


# --- depth ---


def test_depth_needs_the_order_and_an_overlap():
    over, under = (0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 100.0, 80.0)
    found = [Found("cat", over, 0.8), Found("dog", under, 0.6)]
    sure = 0.25 * 0.8 + 0.25 * 0.6
    assert depth_score(Relation("cat", "dog", "in front of"), found, [5, 2]) == pytest.approx(
        sure + 0.5
    )
    for name in ("behind", "hidden by"):
        assert depth_score(Relation("cat", "dog", name), found, [5, 2]) == 0.0
        assert depth_score(Relation("dog", "cat", name), found, [5, 2]) == pytest.approx(sure + 0.5)
    half = [found[0], Found("dog", (0.0, 0.0, 50.0, 50.0), 0.6)]  # an overlap of a quarter
    assert depth_score(Relation("cat", "dog", "in front of"), half, [5, 2]) == pytest.approx(
        sure + 0.25
    )
    apart = [found[0], Found("dog", (300.0, 0.0, 350.0, 50.0), 0.6)]
    assert depth_score(Relation("cat", "dog", "in front of"), apart, [5, 2]) == 0.0


def test_two_of_one_name_in_depth():
    over, under = (0.0, 0.0, 100.0, 100.0), (0.0, 0.0, 100.0, 80.0)
    found = [Found("cat", over, 0.8), Found("cat", under, 0.6)]
    assert depth_score(Relation("cat", "cat", "behind"), found, [5, 2]) == pytest.approx(0.85)
    assert depth_score(Relation("cat", "cat", "behind"), found, [2, 2]) == 0.0


# --- numbers ---


def row(label: str, count: int) -> list[Found]:
    return [Found(label, (50.0 * n, 0.0, 50.0 * n + 40, 40.0), 0.9) for n in range(count)]


def test_half_for_being_there_and_half_for_the_number():
    wanted = [Count("dog", 2, "dog"), Count("boat", 1, "ship")]
    assert count_score(wanted, [*row("dog", 2), *row("boat", 1)]) == 1.0
    assert count_score(wanted, [*row("dog", 3), *row("boat", 1)]) == 0.75
    assert count_score(wanted, row("boat", 2)) == 0.25
    assert count_score(wanted, []) == 0.0


def test_a_box_in_a_box_of_its_label_is_the_same_object():
    inside = Found("dog", (10.0, 10.0, 20.0, 20.0), 0.5)
    assert count_score([Count("dog", 2, "dog")], [*row("dog", 2), inside]) == 1.0
    other = Found("cat", (10.0, 10.0, 20.0, 20.0), 0.5)
    wanted = [Count("dog", 1, "dog"), Count("cat", 1, "cat")]
    assert count_score(wanted, [*row("dog", 1), other]) == 1.0


def test_a_label_that_contains_the_word():
    assert count_score([Count("tv", 1, "tv")], row("tv monitor", 1)) == 1.0
    both = [*row("tv monitor", 1), Found("tv", RIGHT, 0.9)]
    assert count_score([Count("tv", 1, "tv")], both) == 1.0


def test_nothing_to_count():
    assert count_score([], row("dog", 1)) is None
    with pytest.raises(UserError, match="ends with ZeroDivisionError"):
        count_score([], row("dog", 1), published_rules=True)
    lost = [Count("dog", 3, "dog"), Count("boat", None, "ship")]
    assert count_score(lost, row("dog", 3), published_rules=True) == 0.5
    with pytest.raises(UserError, match="ends with IndexError"):
        count_score(lost, row("boat", 1), published_rules=True)


@given(detections, st.lists(st.tuples(st.sampled_from(["cat", "dog"]), st.integers(1, 8)), min_size=1))
def test_count_scores_are_shares(rows, wanted):
    found = found_of(rows)
    score = count_score([Count(label, number, label) for label, number in wanted], found)
    assert 0 <= score <= 1 + 1e-9
    assert (score > 0) == any(thing.label in dict(wanted) for thing in found)


def published_count(file: str, detections: list):
    prompt, found = prompt_of_file(file), found_of(detections)
    return outcome(
        lambda: count_score(
            counts(prompt, known_objects(), published_rules=True), found, published_rules=True
        )
    )


def test_published_counts():
    for case in cases("numeracy_image"):
        assert published_count(case["file"], case["detections"]) == case["out"], case
    for case in cases("numeracy_parse"):
        if "error" in case:
            assert published_count(case["prompt"], []) == case["error"], case
    for case in cases("numeracy_average"):
        scores = [published_count(image["file"], image["detections"]) for image in case["images"]]
        assert scores == case["out"]["answers"]
        assert mean_of_images(scores) == case["out"]["average"]


# --- three in one ---


def test_what_a_complex_score_is_made_of():
    assert three_in_one("spatial", 0.4, 0.8, None) == pytest.approx(0.6)
    assert three_in_one("action", 0.4, None, 0.3) == 0.35
    assert three_in_one("all three", 0.4, 0.8, 0.3) == pytest.approx(0.5)
    assert three_in_one("all three", 0.4, None, 0.3) is None
    assert three_in_one("spatial", None, 0.8, 0.3) is None


def test_lists_are_compared_without_case_up_to_a_full_stop():
    assert kind_of("A cat. It sits.", ["a CAT."], []) == "spatial"
    assert kind_of("A cat.", ["a cat"], ["a cat"]) == "spatial"
    assert kind_of("A cat.", ["a dog"], ["a cat"]) == "action"
    assert kind_of("A cat.", ["a cats"], []) == "all three"


def test_published_three_in_one():
    for case in cases("three_in_one"):
        kinds = [
            kind_of(prompt, case["lists"]["spatial"], case["lists"]["action"])
            for prompt in case["prompts"]
        ]
        rows = zip(case["attribute"], case["spatial"], case["action"], strict=True)
        scores = [three_in_one(kinds[n // 10], *row) for n, row in enumerate(rows)]
        assert scores == case["out"]["answers"]
        assert mean_of_images(scores) == case["out"]["average"]


def test_published_kinds():
    folder = shared_file("bench/t2i_compbench")
    lists = [(folder / f"complex_val_{n}.txt").read_text().splitlines() for n in ("spatial", "action")]
    for case in cases("three_in_one_kinds"):
        assert kind_of(case["prompt"], *lists) == case["scored_as"], case


@given(st.lists(st.floats(0, 1), max_size=20))
def test_the_mean(scores):
    mean = mean_of_images(scores)
    assert mean is None if not scores else math.isclose(mean, math.fsum(scores) / len(scores))
