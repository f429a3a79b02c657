"""One expert in one process: it batches requests, and counts what it does.

Requests that wait for the same expert are combined into calls of a size that suits it. Images are
scored in the order in which they came, in one call at a time of at most `size` images. A failed call is
repeated for each of its requests alone, so that only those fail that cannot be scored.
"""

import asyncio
import math
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
from ray import ObjectRef, serve
from ray.exceptions import ObjectLostError, RayActorError

from policy.records import Group, Prompt, Sample
from rewards.config import ExpertConfig
from rewards.expert import (
    Expert,
    ExpertScores,
    SamplesLost,
    applies_checked,
    concat,
    constructor_options,
    load_expert_class,
    scatter,
    score_checked,
)
from rewards.one_thread import OneThread

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends of the latency histogram; one more bucket holds what is slower."""
WINDOW_S = 60.0
_RECENT = 1000
_SHARE_OF_TIMEOUT = 0.9  # that one call of an expert may take: its callers still get its error


@dataclass(frozen=True)
class ReplicaStats:
    """One replica since it started. A request's latency is from its arrival at the replica to its
    answer, waiting included; failures are not in the latencies."""

    replica: str
    pass_threshold: float
    requests: int
    images: int
    failures: int
    held: int
    """Requests that wait or are being scored now."""
    images_per_s: float
    """Images scored a second, over the last minute."""
    buckets: tuple[int, ...]
    """Latencies by BUCKETS_S."""
    seconds: float
    """Sum of all latencies."""
    recent_s: tuple[float, ...] = field(repr=False)
    """The latest latencies."""


@dataclass
class Counted:
    """A request while it is answered. `images`: how many the expert really scored."""

    images: int = 0


class Meter:
    """Counts the requests of one replica; in one thread."""

    def __init__(self):
        self._started = time.monotonic()
        self._requests = self._images = self._failures = self._held = 0
        self._seconds = 0.0
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._window: deque[tuple[float, int]] = deque()  # when, how many images

    @contextmanager
    def request(self) -> Iterator[Counted]:
        """Counts and times one request."""
        counted = Counted()
        began = time.monotonic()
        self._held += 1
        self._requests += 1
        try:
            yield counted
        except BaseException:  # only counted and raised again; also a caller that goes away
            self._failures += 1
            raise
        else:
            self._answered(counted.images, time.monotonic() - began)
        finally:
            self._held -= 1

    def _answered(self, images: int, seconds: float) -> None:
        self._images += images
        self._seconds += seconds
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._recent.append(seconds)
        self._window.append((time.monotonic(), images))
        self._forget()

    def _forget(self) -> None:
        while self._window and self._window[0][0] < time.monotonic() - WINDOW_S:
            self._window.popleft()

    def stats(self, replica: str, pass_threshold: float) -> ReplicaStats:
        self._forget()
        span = max(1.0, min(WINDOW_S, time.monotonic() - self._started))
        return ReplicaStats(
            replica=replica,
            pass_threshold=pass_threshold,
            requests=self._requests,
            images=self._images,
            failures=self._failures,
            held=self._held,
            images_per_s=sum(images for _, images in self._window) / span,
            buckets=tuple(self._buckets),
            seconds=self._seconds,
            recent_s=tuple(self._recent),
        )


def latency(replicas: Sequence[ReplicaStats], share: float) -> float | None:
    """The latency in seconds that `share` of the latest answers did not exceed; None: there were
    none."""
    recent = [seconds for stats in replicas for seconds in stats.recent_s]
    return float(np.quantile(recent, share)) if recent else None


Call = Callable[[list[np.ndarray], list[Prompt]], Awaitable[ExpertScores]]


@dataclass(eq=False)
class _Request:
    images: Sequence[np.ndarray]
    prompts: Sequence[Prompt]
    done: asyncio.Future
    parts: list[ExpertScores] = field(default_factory=list)

    def add(self, part: ExpertScores) -> None:
        self.parts.append(part)
        if not self.done.done() and sum(len(p.values) for p in self.parts) == len(self.images):
            self.done.set_result(concat(self.parts))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


_Item = tuple[_Request, int]  # a request, and the number of one of its images


class Batcher:
    """Use in one event loop. `call` scores a batch; `wait_s` is how long a batch that is not full may
    wait for more."""

    def __init__(self, call: Call, size: int, wait_s: float = 0.0):
        self._call, self._size, self._wait_s = call, size, wait_s
        self._items: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task | None = None

    async def score(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> ExpertScores:
        """Score N > 0 images. Raises what the expert raised; a caller that goes away takes its images
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
        """Wait for a full batch, for a short time. False: no request is left that a caller waits
        for."""
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
        """Score these images and hand out the answer, or return the error."""
        images = [request.images[n] for request, n in batch]
        prompts = [request.prompts[n] for request, n in batch]
        try:
            answer = await self._call(images, prompts)
        except Exception as error:  # whatever an expert raises goes to its requests
            return error
        begin = 0
        for request, items in groupby(batch, key=lambda item: item[0]):
            end = begin + len(list(items))
            request.add(
                ExpertScores(
                    answer.values[begin:end], answer.explanation[begin:end], answer.boxes[begin:end]
                )
            )
            begin = end
        return None


@dataclass(frozen=True)
class Answer:
    """Scores, and the score from which its expert counts a sample as right."""

    scores: ExpertScores
    pass_threshold: float


class ExpertReplica:
    """One expert in one process. One thread builds and calls it, one batch at a time; fetching images
    goes on meanwhile."""

    def __init__(self, name: str, config: ExpertConfig, timeout_s: float):
        self._name = name
        self._meter = Meter()
        self._batcher = Batcher(self._ask, config.batch_size, config.batch_wait_s)
        self._thread = OneThread("the expert", timeout_s * _SHARE_OF_TIMEOUT)
        self._expert = self._thread.start_with(partial(_build, config))

    async def score_samples(self, sample_refs: list[ObjectRef], group: Group) -> Answer:
        """Score the samples of a group. `sample_refs` is a list of one reference to a list of them, so
        that the reference itself travels. Raises SamplesLost."""
        try:
            samples: list[Sample] = await sample_refs[0]
        except (ObjectLostError, RayActorError) as error:
            raise SamplesLost(str(error)) from error
        if [sample.id for sample in samples] != [request.sample_id for request in group]:
            raise ValueError(f"expert {self._name} got samples that are not of {group}")
        images = [sample.image for sample in samples]
        return await self._answer(images, [request.prompt for request in group])

    async def score_images(self, image_refs: list[ObjectRef], prompts: list[Prompt]) -> Answer:
        """Score N images. `image_refs` is a list of one reference to a list of them."""
        return await self._answer(await image_refs[0], prompts)

    async def applies(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Which prompts the expert applies to."""
        return await self._thread.run(lambda: applies_checked(self._name, self._expert, prompts))

    async def stats(self) -> ReplicaStats:
        replica = serve.get_replica_context().replica_id.unique_id
        return self._meter.stats(replica, self._expert.pass_threshold)

    async def _answer(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Answer:
        """NaN and "" where the expert does not apply. Raises if a score is missing or not finite."""
        if len(images) != len(prompts):
            raise ValueError(f"expert {self._name} got {len(images)} images, {len(prompts)} prompts")
        with self._meter.request() as counted:
            applies = await self.applies(prompts)
            asked = np.flatnonzero(applies)
            counted.images = len(asked)
            scores = None
            if len(asked):
                scores = await self._batcher.score(
                    [images[n] for n in asked], [prompts[n] for n in asked]
                )
            return Answer(scatter(scores, applies), self._expert.pass_threshold)

    async def _ask(self, images: list[np.ndarray], prompts: list[Prompt]) -> ExpertScores:
        return await self._thread.run(lambda: score_checked(self._name, self._expert, images, prompts))


def _build(config: ExpertConfig) -> Expert:
    expert = load_expert_class(config.use)(**constructor_options(config))
    if not math.isfinite(expert.pass_threshold):
        raise ValueError(f"{config.use}: pass_threshold is {expert.pass_threshold}, not a number")
    if torch := sys.modules.get("torch"):  # by default it takes every core of the machine
        torch.set_num_threads(max(1, int(config.num_cpus)))
    return expert
