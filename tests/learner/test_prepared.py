"""A step that finds the reference's log-probabilities is the step that computes them."""

from dataclasses import replace

import pytest
import ray

from learner.group import LearnerGroup
from tests.learner.ranks import ADVANTAGES, scored

pytestmark = [pytest.mark.deepspeed, pytest.mark.usefixtures("local_ray")]
LORA = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}


def break_reference(learner: LearnerGroup) -> None:
    """From here on a rank that asks its reference fails."""

    def fail(rank):
        rank.trainer.reference_logps = None

    ray.get([rank.__ray_call__.remote(fail) for rank in learner.ranks])


@pytest.mark.parametrize(
    "how",
    [
        {"ranks": 1},
        pytest.param(
            {"ranks": 2, "zero_stage": 3, "reference": "sharded", "micro_batch_tokens": 300},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"ranks": 2, "zero_stage": 3, "lora": LORA, "train_distribution": "guided", "lr": 5e-2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["copy", "sharded", "lora off"],
)
def test_prepared_steps_are_the_same(start, groups, how):
    """Three of four groups are learned from, each step preparing all: the fourth was dropped."""
    some = replace(groups, indices=[3, 0, 1], advantages=ADVANTAGES[[3, 0, 1]])
    plain, other = start(**how), start(**how)
    for step in range(3):
        wanted = ray.get(plain.step(some))[0]
        found = ray.get(other.step(replace(some, prepared=other.prepare(some.samples))))[0]
        assert found == pytest.approx(wanted, abs=1e-6, rel=1e-5)
        assert (found["kl/cot"] == found["kl/image"] == 0) == (step == 0)  # exactly
    assert wanted["kl/image"] > 0
    prepared = other.prepare(some.samples)
    ray.get(prepared)
    break_reference(other)
    ray.get(other.step(replace(some, prepared=prepared)))


def test_a_group_that_was_drawn_again_is_another(samples, start, groups):
    """One group is another object than was prepared, and with other samples: the step does as if
    nothing were there, on all ranks alike."""
    learner, other = (start(ranks=2, reference="sharded") for _ in range(2))
    prepared = learner.prepare(groups.samples)
    again = scored([*samples[2:4], *samples[2:]], ADVANTAGES)
    found = ray.get(learner.step(replace(again, prepared=prepared)))[0]
    assert found == pytest.approx(ray.get(other.step(again))[0], abs=1e-6)


@pytest.mark.parametrize("reference", ["copy", "sharded"])
def test_a_group_that_is_lost_holds_nothing_up(samples, start, groups, reference):
    """One of the groups raises where its samples should be, and is drawn again."""

    @ray.remote
    def lose():
        raise ValueError("its actor died")

    learner = start(ranks=2, reference=reference)
    refs = ray.get(groups.samples)
    prepared = learner.prepare(ray.put([lose.remote(), *refs[1:]]))
    keys = {key for each in ray.get(prepared) for key in each}
    assert keys == {ref.hex() for ref in refs[1:]}
    assert ray.get(learner.step(replace(groups, prepared=prepared)))[0]["step/skipped"] == 0


def test_without_a_reference_nothing_is_prepared(start, groups):
    assert start(kl_coef=0).prepare(groups.samples) == []


def test_a_rank_that_dies_over_it_fails_the_step(start, groups):
    learner = start(ranks=1)
    prepared = learner.prepare(groups.samples)
    ray.kill(learner.ranks[0])
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(learner.step(replace(groups, prepared=prepared)))
