"""Advantages of many experts: each compared on its own (GDPO), and each CoT's own."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.advantages import bicot_advantages, gdpo_advantages, group_advantages, has_signal
from policy.records import Scores

G = 4


def scores(values, rewards_by_cot=None) -> Scores:
    values = np.array(values, np.float32)
    n, e = values.shape
    return Scores(
        sample_ids=tuple(f"p/{k}" for k in range(n)),
        experts=tuple("abc"[:e]),
        values=values,
        rewards=np.nanmean(values, axis=1),
        passed=np.ones(n, bool),
        rewards_by_cot=None if rewards_by_cot is None else np.array(rewards_by_cot, np.float32),
    )


def random_scores(seed, groups=3, experts=3):
    rng = np.random.default_rng(seed)
    return [scores(rng.normal(size=(G, experts)) * [1, 10, 0.1]) for _ in range(groups)]


WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
BOTH = dict.fromkeys("abc", "both")


@given(st.integers(0, 500), st.sampled_from(["std", "none"]))
def test_gdpo_by_hand(seed, scale):
    groups = random_scores(seed)
    found = bicot_advantages(groups, WEIGHTS, BOTH, how="gdpo", scale=scale)
    sums = []
    for group in groups:
        each = group.values - group.values.mean(0)
        if scale == "std":
            each = each / (group.values.std(0, ddof=1) + 1e-4)
        sums.append((each * [1, 2, 0.5]).sum(1) / 3.5)
    flat = np.concatenate(sums)
    wanted = (flat - flat.mean()) / (flat.std() + 1e-4)
    assert found.shape == (3, G)
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-4)


def test_gdpo_sees_what_a_mean_hides():
    """Two experts that contradict each other, and agree about one sample of the other group."""
    opposed = scores([[1, 0], [0, 1], [1, 0], [0, 1]])
    assert not has_signal(opposed, {"a": 1, "b": 1}, "group")
    assert has_signal(opposed, {"a": 1, "b": 1}, "gdpo")
    assert not has_signal(opposed, {"a": 0, "b": 0}, "gdpo")
    both = bicot_advantages([opposed], {"a": 3, "b": 1}, BOTH, how="gdpo")
    assert (np.sign(both[0]) == [1, -1, 1, -1]).all()


def test_gdpo_leaves_out_who_does_not_apply():
    nobody = [[1.0, np.nan], [0.0, np.nan], [0.5, np.nan], [0.2, np.nan]]
    applies = [[0.0, 2.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    values = torch.tensor(nobody + applies)
    found = gdpo_advantages(values, torch.tensor([1.0, 1.0]), G)
    assert torch.isfinite(found).all()
    # Of the first group one expert, of the second the half of one: 0 for who is equal.
    first = group_advantages(values[:G, 0], G)
    second = group_advantages(values[G:, 1], G) / 2
    together = torch.cat([first, second])
    wanted = (together - together.mean()) / (together.std(correction=0) + 1e-4)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("how", ["group", "gdpo"])
def test_each_cot_learns_from_what_it_answers_for(how):
    """`a` is the semantic CoT's alone, `b` the image's."""
    values = [[1, 0], [0, 0], [0, 1], [0, 0]]
    one = scores(values, rewards_by_cot=values)
    credits = {"a": "cot", "b": "image"}
    found = bicot_advantages([one], {"a": 1, "b": 1}, credits, how=how)
    assert found.shape == (1, G, 2)
    for column in (0, 1):
        own = torch.tensor(values, dtype=torch.float32)[:, column]
        wanted = group_advantages(own, G)
        if how == "gdpo":
            wanted = (wanted - wanted.mean()) / (wanted.std(correction=0) + 1e-4)
        np.testing.assert_allclose(found[0, :, column], wanted, atol=1e-5)


def test_a_cot_that_answers_for_nothing_learns_nothing():
    nothing = [[0.5, np.nan], [1.0, np.nan], [0.0, np.nan], [0.0, np.nan]]
    one = scores([[x[0]] for x in nothing], rewards_by_cot=nothing)
    found = bicot_advantages([one], {"a": 1}, {"a": "cot"})
    assert (found[0, :, 1] == 0).all()
    assert (found[0, :, 0] != 0).any()
    assert has_signal(one, {"a": 1})


def test_one_reward_for_both_is_compared_as_ever():
    groups = random_scores(7)
    found = bicot_advantages(groups, WEIGHTS, BOTH)
    rewards = torch.from_numpy(np.concatenate([g.rewards for g in groups]))
    assert found.shape == (3, G)
    assert torch.equal(torch.from_numpy(found).flatten(), group_advantages(rewards, G))
