"""The shapes world as a benchmark: its held-out prompts, judged by its own experts. It needs no other
model, so it shows on a laptop how a benchmark runs.

A score is the share of images that every expert accepts, by kind of prompt; overall the mean of kinds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Reply, Summary, mean
from evaluation.judges.base import Judge
from examples.shapes.experts import CountExpert, ObjectsExpert, RelationExpert
from policy.prompts import parse_prompt, prompt_row, read_prompts

_FOLDER = Path(__file__).parent
_PROMPTS = _FOLDER / "prompts" / "heldout.jsonl"


class Eyes(Judge):
    """Judges with all experts of the world that apply to a prompt. Asked {"prompt": a row of a prompt
    file}, it replies {"scores": by expert, "passed": whether each is accepted}."""

    def __init__(self):
        self._experts = {
            "objects": ObjectsExpert(),
            "count": CountExpert(),
            "relation": RelationExpert(),
        }

    def identity(self) -> dict[str, str]:
        return {"model": "shapes", "revision": "2"}

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        return [self._reply(image, ask) for image, ask in zip(images, asks, strict=True)]

    def _reply(self, image: np.ndarray, ask: Ask) -> Reply:
        prompt = parse_prompt(ask["prompt"])
        scores = {
            name: (float(expert.score([image], [prompt]).values[0]), expert.pass_threshold)
            for name, expert in self._experts.items()
            if expert.applies(prompt)
        }
        return {
            "scores": {name: score for name, (score, _) in scores.items()},
            "passed": all(score >= enough for score, enough in scores.values()),
        }


class Shapes(Benchmark):
    name = "shapes"
    title = "shapes"
    data_name = "shapes"
    images_per_prompt = 4
    judges = {"eyes": {"use": "examples.shapes.benchmark:Eyes", "num_cpus": 0.1}}
    defaults = {
        "policy": {"templates": str(_FOLDER / "templates")},
        "actors": {
            "num_cpus": 0.3,
            "batch_size": 72,
            "sampling": {"guidance": 1.5, "max_cot_tokens": 32},
        },
    }

    def read_items(self) -> Iterable[Item]:
        for number, prompt in enumerate(read_prompts(_PROMPTS)):
            yield Item(f"{number:03d}", prompt.text, prompt.task_type, prompt_row(prompt))

    def source(self) -> dict[str, str]:
        return {"file": _PROMPTS.name, "hash": hashlib.sha256(_PROMPTS.read_bytes()).hexdigest()}

    def files(self, item: Item) -> Sequence[str]:
        return [f"{item.key}_{n}.png" for n in range(self.images_per_prompt)]

    def asks(self, item: Item) -> Mapping[str, Ask]:
        return {"eyes": {"prompt": dict(item.facts)}}

    def image_score(self, judged: Judged) -> float | None:
        reply = judged.replies.get("eyes")
        return None if reply is None else float(reply["passed"])

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        replies = [(one.item.task, one.replies["eyes"]) for one in judged if "eyes" in one.replies]
        tasks = {
            task: mean(float(reply["passed"]) for kind, reply in replies if kind == task)
            for task in dict.fromkeys(one.item.task for one in judged)
        }
        known = [value for value in tasks.values() if value is not None]
        rewards = mean(fmean(reply["scores"].values()) for _, reply in replies)
        return Summary(mean(known), tasks, {"mean score of the experts": rewards})
