import random

import numpy as np
import pytest

from examples.shapes.experts import (
    COLORS,
    SHAPES,
    CountExpert,
    ObjectsExpert,
    RelationExpert,
    detect,
    outline,
)
from examples.shapes.world import all_prompts, make_plan, render
from policy.prompts import parse_prompt, plain_prompt
from policy.records import Prompt
from tests.rewards.drawing import draw


def prompt(**fields) -> Prompt:
    return parse_prompt({"prompt": "a picture", "task_type": "any", **fields})


def score(expert, image: np.ndarray, asked: Prompt) -> float:
    return float(expert.score([image], [asked]).values[0])


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_seen_for_what_it_is(color, shape):
    (found,) = detect(draw((color, shape, 2, 12)))
    assert found.name == f"{color} {shape}"
    assert found.confidence > 0.7
    assert (found.x, found.y) == pytest.approx((6, 16), abs=1.5)


def test_blank_image_shows_nothing():
    assert detect(draw()) == []


def test_objects_are_graded_one_by_one():
    both = prompt(attr_nouns=["red circle", "blue square"])
    expert = ObjectsExpert()
    assert score(expert, draw(("red", "circle", 2, 2), ("blue", "square", 20, 20)), both) > 0.9
    assert score(expert, draw(("red", "circle", 2, 2)), both) == pytest.approx(0.5, abs=0.05)
    assert score(expert, draw(("blue", "circle", 2, 2), ("red", "square", 20, 20)), both) == 0
    assert score(expert, draw(), both) == 0


def test_count_wants_the_number_and_nothing_else():
    two = prompt(numeracy_info=[{"obj_name": "red circle", "num": 2}])
    one, other = ("red", "circle", 2, 2), ("red", "circle", 20, 2)
    expert = CountExpert()
    assert score(expert, draw(one, other), two) == 1
    assert score(expert, draw(one), two) == 0.5
    assert score(expert, draw(one, other, ("blue", "square", 2, 20)), two) == 0.75
    assert score(expert, draw(), two) == 0


def test_relation_has_a_direction():
    right, left = ("red", "circle", 20, 12), ("blue", "square", 2, 12)
    image, expert = draw(right, left), RelationExpert()

    def asked(locality: str) -> Prompt:
        where = {"obj1": "red circle", "obj2": "blue square", "locality": locality}
        return prompt(spatial_info=where)

    assert score(expert, image, asked("right of")) > 0.9
    assert score(expert, image, asked("left of")) == 0
    assert score(expert, image, asked("above")) == 0
    assert not expert.applies(asked("inside"))


def test_evidence_says_what_was_seen():
    answer = ObjectsExpert().score([draw(("red", "circle", 2, 2))], [prompt(attr_nouns=["red circle"])])
    assert answer.explanation[0].startswith("red circle (6,6)")


def test_a_plain_sentence_concerns_none_of_them():
    sentence = plain_prompt("a red circle")
    assert not any(e.applies(sentence) for e in (ObjectsExpert(), CountExpert(), RelationExpert()))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pale_shape_that_nobody_asked_for_counts_as_one_too_many(shape):
    """A policy once learned to put a triangle in no colour of the palette into most images."""
    asked = prompt(numeracy_info=[{"obj_name": "red circle", "num": 1}])
    image = draw(("red", "circle", 2, 2)).copy()
    ghost = outline(shape, 7, 7)
    image[20 : 20 + 7, 12 : 12 + 7][ghost] = (214, 204, 226)
    circle, blot = detect(image)
    assert (circle.name, blot.name) == ("red circle", "odd-coloured blot")
    assert blot.edges == (12, 20, 19, 27)
    assert score(CountExpert(), draw(("red", "circle", 2, 2)), asked) == 1
    assert score(CountExpert(), image, asked) == 0.5


def test_every_picture_of_the_world_shows_its_plan_and_no_blot():
    rng = random.Random(0)
    for prompts in all_prompts().values():
        plan = make_plan(rng.choice(prompts), rng)
        found = detect(render(plan))
        assert sorted(d.name for d in found) == sorted(placed.name for placed in plan)
