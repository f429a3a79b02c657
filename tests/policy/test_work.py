"""Work arrives as it was sent."""

from hypothesis import given
from hypothesis import strategies as st

from policy.prompts import read_prompts
from policy.records import SHARE, Group, PublishedWeights, Work
from tests.conftest import SHAPES

PROMPTS = read_prompts(SHAPES / "prompts" / "heldout.jsonl")[:9]

GROUPS = st.builds(Group, st.sampled_from(PROMPTS), st.integers(1, 8), st.integers(0, 99))
BATCHES = st.lists(st.lists(GROUPS, min_size=1, max_size=2).map(tuple), max_size=2 * SHARE + 1)


@given(BATCHES)
def test_every_batch_is_found_by_its_number_and_in_order(batches):
    weights = PublishedWeights(7)
    work = Work.of(batches, weights)
    assert work.weights == weights
    assert [*work] == batches
    assert [work.batch(n) for n in range(len(batches))] == batches
