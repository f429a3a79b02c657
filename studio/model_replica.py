"""One model in one process: it draws requests in batches, and counts what it does."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from ray import serve

from actors.config import ActorsConfig
from policy.errors import in_one_line
from policy.model import PolicyConfig
from rewards.one_thread import OneThread
from rewards.replica import BUCKETS_S
from studio.batch_queue import BatchQueue, Result, Waiting
from studio.generation import ImageGenerator, ImageTokens
from studio.image_stream import ImageStream
from studio.records import Completed, Event, GeneratedImage, ImageTask, ModelCard, RequestError

log = logging.getLogger(__name__)
_SHARE_OF_TIMEOUT = 0.9  # that one batch may take


class ModelReplica:
    """One thread builds and calls the model, one batch at a time; another one decodes images."""

    def __init__(self, name: str, policy: PolicyConfig, actors: ActorsConfig):
        self._thread = OneThread("the model", actors.timeout_s * _SHARE_OF_TIMEOUT)
        self._generator = self._thread.start_with(partial(_build, policy, actors))
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._queue = BatchQueue(self._draw, self._finish, actors.batch_size)
        sampling = self._generator.sampling
        self._card = ModelCard(
            name, self._generator.size, sampling.guidance, sampling.temperature, int(time.time())
        )
        self._counts = Counts(self._queue)

    async def card(self) -> ModelCard:
        return self._card

    async def metrics(self) -> list[Metric]:
        """What this process counted since it started."""
        return list(self._counts.registry.collect())

    async def named_metrics(self) -> tuple[str, list[Metric]]:
        """The same, with the name that Ray Serve has for this process."""
        return serve.get_replica_context().replica_id.unique_id, await self.metrics()

    async def generate(self, tasks: Sequence[ImageTask]) -> list[GeneratedImage]:
        """Draw the images of one request. Raises RequestError; a caller that goes away takes its images
        out of the queue."""
        self._check(tasks)
        with self._counts.request():
            return await self._queue.generate(tasks, [None] * len(tasks))

    async def stream(
        self, tasks: Sequence[ImageTask], partial_images: int
    ) -> AsyncGenerator[list[Event], None]:
        """The same as a stream of lists of events. The first list is empty and comes at once: the tasks
        fit."""
        self._check(tasks)
        yield []
        with self._counts.request():
            loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

            def emit(event: Event) -> None:
                loop.call_soon_threadsafe(events.put_nowait, event)

            streams = [
                ImageStream(n, partial_images, self._generator, self._decoder, emit)
                for n in range(len(tasks))
            ]

            async def one(n: int) -> None:
                (image,) = await self._queue.generate([tasks[n]], [streams[n]])
                emit(Completed(n, image))  # after all events of its stream

            drawing = asyncio.gather(*(one(n) for n in range(len(tasks))))
            try:
                left = len(tasks)
                while left:
                    some = await _next(events, drawing)
                    left -= sum(isinstance(event, Completed) for event in some)
                    yield some
            finally:
                for stream in streams:
                    stream.close()
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)

    def _check(self, tasks: Sequence[ImageTask]) -> None:
        self._generator.check(tasks[0])  # they differ in their index alone

    async def _draw(self, batch: Sequence[Waiting]) -> Sequence[Result]:
        listeners = {n: image.listener for n, image in enumerate(batch) if image.listener}
        work = partial(self._generator.generate, [image.task for image in batch], listeners)
        self._counts.batches.observe(len(batch))
        try:
            return await self._thread.run(work)
        except Exception as error:
            log.exception("a batch of %d images failed", len(batch))
            raise RequestError(f"the model failed: {in_one_line(error)}", status=500) from error

    async def _finish(self, tokens: ImageTokens) -> GeneratedImage:
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoder, self._generator.finish, tokens)
        self._counts.images.inc()
        return image


async def _next(events: "asyncio.Queue[Event]", drawing: "asyncio.Future") -> list[Event]:
    """Wait for an event, then take all there are. Raises what `drawing` raises."""
    if events.empty():
        coming = asyncio.ensure_future(events.get())
        try:
            await asyncio.wait([coming, drawing], return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                drawing.result()  # raises; else the last events are about to come
            some = [await coming]
        finally:
            coming.cancel()
    else:
        some = []
    while not events.empty():
        some.append(events.get_nowait())
    return some


class Counts:
    """What one process did, for Prometheus."""

    def __init__(self, queue: BatchQueue):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("bicot_model_requests", "requests that came in", registry=registry)
        self.images = Counter("bicot_model_images", "images that were drawn", registry=registry)
        self.unwanted = Counter(
            "bicot_model_cancelled_requests", "requests whose client went away", registry=registry
        )
        self.failures = Counter("bicot_model_failures", "requests without an answer", registry=registry)
        sizes = [2.0**n for n in range(10)]
        self.batches = Histogram(
            "bicot_model_batch_images", "images a batch", buckets=sizes, registry=registry
        )
        self.seconds = Histogram(
            "bicot_model_latency_seconds", "of an answer", buckets=BUCKETS_S, registry=registry
        )
        self.held = Gauge("bicot_model_held", "requests waiting or being drawn", registry=registry)
        waiting = Gauge("bicot_model_waiting_images", "images not yet begun", registry=registry)
        waiting.set_function(lambda: len(queue))

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts and times one request."""
        began = time.monotonic()
        self.requests.inc()
        self.held.inc()
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.unwanted.inc()
            raise
        except Exception:
            self.failures.inc()
            raise
        else:
            self.seconds.observe(time.monotonic() - began)
        finally:
            self.held.dec()


def _build(policy: PolicyConfig, actors: ActorsConfig) -> ImageGenerator:
    torch.set_num_threads(max(1, int(actors.num_cpus)))
    return ImageGenerator(policy, actors)
