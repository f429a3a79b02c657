"""DPG-Bench: the published runs to the letter, what is mended, and what the judge is asked."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import Judged
from evaluation.dpg import (
    JUDGE,
    DpgBench,
    Question,
    answered,
    read_reply,
    zeroed,
    zeroed_in_order,
)
from policy.errors import UserError
from tests.conftest import shared_file
from tests.evaluation.releases import put

pytestmark = pytest.mark.unit
HEADER = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad",
    "category_detailed", "tuple", "question_natural_language",
)  # fmt: skip


def bench(monkeypatch, folder, rows):
    """Of rows [item_id, proposition_id, dependency, tuple, question]."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER)
    for item, key, dependency, category, question in rows:
        writer.writerow([item, f"text of {item}", "", key, dependency, "", "", category, question])
    content = text.getvalue().encode()
    return DpgBench(put(monkeypatch, folder, "dpg", {"dpg_bench/dpg_bench.csv": content}))


def tiles_of(item, answers, count=4):
    """Tiles of an item, with answers by (tile, question); one that is not asked is answered "no"."""
    questions = [row["text"] for row in item.facts["questions"]]
    return [
        Judged(
            item, n, {JUDGE: {"answers": [answers.get((n, question), "no") for question in questions]}}
        )
        for n in range(count)
    ]


def test_scores_are_the_published_ones(tmp_path, monkeypatch):
    vectors = json.loads(shared_file("bench/vectors/dpg.json").read_text())
    ended = 0
    for case in vectors["runs"]["cases"]:
        out = case["out"]
        if out["error"]:
            with pytest.raises(UserError, match=out["error"]):
                bench(monkeypatch, tmp_path, case["csv"])
            ended += 1
            continue
        benchmark = bench(monkeypatch, tmp_path, case["csv"])
        answers: dict = {}
        for item, tile, question, answer in case["answers"]:
            answers.setdefault(item, {})[tile, question] = answer
        tiles = [
            tile
            for item in benchmark.items
            if f"{item.key}.png" in case["files"]
            for tile in tiles_of(item, answers.get(item.key, {}), case["pic_num"])
        ]
        summary = benchmark.summarise(tiles, published_rules=True)
        assert summary.overall == out["score"], case["note"]
        assert summary.tasks == out["l1"], case["note"]
        assert summary.further == {f"L2 {name}": share for name, share in out["l2"].items()}, case[
            "note"
        ]
        known = {f"{item.key}.png" for item in benchmark.items}
        failed = [name.removesuffix(".png") for name in out["failed"] if name in known]
        assert summary.notes == ((f"left out, as published: {', '.join(failed)}",) if failed else ())
    assert ended == 5


ROWS = [
    ["first", "1", "0", "entity - whole (cat)", "Is there a cat?"],
    ["first", "2", "1", "attribute - color (cat, red)", "Is the cat red?"],
    ["later", "1", "2", "relation - spatial (a, b)", "Is it left of it?"],
    ["later", "2", "3", "entity - whole (b)", "Is there a ball?"],
    ["later", "3", "0", "global (photo)", "Is it a photograph?"],
]


def yes_to(*questions, tiles=range(4)):
    return {(tile, question): "yes" for tile in tiles for question in questions}


def test_by_default_the_first_row_counts_and_order_does_not(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path, ROWS)
    first, later = benchmark.items
    assert first.text == "text of first" and benchmark.files(first) == ("first.png",)
    tiles = [
        *tiles_of(first, yes_to("Is there a cat?")),
        *tiles_of(later, yes_to("Is it left of it?", "Is there a ball?")),
    ]
    summary = benchmark.summarise(tiles)
    assert summary.overall == 25.0 and summary.notes == ()
    assert summary.tasks == {"attribute": 0.0, "entity": 50.0, "global": 0.0, "relation": 0.0}
    assert summary.further["L2 entity - whole"] == 50.0
    done = benchmark.summarise(tiles, published_rules=True)
    assert done.overall == pytest.approx(100 / 3)  # the child stands before its parent
    assert done.notes == ("left out, as published: first",)
    assert done.tasks == {"entity": 100.0, "global": 0.0, "relation": 100.0}


def test_by_default_all_tiles_are_in_the_categories(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path, [["x", "1", "0", "global (y)", "Zero?"], *ROWS])
    tiles = tiles_of(benchmark.items[1], yes_to("Is there a cat?", "Is the cat red?", tiles=[0, 1]))
    assert benchmark.summarise(tiles).tasks == {"attribute": 50.0, "entity": 50.0}
    assert benchmark.summarise(tiles, published_rules=True).tasks == {"attribute": 0.0, "entity": 0.0}
    assert [benchmark.image_score(tile) for tile in tiles] == [1.0, 1.0, 0.0, 0.0]


def test_what_is_missing_or_not_judged_is_in_no_mean(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path, ROWS)
    whole = tiles_of(benchmark.items[0], yes_to("Is there a cat?"))
    tiles = [*whole[:2], Judged(benchmark.items[0], 2), Judged(benchmark.items[0], 3, present=False)]
    tiles += [Judged(benchmark.items[1], n, present=False) for n in range(4)]
    summary = benchmark.summarise(tiles)
    assert summary.overall == 50.0
    assert summary.notes == ()
    assert benchmark.image_score(tiles[2]) is None
    assert benchmark.summarise(tiles, published_rules=True).overall is None


def test_rows_apart_and_parents_that_are_not_there(tmp_path, monkeypatch):
    rows = [*ROWS[:2], ROWS[2], ["first", "3", "99", "global (z)", "Is it dark?"]]
    benchmark = bench(monkeypatch, tmp_path, rows)
    first = benchmark.items[0]
    assert benchmark.asks(first)[JUDGE]["points"] == 3
    tiles = tiles_of(first, yes_to("Is there a cat?", "Is it dark?"))
    summary = benchmark.summarise(tiles)
    assert summary.overall == pytest.approx(200 / 3)
    assert summary.notes == ("questions that depend on one that is not there, which zeroes nothing: 1",)
    assert benchmark.summarise(tiles, published_rules=True).overall is None


def test_all_questions_are_asked_at_once(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path, ROWS)
    assert "mplug" not in JUDGE and list(benchmark.asks(benchmark.items[0])) == [JUDGE]
    ask = benchmark.asks(benchmark.items[1])[JUDGE]
    assert ask["points"] == 3 and ask["read"] == "dpg"
    assert "1. Is it left of it?\n2. Is there a ball?\n3. Is it a photograph?" in ask["text"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["p", "1", "", "a (b)", "?"], r"csv:2: dependency: .*AttributeError"),
        (["p", "1", "NaN", "a (b)", "?"], r"csv:2: dependency: .*AttributeError"),
        (["p", "1", " ", "a (b)", "?"], r"csv:2: .*ValueError"),
        (["p", "1", "1;2", "a (b)", "?"], r"csv:2: .*ValueError"),
        (["p", "one", "0", "a (b)", "?"], r"csv:2: .*ValueError"),
        (["p", "1", "0", "", "?"], "csv:2: tuple: is empty"),
        (["", "1", "0", "a (b)", "?"], "csv:2: .*no item_id"),
    ],
)
def test_a_bad_row_is_named(row, why, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=why):
        bench(monkeypatch, tmp_path, [row])


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("1. yes\n2. no", ["yes", "no"]),
        ("Here:\n\n1: Yes, it is\n2) **No**", ["yes", "no"]),
        ("<think>1. no\n2. no</think>\n1. yes\n2. yes.", ["yes", "yes"]),
        ("**1. yes**\n- 2. no", ["yes", "no"]),
        ("1. yes", None),
        ("1. yes\n2. no\n3. no", None),
        ("2. yes\n1. no", None),
        ("1. yes\n2. maybe", None),
        ("1. yesterday\n2. no", None),
        ("", None),
        ("9" * 5000 + ". yes\n2. no", None),
    ],
)
def test_replies(text, answers):
    assert read_reply(text, 2) == (answers and {"answers": answers})


@st.composite
def trees(draw):
    """Questions of one item, and an answer to each."""
    count = draw(st.integers(1, 8))
    parents = st.lists(st.integers(1, count + 1), max_size=3)
    questions = [Question(n, tuple(draw(parents)), "a", "?", n) for n in range(1, count + 1)]
    answers = draw(st.lists(st.sampled_from(["yes", "no", "Yes"]), min_size=count, max_size=count))
    return questions, answers


@given(trees(), st.randoms())
def test_zeroing_does_not_depend_on_the_order(tree, random):
    questions, answers = tree
    scores = answered(questions, answers)
    after = zeroed(questions, scores)
    mixed = list(questions)
    random.shuffle(mixed)
    assert zeroed(mixed, scores) == after
    assert all(after[key] <= score for key, score in scores.items())
    assert zeroed(questions, after) == after


@given(trees())
def test_in_an_order_where_parents_come_first_both_zeroings_agree(tree):
    questions, answers = tree
    sound = [
        Question(q.id, tuple(p for p in q.parents if p < q.id), "a", "?", q.row) for q in questions
    ]
    scores = answered(sound, answers)
    assert zeroed(sound, scores) == zeroed_in_order(sound, scores)
