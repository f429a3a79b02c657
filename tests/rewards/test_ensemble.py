import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.records import Scores
from rewards.ensemble import combine
from rewards.expert import Judgement

finite = st.floats(-1e6, 1e6, width=32)
weight = st.floats(1e-3, 1e3)


@st.composite
def opinions(draw):
    """A few experts on a few samples; the first applies to all of them."""
    experts, samples = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    maybe = finite | st.just(float("nan"))
    rows = [
        draw(st.lists(finite if e == 0 else maybe, min_size=samples, max_size=samples))
        for e in range(experts)
    ]
    judgements = {f"e{e}": Judgement(np.array(row, np.float32)) for e, row in enumerate(rows)}
    return judgements, {name: draw(weight) for name in judgements}


def scored(judgements: dict[str, Judgement], weights: dict[str, float]) -> Scores:
    ids = [f"p/{n}" for n in range(len(next(iter(judgements.values())).values))]
    return combine(ids, judgements, weights, dict.fromkeys(judgements, 0.5))


@given(opinions())
def test_a_reward_lies_between_its_parts(opinion):
    scores = scored(*opinion)
    slack = 1e-6 * np.nanmax(np.abs(scores.values), axis=1)
    assert (np.nanmin(scores.values, axis=1) - slack <= scores.rewards).all()
    assert (scores.rewards <= np.nanmax(scores.values, axis=1) + slack).all()


@given(opinions())
def test_the_order_of_experts_is_irrelevant(opinion):
    judgements, weights = opinion
    ahead, back = scored(judgements, weights), scored(dict(reversed(judgements.items())), weights)
    np.testing.assert_allclose(ahead.rewards, back.rewards, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(ahead.passed, back.passed)
    np.testing.assert_array_equal(ahead.values, back.values[:, ::-1])


@given(opinions(), st.floats(1e-3, 1e3))
def test_the_scale_of_weights_is_irrelevant(opinion, scale):
    judgements, weights = opinion
    scaled = {name: scale * w for name, w in weights.items()}
    before, after = scored(judgements, weights), scored(judgements, scaled)
    np.testing.assert_allclose(before.rewards, after.rewards, rtol=1e-5, atol=1e-3)


@given(opinions(), weight)
def test_an_expert_that_does_not_apply_changes_nothing(opinion, absent_weight):
    judgements, weights = opinion
    samples = len(judgements["e0"].values)
    absent = {"absent": Judgement(np.full(samples, np.nan, np.float32))}
    before = scored(judgements, weights)
    after = scored(judgements | absent, weights | {"absent": absent_weight})
    np.testing.assert_array_equal(before.rewards, after.rewards)
    np.testing.assert_array_equal(before.passed, after.passed)


def test_weighted_mean_passes_and_evidence():
    judgements = {
        "a": Judgement(np.array([1.0, 0.7], np.float32), ("seen", "half seen")),
        "b": Judgement(np.array([0.0, np.nan], np.float32)),
        "shown": Judgement(np.array([9.0, 9.0], np.float32)),
    }
    weights, marks = {"a": 3, "b": 1, "shown": 0}, {"a": 0.7, "b": 0.5, "shown": 10}
    scores = combine(["p/0", "p/1"], judgements, weights, marks)
    np.testing.assert_allclose(scores.rewards, [0.75, 0.7])
    assert scores.passed.tolist() == [False, True]  # 0.7 in float32 reaches a mark of 0.7
    assert scores.experts == ("a", "b", "shown")
    assert scores.evidence == (("seen", "", ""), ("half seen", "", ""))
    assert scores.values.dtype == scores.rewards.dtype == np.float32


def test_a_sample_that_nothing_weighted_judges_is_an_error():
    judgements = {
        "a": Judgement(np.array([1, np.nan], np.float32)),
        "idle": Judgement(np.array([1, 1], np.float32)),
    }
    with pytest.raises(ValueError, match="sample p/1: no expert"):
        scored(judgements, {"a": 1, "idle": 0})


def test_too_few_judgements_are_an_error():
    with pytest.raises(ValueError, match="expert a judged 1 of 2 samples"):
        combine(["p/0", "p/1"], {"a": Judgement(np.ones(1, np.float32))}, {"a": 1}, {"a": 0})
