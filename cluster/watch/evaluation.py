"""Evaluation: held-out prompts generated with fixed seeds and scored by the run's own experts.

`Evaluation` is the record of the scored samples, with its numbers and its form on disk.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cluster.config import EvaluateConfig
from cluster.files import by_step
from policy.errors import UserError
from policy.imports import load_named
from policy.jsonl import parse_object, read_bytes
from policy.paths import write_whole
from policy.prompts import parse_prompt
from policy.records import Box, Group, Prompt, PublishedWeights, Sample, Scores

if TYPE_CHECKING:
    from cluster.pending import ScoredGroup
    from cluster.rollouts import RolloutManager

RESERVED = ("reward", "strict_accuracy", "cot_accuracy", "diversity", "cot_tokens")
"""Names under `eval/` that no expert may have."""


@dataclass(frozen=True)
class ScoredSample:
    """One sample and its scores. An expert that does not apply to the prompt is absent from `scores`;
    `cot_right` is None where it cannot be checked."""

    prompt: Prompt
    sample: Sample
    reward: float
    passed: bool
    cot_right: bool | None
    scores: dict[str, float]
    explanation: dict[str, str]
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    """Expert -> the boxes that it found."""

    def __post_init__(self):
        for name, value in {"reward": self.reward, **self.scores}.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of sample {self.sample.id} is {value}, not a number")


@dataclass(frozen=True)
class Evaluation:
    """The scored samples of one evaluation, generated with one version of the weights after `step`."""

    step: int
    weights_version: int
    scored: tuple[ScoredSample, ...]

    def __post_init__(self):
        if not self.scored:
            raise UserError(f"the evaluation of step {self.step} holds no sample")
        if taken := set(self.experts) & set(RESERVED):
            raise UserError(f"an expert may not be named '{min(taken)}': `eval/{min(taken)}` is taken")

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert that scored something, in order of appearance."""
        return tuple(dict.fromkeys(name for j in self.scored for name in j.scores))

    @property
    def task_types(self) -> tuple[str, ...]:
        """The task types of its prompts, in alphabetical order."""
        return tuple(sorted({j.prompt.task_type for j in self.scored}))

    def by_prompt(self) -> dict[str, list[ScoredSample]]:
        """Prompt id -> its samples, in order of appearance."""
        groups = defaultdict(list)
        for j in self.scored:
            groups[j.prompt.id].append(j)
        return dict(groups)

    def metrics(self) -> dict[str, float]:
        """The means, as `eval/...`. An unknown value is absent, never 0: the CoT accuracy where no plan
        could be checked, the diversity where no prompt has two samples."""
        means = {
            name: _mean(value for values in found.values() for value in values)
            for name, found in self.values.items()
        }
        return {f"eval/{name}": value for name, value in means.items()}

    @cached_property
    def values(self) -> dict[str, dict[str, list[float]]]:
        """The values behind the means: name -> prompt id -> the values of its samples; of the
        diversity, one a prompt."""
        groups = self.by_prompt()
        found: dict[str, dict[str, list[float]]] = defaultdict(dict)
        for id, group in groups.items():
            found["reward"][id] = [j.reward for j in group]
            found["strict_accuracy"][id] = [float(j.passed) for j in group]
            found["cot_tokens"][id] = [float(len(j.sample.cot_ids)) for j in group]
        for id, group in groups.items():
            if right := [float(j.cot_right) for j in group if j.cot_right is not None]:
                found["cot_accuracy"][id] = right
        for id, group in groups.items():
            if len(group) > 1:
                found["diversity"][id] = [diversity([j.sample.image for j in group])]
        for expert in self.experts:
            for id, group in groups.items():
                if scores := [j.scores[expert] for j in group if expert in j.scores]:
                    found[expert][id] = scores
        for task_type in self.task_types:
            of_type = [id for id, group in groups.items() if group[0].prompt.task_type == task_type]
            found[f"reward/task/{task_type}"] = {id: found["reward"][id] for id in of_type}
        return dict(found)


def diversity(images: list[np.ndarray]) -> float:
    """Mean over all pairs of the root mean square distance of their pixels, scaled to 0..1."""
    scaled = [image.astype(np.float32) / 255 for image in images]
    return _mean(float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(scaled, 2))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# --- on disk -------------------------------------------------------------------------------------


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write every image and, as the last thing, `evaluation.json`: a folder without it is not complete.
    An earlier evaluation is replaced; no other file is touched."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").unlink(missing_ok=True)
    rows = save_images(evaluation.scored, folder)
    whole = {
        "step": evaluation.step,
        "weights_version": evaluation.weights_version,
        "metrics": evaluation.metrics(),
        "scored": rows,
    }
    write_whole(folder / "evaluation.json", json.dumps(whole, indent=1, ensure_ascii=False))


def save_images(scored: Sequence[ScoredSample], folder: Path) -> list[dict[str, Any]]:
    """Write every image, and return a row of JSON for each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, one in enumerate(scored):
        name = f"{number:04d}.png"
        Image.fromarray(one.sample.image).save(folder / name)
        rows.append({"image": name, **_row(one)})
    return rows


def saved_evaluations(run: Path) -> list[Path]:
    """The folders of a run directory's evaluations, first to last."""
    found = by_step(run / "samples", "eval")
    return [folder for _, folder in found if (folder / "evaluation.json").exists()]


def load_evaluation(folder: Path) -> Evaluation:
    """Read back what `save_evaluation` wrote. Prompts, CoTs with their ids, images and all scores
    return as they were; image tokens and log-probabilities are not kept, their arrays are empty.

    Raises UserError, naming the file, for an invalid evaluation."""
    path = folder / "evaluation.json"
    whole = parse_object(read_bytes(path), f"{path}: not a readable evaluation")
    try:
        scored = tuple(_read_scored(row, folder) for row in whole["scored"])
        found = Evaluation(whole["step"], whole["weights_version"], scored)
        found.metrics()  # checks that values are numbers, and images of one size
    except (OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not a readable evaluation: {error!r}") from error
    return found


def _row(scored: ScoredSample) -> dict[str, Any]:
    prompt = asdict(scored.prompt)
    sample = scored.sample
    return {
        "prompt": {"id": prompt.pop("id"), "prompt": prompt.pop("text"), **prompt},
        "cot": sample.cot_text,
        "reward": float(scored.reward),
        "passed": bool(scored.passed),
        "cot_right": None if scored.cot_right is None else bool(scored.cot_right),
        "scores": {name: float(score) for name, score in scored.scores.items()},
        "explanation": dict(scored.explanation),
        "boxes": {name: [asdict(box) for box in found] for name, found in scored.boxes.items()},
        "index": int(sample.index),
        "seed": int(sample.seed),
        "weights_version": int(sample.weights_version),
        "finish_reason": sample.finish_reason,
        "cot_ids": [int(token) for token in sample.cot_ids],
    }


def _read_scored(row: dict[str, Any], folder: Path) -> ScoredSample:
    prompt = parse_prompt(row["prompt"])
    with Image.open(folder / Path(row["image"]).name) as picture:
        image = np.array(picture.convert("RGB"))
    no_ids, no_logps = np.zeros(0, np.int64), np.zeros(0, np.float32)
    sample = Sample(
        prompt_id=prompt.id,
        index=row["index"],
        seed=row["seed"],
        weights_version=row["weights_version"],
        cot_prompt_ids=no_ids,
        cot_ids=np.array(row["cot_ids"], np.int64),
        cot_text=row["cot"],
        image_prompt_ids=no_ids,
        image_ids=no_ids,
        cot_logps=no_logps,
        image_logps=no_logps,
        image_guided_logps=no_logps,
        image=image,
        finish_reason=row["finish_reason"],
    )
    verdict = {name: row[name] for name in ("reward", "passed", "cot_right", "scores", "explanation")}
    boxes = {
        name: tuple(Box(b["label"], b["score"], tuple(b["xyxy"])) for b in found)
        for name, found in row.get("boxes", {}).items()
    }
    return ScoredSample(prompt, sample, **verdict, boxes=boxes)


CotChecker = Callable[[Prompt, str], bool]


def mentions_every_noun(prompt: Prompt, cot: str) -> bool:
    """Whether the CoT names everything that the prompt does: the minimum for any CoT."""
    return all(noun.lower() in cot.lower() for noun in prompt.nouns)


def load_cot_checker(name: str) -> CotChecker:
    """The function that `package.module:function` names, or UserError."""
    return load_named(name, "evaluate.cot_checker")


class NothingScored(UserError):
    """No sample of an evaluation was scored."""


@dataclass(frozen=True)
class Evaluator:
    """Runs evaluations: the prompts to generate, and the CoT checker. Made once and called at every
    evaluation."""

    prompts: Sequence[Prompt]
    samples_per_prompt: int
    cot_is_right: CotChecker

    @classmethod
    def of(cls, config: EvaluateConfig, prompts: Sequence[Prompt]) -> "Evaluator":
        return cls(prompts, config.samples_per_prompt, load_cot_checker(config.cot_checker))

    def __call__(
        self, rollouts: "RolloutManager", weights: PublishedWeights | None, step: int
    ) -> tuple[Evaluation, list[str]]:
        """The evaluation, and messages on the prompts or experts that were left out because an expert
        failed. Raises NothingScored if no sample is left."""
        groups = [Group(prompt, self.samples_per_prompt) for prompt in self.prompts]
        rollout = rollouts.collect(rollouts.request(groups, weights), learn=False)
        failures = [*rollout.failures, *map(str, rollout.left_out.values())]
        if not rollout.groups:
            raise NothingScored(f"no held-out prompt was scored at step {step}: {failures[0]}")
        generated = rollouts.samples(rollout.pending, [group.index for group in rollout.groups])
        scored = tuple(self.scored_samples(rollout.groups, generated))
        version = weights.version if weights else 0
        return Evaluation(step, version, scored), failures

    def scored_samples(
        self, groups: Sequence["ScoredGroup"], generated: Sequence[Sequence[Sample]]
    ) -> list[ScoredSample]:
        """The scored samples of groups, from their generated samples."""
        return [
            self._scored(group.prompt, sample, group.scores, row)
            for group, samples in zip(groups, generated, strict=True)
            for row, sample in enumerate(samples)
        ]

    def _scored(self, prompt: Prompt, sample: Sample, scores: Scores, row: int) -> ScoredSample:
        values = dict(zip(scores.experts, scores.values[row].tolist(), strict=True))
        applied = {name: value for name, value in values.items() if not np.isnan(value)}
        explanation = (
            dict(zip(scores.experts, scores.explanation[row], strict=True))
            if scores.explanation
            else {}
        )
        boxes = dict(zip(scores.experts, scores.boxes[row], strict=True)) if scores.boxes else {}
        return ScoredSample(
            prompt=prompt,
            sample=sample,
            reward=float(scores.rewards[row]),
            passed=bool(scores.passed[row]),
            cot_right=self.cot_is_right(prompt, sample.cot_text),
            scores=applied,
            explanation={name: line for name, line in explanation.items() if name in applied and line},
            boxes={name: found for name, found in boxes.items() if name in applied and found},
        )
