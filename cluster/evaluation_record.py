"""What an evaluation found: the record, its numbers, and its form on disk."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from policy.errors import UserError
from policy.prompts import parse_prompt
from policy.records import Box, Prompt, Sample

RESERVED = ("reward", "strict_accuracy", "plan_accuracy", "diversity", "cot_tokens")
"""Names under `eval/` that no expert may have."""


@dataclass(frozen=True)
class Judged:
    """One sample and what the experts said of it. An expert that does not apply to the prompt is
    absent from `scores`; `plan_right` is None where nobody can tell."""

    prompt: Prompt
    sample: Sample
    reward: float
    passed: bool
    plan_right: bool | None
    scores: dict[str, float]
    evidence: dict[str, str]
    boxes: dict[str, tuple[Box, ...]] = field(default_factory=dict)
    """What an expert found where."""

    def __post_init__(self):
        for name, value in {"reward": self.reward, **self.scores}.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of sample {self.sample.id} is {value}, not a number")


@dataclass(frozen=True)
class Evaluation:
    """The judged samples of one evaluation, drawn with one version of the weights after `step`."""

    step: int
    weights_version: int
    judged: tuple[Judged, ...]

    def __post_init__(self):
        if not self.judged:
            raise UserError(f"the evaluation of step {self.step} holds no sample")
        if taken := set(self.experts) & set(RESERVED):
            raise UserError(f"an expert may not be named '{min(taken)}': `eval/{min(taken)}` is taken")

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert that judged something, in order of appearance."""
        return tuple(dict.fromkeys(name for j in self.judged for name in j.scores))

    def by_prompt(self) -> dict[str, list[Judged]]:
        """Prompt id -> its samples, in order of appearance."""
        groups = defaultdict(list)
        for j in self.judged:
            groups[j.prompt.id].append(j)
        return dict(groups)

    def metrics(self) -> dict[str, float]:
        """The means, as `eval/...`. A key that nothing can be said on is absent, never 0: the plan
        accuracy where no plan could be checked, the diversity where no prompt has two samples."""
        found = {
            "reward": _mean(j.reward for j in self.judged),
            "strict_accuracy": _mean(j.passed for j in self.judged),
            "cot_tokens": _mean(len(j.sample.cot_ids) for j in self.judged),
        }
        if plans := [j.plan_right for j in self.judged if j.plan_right is not None]:
            found["plan_accuracy"] = _mean(plans)
        if groups := [g for g in self.by_prompt().values() if len(g) > 1]:
            found["diversity"] = _mean(diversity([j.sample.image for j in g]) for g in groups)
        for expert in self.experts:
            found[expert] = _mean(j.scores[expert] for j in self.judged if expert in j.scores)
        return {f"eval/{name}": value for name, value in found.items()}


def diversity(images: list[np.ndarray]) -> float:
    """Mean over all pairs of the root mean square distance of their pixels, scaled to 0..1."""
    scaled = [image.astype(np.float32) / 255 for image in images]
    return _mean(float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(scaled, 2))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


# --- on disk -------------------------------------------------------------------------------------


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write every image and, as the last thing, `evaluation.json`: a folder without it is one whose
    writer did not finish. An earlier evaluation is replaced; no other file is touched."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").unlink(missing_ok=True)
    rows = []
    for number, judged in enumerate(evaluation.judged):
        name = f"{number:04d}.png"
        Image.fromarray(judged.sample.image).save(folder / name)
        rows.append({"image": name, **_row(judged)})
    whole = {
        "step": evaluation.step,
        "weights_version": evaluation.weights_version,
        "metrics": evaluation.metrics(),
        "judged": rows,
    }
    unfinished = folder / "evaluation.json.tmp"
    unfinished.write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(unfinished, folder / "evaluation.json")


def load_evaluation(folder: Path) -> Evaluation:
    """Read back what `save_evaluation` wrote. Prompts, plans, CoT ids, images and all judgements
    return as they were; image tokens and log-probabilities are not kept, their arrays are empty."""
    path = folder / "evaluation.json"
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        judged = tuple(_judged(row, folder) for row in whole["judged"])
        return Evaluation(whole["step"], whole["weights_version"], judged)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable evaluation: {error!r}") from error


def _row(judged: Judged) -> dict[str, Any]:
    prompt = asdict(judged.prompt)
    sample = judged.sample
    return {
        "prompt": {"id": prompt.pop("id"), "prompt": prompt.pop("text"), **prompt},
        "plan": sample.cot_text,
        "reward": float(judged.reward),
        "passed": bool(judged.passed),
        "plan_right": None if judged.plan_right is None else bool(judged.plan_right),
        "scores": {name: float(score) for name, score in judged.scores.items()},
        "evidence": dict(judged.evidence),
        "boxes": {name: [asdict(box) for box in found] for name, found in judged.boxes.items()},
        "index": int(sample.index),
        "seed": int(sample.seed),
        "weights_version": int(sample.weights_version),
        "finish_reason": sample.finish_reason,
        "cot_ids": [int(token) for token in sample.cot_ids],
    }


def _judged(row: dict[str, Any], folder: Path) -> Judged:
    prompt = parse_prompt(row["prompt"])
    with Image.open(folder / row["image"]) as picture:
        image = np.array(picture)
    no_ids, no_logps = np.zeros(0, np.int64), np.zeros(0, np.float32)
    sample = Sample(
        prompt_id=prompt.id,
        index=row["index"],
        seed=row["seed"],
        weights_version=row["weights_version"],
        cot_prompt_ids=no_ids,
        cot_ids=np.array(row["cot_ids"], np.int64),
        cot_text=row["plan"],
        image_prompt_ids=no_ids,
        image_ids=no_ids,
        cot_logps=no_logps,
        image_logps=no_logps,
        image_guided_logps=no_logps,
        image=image,
        finish_reason=row["finish_reason"],
    )
    verdict = {name: row[name] for name in ("reward", "passed", "plan_right", "scores", "evidence")}
    boxes = {
        name: tuple(Box(b["label"], b["score"], tuple(b["xyxy"])) for b in found)
        for name, found in row.get("boxes", {}).items()
    }
    return Judged(prompt, sample, **verdict, boxes=boxes)
