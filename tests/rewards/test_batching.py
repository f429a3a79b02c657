import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.prompts import plain_prompt
from rewards.expert import ExpertScores
from rewards.replica import Batcher

PROMPT = plain_prompt("x")


class Recorder:
    """Judges an image, here a number, by itself; remembers its batches; refuses what is in `bad`."""

    def __init__(self, bad=()):
        self.batches: list[list[int]] = []
        self.bad, self.busy = set(bad), False

    async def __call__(self, images, prompts):
        assert not self.busy and len(images) == len(prompts)
        self.busy = True
        self.batches.append(list(images))
        await asyncio.sleep(0)
        self.busy = False
        if wrong := self.bad & set(images):
            raise ValueError(f"cannot judge {min(wrong)}")
        lines = tuple(f"line {n}" for n in images)
        return ExpertScores(np.array(images, np.float32), lines, ((),) * len(images))


def score_groups(call, sizes: list[int], size: int, wait_s: float = 0.0):
    """Requests of these sizes, all at once; images are numbered through. Returns answers or errors."""

    async def run():
        batcher, begin, tasks = Batcher(call, size, wait_s), 0, []
        for n in sizes:
            tasks.append(batcher.score(list(range(begin, begin + n)), [PROMPT] * n))
            begin += n
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 7))
def test_every_request_gets_its_own_answer_in_full_batches_of_the_right_size(sizes, size):
    call = Recorder()
    answers, begin = score_groups(call, sizes, size), 0
    for n, answer in zip(sizes, answers, strict=True):
        assert answer.values.tolist() == list(range(begin, begin + n))
        assert answer.explanation == tuple(f"line {i}" for i in range(begin, begin + n))
        begin += n
    assert [i for batch in call.batches for i in batch] == list(range(begin))
    assert [len(batch) for batch in call.batches[:-1]] == [size] * (len(call.batches) - 1)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.integers(1, 7),
    st.sets(st.integers(0, 29), max_size=4),
)
def test_only_a_request_that_cannot_be_judged_fails(sizes, size, bad):
    call = Recorder(bad)
    answers, begin = score_groups(call, sizes, size), 0
    for n, answer in zip(sizes, answers, strict=True):
        numbers = range(begin, begin + n)
        if bad & set(numbers):
            assert isinstance(answer, ValueError)
            assert int(str(answer).split()[-1]) in numbers
        else:
            assert answer.values.tolist() == list(numbers)
        begin += n
    assert max(map(len, call.batches)) <= size


def test_a_batch_that_is_not_full_waits_for_more():
    async def run(wait_s):
        call = Recorder()
        batcher = Batcher(call, 4, wait_s)
        first = asyncio.create_task(batcher.score([0, 1], [PROMPT] * 2))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batcher.score([2, 3], [PROMPT] * 2))
        return call.batches

    assert asyncio.run(run(0.0)) == [[0, 1], [2, 3]]
    assert asyncio.run(run(60.0)) == [[0, 1, 2, 3]]  # full: it does not wait to the end


def test_images_that_nobody_waits_for_are_not_judged():
    async def run():
        call, gate = Recorder(), asyncio.Event()

        async def gated(images, prompts):
            await gate.wait()
            return await call(images, prompts)

        batcher = Batcher(gated, 1)
        first = asyncio.create_task(batcher.score([0], [PROMPT]))
        gone = asyncio.create_task(batcher.score([1, 2], [PROMPT] * 2))
        last = asyncio.create_task(batcher.score([3], [PROMPT]))
        await asyncio.sleep(0.01)
        gone.cancel()
        gate.set()
        await asyncio.gather(first, last)
        with pytest.raises(asyncio.CancelledError):
            await gone
        return call.batches

    assert asyncio.run(run()) == [[0], [3]]
