"""Calls all experts at once, with retries; the reward worker does so for a training run."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray import ObjectRef, serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from policy.errors import in_one_line
from policy.records import Group, Prompt, Work
from rewards.config import RewardsConfig
from rewards.expert import ExpertResult, Failure, GroupResults, InvalidScore, SamplesLost
from rewards.replica import Answer
from rewards.serving import app_name

_FIRST_PAUSE_S = 0.25  # doubles with every try
_LOOK_S = 60.0


async def ask(
    name: str, call: Callable[[], Awaitable[Answer]], *, retries: int, timeout_s: float
) -> ExpertResult:
    """One expert's result. A failure or a timeout is tried again, `retries` times, after a short pause
    that doubles; then the result is a Failure. Raises SamplesLost, which is no failure of the
    expert."""
    started = time.monotonic()
    not_a_score = False
    for number in range(1 + retries):
        if number:
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (number - 1))
        try:
            answer = await asyncio.wait_for(call(), timeout_s)
        except (RayError, RayServeException) as error:  # first: Ray's may be TimeoutErrors as well
            if isinstance(_cause(error), SamplesLost):
                raise _cause(error) from error
            reason, not_a_score = in_one_line(error), isinstance(_cause(error), InvalidScore)
        except TimeoutError:
            reason, not_a_score = f"no answer within {timeout_s:g} s", False
        else:
            took = time.monotonic() - started
            return ExpertResult(answer.scores, took, number, answer.pass_threshold)
    failure = Failure(name, 1 + retries, reason, not_a_score)
    return ExpertResult(failure, time.monotonic() - started, retries)


def _cause(error: Exception) -> Exception:
    return getattr(error, "cause", None) or error


class ExpertClient:
    """All experts of a configuration that run on this cluster. Their handles are looked up at the first
    call."""

    def __init__(self, config: RewardsConfig, prefix: str = ""):
        """`prefix` of an expert's name in the name of its application."""
        self._config = config
        self._prefix = prefix
        self._handles: dict[str, DeploymentHandle] = {}

    async def score_samples(
        self, sample_refs: list[ObjectRef], group: Group
    ) -> dict[str, ExpertResult]:
        """All experts' results for the list of a group's samples behind a reference. Raises
        SamplesLost."""
        return await self._ask(list(self._config.experts), "score_samples", sample_refs, group)

    async def score_images(
        self, image_refs: list[ObjectRef], prompts: list[Prompt], experts: Sequence[str]
    ) -> dict[str, ExpertResult]:
        """Some experts' results for the list of images behind a reference."""
        return await self._ask(experts, "score_images", image_refs, prompts)

    async def applies(self, prompts: list[Prompt], experts: Sequence[str]) -> dict[str, list[bool]]:
        """Which prompts some experts apply to. Raises Ray's error, or TimeoutError, if one fails."""
        calls = [
            asyncio.wait_for(self._call(name, "applies", prompts), self._config.timeout_of(name))
            for name in experts
        ]
        return dict(zip(experts, await asyncio.gather(*calls), strict=True))

    async def _ask(self, experts: Sequence[str], method: str, *arguments) -> dict[str, ExpertResult]:
        calls = [
            ask(
                name,
                partial(self._call, name, method, *arguments),
                retries=self._config.retries_of(name),
                timeout_s=self._config.timeout_of(name),
            )
            for name in experts
        ]
        return dict(zip(experts, await asyncio.gather(*calls), strict=True))

    async def _call(self, name: str, method: str, *arguments) -> Any:
        if name not in self._handles:  # finding it blocks
            handle = await asyncio.to_thread(serve.get_app_handle, app_name(self._prefix + name))
            self._handles[name] = handle
        return await getattr(self._handles[name], method).remote(*arguments)


class RewardWorker:
    """Collects all experts' results on groups of samples, any number of groups at once. A plain class
    with async methods: make it a Ray actor where it is to be placed. Samples do not pass through it."""

    def __init__(self, config: RewardsConfig):
        self._client = ExpertClient(config)

    async def score_group(self, sample_refs: list[ObjectRef], group: Group) -> GroupResults:
        """Score the samples of a group. `sample_refs` is a list of one reference to a list of them, so
        that the reference itself travels on to the experts.

        An expert's failure is a result too. Raises SamplesLost.
        """
        results = await self._client.score_samples(sample_refs, group)
        return GroupResults(tuple(request.sample_id for request in group), results)

    async def score_groups(self, sample_refs: list[ObjectRef], work: Work) -> list[GroupResults | None]:
        """Score all groups of a request, each as soon as its samples are there: one reference a group.
        None for a group whose samples are lost."""

        async def score_one(ref: ObjectRef, group: Group) -> GroupResults | None:
            try:
                return await self.score_group([ref], group)
            except SamplesLost:
                return None

        groups = [group for batch in work for group in batch]
        group_of = dict(zip(sample_refs, groups, strict=True))
        tasks: dict[ObjectRef, asyncio.Task] = {}
        async for ref in arrivals(sample_refs):
            tasks[ref] = asyncio.create_task(score_one(ref, group_of[ref]))
        return await asyncio.gather(*(tasks[ref] for ref in sample_refs))


async def arrivals(refs: Sequence[ObjectRef]) -> AsyncIterator[ObjectRef]:
    """Yields each reference as soon as its object is anywhere in the cluster, or lost. Nothing is
    fetched."""
    coming = list(refs)
    while coming:
        some, coming = await asyncio.to_thread(ray.wait, coming, timeout=_LOOK_S, fetch_local=False)
        if some and coming:
            more, coming = ray.wait(coming, num_returns=len(coming), timeout=0, fetch_local=False)
            some += more
        for ref in some:
            yield ref
