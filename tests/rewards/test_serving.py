"""Experts as real Serve applications, asked by a real RewardWorker."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from policy.errors import UserError
from policy.records import Box, Group, Prompt, Sample, SampleRequest, Scores, Work
from rewards.client import RewardWorker
from rewards.config import ExpertConfig, GatewayConfig, RewardsConfig
from rewards.expert import ExpertScores, Failure, GroupResults, scatter, score_checked
from rewards.gateway import start_gateway
from rewards.replica import ExpertReplica
from rewards.rewards import compute_rewards
from rewards.serving import check_applicability, deploy_experts
from tests.rewards.drawing import draw
from tests.rewards.experts_for_tests import FixedAnswer
from tests.rewards.samples import PLAIN, RED, WHITE, sample

pytestmark = pytest.mark.serve

HERE = "tests.rewards.experts_for_tests"

# --- what an expert says is checked ---


@pytest.mark.parametrize(
    ("values", "explanation", "complaint"),
    [
        ([0.5], (), "expert odd gave values of shape .1,., 2 explanations and 2 lists of boxes for 2"),
        ([[0.5, 0.5]], (), "expert odd gave values of shape .1, 2."),
        ([0.5, float("nan")], (), "expert odd gave nan for prompt 'something bright'"),
        ([float("inf"), 0.5], (), "expert odd gave inf for prompt 'a red circle'"),
        ([0.5, 0.5], ("only one",), "1 explanations and 2 lists of boxes for 2 images"),
    ],
)
def test_a_wrong_answer_raises(values, explanation, complaint):
    with pytest.raises(RuntimeError, match=complaint):
        score_checked("odd", FixedAnswer(values, explanation), [WHITE, WHITE], [RED, PLAIN])


def odd(explanation: Any = (), boxes: Any = (), values: Any = (0.5,)) -> ExpertScores:
    return ExpertScores(values, explanation, boxes)


def boxed(*xyxy: Any, label: Any = "a", score: Any = 0.5) -> ExpertScores:
    return odd(boxes=((Box(label, score, xyxy),),))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, "has no attribute 'values'"),
        (odd(values=(None,)), "values of type object, not numbers"),
        (odd(values=("0.5",)), "not numbers"),
        (odd(values=(1e300,)), "gave inf for prompt"),
        (odd("x"), "one text, not one for each image"),
        (odd((np.float32(1),)), "float32 instead of text"),
        (odd((b"x",)), "bytes instead of text"),
        (odd(("\ud800",)), "surrogates not allowed"),
        (odd(("x" * 100_001,)), "100000 are the most"),
        (odd(boxes=(({"label": "a"},),)), "dict instead of a Box"),
        (boxed(0, 0, 1), "not enough values"),
        (boxed(0, 0, 1, "1"), "text instead of numbers"),
        (boxed(0, 0, 1, float("nan")), "not finite"),
        (boxed(0, 0, 1, 1, label=None), "NoneType instead of text"),
        (boxed(0, 0, 1, 1, label="\udfff"), "surrogates not allowed"),
        (boxed(0, 0, 1, 1, score=10**400), "too large to convert"),
        (odd(boxes=((Box("a", 0.5, (0, 0, 1, 1)),) * 1001,)), "more than 1000 boxes"),
    ],
)
def test_an_answer_that_json_cannot_hold_raises(answer, complaint):
    expert = FixedAnswer([])
    expert._answer = answer
    with pytest.raises(RuntimeError, match=complaint):
        score_checked("odd", expert, [WHITE], [RED])


def test_numbers_of_an_answer_become_pythons_own():
    expert = FixedAnswer([])
    expert._answer = odd(("x",), ((Box("a", np.float32(0.5), np.zeros(4, np.float32)),),))
    (box,) = score_checked("odd", expert, [WHITE], [RED]).boxes[0]
    assert {type(number) for number in (box.score, *box.xyxy)} == {float}


def test_an_expert_never_sees_an_image_that_is_long_and_thin():
    thin = np.zeros((1, 5000, 3), np.uint8)
    with pytest.raises(RuntimeError, match=r"an image of 5000 x 1 pixels"):
        score_checked("odd", FixedAnswer([0.5]), [thin], [RED])


def test_an_expert_is_asked_only_where_it_applies(local_ray):
    spatial = Prompt("s", "left of", "spatial")
    replica = ExpertReplica("spatial", ExpertConfig(use=f"{HERE}:OnlySpatial"), timeout_s=10)

    async def score(prompts):
        return await replica.score_images([ray.put([WHITE] * len(prompts))], prompts)

    answer = asyncio.run(score([RED, spatial, PLAIN])).scores
    np.testing.assert_array_equal(answer.values, np.array([np.nan, 1, np.nan], np.float32))
    assert answer.explanation == ("", "", "")
    assert np.isnan(asyncio.run(score([RED, PLAIN])).scores.values).all()


def test_boxes_go_where_they_belong():
    box = Box("dog", 0.9, (0.0, 0.1, 0.5, 1.0))
    scores = ExpertScores(np.array([0.5], np.float32), ("one dog",), ((box,),))
    answer = scatter(scores, [False, True])
    assert answer.boxes == ((), (box,))
    assert answer.explanation == ("", "one dog")


# --- through Ray ---


@pytest.fixture(scope="module")
def experts(serving, tmp_path_factory):
    """Config entries of experts that run, by name."""
    files = tmp_path_factory.mktemp("experts")
    entries = {
        "objects": {"use": "examples.shapes.experts:ObjectsExpert", "weight": 3},
        "bright": {"use": f"{HERE}:Brightness", "replicas": 2},
        "fogged": {
            "use": f"{HERE}:FailsAtFirst",
            "options": {"counter": str(files / "fogged"), "failures": 2},
        },
        "dead": {
            "use": f"{HERE}:FailsAtFirst",
            "options": {"counter": str(files / "dead"), "failures": 10**9},
        },
        "leaves": {
            "use": f"{HERE}:GoesWrongOnce",
            "options": {"seen": str(files / "left"), "hang": False},
        },
        "hangs": {
            "use": f"{HERE}:GoesWrongOnce",
            "options": {"seen": str(files / "hung"), "hang": True},
            "timeout_s": 20,
        },
        "stopped": {"use": f"{HERE}:TellsItsProcess", "timeout_s": 20},
        "nan": {"use": f"{HERE}:FixedAnswer", "options": {"values": [float("nan")]}},
        "slow": {"use": f"{HERE}:WaitsForFile", "options": {"file": str(files / "go")}},
    }
    handles = deploy_experts(RewardsConfig(experts=entries))
    assert set(handles) == set(entries)
    return entries


def config_of(experts: dict, *names: str, **settings) -> RewardsConfig:
    return RewardsConfig(experts={name: experts[name] for name in names}, **settings)


def ask_judge(
    config: RewardsConfig, samples: list[Sample], prompts: list[Prompt]
) -> tuple[GroupResults, Scores | str]:
    """What the experts say, and what comes of it."""
    actor = ray.remote(num_cpus=0)(RewardWorker).remote(config)
    group = [
        SampleRequest(prompt, sample.index) for prompt, sample in zip(prompts, samples, strict=True)
    ]
    results = ray.get(actor.score_group.remote([ray.put(samples)], group))
    return results, *compute_rewards([results], config, {}).scores


def test_serve_runs_without_http(experts):
    status = serve.status()
    assert status.proxies == {}
    with pytest.raises(UserError, match="already runs on this cluster, without HTTP"):
        start_gateway(RewardsConfig(experts=experts, gateway=GatewayConfig()))
    running = status.applications["expert_bright"].deployments["bright"]
    assert running.replica_states == {"RUNNING": 2}


def test_the_judge_weighs_what_applies(experts):
    circle = draw(("red", "circle", 2, 2))
    samples = [sample(RED, circle, 0), sample(RED, draw(), 1), sample(PLAIN, WHITE, 0)]
    _, scores = ask_judge(config_of(experts, "objects", "bright"), samples, [RED, RED, PLAIN])

    assert scores.sample_ids == (f"{RED.id}/0", f"{RED.id}/1", f"{PLAIN.id}/0")
    assert scores.experts == ("objects", "bright")
    found, level = scores.values[:, 0], scores.values[:, 1]
    assert found[0] > 0.9
    assert found[1] == 0
    assert np.isnan(found[2])
    np.testing.assert_allclose(level, [circle.mean() / 255, draw().mean() / 255, 1], rtol=1e-6)
    expected = [(3 * found[0] + level[0]) / 4, level[1] / 4, 1]
    np.testing.assert_allclose(scores.rewards, expected, rtol=1e-6)
    assert scores.passed.tolist() == [True, False, True]
    assert scores.explanation[0][0].startswith("red circle")


def test_an_expert_that_recovers_is_asked_again(experts):
    config = config_of(experts, "fogged", retries=2)
    results, scores = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    assert scores.rewards.tolist() == [1]
    assert results.by_expert["fogged"].retries == 2
    assert len(Path(experts["fogged"]["options"]["counter"]).read_text()) == 3


@pytest.mark.slow
def test_a_replica_that_is_stopped_is_replaced(experts):
    """A process that answers nothing, and does not end either."""

    def answer():
        results, _ = ask_judge(config_of(experts, "stopped"), [sample(PLAIN, WHITE)], [PLAIN])
        return results.by_expert["stopped"]

    pid = int(answer().scores.values[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        again = answer()
    finally:
        os.kill(pid, signal.SIGKILL)
    assert int(again.scores.values[0]) != pid


@pytest.mark.parametrize("name", ["leaves", pytest.param("hangs", marks=pytest.mark.slow)])
def test_an_expert_that_leaves_or_hangs_costs_a_retry(experts, name):
    """A hang ends the replica a little before its caller would give up."""
    config = config_of(experts, name, retries=1)
    results, scores = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    assert scores.rewards.tolist() == [1]
    assert results.by_expert[name].retries == 1


def test_an_expert_that_stays_broken_gives_no_score(experts):
    config = config_of(experts, "bright", "dead", retries=1)
    results, why = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    reason = "OSError: the lens is fogged (call 2)"
    assert results.by_expert["dead"].outcome == Failure("dead", 2, reason)
    assert why == f"expert dead failed 2 times, at last with: {reason}"


def test_a_score_that_is_no_number_is_distinguished_from_other_failures(experts):
    config = config_of(experts, "bright", "nan", retries=0)
    results, _ = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    failure = results.by_expert["nan"].outcome
    assert failure.not_a_score
    assert failure.reason == "InvalidScore: expert nan gave nan for prompt 'something bright'"


def test_an_expert_that_is_too_slow_gives_no_score(experts):
    config = config_of(experts, "slow", retries=0, timeout_s=0.5)
    _, why = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    assert why == "expert slow failed 1 times, at last with: no answer within 0.5 s"
    Path(experts["slow"]["options"]["file"]).touch()
    config = config_of(experts, "slow")
    _, scores = ask_judge(config, [sample(PLAIN, WHITE)], [PLAIN])
    assert scores.rewards.tolist() == [1]


def test_samples_of_other_prompts_are_refused(experts):
    _, why = ask_judge(config_of(experts, "bright", retries=0), [sample(PLAIN, WHITE)], [RED])
    assert "ValueError: expert bright got samples that are not of" in why


def test_a_whole_order_is_judged_but_for_what_is_lost(experts):
    """Each group as soon as its samples are there; the samples of one never come."""

    @ray.remote(num_cpus=0)
    class PairSampler:
        def samples(self, level: int, pause_s: float):
            time.sleep(pause_s)
            return [sample(PLAIN, np.full_like(WHITE, level), n) for n in (3, 4)]

        def die(self):
            os._exit(1)

    actor = ray.remote(num_cpus=0)(RewardWorker).remote(config_of(experts, "bright"))
    drawers = [PairSampler.remote() for _ in range(3)]
    refs = [d.samples.remote(51 * n, 0.5 * n) for n, d in enumerate(drawers[:2])]
    refs.insert(1, drawers[2].die.remote())
    group = Group(PLAIN, 2, first=3)
    first, lost, last = ray.get(
        actor.score_groups.remote(refs, Work.of([(group,), (group, group)], None))
    )
    assert lost is None
    for results, level in ((first, 0), (last, 0.2)):
        assert results.sample_ids == (f"{PLAIN.id}/3", f"{PLAIN.id}/4")
        np.testing.assert_allclose(results.by_expert["bright"].outcome.values, [level] * 2, rtol=1e-6)


def test_a_prompt_that_no_expert_applies_to_is_named(experts):
    check_applicability(config_of(experts, "objects", "bright"), [RED, PLAIN])
    with pytest.raises(
        UserError, match=f"no expert .* prompt {PLAIN.id} .*'something bright'.*: objects$"
    ):
        check_applicability(config_of(experts, "objects"), [RED, PLAIN])


def test_an_expert_that_cannot_start_is_named_with_its_reason(experts):
    config = RewardsConfig(experts={"broken": {"use": f"{HERE}:CannotStart"}})
    with pytest.raises(UserError) as raised:
        deploy_experts(config)
    assert str(raised.value) == (
        "expert broken did not start: FileNotFoundError: weights.pt is nowhere to be found"
    )


@pytest.mark.slow
def test_an_expert_keeps_to_nodes_with_its_labels(serving):
    def config(**labels) -> RewardsConfig:
        return RewardsConfig(experts={"picky": {"use": f"{HERE}:Brightness", "labels": labels}})

    (node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    assert deploy_experts(config(**{"ray.io/node-id": node})).keys() == {"picky"}
    with pytest.raises(UserError, match="expert picky did not start within 5 s"):
        deploy_experts(config(zone="elsewhere"), timeout_s=5)
