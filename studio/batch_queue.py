"""The queue of images before one model: which are drawn together, and what happens when a client goes
away.

A batch is the oldest image and those behind it with the same settings, at most `size`. The next batch
is drawn while the images of the last are decoded. When a client goes away, its images leave the queue;
for those under way the tokens are drawn to the end, but nothing is decoded.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from studio.generation import ImageTokens, Listener
from studio.records import GeneratedImage, ImageTask


@dataclass(eq=False)
class Waiting:
    """An image that a client waits for, until `done`."""

    task: ImageTask
    listener: Listener | None
    done: "asyncio.Future[GeneratedImage]"

    @property
    def wanted(self) -> bool:
        return not self.done.done()


Result = ImageTokens | Exception
Draw = Callable[[Sequence[Waiting]], Awaitable[Sequence[Result]]]
Finish = Callable[[ImageTokens], Awaitable[GeneratedImage]]


class BatchQueue:
    """Use in one event loop. `draw` draws a batch, one result each, or raises; `finish` decodes one."""

    def __init__(self, draw: Draw, finish: Finish, size: int):
        self._draw, self._finish, self._size = draw, finish, size
        self._waiting: deque[Waiting] = deque()
        self._worker: asyncio.Task | None = None
        self._finishing: asyncio.Task | None = None

    def __len__(self) -> int:
        """How many images wait and are not begun yet."""
        return sum(image.wanted for image in self._waiting)

    async def generate(
        self, tasks: Sequence[ImageTask], listeners: Sequence[Listener | None]
    ) -> list[GeneratedImage]:
        """Draw tasks, in their order. Raises what drawing one of them raised."""
        loop = asyncio.get_running_loop()
        images = [
            Waiting(task, listener, loop.create_future())
            for task, listener in zip(tasks, listeners, strict=True)
        ]
        self._waiting.extend(images)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            return await asyncio.gather(*(image.done for image in images))
        finally:
            for image in images:
                image.done.cancel()

    async def _work(self) -> None:
        while batch := self._next_batch():
            results = await self._draw_or_why(batch)
            if self._finishing and not self._finishing.done():  # one batch at most is kept undecoded
                await self._finishing
            self._finishing = asyncio.create_task(self._hand_out(batch, results))

    def _next_batch(self) -> list[Waiting]:
        wanted = [image for image in self._waiting if image.wanted]
        alike = [image for image in wanted if image.task.settings == wanted[0].task.settings]
        batch = alike[: self._size]
        taken = set(map(id, batch))
        self._waiting = deque(image for image in wanted if id(image) not in taken)
        return batch

    async def _draw_or_why(self, batch: Sequence[Waiting]) -> Sequence[Result]:
        """A batch that fails is drawn again, each image alone, so that only those fail that cannot be
        drawn."""
        try:
            return await self._draw(batch)
        except Exception as error:  # whatever the model raises goes to its requests
            if len(batch) == 1:
                return [error]
        results: list[Result] = []
        for image in batch:
            results += await self._draw_or_why([image]) if image.wanted else [_Unwanted()]
        return results

    async def _hand_out(self, batch: Sequence[Waiting], results: Sequence[Result]) -> None:
        for image, result in zip(batch, results, strict=True):
            if not image.wanted:
                continue
            try:
                if isinstance(result, Exception):
                    raise result
                finished = await self._finish(result)
            except Exception as error:  # as above
                if image.wanted:
                    image.done.set_exception(error)
            else:
                if image.wanted:  # still
                    image.done.set_result(finished)


class _Unwanted(Exception):
    """Nobody waits for the image any more."""
