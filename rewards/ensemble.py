"""Many experts' judgements as one reward, and the actor that collects them.

Promised: a reward is the weighted mean of what the experts that apply really said. An expert that
fails is asked again, and then its group of samples has no reward at all: never a made-up one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ray import ObjectRef, serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from policy.records import Prompt, Sample, Scores
from rewards.config import RewardsConfig
from rewards.expert import Judgement
from rewards.serving import app_name

_FIRST_PAUSE_S = 0.25  # doubles with every try


def combine(
    sample_ids: Sequence[str],
    judgements: Mapping[str, Judgement],
    weights: Mapping[str, float],
    pass_marks: Mapping[str, float],
) -> Scores:
    """Rewards: the weighted mean over the experts that apply and weigh more than 0.

    A sample has passed if each of those experts gave it its pass mark or more. Raises ValueError
    for a sample that no such expert applies to, or if an expert judged another number of samples.
    """
    names = tuple(judgements)
    for name, judgement in judgements.items():
        if len(judgement.values) != len(sample_ids):
            few = f"{len(judgement.values)} of {len(sample_ids)}"
            raise ValueError(f"expert {name} judged {few} samples")
    values = np.stack([judgements[name].values for name in names], axis=1).astype(np.float32)
    weight = np.array([weights[name] for name in names])
    mark = np.array([pass_marks[name] for name in names], np.float32)

    counts = ~np.isnan(values) & (weight > 0)  # bool [N, E]
    if not (some := counts.any(1)).all():
        bad = sample_ids[int(some.argmin())]
        raise ValueError(f"sample {bad}: no expert with a weight above 0 applies")
    share = np.where(counts, weight, 0.0)
    share /= share.max(1, keepdims=True)
    rewards = (share * np.where(counts, values, 0.0)).sum(1) / share.sum(1)
    passed = np.where(counts, values >= mark, True).all(1)
    lines = [judgements[name].evidence or ("",) * len(sample_ids) for name in names]
    return Scores(
        sample_ids=tuple(sample_ids),
        experts=names,
        values=values,
        rewards=rewards.astype(np.float32),
        passed=passed,
        evidence=tuple(zip(*lines, strict=True)),
    )


class ExpertFailed(Exception):
    """An expert gave no answer after all tries; `reason` is the last failure, in words."""

    def __init__(self, expert: str, tries: int, reason: str):
        super().__init__(expert, tries, reason)
        self.expert = expert
        self.tries = tries
        self.reason = reason

    def __str__(self) -> str:
        return f"expert {self.expert} failed {self.tries} times, at last with: {self.reason}"


async def ask(name: str, call: Callable[[], Awaitable[Any]], config: RewardsConfig) -> Any:
    """What one expert answers. A failure or a timeout is tried again, `config.retries` times,
    after a short pause that doubles; then ExpertFailed."""
    tries = 1 + config.retries
    for number in range(tries):
        if number:
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (number - 1))
        try:
            return await asyncio.wait_for(call(), config.timeout_s)
        except (RayError, RayServeException) as error:  # first: Ray's may be TimeoutErrors as well
            reason = _in_a_line(error)
        except TimeoutError:
            reason = f"no answer within {config.timeout_s} s"
    raise ExpertFailed(name, tries, reason)


def _in_a_line(error: Exception) -> str:
    """A remote exception prints as a whole traceback, of which the last line names the fault."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1].strip()}" if lines else type(cause).__name__


class Judge:
    """Asks all experts about a group at once. A plain class with one async method: make it a Ray
    actor where it is to be placed. The experts must be running when it is built."""

    def __init__(self, config: RewardsConfig):
        self._config = config
        self._handles = {name: serve.get_app_handle(app_name(name)) for name in config.experts}
        self._weights = {name: entry.weight for name, entry in config.experts.items()}
        self._pass_marks: dict[str, float] | None = None

    async def score(self, sample_refs: list[ObjectRef], prompts: list[Prompt]) -> Scores:
        """Score the samples behind a reference to a list of them, wrapped in a list of one so that
        the reference itself travels on to the experts. Sample n is of prompt n.

        Raises ExpertFailed if an expert gives no answer; Ray's own error if the samples are lost.
        """
        samples: list[Sample] = await sample_refs[0]
        if [s.prompt_id for s in samples] != [p.id for p in prompts]:
            raise ValueError("the samples are not of these prompts, in this order")
        if self._pass_marks is None:
            self._pass_marks = await self._ask_all("pass_mark")
        judgements = await self._ask_all("score_samples", sample_refs, prompts)
        return combine([s.id for s in samples], judgements, self._weights, self._pass_marks)

    async def _ask_all(self, method: str, *arguments) -> dict:
        """Every expert's answer, or the first failure."""
        calls = [
            ask(name, lambda handle=handle: getattr(handle, method).remote(*arguments), self._config)
            for name, handle in self._handles.items()
        ]
        return dict(zip(self._handles, await asyncio.gather(*calls), strict=True))
