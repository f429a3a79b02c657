"""The published code's detector formulas: its outputs, and its faults by name."""

import json

import numpy as np
import pytest

from rewards.detection import (
    Detection,
    count_score,
    existence_score,
    phrase_spans,
    relation_score,
    spatial_score,
)
from rewards.matching import nms
from tests.conftest import shared_file


def cases(name: str) -> list[dict]:
    """Inputs of the published code, with what it gave: an exception was counted as 0."""
    found = json.loads(shared_file(f"vectors/detector/{name}.json").read_text())["cases"]
    return [case | {"out": case.get("out", 0)} for case in found]


def detected(case: dict) -> list[Detection]:
    """The published code passes the scores apart, as a list a noun."""
    scores = [score for of_noun in case["logits_per_noun"] for score in of_noun]
    boxes = map(tuple, case["boxes_cxcywh"])
    return [Detection(*d) for d in zip(case["phrases"], scores, boxes, strict=True)]


def test_relations():
    for case in cases("determine_position"):
        kind = np.float32 if case["kind"] == "tensor" else float
        box1, box2 = ([kind(v) for v in case[name]] for name in ("box1", "box2"))
        found = relation_score(box1, box2, case["locality"], variant="released", **case["kwargs"])
        assert found == pytest.approx(case["out"], abs=1e-5), case


def test_spatial_scores():
    for case in cases("spatial_score"):
        found = spatial_score(detected(case), case["spatial_info"], variant="released")
        assert found == pytest.approx(case["out"], abs=1e-5), case


def test_counts():
    for case in cases("numeracy_score"):
        found = count_score(detected(case), case["numeracy_info"], variant="released")
        assert found == case["out"], case
        for noun, kept in case["nms_kept_indices"].items():
            mine = [d for d in detected(case) if d.phrase == noun]
            first = case["phrases"].index(noun)
            stay = nms(
                np.array([d.box for d in mine], np.float32), np.array([d.score for d in mine]), 0.5
            )
            assert [first + n for n in stay] in (kept, [first + k for k in kept]), case


def test_existence():
    for case in cases("object_score"):
        found = [Detection(phrase, 0.5, (0.5, 0.5, 0.1, 0.1)) for phrase in case["phrases"]]
        assert existence_score(found, case["nouns"], variant="released") == case["out"], case


def test_captions_and_spans():
    for case in cases("phrase_prompts"):
        caption, spans = phrase_spans(case["nouns"], variant="released")
        assert [caption, spans] == case["make_prompt"]["out"] == case["make_detection_prompt"]["out"]
        phrases = [" ".join(caption[b:e] for b, e in noun) for noun in spans]
        assert phrases == case["phrases_from_spans"]


# --- the faults, without the vectors ---

LEFT, RIGHT = (0.2, 0.5, 0.2, 0.2), (0.8, 0.5, 0.2, 0.2)
TOP, BOTTOM = (0.5, 0.2, 0.2, 0.2), (0.5, 0.8, 0.2, 0.2)


def two(box1, box2):
    return [Detection("dog", 0.9, box1), Detection("cat", 0.8, box2)]


@pytest.mark.parametrize(
    ("relation", "boxes", "published", "paper"),
    [
        ("left of", (LEFT, RIGHT), 0.9, 1),
        ("above", (TOP, BOTTOM), 0.4, 1),
        ("on top of", (TOP, BOTTOM), 0.4, 1),
        ("near", (LEFT, RIGHT), 0.9, 0.4),
        ("Left of", (LEFT, RIGHT), 0.4, 1),
    ],
)
def test_where_the_spatial_scores_differ(relation, boxes, published, paper):
    info = {"obj1": "dog", "obj2": "cat", "locality": relation}
    assert spatial_score(two(*boxes), info, variant="released") == published
    assert spatial_score(two(*boxes), info) == paper


def test_where_the_counts_differ():
    twice = [Detection("dog", score, (0.7, 0.7, 0.2, 0.2)) for score in (0.9, 0.8)]
    assert count_score(twice, [("dog", 1)], variant="released") == 0.2
    assert count_score(twice, [("dog", 1)]) == 1


def test_where_the_nouns_differ():
    nouns = ["Roll of tape"]
    assert phrase_spans(nouns, variant="released") == ("Roll of tape.", [[[0, 4], [8, 12]]])
    assert phrase_spans(nouns) == ("roll of tape.", [[[0, 4], [5, 7], [8, 12]]])
    tape = [Detection("roll tape", 0.9, LEFT)]
    assert existence_score(tape, nouns, variant="released") == 0
