"""Which groups are asked for: each number of the stream once, also over a checkpoint."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.requests import Requested, Requests
from policy.prompts import GroupStream, plain_prompt

PER_STEP = 3


class Asked:
    """Stands for the rollouts: notes what is asked for, which a real manager would generate."""

    def request(self, groups, weights):
        return [group.number for group in groups]


def requests(so_far=None) -> Requests:
    stream = GroupStream([plain_prompt(f"prompt {n}") for n in range(5)], 2, seed=0)
    return Requests(Asked(), stream, PER_STEP, so_far or Requested())


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12),
)
def test_every_group_is_learned_from_once_also_by_a_run_that_goes_on(ahead, steps):
    """Steps with some further groups each; after some of them the run goes on from a checkpoint."""
    queue, used, in_order = requests(), [], []
    for further, stops in steps:
        while len(queue) < 1 + ahead:
            queue.ask(None)
        first = queue.take()
        in_order.append(first)
        used += first
        if further:
            used += queue.more(further, None)
        if stops:
            so_far = queue.so_far()
            assert len(so_far.ahead) == ahead
            queue = requests(so_far)
    left = [n for numbers in queue.so_far().ahead for n in numbers]
    assert sorted(used + left) == list(range(queue.so_far().next))
    assert in_order == sorted(in_order)
    assert all(len(numbers) == PER_STEP for numbers in in_order)


def test_going_on_changes_no_groups():
    def walk(stop_after):
        queue, used = requests(), []
        for step in range(6):
            while len(queue) < 2:
                queue.ask(None)
            used.append(queue.take() + queue.more(step % 3, None))
            if step == stop_after:
                queue = requests(queue.so_far())
        return used

    assert walk(2) == walk(4) == walk(None)
