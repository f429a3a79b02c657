"""Which images are drawn together, and what becomes of those that nobody waits for."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.batch_queue import BatchQueue, Result, Waiting
from studio.generation import ImageTokens
from studio.records import GeneratedImage, ImageTask, Settings

SIZE = 4


def task(number: int, guidance: float = 1.0) -> ImageTask:
    return ImageTask(str(number), True, number, 0, Settings(guidance, 1.0))


class Recorder:
    """Draws nothing, and remembers what it was asked for."""

    def __init__(self, broken: Sequence[str] = ()):
        self.batches: list[list[ImageTask]] = []
        self.decoded: list[str] = []
        self._broken = broken

    async def draw(self, batch: Sequence[Waiting]) -> Sequence[Result]:
        tasks = [image.task for image in batch]
        self.batches.append(tasks)
        await asyncio.sleep(0.001)
        if any(one.prompt in self._broken for one in tasks):
            raise ValueError("cannot be drawn")
        return [ImageTokens(torch.zeros(1), one.prompt, 0, 0) for one in tasks]

    async def finish(self, tokens: ImageTokens) -> GeneratedImage:
        await asyncio.sleep(0)
        self.decoded.append(tokens.cot)
        return GeneratedImage(b"", tokens.cot, 0, 0, 1)

    def queue(self) -> BatchQueue:
        return BatchQueue(self.draw, self.finish, SIZE)


async def ask(queue: BatchQueue, *tasks: ImageTask) -> list[str | None]:
    images = await queue.generate(tasks, [None] * len(tasks))
    return [image.cot for image in images]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=9))
def test_batches_are_of_one_kind_and_size_and_everybody_gets_his_own(asked):
    """`asked`: requests, each a list of the guidance of its images."""
    recorder = Recorder()
    numbers = iter(range(1000))
    requests = [[task(next(numbers), guidance) for guidance in request] for request in asked]

    async def all_at_once():
        queue = recorder.queue()
        return await asyncio.gather(*(ask(queue, *request) for request in requests))

    assert asyncio.run(all_at_once()) == [[one.prompt for one in request] for request in requests]
    drawn = [one for batch in recorder.batches for one in batch]
    assert sorted(one.seed for one in drawn) == list(range(sum(map(len, requests))))
    for settings in {one.settings for one in drawn}:
        alike = [one.seed for one in drawn if one.settings == settings]
        assert alike == sorted(alike)  # first come, first drawn
    for batch in recorder.batches:
        assert len(batch) <= SIZE and len({one.settings for one in batch}) == 1


def test_a_batch_is_whatever_waits():
    recorder = Recorder()

    async def trickle():
        queue = recorder.queue()
        first = asyncio.create_task(ask(queue, task(0)))
        await asyncio.sleep(0)
        rest = [asyncio.create_task(ask(queue, task(n))) for n in range(1, 7)]
        await asyncio.gather(first, *rest)

    asyncio.run(trickle())
    assert [len(batch) for batch in recorder.batches] == [1, 4, 2]


def test_who_goes_away_leaves_the_queue_and_is_not_decoded():
    recorder = Recorder()

    async def leave():
        queue = recorder.queue()
        under_way = asyncio.create_task(ask(queue, task(0), task(1), task(2)))
        stays = asyncio.create_task(ask(queue, task(3)))
        waits = asyncio.create_task(ask(queue, *(task(n) for n in range(4, 20))))
        while not recorder.batches:
            await asyncio.sleep(0)
        assert len(queue) == 16
        under_way.cancel()
        waits.cancel()
        await asyncio.gather(under_way, waits, return_exceptions=True)
        assert len(queue) == 0
        return await stays, await ask(queue, task(20))

    assert asyncio.run(leave()) == (["3"], ["20"])
    assert recorder.decoded == ["3", "20"]
    assert [[one.seed for one in batch] for batch in recorder.batches] == [[0, 1, 2, 3], [20]]


def test_an_image_that_cannot_be_drawn_fails_alone():
    recorder = Recorder(broken=["1"])

    async def some():
        queue = recorder.queue()
        return await asyncio.gather(*(ask(queue, task(n)) for n in range(3)), return_exceptions=True)

    first, broken, last = asyncio.run(some())
    assert (first, last) == (["0"], ["2"])
    with pytest.raises(ValueError, match="cannot be drawn"):
        raise broken
