"""Evaluation: held-out prompts drawn with fixed seeds, judged by the run's own experts."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.config import EvaluateConfig
from cluster.evaluation_record import Evaluation, Judged
from cluster.experience import Experience
from policy.errors import UserError
from policy.records import Group, Prompt, Sample, Scores
from policy.weights import PublishedWeights

PlanJudge = Callable[[Prompt, str], bool]


def mentions_every_noun(prompt: Prompt, cot: str) -> bool:
    """Whether the plan names everything that the prompt does: the least one can ask of any plan."""
    return all(noun.lower() in cot.lower() for noun in prompt.nouns)


def load_plan_judge(name: str) -> PlanJudge:
    """The function that `package.module:function` names, or UserError."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"evaluate.plan_judge: {name!r} cannot be loaded: {error}") from None
    return found


@dataclass(frozen=True)
class Evaluator:
    """What to draw and how to tell a right plan; made once, asked at every evaluation."""

    prompts: Sequence[Prompt]
    samples_per_prompt: int
    plan_is_right: PlanJudge

    @classmethod
    def of(cls, config: EvaluateConfig, prompts: Sequence[Prompt]) -> "Evaluator":
        return cls(prompts, config.samples_per_prompt, load_plan_judge(config.plan_judge))

    def __call__(
        self, experience: Experience, weights: PublishedWeights | None, step: int
    ) -> tuple[Evaluation, list[str]]:
        """The evaluation, and what was left out because an expert failed, with reasons: prompts, or the
        expert itself."""
        groups = [Group(prompt, self.samples_per_prompt) for prompt in self.prompts]
        harvest = experience.collect(experience.order(groups, weights), learn=False)
        drawn = experience.samples(harvest, harvest.groups)
        judged = tuple(
            self._judged(group.prompt, sample, group.scores, row)
            for group, samples in zip(harvest.groups, drawn, strict=True)
            for row, sample in enumerate(samples)
        )
        version = weights.version if weights else 0
        return Evaluation(step, version, judged), [
            *harvest.failures,
            *map(str, harvest.left_out.values()),
        ]

    def _judged(self, prompt: Prompt, sample: Sample, scores: Scores, row: int) -> Judged:
        values = dict(zip(scores.experts, scores.values[row].tolist(), strict=True))
        applied = {name: value for name, value in values.items() if not np.isnan(value)}
        evidence = (
            dict(zip(scores.experts, scores.evidence[row], strict=True)) if scores.evidence else {}
        )
        boxes = dict(zip(scores.experts, scores.boxes[row], strict=True)) if scores.boxes else {}
        return Judged(
            prompt=prompt,
            sample=sample,
            reward=float(scores.rewards[row]),
            passed=bool(scores.passed[row]),
            plan_right=self.plan_is_right(prompt, sample.cot_text),
            scores=applied,
            evidence={name: line for name, line in evidence.items() if name in applied and line},
            boxes={name: found for name, found in boxes.items() if name in applied and found},
        )
