"""WISE: the published rules on results of the published script, the mended ones, and the question."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.benchmark import Item, Judged
from evaluation.wise import JUDGE, WiseLegacy, WiseVerified, read_rubric
from evaluation.wise_rules import (
    GRADES,
    LEGACY,
    TASKS,
    VERIFIED,
    binary_score,
    grades,
    published,
    read_legacy,
    read_verified,
)
from policy.errors import UserError
from tests.conftest import shared_file
from tests.evaluation.releases import put

pytestmark = pytest.mark.unit
RULES = {"legacy": LEGACY, "binary": VERIFIED}
SOURCE = '''
import nowhere

MESSAGES = [{"role": "system", "content": [{"type": "text", "text": "Be strict."}]}]


def ask(prompt_data, path):
    print(f"{path} is read")
    return f"""Judge.
PROMPT: "{prompt_data['Prompt']}"
EXPLANATION: "{prompt_data["Explanation"]}"
Now."""
'''


@pytest.fixture(scope="module")
def vectors():
    return json.loads(shared_file("bench/vectors/wise.json").read_text())


def lines(rows, rules):
    """Rows of the vectors as the lines of a file; a text is one to the letter."""
    keys = ("prompt_id", *rules.values)
    return [r if isinstance(r, str) else json.dumps(dict(zip(keys, r, strict=True))) for r in rows]


def judged(rows, rules, absent=()):
    """Rows [prompt_id, value, ...] as judged images; ids of `absent` have no image."""
    found = []
    for prompt_id, *values in rows:
        item = Item(str(prompt_id), "p", rules.task(prompt_id))
        reply = dict(zip(rules.values, values, strict=True))
        present = prompt_id not in absent
        found.append(
            Judged(item, 0, {JUDGE: reply} if present and values[0] is not None else {}, present)
        )
    return found


@pytest.mark.parametrize("kind", RULES)
def test_scores_are_the_published_ones(vectors, kind):
    for case in vectors[kind]["cases"]:
        files = [lines(rows, RULES[kind]) for rows in case["files"]]
        done = published(files, RULES[kind], case["category"])
        out = case["out"]
        assert {task: list(value) for task, value in done.tasks.items()} == out["categories"], case[
            "note"
        ]
        assert (done.overall, list(done.missing)) == (out["overall"], out["missing"]), case["note"]


@pytest.mark.parametrize("kind", RULES)
def test_a_summary_by_published_rules_is_the_published_one(vectors, kind, tmp_path, monkeypatch):
    benchmark = benchmark_of(WiseLegacy if kind == "legacy" else WiseVerified, tmp_path, monkeypatch)
    for case in vectors[kind]["cases"]:
        rows = [row for file in case["files"] for row in file]
        if not all(isinstance(row, list) and isinstance(row[0], int) for row in rows):
            continue
        if not all(1 <= row[0] <= 1000 for row in rows):
            continue
        summary = benchmark.summarise(judged(rows, RULES[kind]), published_rules=True)
        wanted = case["out"]["categories"]
        assert summary.overall == case["out"]["overall"], case["note"]
        assert summary.tasks == {task: wanted.get(task, [None])[0] for task in TASKS}, case["note"]


@pytest.mark.parametrize(("kind", "read"), [("legacy_reply", grades), ("binary_reply", binary_score)])
def test_replies_are_read_as_published(vectors, kind, read):
    for case in vectors[kind]["cases"]:
        assert read(case["text"]) == case["out"], case["text"]


def test_replies():
    assert read_verified("<think>Score: 0</think>\nScore: 1") == {"score": 1.0}
    assert read_verified("Score: 0.5") == {"score": 0.0}
    assert read_verified("Score: 10") is None and read_verified("two\n1\n0") is None
    assert read_legacy("Consistency: 2\nRealism: 1") is None
    assert read_legacy("**Consistency: 2**\nRealism 1\naesthetic quality: 0") == dict(
        zip(GRADES, (2.0, 1.0, 0.0), strict=True)
    )


def benchmark_of(kind, folder, monkeypatch):
    """With the first and the last prompt of each of its files."""
    files = {kind.judge_source: SOURCE.encode()}
    ends = [(1, 1000)] if len(kind.prompt_files) == 1 else [(1, 400), (401, 700), (701, 1000)]
    for name, ids in zip(kind.prompt_files, ends, strict=True):
        rows = [
            {"Prompt": f"prompt {n}", "Explanation": f'it is "{n}"', "Subcategory": "x", "prompt_id": n}
            for n in ids
        ]
        files[name] = json.dumps(rows).encode()
    return kind(put(monkeypatch, folder, kind.name, files))


@pytest.mark.parametrize("kind", [WiseVerified, WiseLegacy])
def test_prompts_and_question_come_from_the_published_files(kind, tmp_path, monkeypatch):
    benchmark = benchmark_of(kind, tmp_path, monkeypatch)
    first, last = benchmark.items[0], benchmark.items[-1]
    assert (first.key, first.task, last.key, last.task) == ("1", "CULTURE", "1000", "CHEMISTRY")
    assert benchmark.files(first) == ("1.png",)
    ask = benchmark.asks(first)[JUDGE]
    assert ask["system"] == "Be strict." and ask["image_first"] is False
    assert ask["text"] == 'Judge.\nPROMPT: "prompt 1"\nEXPLANATION: "it is "1""\nNow.'


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"Prompt": "p", "Explanation": "e", "prompt_id": 1001}, "prompt_id: .* from 1 to 1000"),
        ({"Prompt": "p", "Explanation": "e", "prompt_id": True}, "prompt_id: .* from 1 to 1000"),
        ({"Prompt": "p", "prompt_id": 1}, "Prompt and Explanation"),
        ([], "Prompt and Explanation"),
    ],
)
def test_a_prompt_that_is_none_is_named(row, why, tmp_path, monkeypatch):
    files = {"merge.json": json.dumps([row]).encode(), "vllm_eval.py": SOURCE.encode()}
    with pytest.raises(UserError, match=f"merge.json: prompt 1: .*{why}"):
        WiseVerified(put(monkeypatch, tmp_path, "wise", files))


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    benchmark_of(WiseVerified, tmp_path, monkeypatch)
    (tmp_path / "vllm_eval.py").write_text(SOURCE.replace("strict", "mild"))
    with pytest.raises(UserError, match=r"vllm_eval\.py: not the file of PKU-YuanGroup/WISE"):
        WiseVerified(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        SOURCE + SOURCE,
        SOURCE.replace("['Prompt']", ".text"),
        "(",
        SOURCE.replace("system", "user"),
    ],
)
def test_a_source_without_one_question_is_refused(source):
    with pytest.raises(UserError, match=r"^judge\.py"):
        read_rubric(source, "judge.py")


ROWS = [(1, 1.0), (2, 0.0), (401, 1.0), (521, 1.0), (641, 0.0), (761, 1.0), (881, 1.0)]


def test_by_default_what_is_not_judged_is_in_no_mean(tmp_path, monkeypatch):
    benchmark = benchmark_of(WiseVerified, tmp_path, monkeypatch)
    images = judged([*ROWS, (3, 1.0), (4, None), (5, 7)], VERIFIED, absent={3})
    summary = benchmark.summarise(images)
    assert summary.tasks["CULTURE"] == 0.5 and summary.tasks["BIOLOGY"] == 0
    assert summary.overall == pytest.approx(0.4 * 0.5 + 0.12 * 4)
    assert summary.notes == ("images judged off the scale, in no mean: 1",)
    by_published = benchmark.summarise(images, published_rules=True)
    assert by_published.overall is None and set(by_published.tasks.values()) == {None}
    assert by_published.notes[0].startswith("no scores: 992 prompts have no result: 3, 4, 6, 7")
    without = benchmark.summarise(images[:-4])
    assert without.overall is None and "no image of CHEMISTRY was judged" in without.notes[0]


def test_legacy_grades_off_the_scale_count_under_published_rules_alone(tmp_path, monkeypatch):
    benchmark = benchmark_of(WiseLegacy, tmp_path, monkeypatch)
    whole = judged([(n, 2.0, 1.0, 0.0) for n in range(1, 401)], LEGACY)
    odd = judged([(1, 3.0, 1.0, 1.0)], LEGACY) + whole[1:]
    assert benchmark.image_score(whole[0]) == pytest.approx(0.8)
    assert benchmark.image_score(odd[0]) is None
    assert benchmark.summarise(odd).tasks["CULTURE"] == pytest.approx(0.8)
    done = benchmark.summarise(odd, published_rules=True)
    assert done.tasks["CULTURE"] == pytest.approx((399 * 0.8 + 1.2) / 400)
    assert done.overall is None and done.notes == (
        "no overall: these are the prompts of culture alone",
    )


def test_a_line_that_is_no_object_spoils_its_file():
    whole = [lines([(n, 1.0) for n in its], VERIFIED) for its in (range(1, 401), range(401, 1001))]
    assert published(whole, VERIFIED).overall == pytest.approx(1.0)
    spoiled = published([whole[0], ["[1]", *whole[1]]], VERIFIED)
    assert spoiled.tasks == {} and spoiled.missing[0] == 401 and len(spoiled.missing) == 600
    assert published([["3"]], VERIFIED) == published([["3"]], VERIFIED, "culture")
    assert published([["3"]], VERIFIED).missing == ()


@given(st.sets(st.integers(1, 1000)), st.randoms())
def test_the_order_of_images_changes_nothing(right, random):
    rows = [(number, float(number in right)) for number in range(1, 1001)]
    mixed = list(rows)
    random.shuffle(mixed)
    assert published([lines(rows, VERIFIED)], VERIFIED) == published([lines(mixed, VERIFIED)], VERIFIED)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    assert read_verified(text) in (None, {"score": 0.0}, {"score": 1.0})
    found = read_legacy(text)
    assert found is None or set(found) == set(GRADES)
