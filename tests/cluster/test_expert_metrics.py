import numpy as np
import pytest

from cluster.alarms import Alarms
from cluster.experience import Harvest
from cluster.metrics import expert_metrics
from rewards.expert import Judgement
from rewards.opinions import Failure, Opinion, Opinions

NAN = float("nan")


def harvest(*groups: dict[str, list[float] | Failure], left_out=()) -> Harvest:
    return Harvest(
        drawing=None,
        opinions=[
            Opinions(
                ("p/0", "p/1"),
                {
                    name: Opinion(said, 0.5, retries=2)
                    if isinstance(said, Failure)
                    else Opinion(Judgement(np.array(said, np.float32)), 0.1)
                    for name, said in group.items()
                },
            )
            for group in groups
        ],
        left_out={name: Failure(name, 3, "gone") for name in left_out},
    )


def test_each_expert_is_counted_over_all_groups():
    gone = Failure("a", 3, "OSError: gone")
    metrics = expert_metrics(harvest({"a": [0, 1], "b": [NAN, 0.5]}, {"a": gone, "b": [0.5, 0.5]}))
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


def test_an_expert_that_said_nothing_has_no_statistics():
    metrics = expert_metrics(harvest({"a": Failure("a", 1, "nan", not_a_score=True)}, left_out=["a"]))
    assert metrics["expert/a/not_finite"] == metrics["expert/a/left_out"] == 1
    assert "expert/a/std" not in metrics
    assert "expert/a/applied" not in metrics
    assert expert_metrics(Harvest(drawing=None)) == {}


def test_an_alarm_is_told_of_once_a_spell():
    alarms = Alarms()
    constant = expert_metrics(harvest({"a": [1, 1], "b": [0, 1]}))
    varied = expert_metrics(harvest({"a": [0, 1], "b": [0, 1]}))
    absent = expert_metrics(harvest({"a": [NAN, NAN], "b": [0, 1]}))
    (line,) = alarms.new(constant)
    assert line.startswith("expert a gave every image of the step the same score")
    assert alarms.new(constant) == alarms.new(absent) == alarms.new(constant) == []
    assert alarms.new(varied) == []
    assert len(alarms.new(constant)) == 1
    wrong = expert_metrics(harvest({"a": Failure("a", 1, "nan", not_a_score=True), "b": [0, 1]}))
    assert alarms.new(wrong) == ["expert a gave NaN or infinity instead of a score"]
