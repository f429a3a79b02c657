"""WISE's rules for reading its judge's replies and scoring them: PKU-YuanGroup/WISE at eb51174,
`vllm_eval.py` and `calculate_verified.py` (Verified), `WISE_legacy/gpt_eval.py` and
`WISE_legacy/Calculate.py` (legacy).

The published results are files of JSON lines, a line an image. `published` scores such lines exactly as
the published script does. Its rules that surprise:

- a missing prompt: no score of any kind; but one with a bad value is present, and is in no mean;
- a duplicate id counts twice; ids outside 1..1000 are skipped;
- for one category, and one file, only that category's ids must be present, and there is no overall;
- in a reply "Score: 1.0" is 1, "Score: 0.5" is 0, and the first "Score:" counts; a legacy grade is the
  digit after the name, up to 9, and the last one of each name counts.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TASKS = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
GRADES = ("consistency", "realism", "aesthetic_quality")
"""Grades of the legacy judge, 0 to 2 each."""

_SCORE = re.compile(r"\*{0,2}score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)
_BARE_SCORE = re.compile(r"^\s*([01])\s*$", re.MULTILINE)
_GRADE = re.compile(r"\*{0,2}(consistency|realism|aesthetic quality)\*{0,2}\s*:?\s*(\d)", re.IGNORECASE)
_BARE_GRADE = re.compile(r"^\s*([0-2])\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Rules:
    """What differs between the two releases."""

    last_ids: Mapping[str, int]
    """Task -> its last prompt id. The tasks follow each other from 1."""
    weights: Mapping[str, float]
    """Task -> its share in the overall score."""
    values: tuple[str, ...]
    """Keys of a result's values."""

    def task(self, prompt_id: int) -> str | None:
        """The task of a prompt id; None: it is outside of all."""
        if prompt_id < 1:
            return None
        return next((task for task, last in self.last_ids.items() if prompt_id <= last), None)

    def categories(self) -> dict[str, range]:
        """The prompt ids of each published file, and of all."""
        last = self.last_ids
        return {
            "culture": range(1, last["CULTURE"] + 1),
            "space-time": range(last["CULTURE"] + 1, last["SPACE"] + 1),
            "science": range(last["SPACE"] + 1, last["CHEMISTRY"] + 1),
            "all": range(1, last["CHEMISTRY"] + 1),
        }

    def score(self, result: Mapping[str, Any]) -> float | None:
        """The score of one image, 0 to 1. None: a value is missing or not a number; true counts as
        1."""
        values: list[Any] = [result.get(name) for name in self.values]
        if not all(isinstance(value, int | float) for value in values):
            return None
        if self.values == GRADES:
            consistency, realism, aesthetic_quality = values
            return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic_quality) / 2
        (score,) = values
        return float(score) if score in (0, 1) else None

    def is_sound(self, result: Mapping[str, Any]) -> bool:
        """Whether every value is on its scale: the published rules accept a 3 of 2."""
        if self.values == GRADES:
            return all(result.get(name) in (0, 1, 2) for name in self.values)
        return all(result.get(name) in (0, 1) for name in self.values)

    def overall(self, means: Mapping[str, float | None]) -> float | None:
        """The overall score; None unless every task has a mean."""
        total = 0.0
        for task, weight in self.weights.items():
            if (mean := means.get(task)) is None:
                return None
            total += weight * mean
        return total


VERIFIED = Rules(
    dict(zip(TASKS, (400, 520, 640, 760, 880, 1000), strict=True)),
    dict(zip(TASKS, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12), strict=True)),
    ("score",),
)
LEGACY = Rules(
    dict(zip(TASKS, (400, 567, 700, 800, 900, 1000), strict=True)),
    dict(zip(TASKS, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True)),
    GRADES,
)


@dataclass(frozen=True)
class Published:
    """What the published script prints: (mean, images) by task, in order; the overall score; and the
    ids that keep it from printing anything."""

    tasks: dict[str, tuple[float, int]]
    overall: float | None
    missing: tuple[int, ...]


def published(files: Sequence[Iterable[str]], rules: Rules, category: str = "all") -> Published:
    """The published numbers of result files, each of JSON lines."""
    scores: dict[str, list[float]] = {task: [] for task in TASKS}
    present: set[int] = set()
    any_read = False
    for lines in files:
        if (read := _of_file(lines, rules)) is None:
            continue
        found, ids = read
        any_read = True
        wanted = rules.categories()[category]
        if category != "all" and len(files) == 1 and (missing := set(wanted) - ids):
            return Published({}, None, tuple(sorted(missing)))
        present |= ids
        for task, values in found.items():
            scores[task] += values
    if not any_read:
        return Published({}, None, ())
    if category == "all" and (missing := set(rules.categories()["all"]) - present):
        return Published({}, None, tuple(sorted(missing)))
    tasks = {task: (_mean(values), len(values)) for task, values in scores.items() if values}
    overall = rules.overall({task: mean for task, (mean, _) in tasks.items()})
    return Published(tasks, overall if category == "all" else None, ())


def _of_file(lines: Iterable[str], rules: Rules) -> tuple[dict[str, list[float]], set[int]] | None:
    """Scores by task, and the ids that are present. None: a line is JSON and no object, where the
    published script gives up on the whole file."""
    scores: dict[str, list[float]] = {task: [] for task in TASKS}
    present: set[int] = set()
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict):
            return None
        prompt_id = row.get("prompt_id")
        if not isinstance(prompt_id, int):
            continue
        present.add(prompt_id)
        score, task = rules.score(row), rules.task(prompt_id)
        if score is not None and task is not None:
            scores[task].append(score)
    return scores, present


def _mean(values: Sequence[float]) -> float:
    """Summed in order, as the published figures were: `sum` of Python 3.12 rounds less."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def binary_score(text: str) -> dict[str, float]:
    """{"score": 0.0 or 1.0} in a reply to Verified's question, or nothing: after the first "Score", or
    as the only line that is a bare 0 or 1."""
    if match := _SCORE.search(text):
        return {"score": float(match[1])}
    bare = _BARE_SCORE.findall(text)
    return {"score": float(bare[0])} if len(bare) == 1 else {}


def grades(text: str) -> dict[str, float]:
    """The grades in a reply to legacy's question: after the names, the last of each; or, if no name has
    one, three or more lines that are a bare 0, 1 or 2."""
    if named := _GRADE.findall(text):
        return {name.lower().replace(" ", "_"): float(grade) for name, grade in named}
    bare = [float(grade) for grade in _BARE_GRADE.findall(text)]
    return dict(zip(GRADES, bare, strict=False)) if len(bare) >= len(GRADES) else {}


def read_verified(text: str, points: int = 0) -> dict[str, float] | None:
    """The score in a reply, without the thoughts before it, which the published judge drops too."""
    text = re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)
    return binary_score(re.sub(r"</think>\s*", "", text).strip()) or None


def read_legacy(text: str, points: int = 0) -> dict[str, float] | None:
    """All three grades, or None."""
    found = grades(text)
    return found if all(name in found for name in GRADES) else None
