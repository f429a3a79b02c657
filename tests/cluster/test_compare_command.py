"""`bicot compare` on runs and on results of benchmarks."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from cluster.commands.compare import compare, compare_runs, read_side
from cluster.watch.evaluation import Evaluation
from cluster.watch.recorder import Recorder
from evaluation.benchmark import BENCHMARKS
from policy.errors import UserError
from tests.cluster.test_report import ATTACK, evaluation
from tests.evaluation.test_compare import runs  # noqa: F401 (a fixture)
from tests.evaluation.toy import Toy

PROMPTS = 50


def rewarded(step: int, rewards: np.ndarray, first: int = 0, seed: int = 1) -> Evaluation:
    """One sample of each prompt from number `first` on."""
    found = evaluation(step, 0.5, prompts=first + len(rewards))
    scored = [
        replace(one, reward=float(reward), sample=replace(one.sample, seed=seed))
        for one, reward in zip(found.scored[first:], rewards, strict=True)
    ]
    return replace(found, scored=tuple(scored))


def recorded(folder, *evaluations: Evaluation, weight: float | None = None):
    recorder = Recorder(folder)
    for each in evaluations:
        recorder.evaluation(each.step, each)
    recorder.close()
    if weight is not None:
        config = {"rewards": {"experts": {"a": {"use": "b", "weight": weight}}}}
        (folder / "config.yaml").write_text(json.dumps(config))
    return folder


LEVELS = np.linspace(0, 0.5, PROMPTS)


@pytest.fixture
def two(tmp_path):
    """The second run's last evaluation is better by 0.2 on every prompt, and by 0.4 on the 8th."""
    one = recorded(tmp_path / "one", rewarded(0, LEVELS), rewarded(10, LEVELS + 0.1))
    gain = np.full(PROMPTS, 0.3)
    gain[7] = 0.5
    other = recorded(tmp_path / "other", rewarded(0, LEVELS), rewarded(20, LEVELS + gain))
    return one, other


def rows(found) -> dict:
    return {(row.section, row.label): row for row in found.rows}


def test_the_last_evaluations_of_two_runs_stand_side_by_side(two):
    found = compare_runs(*map(read_side, two))
    assert found.labels == ("one, step 10", "other, step 20")
    reward = rows(found)["", "Reward"]
    assert (reward.cells[0].text, reward.cells[1].text) == ("0.350", "0.554")
    assert (reward.difference.text, reward.difference.verdict) == ("+0.204", "better")
    gained = rows(found)["change since the first evaluation of each", "Reward"]
    assert [cell.text for cell in gained.cells] == ["+0.100", "+0.304"]
    assert "number 7 of p" in found.shown[0].text
    assert found.shown[0].what == "color, reward +0.40"
    assert len(found.shown) == 40
    assert found.notes == ["Pictures: of 40 of the 50 prompts, 2 each at most."]


def test_a_run_and_itself_do_not_differ(two):
    found = compare_runs(read_side(two[0]), read_side(two[0]))
    assert {row.difference.verdict for row in found.rows if row.difference} == {"noise"}
    assert found.labels == (str(two[0]), str(two[0]))


def test_one_evaluation_of_a_run_may_be_named(two):
    found = compare_runs(read_side(two[1] / "samples" / "eval_000000"), read_side(two[1]))
    assert found.labels == ("eval_000000, step 0", "other, step 20")
    assert rows(found)["", "Reward"].difference.text == "+0.304"


def test_what_makes_two_runs_less_comparable_is_noted(tmp_path):
    one = recorded(tmp_path / "a", rewarded(5, LEVELS[:10]), weight=1)
    other = recorded(tmp_path / "b", rewarded(5, LEVELS[:10], first=4, seed=9), weight=0)
    found = compare_runs(read_side(one), read_side(other))
    prompts, seeds, experts = found.notes
    assert prompts.startswith("Compared: the 6 prompts that both have, of 10 and 10")
    assert "other seeds" in seeds
    assert experts.startswith("The experts differ (a)")
    assert len(found.shown) == 6
    few = recorded(tmp_path / "c", rewarded(5, LEVELS[:3]))
    found = compare_runs(read_side(one), read_side(few))
    assert found.notes[-1] == "No intervals: there are fewer than 5 prompts."
    assert {row.difference.verdict for row in found.rows if row.difference} == {""}


def test_runs_without_a_prompt_in_common_are_refused(tmp_path, two):
    strangers = recorded(tmp_path / "q", evaluation(5, 0.5, name="q"))
    with pytest.raises(UserError, match="no prompt in common"):
        compare_runs(read_side(two[0]), read_side(strangers))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to compare is there"):
        read_side(tmp_path / "empty")


def test_the_page_needs_nothing_and_strangers_words_stay_text(two, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    out = tmp_path / "side" / "by_side.html"
    compare(*two, out, console, anyway=False, data=None)
    page = out.read_text()
    assert ATTACK not in page and "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("number 7 of p") < page.index("number 0 of p")
    output = console.file.getvalue()
    assert "+0.204" in output and str(out) in output


def test_results_of_benchmarks_make_the_same_page(runs, two, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(BENCHMARKS, Toy.name, Toy.name)
    console = Console(file=io.StringIO(), width=200)
    compare(*runs, tmp_path / "side.html", console, anyway=False, data=None)
    page = (tmp_path / "side.html").read_text()
    assert page.index("a red circle 001") < page.index("a red circle 000")
    assert "before (with CoT)" in console.file.getvalue()
    with pytest.raises(UserError, match="name two of a kind"):
        compare(runs[0], two[0], tmp_path / "no.html", console, anyway=False, data=None)
