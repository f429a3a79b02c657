"""GenEval (arXiv 2310.11513; djghosh13/geneval): 553 prompts on which objects are there, how many, of
which color and where; four images a prompt, and an image is right or wrong.

The task scores are means over images, the overall score is the plain mean of the six. The published
script prints two more numbers, which are here as well: the share of all images that are right, and of
prompts with any right image.

The default and the published rules differ where images are missing. The published script never sees
these: its six tasks are then the ones that have an image, in the order of its files. By default a task
without any judged image has no score, and there is no overall score without all six; a result names the
images that were left out.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Reply, Summary
from evaluation.data import data_file
from evaluation.geneval_rules import MOST, Detected, Verdict, decide, threshold
from policy.errors import UserError
from policy.jsonl import read_rows, read_text

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
JUDGE = "objects"


class GenEval(Benchmark):
    """Prompts of `evaluation_metadata.jsonl`; `object_names.txt` has the detector's classes in its own
    order."""

    name = "geneval"
    title = "GenEval"
    data_name = "geneval"
    images_per_prompt = 4
    judges: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        JUDGE: {"use": "evaluation.judges.geneval:ObjectsAndColors"}
    }

    def read_items(self) -> Iterable[Item]:
        names = read_text(data_file(self.data, "object_names.txt", self.data_name)).splitlines()
        self._labels = {name.strip(): label for label, name in enumerate(names)}
        file = data_file(self.data, "evaluation_metadata.jsonl", self.data_name)
        for number, row in read_rows(file):
            facts = {kind: row.get(kind, []) for kind in ("include", "exclude")}
            for clause in (*facts["include"], *facts["exclude"]):
                if clause["class"] not in self._labels:
                    raise UserError(f"{file}:{number}: no object is called {clause['class']!r}")
            yield Item(f"{number - 1:05}", row["prompt"], row["tag"], facts)

    def files(self, item: Item) -> Sequence[str]:
        return [f"{item.key}/samples/{n:04}.png" for n in range(self.images_per_prompt)]

    def side_files(self, item: Item) -> Mapping[str, str]:
        exclude = {"exclude": item.facts["exclude"]} if item.facts["exclude"] else {}
        row = {"tag": item.task, "include": item.facts["include"], **exclude, "prompt": item.text}
        return {f"{item.key}/metadata.jsonl": json.dumps(row)}

    def asks(self, item: Item) -> Mapping[str, Ask]:
        clauses = [*item.facts["include"], *item.facts["exclude"]]
        classes = dict.fromkeys(clause["class"] for clause in clauses)
        colored = dict.fromkeys(clause["class"] for clause in clauses if "color" in clause)
        ask = {
            "classes": {name: self._labels[name] for name in classes},
            "colors_of": list(colored),
            "threshold": threshold(item.task),
            "most": MOST,
        }
        return {JUDGE: ask}

    def image_score(self, judged: Judged) -> float | None:
        verdict = verdict_on(judged)
        return None if verdict is None else float(verdict.correct)

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        verdicts = [(image, verdict_on(image)) for image in judged]
        rows = [(i.item.key, i.item.task, v.correct) for i, v in verdicts if v is not None]
        scores = summary(rows)
        if published_rules:
            return scores
        tasks = {task: scores.tasks.get(task) for task in TASKS}
        return Summary(
            None if None in tasks.values() else scores.overall,
            tasks,
            scores.further,
            _notes(judged, tasks, len(rows)),
        )


def verdict_on(judged: Judged) -> Verdict | None:
    """Whether an image is right. None: it is missing, or has no reply that decides it."""
    reply = judged.replies.get(JUDGE)
    detections = None if reply is None or not judged.present else _detections(reply)
    return None if detections is None else decide(judged.item.task, judged.item.facts, detections)


def _detections(reply: Reply) -> list[Detected] | None:
    """A reply's detections; None for one that is not of the judge's form."""
    try:
        found = [
            Detected(name, (float(x0), float(y0), float(x1), float(y1)), float(score), color)
            for name, (x0, y0, x1, y1), score, color in reply["detections"]
        ]
    except (KeyError, TypeError, ValueError):
        return None
    finite = all(math.isfinite(number) for d in found for number in (*d.box, d.score))
    return found if finite else None


def summary(rows: Sequence[tuple[str, str, bool]]) -> Summary:
    """The published numbers of rows (prompt, task, right or wrong), one an image; tasks in the order in
    which they appear."""
    by_task: dict[str, list[bool]] = defaultdict(list)
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for prompt, task, correct in rows:
        by_task[task].append(correct)
        by_prompt[prompt].append(correct)
    tasks = {task: _mean(of_task) for task, of_task in by_task.items()}
    further = {
        "images": _mean([correct for _, _, correct in rows]),
        "prompts": _mean([any(of_prompt) for of_prompt in by_prompt.values()]),
    }
    return Summary(_mean(list(tasks.values())), dict(tasks), further)


def _mean(values: Sequence[float | None]) -> float | None:
    # NumPy's sum, as published: from Python 3.12 on, Python's own rounds differently.
    return float(np.mean(np.array(values, np.float64))) if values else None


def _notes(
    judged: Sequence[Judged], tasks: Mapping[str, float | None], counted: int
) -> tuple[str, ...]:
    notes = []
    replies = [image.replies[JUDGE] for image in judged if image.present and JUDGE in image.replies]
    if unread := len(replies) - counted:
        notes.append(f"{unread} of {len(judged)} images have a reply that says no objects, in no mean")
    if empty := [task for task, score in tasks.items() if score is None]:
        notes.append(f"no overall score: no image is judged in {', '.join(empty)}")
    if counted and not any(reply.get("detections") for reply in replies):
        notes.append(
            "the judge found no object in any image: show it a photograph first, for a detector that"
            " does not work finds nothing either"
        )
    if any(_by_other_weights(reply) for reply in replies):
        notes.append(
            "the detector's weights are not the published judge's (mmdet's): near published scores, not"
            " equal to them"
        )
    return tuple(notes)


def _by_other_weights(reply: Reply) -> bool:
    """Whether this project's judge reports that its detector is not the published one; other judges
    report nothing."""
    by = reply.get("by")
    return isinstance(by, Mapping) and by.get("weights", "mmdet") != "mmdet"
