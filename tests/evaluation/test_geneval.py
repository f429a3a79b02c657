"""GenEval's decision and scores, against the published script's and by its rules."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import Item, Judged, load_benchmark
from evaluation.geneval import TASKS, GenEval, verdict_on
from evaluation.geneval_rules import (
    COLORS,
    Detected,
    decide,
    kept,
    overlap,
    ranked,
    relations,
    threshold,
)
from policy.errors import UserError
from tests.conftest import shared_file


def vectors() -> dict:
    return json.loads(shared_file("bench/vectors/geneval.json").read_text())


def words(reason: str) -> list[list[str]]:
    """A reason whose "X and Y" may stand either way round."""
    return [sorted(line.replace(" and ", " ").split()) for line in reason.split("\n")]


def from_rows(rows) -> list[Detected]:
    return [Detected(name, tuple(box), score, color) for name, box, score, color in rows]


def test_published_decisions():
    for case in vectors()["images"]["cases"]:
        task, wanted = case["metadata"]["tag"], case["out"]
        found, most = from_rows(case["detections"]), case.get("max_overlap", 1.0)
        verdict = decide(task, case["metadata"], found, most)
        assert verdict is not None
        assert verdict.correct == wanted["correct"], case["note"]
        if wanted.get("order_of_relations_free", case.get("order_of_relations_free")):
            assert words(verdict.reason) == words(wanted["reason"]), case["note"]
        else:
            assert verdict.reason == wanted["reason"], case["note"]
        scores = {n: [d.score for d in some] for n, some in kept(found, threshold(task), most).items()}
        assert scores == wanted["kept"], case["note"]


def test_published_decisions_through_replies():
    for case in vectors()["images"]["cases"]:
        if "max_overlap" not in case:
            meta = case["metadata"]
            item = Item("0", meta["prompt"], meta["tag"], meta)
            verdict = verdict_on(Judged(item, 0, {"objects": {"detections": case["detections"]}}))
            assert verdict is not None and verdict.correct == case["out"]["correct"], case["note"]


def judged_rows(rows) -> list[Judged]:
    """Images of prompts for a cat, right or wrong as the rows (prompt, task, right) say."""
    facts = {"include": [{"class": "cat", "count": 1}], "exclude": []}
    counting = {"include": [], "exclude": [{"class": "cat", "count": 1}]}  # needs a score above 0.9
    found = []
    for n, (prompt, task, correct) in enumerate(rows):
        item = Item(prompt, prompt, task, counting if task == "counting" else facts)
        reply = {
            "detections": [["cat", [0, 0, 9, 9], 0.95, None]] if correct != (task == "counting") else []
        }
        found.append(Judged(item, n, {"objects": reply}))
    return found


@pytest.fixture(scope="module")
def geneval() -> GenEval:
    return GenEval(shared_file("bench/geneval"))


@pytest.fixture(scope="module")
def bare() -> GenEval:
    """Without prompts, for its formulas."""
    return GenEval.__new__(GenEval)


def test_published_scores(bare):
    for case in vectors()["summary"]["cases"]:
        wanted = case["out"]
        found = bare.summarise(judged_rows(case["rows"]), published_rules=True)
        assert list(found.tasks.items()) == [(task, share) for task, share, *_ in wanted["tasks"]]
        assert found.overall == wanted["overall"]
        assert found.further == {
            "images": wanted["correct_images"],
            "prompts": wanted["correct_prompts"],
        }


# --- the rules, one by one ---


def box(x: float, y: float, size: float = 10.0) -> tuple[float, float, float, float]:
    """A square by its center."""
    return x - size / 2, y - size / 2, x + size / 2, y + size / 2


def one(name: str, **clause) -> dict:
    return {"include": [{"class": name, "count": 1, **clause}]}


def test_a_score_equal_to_the_threshold_does_not_count():
    for task, at in (("single_object", 0.3), ("counting", 0.9)):
        just = float(np.float32(at))
        beyond = float(np.nextafter(np.float32(at), np.float32(1)))
        wrong = decide(task, one("cat"), [Detected("cat", box(0, 0), just)])
        assert wrong is not None and wrong.reason == "expected cat>=1, found 0"
        right = decide(task, one("cat"), [Detected("cat", box(0, 0), beyond)])
        assert right is not None and right.correct


def test_of_equal_scores_the_later_comes_first():
    assert ranked([0.5, 0.75, 0.75, 0.6]) == [2, 1, 3, 0]
    first, second = (Detected("car", box(0, 0), 0.75, color) for color in ("red", "blue"))
    for facts, order in (
        (one("car", color="blue"), (first, second)),
        (one("car", color="red"), (second, first)),
    ):
        verdict = decide("colors", facts, order)
        assert verdict is not None and verdict.correct


def test_at_most_sixteen_of_a_class_count():
    found = [Detected("book", box(n, 0), 0.99) for n in range(20)]
    facts = {"include": [{"class": "book", "count": 16}], "exclude": [{"class": "book", "count": 17}]}
    verdict = decide("counting", facts, found)
    assert verdict is not None and verdict.correct


def test_colors_are_those_of_the_best_and_enough_of_them():
    found = [
        Detected("cup", box(0, 0), 0.5, "red"),
        Detected("cup", box(0, 0), 0.9, "blue"),
        Detected("cup", box(0, 0), 0.8, "green"),
    ]
    facts = {"include": [{"class": "cup", "count": 2, "color": "red"}]}
    verdict = decide("colors", facts, found)
    assert verdict is not None
    assert verdict.reason == "expected red cup>=2, found 0 red; and 1 green, 1 blue"


def test_without_a_color_that_decides_there_is_no_verdict():
    nobody_looked = [Detected("cup", box(0, 0), 0.9), Detected("cup", box(0, 0), 0.4, "red")]
    assert decide("colors", one("cup", color="red"), nobody_looked) is None
    assert decide("single_object", one("cup"), nobody_looked) is not None
    assert decide("colors", one("cup", color="red"), []) is not None


@pytest.mark.parametrize(
    ("a", "b", "holds"),
    [
        (box(100, 0), box(0, 0), ("right of",)),
        (box(0, -100), box(0, 0), ("above",)),  # y grows downwards
        (box(-100, 100), box(0, 0), ("left of", "below")),
        (box(2, 0), box(0, 0), ()),  # a tenth of the summed widths
        (box(2.2, 0), box(0, 0), ()),  # beyond it by less than half of the offset
        (box(4.1, 0), box(0, 0), ("right of",)),
        (box(0, 0), box(0, 0), ()),
        (box(0, 0, 0), box(0.0005, 0, 0), ()),
    ],
)
def test_relations(a, b, holds):
    assert relations(a, b) == holds


def test_who_points_at_a_failed_clause_fails():
    facts = {
        "include": [
            {"class": "dog", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    dog = Detected("dog", box(100, 0), 0.9, "blue")
    cat = Detected("cat", box(0, 0), 0.9)
    verdict = decide("position", facts, [dog, cat])
    assert verdict is not None
    assert verdict.reason.split("\n")[1] == "no target for cat to be left of"


def test_every_pair_must_stand_right():
    facts = {
        "include": [
            {"class": "dog", "count": 2},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    dogs = [Detected("dog", box(100, 0), 0.9), Detected("dog", box(0, 100), 0.8)]
    verdict = decide("position", facts, [*dogs, Detected("cat", box(0, 0), 0.9)])
    assert verdict is not None and verdict.reason == "expected cat left of target, found above target"


def test_overlap_counts_the_far_edges():
    assert overlap((0, 0, 9, 9), (0, 0, 9, 4)) == 0.5
    assert overlap((0, 0, 1, 1), (5, 5, 6, 6)) == 0.0


CLASSES = ("cat", "dog", "cup")
BOXES = st.tuples(*[st.integers(0, 200).map(float)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
SCORES = st.floats(0, 1, width=32)
DETECTIONS = st.lists(
    st.builds(Detected, st.sampled_from(CLASSES), BOXES, SCORES, st.sampled_from(COLORS)), max_size=25
)
CLAUSES = st.fixed_dictionaries(
    {"class": st.sampled_from(CLASSES), "count": st.integers(1, 3)},
    optional={"color": st.sampled_from(COLORS)},
)
FACTS = st.fixed_dictionaries(
    {"include": st.lists(CLAUSES, max_size=3), "exclude": st.lists(CLAUSES, max_size=2)}
)


@given(st.sampled_from(TASKS), FACTS, DETECTIONS, st.randoms())
def test_the_order_of_different_scores_does_not_matter(task, facts, found, shuffler):
    seen: set[float] = set()
    apart = [d for d in found if d.score not in seen and not seen.add(d.score)]
    shuffled = apart.copy()
    shuffler.shuffle(shuffled)
    assert decide(task, facts, apart) == decide(task, facts, shuffled)


@given(st.sampled_from(TASKS), FACTS, DETECTIONS, BOXES, SCORES, st.integers(0, 25))
def test_a_class_that_nobody_asks_for_changes_nothing(task, facts, found, where, score, place):
    more = found.copy()
    more.insert(place, Detected("zebra", where, score))
    assert decide(task, facts, found) == decide(task, facts, more)


@given(BOXES, BOXES)
def test_relations_turn_around_with_the_boxes(a, b):
    other = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {other[relation] for relation in relations(a, b)} == set(relations(b, a))


@given(FACTS, DETECTIONS)
def test_a_wrong_image_has_a_reason_and_a_right_one_has_none(facts, found):
    verdict = decide("colors", facts, found)
    assert verdict is not None and verdict.correct == (verdict.reason == "")


# --- prompts and files ---


def test_prompts_of_the_published_file(geneval):
    counts = {task: sum(item.task == task for item in geneval.items) for task in TASKS}
    assert list(counts.values()) == [80, 99, 80, 94, 100, 100]
    assert geneval.items[0].key == "00000" and geneval.items[-1].key == "00552"
    assert geneval.items[180].facts == {
        "include": [{"class": "backpack", "count": 2}],
        "exclude": [{"class": "backpack", "count": 3}],
    }
    lines = (geneval.data / "evaluation_metadata.jsonl").read_text().splitlines()
    for item, line in zip(geneval.items, lines, strict=True):
        assert geneval.side_files(item) == {f"{item.key}/metadata.jsonl": line}
    assert geneval.files(geneval.items[7]) == [f"00007/samples/{n:04}.png" for n in range(4)]


def test_what_the_judge_is_asked(geneval):
    assert geneval.asks(geneval.items[180])["objects"] == {
        "classes": {"backpack": 24}, "colors_of": [], "threshold": 0.9, "most": 16,
    }  # fmt: skip
    assert geneval.asks(geneval.items[-1])["objects"] == {
        "classes": {"pizza": 53, "baseball glove": 35}, "colors_of": ["pizza", "baseball glove"],
        "threshold": 0.3, "most": 16,
    }  # fmt: skip


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"object_names.txt: not there yet: `bicot fetch geneval`"):
        load_benchmark("geneval", tmp_path)


# --- scores where something is missing ---


def test_the_default_leaves_out_what_is_missing(bare):
    rows = judged_rows([(f"{task} {n}", task, n == 0) for task in TASKS for n in range(2)])
    gone = Judged(rows[0].item, 8, {"objects": {"detections": []}}, present=False)
    silent = Judged(rows[0].item, 9)
    garbled = [
        Judged(rows[0].item, 10, {"objects": reply})
        for reply in ({}, {"detections": [["cat", [0, 0, 9], 0.5, None]]}, {"detections": None},
                      {"detections": [["cat", [0, 0, 9, 9], float("nan"), None]]})
    ]  # fmt: skip
    found = bare.summarise([*rows, gone, silent, *garbled])
    assert found.overall == 0.5 and found.tasks == dict.fromkeys(TASKS, 0.5)
    assert found.further == {"images": 0.5, "prompts": 0.5}
    assert found.notes == ("4 of 18 images have a reply that says no objects, in no mean",)
    assert bare.summarise([*rows, gone]).tasks == bare.summarise(rows).tasks


def test_no_overall_score_without_all_tasks(bare):
    found = bare.summarise(judged_rows([("a", "colors", True), ("b", "position", False)]))
    assert found.overall is None
    assert found.tasks == dict.fromkeys(TASKS) | {"colors": 1.0, "position": 0.0}
    assert found.notes == (
        "no overall score: no image is judged in single_object, two_object, counting, color_attr",
    )
    published = bare.summarise(
        judged_rows([("a", "colors", True), ("b", "position", False)]), published_rules=True
    )
    assert published.overall == 0.5 and published.tasks == {"colors": 1.0, "position": 0.0}


def test_nothing_judged_is_no_score(bare):
    for rules in (True, False):
        found = bare.summarise([], published_rules=rules)
        assert found.overall is None and found.further == {"images": None, "prompts": None}


def test_a_detector_that_finds_nothing_and_one_with_other_weights_are_noted(bare):
    rows = judged_rows([(task, task, True) for task in TASKS])
    empty = [Judged(r.item, 0, {"objects": {"detections": []}}) for r in rows]
    assert any("show it a photograph first" in note for note in bare.summarise(empty).notes)
    for weights, noted in (("transformers", True), ("mmdet", False)):
        by = {"model": "x", "weights": weights}
        some = [Judged(r.item, 0, {"objects": {**r.replies["objects"], "by": by}}) for r in rows]
        assert any("not the published judge's" in note for note in bare.summarise(some).notes) == noted


def test_an_image_is_right_or_wrong_or_not_judged(bare):
    right, wrong = judged_rows([("a", "colors", True), ("b", "colors", False)])
    assert bare.image_score(right) == 1.0 and bare.image_score(wrong) == 0.0
    assert bare.image_score(Judged(right.item, 0)) is None
