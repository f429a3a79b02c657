"""One expert in one process: what it is asked, how requests are put together, and what it counts."""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from ray import ObjectRef, serve
from ray.exceptions import ObjectLostError, RayActorError

from policy.records import Group, Prompt, Sample
from rewards.asking import SamplesLost, ask_expert, spread
from rewards.batching import Batcher
from rewards.config import ExpertConfig
from rewards.expert import Expert, Judgement
from rewards.loading import constructor_options, load_expert_class
from rewards.meter import Meter, ReplicaStats

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A judgement, and the score from which its expert counts a sample as right."""

    judgement: Judgement
    pass_mark: float


class ExpertReplica:
    """One expert in one process. It is built by the thread that asks it, and asked by no other, one
    batch at a time; fetching images goes on meanwhile."""

    def __init__(self, name: str, config: ExpertConfig, timeout_s: float):
        self._name = name
        self._timeout_s = timeout_s
        self._busy_since: float | None = None
        self._meter = Meter()
        self._batcher = Batcher(self._ask, config.batch_size, config.batch_wait_s)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="expert")
        self._expert = self._thread.submit(_build, config).result()

    async def score_samples(self, sample_refs: list[ObjectRef], group: Group) -> Answer:
        """Judge the samples of a group, behind a reference to a list of them, wrapped in a list of one
        so that the reference itself travels. Raises SamplesLost if they cannot be had."""
        try:
            samples: list[Sample] = await sample_refs[0]
        except (ObjectLostError, RayActorError) as error:
            raise SamplesLost(str(error)) from error
        if [sample.id for sample in samples] != [draw.sample_id for draw in group]:
            raise ValueError(f"expert {self._name} got samples that are not of {group}")
        images = [sample.image for sample in samples]
        return await self._answer(images, [draw.prompt for draw in group])

    async def score_images(self, image_refs: list[ObjectRef], prompts: list[Prompt]) -> Answer:
        """Judge the N images behind a reference to a list of them, wrapped in a list of one."""
        return await self._answer(await image_refs[0], prompts)

    async def applies(self, prompts: list[Prompt]) -> list[bool]:
        """Which prompts the expert has anything to say on."""
        return await self._in_thread(lambda: list(self._expert.applies_to(prompts)))

    async def stats(self) -> ReplicaStats:
        replica = serve.get_replica_context().replica_id.unique_id
        return self._meter.stats(replica, self._expert.pass_mark)

    def check_health(self) -> None:
        """Serve's question. An answer that takes longer than anyone waits for it blocks the replica:
        Serve replaces it."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._timeout_s:
            raise RuntimeError(f"expert {self._name} has been stuck for over {self._timeout_s} s")

    async def _answer(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Answer:
        """NaN and "" where the expert does not apply. Raises if a score is missing or not finite."""
        if len(images) != len(prompts):
            raise ValueError(f"expert {self._name} got {len(images)} images, {len(prompts)} prompts")
        with self._meter.request() as counted:
            applies = await self.applies(prompts)
            asked = np.flatnonzero(applies)
            counted.images = len(asked)
            said = None
            if len(asked):
                said = await self._batcher.judge(
                    [images[n] for n in asked], [prompts[n] for n in asked]
                )
            return Answer(spread(said, applies), self._expert.pass_mark)

    async def _ask(self, images: list[np.ndarray], prompts: list[Prompt]) -> Judgement:
        return await self._in_thread(lambda: ask_expert(self._name, self._expert, images, prompts))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def timed() -> T:
            self._busy_since = time.monotonic()
            try:
                return work()
            finally:
                self._busy_since = None

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)


def _build(config: ExpertConfig) -> Expert:
    expert = load_expert_class(config.use)(**constructor_options(config))
    if torch := sys.modules.get("torch"):  # by itself it takes every core of the machine
        torch.set_num_threads(max(1, int(config.num_cpus)))
    return expert
