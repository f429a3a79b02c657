"""Riddles: they name nothing, mean one thing, and are held out by the facts that they put together."""

import random

from hypothesis import given
from hypothesis import strategies as st

from examples.shapes.experts import COLORS, SHAPES
from examples.shapes.riddles import (
    COLOR_FACTS,
    SHAPE_FACTS,
    descriptions,
    riddle,
    some_riddles,
)
from examples.shapes.world import cot_is_right, make_plan, plan_text

EVERY = [*descriptions(False), *descriptions(True)]
riddles = st.builds(
    lambda held_out, seed: (held_out, riddle(held_out, random.Random(seed))),
    st.booleans(),
    st.integers(0, 10**6),
)


def pairs_in(text):
    """The pairs of facts that a riddle puts together."""
    return [d for d in EVERY if any(part == str(d) for part in parts_of(text))]


def parts_of(text):
    for word in ("left of", "right of", "above", "below", "and"):
        text = text.replace(f" {word} ", " | ")
    return text.split(" | ")


def test_several_facts_are_known_of_every_colour_and_shape():
    assert set(COLOR_FACTS) == set(COLORS)
    assert set(SHAPE_FACTS) == set(SHAPES)
    for facts in (COLOR_FACTS, SHAPE_FACTS):
        every_fact = [fact for some in facts.values() for fact in some]
        assert all(len(some) >= 4 for some in facts.values())
        assert len(set(every_fact)) == len(every_fact)


@given(riddles)
def test_a_riddle_names_neither_colour_nor_shape(drawn):
    _, prompt = drawn
    words = set(prompt.text.split())
    assert not words & {*COLORS, *SHAPES, *(f"{shape}s" for shape in SHAPES)}
    assert prompt.task_type == "riddle"


@given(riddles)
def test_its_fields_hold_what_its_facts_mean(drawn):
    _, prompt = drawn
    meant = [d.name for part in parts_of(prompt.text) for d in EVERY if str(d) == part]
    assert list(prompt.attr_nouns) == meant
    assert list(prompt.nouns) == [name.split()[1] for name in meant]
    assert [(c.obj_name, c.num) for c in prompt.numeracy_info] == [(name, 1) for name in meant]
    if prompt.spatial_info:
        assert [prompt.spatial_info.obj1, prompt.spatial_info.obj2] == meant
        assert f" {prompt.spatial_info.locality} " in prompt.text
    assert cot_is_right(prompt, plan_text(make_plan(prompt, random.Random(0))))


@given(riddles)
def test_a_held_out_riddle_holds_no_pair_of_facts_of_training(drawn):
    held_out, prompt = drawn
    assert pairs_in(prompt.text)
    assert all(d.held_out == held_out for d in pairs_in(prompt.text))


def test_every_fact_is_met_in_training_and_the_pairs_are_split():
    trained, held_out = descriptions(False), descriptions(True)
    assert {str(d) for d in trained}.isdisjoint(str(d) for d in held_out)
    assert {d.shape_fact for d in trained} == {f for some in SHAPE_FACTS.values() for f in some}
    assert {d.color_fact for d in trained} == {f for some in COLOR_FACTS.values() for f in some}
    assert 0.1 < len(held_out) / len(EVERY) < 0.3


def test_some_riddles_are_as_many_as_asked_all_different_and_always_the_same():
    found = some_riddles(150, held_out=False)
    assert len({prompt.text for prompt in found}) == 150
    assert found[:100] == some_riddles(100, held_out=False)
