"""GroupResults of a whole step become rewards: which experts count, which do not, on which scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.records import Box
from rewards.config import RewardsConfig
from rewards.expert import ExpertResult, ExpertScores, Failure, GroupResults
from rewards.rewards import RunningStats, compute_rewards, update_running_stats, weighted_mean

NAN = float("nan")
USE = {"use": "examples.shapes.experts:CountExpert"}
scores = st.lists(st.floats(-1e3, 1e3, width=32), max_size=6)


def config(**experts) -> RewardsConfig:
    return RewardsConfig.model_validate({"experts": {name: USE | e for name, e in experts.items()}})


def group(**values: list[float] | None) -> GroupResults:
    """One group: each expert's scores of its samples; None: it failed."""
    outcomes = {
        name: Failure(name, 3, "OSError: gone") if v is None else ExpertScores(np.array(v, np.float32))
        for name, v in values.items()
    }
    samples = max(len(v) for v in values.values() if v is not None)
    ids = tuple(f"p/{n}" for n in range(samples))
    return GroupResults(
        ids, {name: ExpertResult(s, 0.1, pass_threshold=0.5) for name, s in outcomes.items()}
    )


def test_a_failure_takes_its_group_and_no_other():
    step = [group(a=[0, 1], b=[1, 1]), group(a=[0, 1], b=None)]
    settled = compute_rewards(step, config(a={}, b={}), {})
    assert settled.scores[0].rewards.tolist() == [0.5, 1]
    assert settled.scores[1] == "expert b failed 3 times, at last with: OSError: gone"
    assert settled.left_out == {}


def test_an_expert_to_be_left_out_counts_in_no_group_of_the_step():
    step = [group(a=[0, 1], b=[1, 1]), group(a=[0, 1], b=None), group(a=[0.5, 1], b=[0, 0])]
    settled = compute_rewards(step, config(a={}, b={"on_failure": "leave_out"}), {})
    assert [s.rewards.tolist() for s in settled.scores] == [[0, 1], [0, 1], [0.5, 1]]
    assert [s.passed.tolist() for s in settled.scores] == [[False, True]] * 2 + [[True, True]]
    assert all(s.experts == ("a", "b") and np.isnan(s.values[:, 1]).all() for s in settled.scores)
    assert settled.left_out["b"].reason == "OSError: gone"


def test_a_group_that_only_the_one_left_out_judges_has_no_reward():
    step = [group(a=[NAN, NAN], b=[1, 1]), group(a=[0, 1], b=None)]
    settled = compute_rewards(step, config(a={}, b={"on_failure": "leave_out"}), {})
    assert settled.scores[0] == "no other expert scores it while b is left out"
    assert settled.scores[1].rewards.tolist() == [0, 1]


def test_a_fixed_range_becomes_0_to_1_and_the_values_stay():
    experts = config(a={"normalize": {"low": 10, "high": 20}}, b={"normalize": {"low": 1, "high": 0}})
    (scores,) = compute_rewards([group(a=[10, 15, 25], b=[1, 0, 0.5])], experts, {}).scores
    np.testing.assert_allclose(scores.rewards, [0, 0.75, 1])
    assert scores.values[:, 0].tolist() == [10, 15, 25]


def test_running_statistics_normalise_and_leave_out_what_does_not_apply():
    experts = config(a={"normalize": "running"}, b={"weight": 0})
    step = [group(a=[1, 3], b=[0, 0]), group(a=[NAN, 5], b=[0, 0])]
    running = update_running_stats({}, step, experts)
    assert list(running) == ["a"]
    settled = compute_rewards(step[:1], experts, running)
    spread = np.std([1, 3, 5])
    np.testing.assert_allclose(settled.scores[0].rewards, [-2 / spread, 0], atol=1e-6)
    raw = compute_rewards(step[:1], experts, {})  # as in an evaluation
    assert raw.scores[0].rewards.tolist() == [1, 3]


@given(st.lists(scores, min_size=1, max_size=5))
def test_running_statistics_are_those_of_all_scores_together(parts):
    stats = RunningStats()
    for part in parts:
        stats = stats.with_more(np.array(part, np.float32))
    everything = np.array([x for part in parts for x in part], np.float64)
    assert stats.count == len(everything)
    if len(everything):
        assert stats.scale.offset == pytest.approx(everything.mean(), abs=1e-6)
        std = everything.std()
        assert stats.scale.span == pytest.approx(std if std > 1e-5 else stats.scale.span, rel=1e-4)
        assert stats.scale.span > 0


def test_boxes_are_kept_beside_the_evidence():
    box = Box("dog", 0.9, (0.0, 0.0, 1.0, 1.0))
    by_expert = {
        "a": ExpertScores(np.ones(2, np.float32), ("one", ""), ((box,), ())),
        "b": ExpertScores(np.ones(2, np.float32)),
    }
    kept = weighted_mean(["p/0", "p/1"], by_expert, {"a": 1, "b": 1}, {"a": 0, "b": 0})
    assert kept.boxes == (((box,), ()), ((), ()))
    assert kept.explanation == (("one", ""), ("", ""))
