import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.records import Scores
from rewards.expert import ExpertScores
from rewards.rewards import weighted_mean

finite = st.floats(-1e6, 1e6, width=32)
weight = st.floats(1e-3, 1e3)


@st.composite
def results(draw):
    """A few experts on a few samples; the first applies to all of them."""
    experts, samples = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    maybe = finite | st.just(float("nan"))
    rows = [
        draw(st.lists(finite if e == 0 else maybe, min_size=samples, max_size=samples))
        for e in range(experts)
    ]
    by_expert = {f"e{e}": ExpertScores(np.array(row, np.float32)) for e, row in enumerate(rows)}
    return by_expert, {name: draw(weight) for name in by_expert}


def scored(by_expert: dict[str, ExpertScores], weights: dict[str, float]) -> Scores:
    ids = [f"p/{n}" for n in range(len(next(iter(by_expert.values())).values))]
    return weighted_mean(ids, by_expert, weights, dict.fromkeys(by_expert, 0.5))


@given(results())
def test_a_reward_lies_between_its_parts(result):
    scores = scored(*result)
    slack = 1e-6 * np.nanmax(np.abs(scores.values), axis=1)
    assert (np.nanmin(scores.values, axis=1) - slack <= scores.rewards).all()
    assert (scores.rewards <= np.nanmax(scores.values, axis=1) + slack).all()


@given(results())
def test_the_order_of_experts_is_irrelevant(result):
    by_expert, weights = result
    ahead, back = scored(by_expert, weights), scored(dict(reversed(by_expert.items())), weights)
    np.testing.assert_allclose(ahead.rewards, back.rewards, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(ahead.passed, back.passed)
    np.testing.assert_array_equal(ahead.values, back.values[:, ::-1])


@given(results(), st.floats(1e-3, 1e3))
def test_the_scale_of_weights_is_irrelevant(result, scale):
    by_expert, weights = result
    scaled = {name: scale * w for name, w in weights.items()}
    before, after = scored(by_expert, weights), scored(by_expert, scaled)
    np.testing.assert_allclose(before.rewards, after.rewards, rtol=1e-5, atol=1e-3)


@given(results(), weight)
def test_an_expert_that_does_not_apply_changes_nothing(result, absent_weight):
    by_expert, weights = result
    samples = len(by_expert["e0"].values)
    absent = {"absent": ExpertScores(np.full(samples, np.nan, np.float32))}
    before = scored(by_expert, weights)
    after = scored(by_expert | absent, weights | {"absent": absent_weight})
    np.testing.assert_array_equal(before.rewards, after.rewards)
    np.testing.assert_array_equal(before.passed, after.passed)


def test_weighted_mean_passes_and_evidence():
    by_expert = {
        "a": ExpertScores(np.array([1.0, 0.7], np.float32), ("seen", "half seen")),
        "b": ExpertScores(np.array([0.0, np.nan], np.float32)),
        "shown": ExpertScores(np.array([9.0, 9.0], np.float32)),
    }
    weights, marks = {"a": 3, "b": 1, "shown": 0}, {"a": 0.7, "b": 0.5, "shown": 10}
    scores = weighted_mean(["p/0", "p/1"], by_expert, weights, marks)
    np.testing.assert_allclose(scores.rewards, [0.75, 0.7])
    assert scores.passed.tolist() == [False, True]  # 0.7 in float32 reaches a mark of 0.7
    assert scores.experts == ("a", "b", "shown")
    assert scores.explanation == (("seen", "", ""), ("half seen", "", ""))
    assert scores.values.dtype == scores.rewards.dtype == np.float32


def test_a_sample_that_nothing_weighted_judges_is_an_error():
    by_expert = {
        "a": ExpertScores(np.array([1, np.nan], np.float32)),
        "idle": ExpertScores(np.array([1, 1], np.float32)),
    }
    with pytest.raises(ValueError, match="sample p/1: no expert"):
        scored(by_expert, {"a": 1, "idle": 0})


def test_too_few_judgements_are_an_error():
    with pytest.raises(ValueError, match="expert a scored 1 of 2 samples"):
        weighted_mean(["p/0", "p/1"], {"a": ExpertScores(np.ones(1, np.float32))}, {"a": 1}, {"a": 0})
