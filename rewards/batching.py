"""Requests that wait for the same expert, put together into calls of a size that suits it.

Promised: images are judged in the order in which they came; one call at a time, and none with more than
`size` images; a call that fails is made again for each of its requests alone, so that only those fail
that cannot be judged.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from policy.records import Prompt
from rewards.asking import joined
from rewards.expert import Judgement

Call = Callable[[list[np.ndarray], list[Prompt]], Awaitable[Judgement]]


@dataclass(eq=False)
class _Request:
    images: Sequence[np.ndarray]
    prompts: Sequence[Prompt]
    done: asyncio.Future
    parts: list[Judgement] = field(default_factory=list)

    def add(self, part: Judgement) -> None:
        self.parts.append(part)
        if not self.done.done() and sum(len(p.values) for p in self.parts) == len(self.images):
            self.done.set_result(joined(self.parts))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


_Item = tuple[_Request, int]  # a request, and the number of one of its images


class Batcher:
    """Use in one event loop. `call` judges a batch; `wait_s` is how long a batch that is not full may
    wait for more."""

    def __init__(self, call: Call, size: int, wait_s: float = 0.0):
        self._call, self._size, self._wait_s = call, size, wait_s
        self._items: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task | None = None

    async def judge(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Judgement:
        """Judge N > 0 images. Raises what the expert raised; a caller that goes away takes its images
        out of the queue."""
        request = _Request(images, prompts, asyncio.get_running_loop().create_future())
        self._items.extend((request, n) for n in range(len(images)))
        self._arrived.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await request.done

    async def _work(self) -> None:
        while await self._fill():
            batch = [self._items.popleft() for _ in range(min(self._size, len(self._items)))]
            requests = [list(items) for _, items in groupby(batch, key=lambda item: item[0])]
            error = await self._score(batch)
            if error is None:
                continue
            for items in requests:
                alone = error if len(requests) == 1 else await self._score(items)
                if alone is not None:
                    items[0][0].fail(alone)

    async def _fill(self) -> bool:
        """Wait for a full batch, but not for long. False: nothing is left that anybody waits for."""
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while True:
            self._items = deque(item for item in self._items if not item[0].done.done())
            left = deadline - asyncio.get_running_loop().time()
            if not self._items or len(self._items) >= self._size or left <= 0:
                return bool(self._items)
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return bool(self._items)

    async def _score(self, batch: list[_Item]) -> Exception | None:
        """Judge these images and hand out the answer, or return what was raised."""
        images = [request.images[n] for request, n in batch]
        prompts = [request.prompts[n] for request, n in batch]
        try:
            answer = await self._call(images, prompts)
        except Exception as error:  # whatever an expert raises is its requests' to hear
            return error
        begin = 0
        for request, items in groupby(batch, key=lambda item: item[0]):
            end = begin + len(list(items))
            request.add(
                Judgement(answer.values[begin:end], answer.evidence[begin:end], answer.boxes[begin:end])
            )
            begin = end
        return None
