"""Which groups are asked for: each number of the stream once, also over a checkpoint."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.requests import GroupRequests, StreamPosition
from policy.prompts import GroupStream, plain_prompt

PER_STEP = 3


class Asked:
    """Stands for the rollouts: notes what is asked for, which a real manager would generate."""

    def request(self, groups, weights):
        return [group.number for group in groups]


def requests(position=None) -> GroupRequests:
    stream = GroupStream([plain_prompt(f"prompt {n}") for n in range(5)], 2, seed=0)
    return GroupRequests(Asked(), stream, PER_STEP, position or StreamPosition())


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
)
def test_every_group_is_learned_from_once_also_by_a_run_that_goes_on(ahead, steps):
    """Steps with some further groups each; after some of them the run goes on from a checkpoint."""
    queue, used, in_order = requests(), [], []
    for further, stops in steps:
        while len(queue) < 1 + ahead:
            queue.request_step(None)
        first = queue.next_step()
        in_order.append(first)
        used += first
        if further:
            used += queue.request_more(further, None)
        if stops:
            position = queue.position()
            assert len(position.ahead) == ahead
            queue = requests(position)
    left = [n for numbers in queue.position().ahead for n in numbers]
    assert sorted(used + left) == list(range(queue.position().next))
    assert in_order == sorted(in_order)
    assert all(len(numbers) == PER_STEP for numbers in in_order)


def test_going_on_changes_no_groups():
    def walk(stop_after):
        queue, used = requests(), []
        for step in range(6):
            while len(queue) < 2:
                queue.request_step(None)
            used.append(queue.next_step() + queue.request_more(step % 3, None))
            if step == stop_after:
                queue = requests(queue.position())
        return used

    assert walk(2) == walk(4) == walk(None)
