import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learner.config import LearnerConfig
from learner.schedules import Coefficients, StepSettings, follow, learning_rate


def rates(steps, **keys):
    config = LearnerConfig(lr=1.0, **keys)
    return [learning_rate(config, done, steps) for done in range(steps)]


def test_the_rate_falls_in_a_line_to_nothing_after_the_last_step():
    assert rates(4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(5, schedule="linear", warmup_steps=2) == pytest.approx([0.5, 1, 1, 2 / 3, 1 / 3])


def test_the_rate_falls_as_a_cosine():
    assert rates(4, schedule="cosine") == pytest.approx(
        [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    )


def test_a_constant_rate_is_left_alone():
    assert rates(3) == [1.0, 1.0, 1.0]
    config = LearnerConfig(lr=1.0)
    assert StepSettings.of(config, Coefficients.at_start(config), 1, 3).lr is None
    warm = LearnerConfig(lr=1.0, warmup_steps=2)
    assert StepSettings.of(warm, Coefficients.at_start(warm), 0, 3).lr == 0.5


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 20), st.integers(1, 50))
def test_a_rate_is_never_above_lr_nor_below_nothing(schedule, warmup, steps):
    assert all(0 <= rate <= 1 for rate in rates(steps, schedule=schedule, warmup_steps=warmup))


@given(st.floats(1e-4, 1.0), st.floats(0.0, 10.0))
def test_a_coefficient_goes_towards_its_target_slowly(coef, excess):
    moved = follow(coef, excess, coef)
    assert moved == pytest.approx(coef, rel=0.02 + 1e-9)
    assert (moved > coef) == (excess > 1)
    for _ in range(1000):
        moved = follow(moved, 0.0, coef)
    assert moved == pytest.approx(coef / 100)  # and no less


def test_too_far_from_the_reference_costs_more_and_too_little_entropy_pays_more():
    config = LearnerConfig(kl_target=0.1, entropy_coef=0.01, entropy_target={"cot": 2.0})
    start = Coefficients.at_start(config)
    far = start.after({"kl/cot": 0.3, "kl/image": 0.1, "entropy/cot": 1.0}, config)
    assert far.kl > start.kl
    assert far.entropy["cot"] > start.entropy["cot"]
    assert far.entropy["image"] == start.entropy["image"]
    near = start.after({"kl/cot": 0.05, "kl/image": 0.05, "entropy/cot": 3.0}, config)
    assert near.kl < start.kl
    assert near.entropy["cot"] < start.entropy["cot"]
    assert far.metrics(config) == {"kl_coef": far.kl, "entropy_coef/cot": far.entropy["cot"]}
    assert start.after({}, LearnerConfig()) == start


def test_a_target_without_a_coefficient_is_refused():
    with pytest.raises(ValidationError, match=r"kl_target adapts learner\.kl_coef, which is 0"):
        LearnerConfig(kl_coef=0, kl_target=0.1)
    with pytest.raises(ValidationError, match=r"entropy_target adapts learner\.entropy_coef"):
        LearnerConfig(entropy_target={"image": 1.0})
