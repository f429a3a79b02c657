import numpy as np
import pytest

from cluster.pending import RolloutBatch, ScoredGroup
from cluster.watch.metrics import expert_metrics, reward_metrics
from cluster.watch.reward_warnings import RewardWarnings
from policy.records import Group, Prompt, Scores
from rewards.expert import ExpertResult, ExpertScores, Failure, GroupResults

NAN = float("nan")


def rollout(*groups: dict[str, list[float] | Failure], left_out=()) -> RolloutBatch:
    return RolloutBatch(
        pending=None,
        results=[
            GroupResults(
                ("p/0", "p/1"),
                {
                    name: ExpertResult(outcome, 0.5, retries=2)
                    if isinstance(outcome, Failure)
                    else ExpertResult(ExpertScores(np.array(outcome, np.float32)), 0.1)
                    for name, outcome in group.items()
                },
            )
            for group in groups
        ],
        left_out={name: Failure(name, 3, "gone") for name in left_out},
    )


def test_each_expert_is_counted_over_all_groups():
    gone = Failure("a", 3, "OSError: gone")
    metrics = expert_metrics(rollout({"a": [0, 1], "b": [NAN, 0.5]}, {"a": gone, "b": [0.5, 0.5]}))
    assert metrics["expert/a/min"] == 0
    assert metrics["expert/a/max"] == 1
    assert metrics["expert/a/std"] == 0.5
    assert metrics["expert/a/applied"] == 1
    assert metrics["expert/a/failures"] == 1
    assert metrics["expert/a/retries"] == 2
    assert metrics["expert/a/latency_s"] == pytest.approx(0.3)
    assert metrics["expert/b/applied"] == 0.75
    assert metrics["expert/b/constant"] == 1
    assert metrics["expert/a/constant"] == metrics["expert/b/failures"] == 0


def test_an_expert_without_scores_has_no_statistics():
    metrics = expert_metrics(rollout({"a": Failure("a", 1, "nan", not_a_score=True)}, left_out=["a"]))
    assert metrics["expert/a/not_finite"] == metrics["expert/a/left_out"] == 1
    assert "expert/a/std" not in metrics
    assert "expert/a/applied" not in metrics
    assert expert_metrics(RolloutBatch(pending=None)) == {}


def test_a_warning_comes_once_while_its_cause_lasts():
    reward_warnings = RewardWarnings()
    constant = expert_metrics(rollout({"a": [1, 1], "b": [0, 1]}))
    varied = expert_metrics(rollout({"a": [0, 1], "b": [0, 1]}))
    absent = expert_metrics(rollout({"a": [NAN, NAN], "b": [0, 1]}))
    (line,) = reward_warnings.new(constant)
    assert line.startswith("expert a gave every image of the step the same score")
    assert (
        reward_warnings.new(constant)
        == reward_warnings.new(absent)
        == reward_warnings.new(constant)
        == []
    )
    assert reward_warnings.new(varied) == []
    assert len(reward_warnings.new(constant)) == 1
    wrong = expert_metrics(rollout({"a": Failure("a", 1, "nan", not_a_score=True), "b": [0, 1]}))
    assert reward_warnings.new(wrong) == ["expert a gave NaN or infinity instead of a score"]


def test_rewards_are_averaged_by_task_type():
    def group(task_type: str, *rewards: float) -> ScoredGroup:
        ids, values = ("p/0", "p/1"), np.array([rewards], np.float32).T
        scores = Scores(ids, ("a",), values, values[:, 0], values[:, 0] > 0.5)
        return ScoredGroup(Group(Prompt("p", "p", task_type), 2), 0, 0, 1, 8, scores)

    metrics = reward_metrics([group("color", 0, 1), group("left of", 1, 1), group("color", 0, 0)])
    by_type = {name: value for name, value in metrics.items() if "/task/" in name}
    assert by_type == {"reward/task/color": 0.25, "reward/task/left of": 1.0}
