"""TIIF-Bench: the published figures and readings, what is mended, and what the judge is asked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import Item, Judged
from evaluation.tiif import (
    GROUPS,
    JUDGE,
    LENGTHS,
    WIDER,
    TiifMini,
    as_written,
    group_means,
    read_reply,
    rounded,
    shares,
)
from evaluation.tiif_files import FILES
from policy.errors import UserError
from tests.conftest import shared_file
from tests.evaluation.releases import put

pytestmark = pytest.mark.unit
PUBLISHED_NAMES = {
    **{name: f"{name.replace(' ', '_', 1)} - {name.split(' ', 1)[1]}" for name in GROUPS},
    **{name: f"{name.replace(' ', '_')}_Overall - Overall" for name in WIDER},
    "Overall": "Overall average score of 9 sub-attributes",
}


def bench(monkeypatch, folder, asked=None):
    """With one prompt of each type. `asked`: the questions of `negation`."""
    usual = {"yn_question_list": ["Is it? ", "Not?"], "yn_answer_list": ["Yes", "no"]}
    files = {}
    for kind in FILES:
        prompt = {"type": kind, "short_description": f"a {kind}", "long_description": f"a long {kind}"}
        row = {"type": kind, **(asked if asked and kind == "negation" else usual)}
        files[f"a/{kind}_prompts.jsonl"] = json.dumps(prompt).encode() + b"\n"
        files[f"b/{kind}_eval_prompts.jsonl"] = json.dumps(row).encode() + b"\n"
    return TiifMini(put(monkeypatch, folder, "tiif_mini", files))


def judged(kind, length, expected, answers, number=0):
    item = Item(
        f"{kind}-{length}-{number}", "x", "x", {"type": kind, "length": length, "expected": expected}
    )
    return Judged(item, 0, {} if answers is None else {JUDGE: {"answers": answers}})


@pytest.fixture(scope="module")
def vectors():
    return json.loads(shared_file("bench/vectors/tiif.json").read_text())


def by_model(case):
    """Rows [type, length, expected, answers] of each model, the best one first, as in the workbook."""
    accuracy = case["out"]["accuracy"]
    models = sorted(accuracy, key=lambda model: -accuracy[model]["Mean_Accuracy"])
    return {m: [row[1:] for row in case["verdicts"] if row[0] == m] for m in models}


def test_figures_are_the_published_ones(vectors):
    for case in vectors["summaries"]["cases"]:
        rows = by_model(case)
        tables = [as_written(shares(its)) for its in rows.values()]
        for model, table in zip(rows, tables, strict=True):
            wanted = {k: v for k, v in case["out"]["accuracy"][model].items() if v is not None}
            del wanted["Mean_Accuracy"]
            assert {f"{kind}|{length}": share for (kind, length), share in table.items()} == wanted
        for name, kinds in (GROUPS | WIDER).items():
            means = [group_means(tables, kinds, length) for length in LENGTHS]
            published = case["out"]["groups"][PUBLISHED_NAMES[name]]
            for model, short, long in zip(rows, *means, strict=True):
                assert [rounded(short), rounded(long)] == published[model], (name, model)


def test_a_summary_by_published_rules_is_the_published_one(vectors, tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path)
    alone = [case for case in vectors["summaries"]["cases"] if len(case["out"]["accuracy"]) == 1]
    assert alone
    for case in alone:
        ((model, rows),) = by_model(case).items()
        images = [judged(*row, number) for number, row in enumerate(rows)]
        summary = benchmark.summarise(images, published_rules=True)
        assert summary.further["Mean accuracy"] == case["out"]["accuracy"][model]["Mean_Accuracy"]
        numbers = summary.tasks | summary.further
        for name, published in PUBLISHED_NAMES.items():
            means = [numbers[f"{name}, {length}"] for length in LENGTHS]
            assert means == case["out"]["groups"][published][model], name


def test_replies_are_read_as_published(vectors):
    for case in vectors["replies"]["cases"]:
        found = read_reply(case["reply"], case["questions"])
        wanted = None if case["out"] == "OutputFormatError" else {"answers": case["out"]}
        assert found == wanted, case["reply"]


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        ("Yes, it is.\n\n no: there is none", ["yes", "no"]),
        ("1. yes\n2. no", None),
        ("yes\nno\nyes", None),
        ("Sure:\nyes\nno", ["yes", "no"]),
        ("yes", None),
    ],
)
def test_replies(reply, answers):
    assert read_reply(reply, 2) == (answers and {"answers": answers})


def test_prompts_are_short_and_long(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path)
    assert len(benchmark.items) == 2 * 39 == 2 * sum(map(len, GROUPS.values()))
    item = next(i for i in benchmark.items if i.key == "negation-long-0")
    assert (item.text, item.task) == ("a long negation", "Basic Reasoning, long")
    assert benchmark.files(item) == ("negation/bicot/long_description/0.png",)
    ask = benchmark.asks(item)[JUDGE]
    assert ask["points"] == 2 and "Is it?\nNot?\n" in ask["text"]


@pytest.mark.parametrize(
    "asked",
    [
        {"yn_question_list": ["Is it?"], "yn_answer_list": ["perhaps"]},
        {"yn_question_list": ["Is it?"], "yn_answer_list": []},
        {"yn_question_list": ["Is it?", "Not?"], "yn_answer_list": ["yes"]},
        {"yn_question_list": "Is it?", "yn_answer_list": ["yes"]},
    ],
)
def test_bad_questions_are_named(asked, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"negation_eval_prompts\.jsonl:1: yn_"):
        bench(monkeypatch, tmp_path, asked)


def test_scores(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path)
    images = [
        Judged(
            item, 0, {JUDGE: {"answers": ["yes", "no" if item.facts["length"] == "short" else "yes"]}}
        )
        for item in benchmark.items
    ]
    summary = benchmark.summarise(images)
    assert summary.further["Overall, short"] == 1.0 and summary.further["Overall, long"] == 0.5
    assert summary.overall == 0.75 and summary.notes == ()
    assert benchmark.image_score(images[0]) == 1.0
    images[0] = Judged(images[0].item, 0)
    images[1] = Judged(images[1].item, 0, present=False)
    summary = benchmark.summarise(images)
    assert summary.overall == 0.75
    assert benchmark.image_score(images[0]) is None


def test_a_group_without_answers_leaves_no_overall_by_default(tmp_path, monkeypatch):
    benchmark = bench(monkeypatch, tmp_path)
    images = [judged("text", length, ["yes"] * 3, ["yes", "no", "no"]) for length in LENGTHS]
    summary = benchmark.summarise(images)
    assert summary.overall is None and "Real Complex, long" in summary.notes[0]
    assert summary.tasks["Advanced Text Generation, long"] == 1 / 3
    done = benchmark.summarise(images, published_rules=True)
    assert done.further["Overall, long"] == 0.3333 and done.overall is None


ANSWERS = st.lists(st.sampled_from(["yes", "no", " Yes "]), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(LENGTHS), ANSWERS, ANSWERS)))
def test_shares_are_shares_whatever_the_order(rows):
    found = shares(rows)
    assert all(0 <= share <= 1 for share in found.values())
    assert shares(rows[::-1]) == found
    exact = shares((kind, length, answers, answers) for kind, length, _, answers in rows)
    assert set(exact.values()) <= {1.0}


@given(st.lists(st.sampled_from(["yes", "no"]), min_size=1))
def test_a_reply_is_read_back(answers):
    text = "\n".join(f"{answer.title()}, because" for answer in answers)
    assert read_reply(text, len(answers)) == {"answers": answers}
    assert read_reply(text, len(answers) + 1) is None
