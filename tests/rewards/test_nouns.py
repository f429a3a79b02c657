"""Which nouns are the same, and where they stand in a caption."""

import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import UserError
from rewards.matching import phrase_spans, plain_noun, same_noun
from tests.conftest import shared_file

words = st.text("abcxyz'-é", min_size=1, max_size=5)
nouns = st.lists(words, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "Dogs"),
        ("bus", "buses"),
        ("glass", "glasses"),
        ("strawberry", "strawberries"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("shoe", "shoes"),
        ("ice cream cone", "Ice  cream cones"),
        ("woman", "women"),
        ("person", "people"),
        ("computer mouse", "computer mice"),
    ],
)
def test_a_plural_is_the_same_noun(one, many):
    assert same_noun(one, many) and same_noun(many, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dog", "hot dog"),
        ("cat", "car"),
        ("grass", "glass"),
        ("boss", "bos"),
        ("toys train", "toy train"),
    ],
)
def test_other_nouns_are_not(one, other):
    assert not same_noun(one, other)


def test_no_two_nouns_of_the_published_prompts_are_mixed_up():
    rows = shared_file("prompts/t2i_r1_prompts.jsonl").read_text().splitlines()
    every = sorted({noun for row in rows for noun in json.loads(row)["nouns"]})
    pairs = [(a, b) for a, b in combinations(every, 2) if a[0].lower() == b[0].lower()]
    mixed = [(a, b) for a, b in pairs if same_noun(a, b)]
    odd = [(a, b) for a, b in mixed if plain_noun(a)[:3] != plain_noun(b)[:3]]
    assert len(every) > 1400 and len(mixed) > 20
    assert odd == [("feet", "foot"), ("people", "person")]


@given(st.lists(nouns, min_size=1, max_size=5))
def test_spans_are_the_words_of_the_nouns(some):
    caption, spans = phrase_spans(some)
    assert [" ".join(caption[b:e] for b, e in noun) for noun in spans] == [plain_noun(n) for n in some]
    assert caption.count(".") == len(some) and caption.endswith(".")


@given(st.lists(st.sampled_from(["dog", "hot dog", "tv"]), min_size=1, max_size=4))
def test_plain_nouns_of_two_words_are_as_published(some):
    assert phrase_spans(some) == phrase_spans(some, variant="released")


@pytest.mark.parametrize("empty", [[], ["dog", " . "]])
def test_nothing_to_look_for_is_an_error(empty):
    with pytest.raises(UserError, match="nothing to look for"):
        phrase_spans(empty)
