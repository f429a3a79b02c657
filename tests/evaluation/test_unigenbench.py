"""UniGenBench++: the published figures and readings, what is mended, and what the judge is asked."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import Item, Judged
from evaluation.unigenbench import (
    JUDGE,
    Chinese,
    ChineseLong,
    English,
    EnglishLong,
    by_dimension,
    is_right,
    parsed,
    published_reads,
    read_reply,
    tally,
)
from evaluation.unigenbench_points import CHINESE, ENGLISH, dimensions
from policy.errors import UserError
from tests.conftest import shared_file
from tests.evaluation.releases import put

pytestmark = pytest.mark.unit
POINTS = ["Attribute - Color", "Style"]
ALL_POINTS = list(ENGLISH)


def row(index, points, looked_for, text="a cat"):
    cell = json.dumps({"Testpoints": points, "Testpoint Description": looked_for})
    return f'{index},{text},"{cell.replace(chr(34), chr(34) * 2)}"\n'


def english(monkeypatch, folder, rows):
    content = "index,prompt_en,sub_dims_en\n" + "".join(rows)
    return English(
        put(monkeypatch, folder, "unigenbench", {"data/test_prompts_en.csv": content.encode()})
    )


def judged(points, score, index=0, key="0", **facts):
    item = Item(key, "a cat", "all", {"points": points, "looked_for": points, **facts})
    replies = {} if score is None else {JUDGE: {"analysis": ["a"] * len(points), "score": score}}
    return Judged(item, index, replies)


@pytest.fixture(scope="module")
def vectors():
    return json.loads(shared_file("bench/vectors/unigenbench.json").read_text())


def with_shares(counts):
    return {name: [right, total, round(right / total, 4)] for name, (right, total) in counts.items()}


def test_figures_are_the_published_ones(vectors):
    for case in vectors["scores"]["cases"]:
        kept = [
            (points, reply["score"])
            for points, reply in case["rows"]
            if reply and published_reads(reply)
        ]
        points = tally(kept)
        assert with_shares(points) == case["out"]["sub"]
        assert list(with_shares(by_dimension(points)).items()) == list(case["out"]["primary"].items())


def test_a_summary_by_published_rules_has_the_published_figures(vectors, tmp_path, monkeypatch):
    benchmarks = {name: english(monkeypatch, tmp_path, []) for name in ("en", "zh")}
    benchmarks["zh"].meanings = CHINESE
    for case in vectors["scores"]["cases"]:
        images = []
        for number, (points, reply) in enumerate(case["rows"]):
            item = Item(str(number), "p", "all", {"points": points})
            images.append(Judged(item, 0, {JUDGE: reply} if reply else {}))
        is_english = all(point in ENGLISH for points, _ in case["rows"] for point in points)
        summary = benchmarks["en" if is_english else "zh"].summarise(images, published_rules=True)
        wanted = {name.strip(): share for name, (_, _, share) in case["out"]["primary"].items()}
        assert {k: v for k, v in summary.tasks.items() if v is not None} == wanted
        subs = {name: share for name, (_, _, share) in case["out"]["sub"].items()}
        assert {k: v for k, v in summary.further.items() if v is not None} == subs


def test_replies_are_read_as_published(vectors):
    for case in vectors["replies"]["cases"]:
        assert parsed(case["reply"], case["testpoints"]) == case["out"], case["reply"]


@pytest.mark.parametrize(
    ("name", "kind", "points"),
    [
        ("en", English, 1813),
        ("en_long", EnglishLong, 3915),
        ("zh", Chinese, 1813),
        ("zh_long", ChineseLong, 3920),
    ],
)
def test_the_published_prompts(name, kind, points):
    benchmark = kind(shared_file(f"bench/unigenbench/test_prompts_{name}.csv").parent)
    assert len(benchmark.items) == 600
    assert sum(len(item.facts["points"]) for item in benchmark.items) == points
    assert len(dimensions(benchmark.meanings)) == 10 and len(benchmark.meanings) == 27
    unread = [item.key for item in benchmark.items if not benchmark.asks(item)]
    assert unread == (["509"] if name == "en_long" else [])
    assert benchmark.files(benchmark.items[3]) == ["3_0.png", "3_1.png", "3_2.png", "3_3.png"]


def test_the_judge_gets_prompt_points_and_format(tmp_path, monkeypatch):
    benchmark = english(monkeypatch, tmp_path, [row(0, POINTS, ["red", "ink"])])
    ask = benchmark.asks(benchmark.items[0])[JUDGE]
    assert (ask["points"], ask["read"], ask["image"], ask["tries"]) == (2, "unigenbench", "jpeg", 11)
    for part in ('"a cat"', "1. Attribute - Color", "look for: red", ENGLISH["Style"], "<score>"):
        assert part in ask["text"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row(0, POINTS, ["red"])], r"csv:2: Testpoints and .*equal length"),
        ([row(0, ["Taste"], ["red"])], "csv:2: 'Taste' is no test point"),
        ([row(0, POINTS, ["a", "b"], text="")], "csv:2: a prompt has no text"),
        (["0,a\n"], "csv:2: not as many cells"),
        ([row(0, POINTS, ["a", "b"])] * 2, "two prompts .* same key"),
    ],
)
def test_a_bad_row_is_named(rows, why, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=why):
        english(monkeypatch, tmp_path, rows)


def test_a_prompt_whose_points_cannot_be_read_is_made_and_not_judged(tmp_path, monkeypatch):
    broken = '0,a cat,"{""Testpoints"": [""Style"" ""Style""]}"\n'
    benchmark = english(monkeypatch, tmp_path, [broken, row(1, POINTS, ["red", "ink"])])
    assert benchmark.asks(benchmark.items[0]) == {}
    images = [Judged(item, 0) for item in benchmark.items]
    summary = benchmark.summarise(images)
    assert "prompt 0 has no readable test points, and is not judged" in summary.notes
    with pytest.raises(UserError, match=r"JSONDecodeError: .*csv:2: not valid JSON: Expecting ','"):
        benchmark.summarise(images, published_rules=True)


def test_scores(tmp_path, monkeypatch):
    benchmark = english(monkeypatch, tmp_path, [])
    every = judged(ALL_POINTS, [1] * 27)
    wrong = judged(ALL_POINTS, [0] * 27, index=1)
    color = judged(["Attribute - Color"], [0], index=2)
    summary = benchmark.summarise([every, wrong, color, judged(POINTS, None, index=3)])
    assert summary.tasks["Style"] == 0.5
    assert summary.tasks["Attribute"] == 6 / 13
    assert summary.further["Attribute - Color"] == 1 / 3
    assert summary.overall == pytest.approx((9 * 0.5 + 6 / 13) / 10)
    assert summary.notes == ()
    done = benchmark.summarise([every, wrong, color], published_rules=True)
    assert done.tasks["Attribute"] == 0.4615
    assert benchmark.summarise([color]).overall is None


def test_true_counts_by_default_and_not_as_published(tmp_path, monkeypatch):
    benchmark = english(monkeypatch, tmp_path, [])
    images = [judged(["Style"], [True]), judged(["Style"], [0], index=1)]
    assert benchmark.summarise(images).tasks["Style"] == 0.5
    done = benchmark.summarise(images, published_rules=True)
    assert done.tasks["Style"] == 0.0
    assert any("replies that hold True" in note for note in done.notes)
    assert benchmark.image_score(images[0]) == 1.0


def test_what_json_has_no_type_for_is_named():
    scores = f"[1e999, {{1}}, b'1', [1, (0,)], 0x{'f' * 9000}, '\\ud800']"
    found = read_reply(f"<analysis>['a', 'b', 'c', 'd', 'e', 'f']</analysis><score>{scores}</score>", 6)
    assert found and found["score"] == ["float", "set", "bytes", [1, [0]], "int", "\\ud800"]
    assert not any(map(is_right, found["score"]))


@pytest.mark.parametrize(
    ("score", "right"), [(1, 1), (1.0, 1), (True, 1), ("1", 0), (2, 0), ([1], 0), (None, 0)]
)
def test_what_is_right(score, right):
    assert is_right(score) == right


SCORES = st.lists(st.sampled_from([0, 1, 1.0, True, "1", 0.5]), min_size=1, max_size=27)


@given(st.lists(SCORES, min_size=1, max_size=5))
def test_dimensions_pool_their_points(rows):
    counts = tally((ALL_POINTS, scores) for scores in rows)
    pooled = by_dimension(counts)
    for part in (0, 1):
        assert sum(c[part] for c in counts.values()) == sum(c[part] for c in pooled.values())


@given(SCORES)
def test_a_reply_is_read_back(scores):
    text = f"x <analysis>{['a'] * len(scores)!r}</analysis>\n<score>{scores!r}</score>"
    assert read_reply(text, len(scores)) == {"analysis": ["a"] * len(scores), "score": scores}
    assert read_reply(text, len(scores) + 1) is None


@given(st.text(alphabet="<>/analysiscore[](){}'\"1,0 -", max_size=80), st.integers(1, 3))
def test_any_text_is_read_or_refused(text, points):
    found = read_reply(f"<analysis>[0]</analysis><score>{text}</score>", points)
    if found is not None:
        assert len(found["score"]) == points
        assert json.dumps(found, allow_nan=False)
        assert all(not isinstance(value, float) or math.isfinite(value) for value in found["score"])
