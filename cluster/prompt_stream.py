"""The order in which prompts come: endless, shuffled anew each round, the same for the same seed."""

import random
from collections.abc import Iterator, Sequence

from policy.records import Draw, Prompt

Group = tuple[Draw, ...]
"""The samples of one prompt that are compared with each other."""


def group_stream(prompts: Sequence[Prompt], group_size: int, seed: int) -> Iterator[Group]:
    """Every prompt once a round. Sample indices go on from round to round: nothing is drawn twice."""
    rounds = 0
    while True:
        order = list(prompts)
        random.Random(f"{seed}/{rounds}").shuffle(order)
        for prompt in order:
            yield sample_group(prompt, group_size, first=rounds * group_size)
        rounds += 1


def sample_group(prompt: Prompt, size: int, first: int = 0) -> Group:
    return tuple(Draw(prompt, first + i) for i in range(size))
