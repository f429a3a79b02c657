import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.batch import balance, by_tokens, empty_like, make_batch


def test_prompts_are_padded_left_and_cots_right(samples):
    batch = make_batch(samples, list(range(len(samples))), pad_id=0, cot_weight=3.0, image_weight=0.5)
    for n, sample in enumerate(samples):
        assert batch.cot_prompt[n][batch.cot_prompt_mask[n]].tolist() == sample.cot_prompt_ids.tolist()
        assert batch.cot_prompt_mask[n, -1]
        assert batch.cot[n, : len(sample.cot_ids)].tolist() == sample.cot_ids.tolist()
        assert batch.cot_mask[n].sum() == len(sample.cot_ids)
        assert batch.image_prompt_mask[n].sum() == len(sample.image_prompt_ids)
        assert batch.image[n].tolist() == sample.image_ids.tolist()
        weights = batch.token_weights[n]
        split = batch.cot.shape[1]
        assert weights[:split].tolist() == [3.0 * m for m in batch.cot_mask[n].tolist()]
        assert set(weights[split:].tolist()) == {0.5}
        np.testing.assert_array_equal(batch.sampled_logps[n, split:], sample.image_logps)
    assert batch.advantages.tolist() == [[n, n] for n in range(len(samples))]
    pairs = [(n, -n) for n in range(len(samples))]
    of_both = make_batch(samples, pairs, pad_id=0).token_advantages
    assert (of_both[:, :split] == batch.advantages[:, :1]).all()
    assert (of_both[:, split:] == -batch.advantages[:, :1]).all()


def test_an_empty_batch_weighs_nothing(samples):
    batch = empty_like(make_batch(samples, [1.0] * len(samples), pad_id=0))
    assert len(batch) == 1
    assert batch.token_weights.abs().sum() == 0


def test_micro_batches_keep_the_token_budget_and_lose_nothing(samples):
    long = dataclasses.replace(samples[0], index=99, cot_ids=np.ones(300, np.int64))
    pairs = [(s, float(n)) for n, s in enumerate([*samples, long])]

    def padded(part):
        text = max(len(s.cot_prompt_ids) + len(s.cot_ids) for s, _ in part)
        image = max(len(s.image_prompt_ids) + len(s.image_ids) for s, _ in part)
        return (text + image) * len(part)

    for budget in (1, 200, 10_000):
        parts = by_tokens(pairs, budget)
        assert all(len(part) == 1 or padded(part) <= budget for part in parts)
        assert sorted(a for part in parts for _, a in part) == [float(n) for n in range(len(pairs))]
    assert len(by_tokens(pairs, 1)) == len(pairs)
    assert len(by_tokens(pairs, 10_000)) == 1


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 8))
def test_balanced_work_is_whole_and_even(sizes, bins):
    """No bin holds more than the least held by another and one item."""
    found = balance(sizes, bins)
    assert sorted(n for numbers in found for n in numbers) == list(range(len(sizes)))
    held = [sum(sizes[n] for n in numbers) for numbers in found]
    assert max(held) - min(held) <= max(sizes, default=0)


def test_groups_of_one_size_are_dealt_round():
    assert balance([5, 5, 5, 5, 5], 2) == [[0, 2, 4], [1, 3]]


def test_long_groups_do_not_meet_on_one_rank():
    """Dealt round, one rank would hold twice what the other does."""
    assert balance([200, 100, 200, 100], 2) == [[0, 1], [2, 3]]
