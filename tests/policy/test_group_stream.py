from hypothesis import given
from hypothesis import strategies as st

from policy.prompts import GroupStream, plain_prompt


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.integers(1, 4))
def test_every_prompt_once_a_round_and_no_sample_twice(count, size, seed, rounds):
    prompts = [plain_prompt(f"prompt {n}") for n in range(count)]
    stream = GroupStream(prompts, size, seed)
    groups = [stream[n] for n in range(count * rounds)]
    assert [group.number for group in groups] == list(range(count * rounds))
    for start in range(0, len(groups), count):
        assert {g.prompt for g in groups[start : start + count]} == set(prompts)
    drawn = [order.sample_id for group in groups for order in group]
    assert len(drawn) == len(set(drawn)) == count * rounds * size
    again = GroupStream(prompts, size, seed)
    assert groups[::-1] == [again[n] for n in reversed(range(count * rounds))]


def test_rounds_and_seeds_shuffle_differently():
    prompts = [plain_prompt(f"prompt {n}") for n in range(50)]

    def order(seed, skip):
        stream = GroupStream(prompts, 2, seed)
        return [stream[n].prompt.text for n in range(skip, skip + 50)]

    assert len({tuple(order(seed, skip)) for seed in (0, 1) for skip in (0, 50)}) == 4
