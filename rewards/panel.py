"""Asking all experts at once, patiently, and the actor that does so for a training run."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from ray import ObjectRef, serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from policy.records import Prompt, Sample
from rewards.asking import NotAScore
from rewards.config import RewardsConfig
from rewards.opinions import Failure, Opinion, Opinions
from rewards.replica import Answer
from rewards.serving import app_name

_FIRST_PAUSE_S = 0.25  # doubles with every try


async def ask(
    name: str, call: Callable[[], Awaitable[Answer]], *, retries: int, timeout_s: float
) -> Opinion:
    """What one expert answers. A failure or a timeout is tried again, `retries` times, after a short
    pause that doubles; then the opinion is a Failure."""
    started = time.monotonic()
    not_a_score = False
    for number in range(1 + retries):
        if number:
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (number - 1))
        try:
            answer = await asyncio.wait_for(call(), timeout_s)
        except (RayError, RayServeException) as error:  # first: Ray's may be TimeoutErrors as well
            reason, not_a_score = _in_a_line(error), isinstance(_cause(error), NotAScore)
        except TimeoutError:
            reason, not_a_score = f"no answer within {timeout_s:g} s", False
        else:
            took = time.monotonic() - started
            return Opinion(answer.judgement, took, number, answer.pass_mark)
    failure = Failure(name, 1 + retries, reason, not_a_score)
    return Opinion(failure, time.monotonic() - started, retries)


def _cause(error: Exception) -> Exception:
    return getattr(error, "cause", None) or error


def _in_a_line(error: Exception) -> str:
    """A remote exception prints as a whole traceback, of which the last line names the fault."""
    cause = _cause(error)
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip()}" if lines else type(cause).__name__


class Panel:
    """All experts of a configuration that run on this cluster, each found when it is first asked."""

    def __init__(self, config: RewardsConfig):
        self._config = config
        self._handles: dict[str, DeploymentHandle] = {}

    async def judge_samples(
        self, sample_refs: list[ObjectRef], prompts: list[Prompt]
    ) -> dict[str, Opinion]:
        """All experts' opinions on the list of samples behind a reference."""
        return await self._ask(list(self._config.experts), "score_samples", sample_refs, prompts)

    async def judge_images(
        self, image_refs: list[ObjectRef], prompts: list[Prompt], experts: Sequence[str]
    ) -> dict[str, Opinion]:
        """Some experts' opinions on the list of images behind a reference."""
        return await self._ask(experts, "score_images", image_refs, prompts)

    async def applies(self, prompts: list[Prompt], experts: Sequence[str]) -> dict[str, list[bool]]:
        """Which prompts some experts apply to. Raises Ray's error, or TimeoutError, if one fails."""
        calls = [
            asyncio.wait_for(self._call(name, "applies", prompts), self._config.timeout_of(name))
            for name in experts
        ]
        return dict(zip(experts, await asyncio.gather(*calls), strict=True))

    async def _ask(self, experts: Sequence[str], method: str, *arguments) -> dict[str, Opinion]:
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
            handle = await asyncio.to_thread(serve.get_app_handle, app_name(name))
            self._handles[name] = handle
        return await getattr(self._handles[name], method).remote(*arguments)


class Judge:
    """Collects all experts' opinions on groups of samples, any number of groups at once. A plain class
    with one async method: make it a Ray actor where it is to be placed."""

    def __init__(self, config: RewardsConfig):
        self._panel = Panel(config)

    async def judge(self, sample_refs: list[ObjectRef], prompts: list[Prompt]) -> Opinions:
        """Judge the samples behind a reference to a list of them, wrapped in a list of one so that
        the reference itself travels on to the experts. Sample n is of prompt n.

        An expert's failure is an opinion too. Raises Ray's own error if the samples are lost.
        """
        samples: list[Sample] = await sample_refs[0]
        if [s.prompt_id for s in samples] != [p.id for p in prompts]:
            raise ValueError("the samples are not of these prompts, in this order")
        opinions = await self._panel.judge_samples(sample_refs, prompts)
        return Opinions(tuple(s.id for s in samples), opinions)
