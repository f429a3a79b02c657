"""Generates and judges at the same time: while workers generate the next prompts, judges score the
last.

One event loop in the driver. Every worker has one call under way and one waiting. An image is saved
before it is judged, and a reply before it counts.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from evaluation.benchmark import Item, Reply
from evaluation.config import BenchConfig
from evaluation.generators import Drawn, GeneratorWorker
from evaluation.judges.base import ask_prompt, unusable
from evaluation.run_folder import RunFolder
from policy.errors import UserError, in_one_line
from policy.starting import wait_for
from rewards.client import ExpertClient
from rewards.config import RewardsConfig

_WAITING = 8  # items that are drawn and not yet judged, for each worker
_LOST = 3  # how often one batch may lose its worker


@dataclass
class Progress:
    """How many images are done so far, of how many; `tell` is called at every change."""

    to_draw: int = 0
    drawn: int = 0
    to_judge: int = 0
    judged: int = 0
    tell: Callable[["Progress"], None] = lambda progress: None


def start_workers(config: BenchConfig) -> list[ActorHandle]:
    """Start the workers that generate, and wait until each has loaded its model. Raises UserError if
    one cannot."""
    actors = config.actors
    options: dict[str, Any] = {
        "num_cpus": actors.num_cpus,
        "num_gpus": actors.num_gpus,
        "max_restarts": _LOST,
    }
    if actors.resources:
        options["resources"] = actors.resources
    workers = [
        ray.remote(GeneratorWorker).options(**options).remote(config) for _ in range(actors.count)
    ]
    try:
        loading = {f"worker {n}": worker.ready.remote() for n, worker in enumerate(workers)}
        wait_for(loading, ray.wait, ray.get, actors.load_timeout_s)
    except (RayActorError, RayTaskError) as error:
        raise UserError(f"a worker does not start: {in_one_line(error)}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise UserError(
            "the workers have not loaded the model within actors.load_timeout_s"
            f" ({actors.load_timeout_s:g} s)"
        ) from error
    return workers


def stop_workers(workers: Sequence[ActorHandle]) -> None:
    for worker in workers:
        ray.kill(worker)


class Pipeline:
    """Draws missing images of some items and has them judged. Without workers it draws nothing, without
    judges it judges nothing."""

    def __init__(
        self,
        folder: RunFolder,
        items: Sequence[Item],
        config: BenchConfig,
        workers: Sequence[ActorHandle],
        judges: RewardsConfig | None,
        progress: Progress,
        prefix: str = "",
    ):
        """`prefix` of a judge's name in the name of its application."""
        self._folder = folder
        self._benchmark = folder.benchmark
        self._items = items
        self._config = config
        self._workers = workers
        self._judges = list(judges.experts) if judges else []
        self._client = ExpertClient(judges, prefix) if judges else None
        self._progress = progress

    def run(self) -> None:
        """Raises UserError if a worker fails, or a judge changes; saved images and replies stay."""
        try:
            asyncio.run(self._run())
        except ExceptionGroup as group:
            raise _first(group) from group

    async def _run(self) -> None:
        per = self._benchmark.images_per_prompt
        of_items = ((item, self._folder.missing(item)) for item in self._items if self._workers)
        missing = [(item, indices) for item, indices in of_items if indices]
        gone = {item.key for item, _ in missing}
        there = [i for i in self._items if i.key not in gone and self._folder.unjudged(i, self._judges)]
        self._progress.to_draw = sum(len(indices) for _, indices in missing)
        self._progress.to_judge = (len(missing) + len(there)) * per if self._judges else 0
        self._progress.tell(self._progress)
        room: asyncio.Queue[tuple[Item, list[np.ndarray] | None]]
        room = asyncio.Queue(_WAITING * max(1, len(self._workers)))
        looking = 2 * _WAITING
        async with asyncio.TaskGroup() as tasks:
            judging = [tasks.create_task(self._judge_all(room)) for _ in range(looking)]
            drawing = [tasks.create_task(self._put(there, room))]
            turns = iter(self._batches(missing))
            drawing += [
                tasks.create_task(self._draw_all(worker, turns, room))
                for worker in self._workers
                for _ in range(2)
            ]
            await asyncio.gather(*drawing)
            await room.join()
            for task in judging:
                task.cancel()

    def _batches(
        self, missing: Sequence[tuple[Item, list[int]]]
    ) -> list[Sequence[tuple[Item, list[int]]]]:
        """Items, with the indices of their missing images, in batches that a worker generates
        together."""
        size = max(1, self._config.actors.batch_size // self._benchmark.images_per_prompt)
        return [missing[n : n + size] for n in range(0, len(missing), size)]

    async def _put(self, items, room) -> None:
        for item in items:
            await room.put((item, None))

    async def _draw_all(self, worker: ActorHandle, turns, room) -> None:
        for batch in turns:
            wanted = [(item, n) for item, indices in batch for n in indices]
            rest = iter(await self._draw(worker, wanted))
            for item, indices in batch:
                drawn = [next(rest) for _ in indices]
                await asyncio.to_thread(self._folder.write, item, drawn, indices)
                self._progress.drawn += len(indices)
                self._progress.tell(self._progress)
                images = [one.image for one in drawn if isinstance(one, Drawn)]
                whole = len(images) == self._benchmark.images_per_prompt
                await room.put((item, images if whole else None))

    async def _draw(self, worker: ActorHandle, images: Sequence[tuple[Item, int]]) -> list[Drawn | str]:
        limit = self._config.actors.timeout_s  # of one batch; another may be queued before it
        for left in reversed(range(_LOST)):
            try:
                return await asyncio.wait_for(_answer(worker.draw.remote(images)), 2 * limit)
            except RayTaskError as error:
                raise UserError(f"prompt {images[0][0].key}: {in_one_line(error)}") from error
            except RayActorError as error:
                if not left:
                    raise UserError(
                        f"a worker is lost again and again: {in_one_line(error)}"
                    ) from error
            except TimeoutError:
                raise UserError(
                    f"prompt {images[0][0].key}: not drawn within actors.timeout_s ({limit:g} s)"
                ) from None
        raise AssertionError

    # --- judging ---

    async def _judge_all(self, room) -> None:
        while True:
            item, images = await room.get()
            await self._judge(item, images)
            self._progress.judged += self._benchmark.images_per_prompt if self._judges else 0
            self._progress.tell(self._progress)
            room.task_done()

    async def _judge(self, item: Item, images: list[np.ndarray] | None) -> None:
        if self._client is None:
            return
        if images is None or self._benchmark.tiles:
            read = await asyncio.to_thread(self._folder.read, item)
        else:
            read = list(images)
        present = {n: image for n, image in enumerate(read) if not isinstance(image, str)}
        await asyncio.gather(
            *(
                self._ask(item, judge, ask, present)
                for judge, ask in self._benchmark.asks(item).items()
                if judge in self._judges
            )
        )

    async def _ask(self, item: Item, judge: str, ask, present: dict[int, np.ndarray]) -> None:
        assert self._client is not None
        wanted = [n for n in present if self._folder.reply(item, n, judge) is None]
        if not wanted:
            return
        ref = ray.put([present[n] for n in wanted])
        prompts = [ask_prompt(item.key, ask)] * len(wanted)
        result = (await self._client.score_images([ref], prompts, [judge]))[judge]
        if result.failed:
            replies: list[Reply] = [unusable(str(result.outcome))] * len(wanted)
        else:
            replies = [json.loads(line) for line in result.scores.explanation]
        for n, reply in zip(wanted, replies, strict=True):
            self._folder.add_reply(item, n, judge, dict(reply))


async def _answer(ref):
    return await ref


def _first(error: Exception) -> Exception:
    """The first error of tasks that ended together."""
    return _first(error.exceptions[0]) if isinstance(error, ExceptionGroup) else error
