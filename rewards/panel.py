"""Asking all experts at once, patiently, and the actor that does so for a training run."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from ray import ObjectRef, serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from policy.records import Prompt, Sample
from rewards.asking import NotAScore
from rewards.config import RewardsConfig
from rewards.opinions import Failure, Opinion, Opinions
from rewards.serving import Answer, app_name

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
    """All experts of a configuration that run on this cluster."""

    def __init__(self, config: RewardsConfig):
        self._config = config
        self._handles = {name: serve.get_app_handle(app_name(name)) for name in config.experts}

    async def judge_samples(
        self, sample_refs: list[ObjectRef], prompts: list[Prompt]
    ) -> dict[str, Opinion]:
        """Opinions on the list of samples behind a reference, by expert."""
        return await self._ask(list(self._handles), "score_samples", sample_refs, prompts)

    async def judge_images(
        self, image_refs: list[ObjectRef], prompts: list[Prompt], experts: Sequence[str]
    ) -> dict[str, Opinion]:
        """Opinions of some experts on the list of images behind a reference."""
        return await self._ask(experts, "score_images", image_refs, prompts)

    async def _ask(self, experts: Sequence[str], method: str, *arguments) -> dict[str, Opinion]:
        calls = [
            ask(
                name,
                lambda handle=self._handles[name]: getattr(handle, method).remote(*arguments),
                retries=self._config.retries_of(name),
                timeout_s=self._config.timeout_of(name),
            )
            for name in experts
        ]
        return dict(zip(experts, await asyncio.gather(*calls), strict=True))


class Judge:
    """Collects all experts' opinions on groups of samples, any number of groups at once. A plain class
    with one async method: make it a Ray actor where it is to be placed. The experts must be running
    when it is built."""

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
