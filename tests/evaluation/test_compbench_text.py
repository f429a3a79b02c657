"""What T2I-CompBench reads out of prompts: small cases, and all that the published scripts gave."""

import builtins
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import compbench_text
from evaluation.compbench_text import (
    Count,
    Relation,
    complex_relation,
    counts,
    nouns_at_prepositions,
    prompt_of_file,
    questions,
    reader,
    relation_3d,
    simple_relation,
    without_adjectives,
)
from policy.errors import UserError
from tests.conftest import shared_file

KNOWN = [("dog", "dogs"), ("fish", "fish"), ("ship", "ships"), ("man", "men"), ("mouse", "mice")]


def cases(name: str) -> list[dict]:
    return json.loads(shared_file("bench/vectors/t2i_compbench.json").read_text())[name]["cases"]


def known_objects() -> list[tuple[str, str]]:
    rows = shared_file("bench/t2i_compbench/new_objects.txt").read_text().lower().splitlines()
    return [tuple(row.split(" - ")) for row in rows]


# --- questions ---


def test_a_question_for_each_noun_phrase():
    assert questions("a red train and a blue vase") == ["a red train?", "a blue vase?"]
    assert questions("The tall glass vase. A small pot.") == ["The tall glass vase?", "A small pot?"]


def test_places_are_no_things_but_only_to_the_letter():
    assert questions("a cat on the side of a box") == ["a cat?", "a box?"]
    assert questions("a dog on the top") == ["a dog?", "the top?"]


def test_published_questions():
    for case in cases("blip_questions"):
        assert questions(prompt_of_file(f"{case['prompt']}_000000.png")) == case["questions"], case


def test_adjectives_are_dropped():
    text = without_adjectives("The black chair was next to the wooden table.")
    assert text == "The chair was to the table ."


def test_published_texts_without_adjectives():
    for case in cases("clip_text"):
        assert without_adjectives(case["prompt"]) == case["without_adjectives"], case
    for case in cases("clip"):
        for image in case["images"]:
            prompt = prompt_of_file(image["file"])
            text = without_adjectives(prompt) if case["complex"] else prompt
            assert text == image["text_embedded"]


# --- relations ---


def test_first_and_last_noun():
    near = simple_relation("a girl near a wooden table")
    assert near == Relation("person", "table", "near")
    assert near.objects == ["person", "table"]
    assert simple_relation("a man next to a woman").objects == ["person"]


def test_on_top_of_counts_unless_the_published_rules_are_asked_for():
    prompt = "The red cup is on top of the brown bottle."
    assert complex_relation(prompt).name == "on the top of"
    assert complex_relation(prompt, published_rules=True).name == "on top of"


def test_a_relation_within_a_word():
    prompt = "a linear lamp on the left of a cup"
    assert simple_relation(prompt, published_rules=True).name == "near"
    assert simple_relation(prompt).name == "on the left of"


def test_two_relations():
    prompt = "a cup on the right of a dog next to a cat"
    assert simple_relation(prompt, published_rules=True).name == "next to"
    assert simple_relation(prompt).name == "on the right of"


def test_a_prompt_without_a_noun():
    with pytest.raises(UserError, match="no noun: there the published script ends with IndexError"):
        simple_relation("and near")


def test_exactly_two_nouns_around_a_preposition():
    assert nouns_at_prepositions("The dog is next to the big car.") == ["dog", "car"]
    assert nouns_at_prepositions("a cat near") == ["cat"]
    assert nouns_at_prepositions("a cat near New York.") == ["cat", "York"]
    assert complex_relation("a cat near") == Relation(None, None, "near")
    assert complex_relation("a cat near").objects == []


def test_relations_in_depth():
    assert relation_3d("a phone in front of a girl") == Relation("phone", "person", "in front of")
    assert relation_3d("a dog hidden by a desk").name == "hidden by"
    assert relation_3d("a dog on a desk").name is None


def test_published_objects_of_simple_prompts():
    for case in cases("spatial_objects"):
        wanted = Relation(case["obj1"], case["obj2"], case["relation"])
        assert simple_relation(case["prompt"], published_rules=True) == wanted, case
        assert simple_relation(case["prompt"]) == wanted


def test_published_objects_of_complex_prompts():
    for case in cases("complex_objects"):
        wanted = Relation(case["obj1"], case["obj2"], case["relation"])
        assert complex_relation(case["prompt"], published_rules=True) == wanted, case
        assert nouns_at_prepositions(case["prompt"]) == case["candidates"]


# --- numbers ---


def test_what_is_to_be_counted():
    wanted = [Count("dog", 1, "dog"), Count("boat", 3, "ship"), Count("person", 2, "man")]
    assert counts("a dog, three ships and two men", KNOWN) == wanted
    assert counts("a dog, three ships and two men", KNOWN, published_rules=True) == wanted
    assert counts("four fish", KNOWN) == [Count("fish", 4, "fish")]
    assert counts("two red dogs and nine mice", KNOWN) == []


@pytest.mark.parametrize(
    ("prompt", "ends_with", "mended"),
    [
        ("a dog and one", "IndexError", [Count("dog", 1, "dog")]),
        ("three dog", "ValueError", [Count("dog", 3, "dog")]),
    ],
)
def test_where_the_published_script_ends(prompt, ends_with, mended):
    with pytest.raises(UserError, match=ends_with):
        counts(prompt, KNOWN, published_rules=True)
    assert counts(prompt, KNOWN) == mended


def test_a_number_that_the_published_script_loses():
    prompt = "a dogs and three ships"
    assert [c.number for c in counts(prompt, KNOWN, published_rules=True)] == [3, None]
    assert [c.number for c in counts(prompt, KNOWN)] == [1, 3]


def test_published_counts():
    known = known_objects()
    for case in cases("numeracy_parse"):
        if "error" in case:
            continue  # the image's score raises: tests/evaluation/test_compbench_rules.py
        found = counts(case["prompt"], known, published_rules=True)
        assert [count.noun for count in found] == case["objects"], case
        assert [count.number for count in found] == case["counts"], case


# --- all of it ---


@given(st.text("anore twdgs.,!-", max_size=40))
def test_any_text_can_be_read(text):
    assert all(question.endswith("?") for question in questions(text))
    assert len(nouns_at_prepositions(text)) <= 2 * max(1, len(text))
    assert set(complex_relation(text).objects) <= {
        *text.split(),
        *nouns_at_prepositions(text),
        "person",
    }
    assert all(count.number for count in counts(text, KNOWN))


def test_it_says_what_reads():
    assert reader().startswith("spaCy 3.") and " with en_core_web_sm 3." in reader()


def test_spacy_is_not_installed(monkeypatch):
    real = builtins.__import__

    def without_spacy(name, *args, **kwargs):
        if name == "spacy":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_spacy)
    with pytest.raises(UserError, match=r"not installed: pip install 'bicot\[bench\]'"):
        compbench_text._language.__wrapped__()


def test_spacy_has_no_english(monkeypatch):
    monkeypatch.setattr(compbench_text, "_MODELS", ("en_core_web_none",))
    with pytest.raises(UserError, match=r"no model of English here .*pip install 'bicot\[bench\]'"):
        compbench_text._language.__wrapped__()
