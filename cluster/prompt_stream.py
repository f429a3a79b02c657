"""The order in which prompts come: endless, shuffled anew each round, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence

from policy.records import Group, Prompt


def group_stream(prompts: Sequence[Prompt], group_size: int, seed: int) -> Iterator[Group]:
    """Every prompt once a round. Sample indices go on from round to round: nothing is drawn twice."""
    rounds = 0
    while True:
        order = list(prompts)
        random.Random(f"{seed}/{rounds}").shuffle(order)
        for prompt in order:
            yield Group(prompt, group_size, first=rounds * group_size)
        rounds += 1
