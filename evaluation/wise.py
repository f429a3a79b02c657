"""WISE: prompts that need knowledge of culture, time, space, biology, physics or chemistry. arXiv
2503.07265.

Two releases, which are not comparable: other prompts, another judge, another score. Verified (2026):
one score of 0 or 1 an image; legacy: grades of 0 to 2 for consistency, realism and aesthetic quality.
Each image is judged by a vision-language model that gets the prompt and its explanation. The published
judges are Qwen3.5-35B-A3B for Verified and gpt-4o-2024-05-13 for legacy.

The judge's question is a literal in the published source, which has no licence: it is parsed from the
file that `bicot fetch` downloads, and that file is never run.

By default an image that is missing or not judged, or whose value is off its scale, is in no mean, and
a result says so; the overall score needs an image of every task. With the published rules one prompt
that has no result leaves no score at all (`evaluation.wise_rules`).
"""

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Summary, mean
from evaluation.data import data_file
from evaluation.judges.defaults import VLM
from evaluation.wise_rules import LEGACY, TASKS, VERIFIED, Rules, published
from policy.errors import UserError
from policy.jsonl import parse_object, read_text

JUDGE = "vlm"
FIELDS = ("Prompt", "Explanation")
"""Keys of a prompt file's row that the published question quotes."""


@dataclass(frozen=True)
class Rubric:
    """The published question: a system message, and a text with the fields of FIELDS to fill in."""

    system: str
    parts: tuple[str | tuple[str], ...]
    """Texts, and fields as 1-tuples."""

    def ask(self, values: Mapping[str, str]) -> str:
        return "".join(part if isinstance(part, str) else values[part[0]] for part in self.parts)


class Wise(Benchmark):
    images_per_prompt = 1
    judges: ClassVar[Mapping[str, Mapping[str, Any]]] = {JUDGE: VLM}
    rules: ClassVar[Rules]
    prompt_files: ClassVar[tuple[str, ...]]
    judge_source: ClassVar[str]
    """The published file that holds the question."""
    asked: ClassVar[Mapping[str, Any]]
    """Settings of the published judge: keys of an ask."""

    def read_items(self) -> Iterable[Item]:
        source = data_file(self.data, self.judge_source, self.data_name)
        self.rubric = read_rubric(read_text(source), str(source))
        for name in self.prompt_files:
            path = data_file(self.data, name, self.data_name)
            yield from read_prompts(path, self.rules)

    def files(self, item: Item) -> Sequence[str]:
        return (f"{item.key}.png",)

    def asks(self, item: Item) -> Mapping[str, Ask]:
        values = {"Prompt": item.text, "Explanation": item.facts["explanation"]}
        return {JUDGE: {"system": self.rubric.system, "text": self.rubric.ask(values), **self.asked}}

    def image_score(self, judged: Judged) -> float | None:
        reply = judged.replies.get(JUDGE)
        return self.rules.score(reply) if reply is not None and self.rules.is_sound(reply) else None

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        return self._published(judged) if published_rules else self._mended(judged)

    def _mended(self, judged: Sequence[Judged]) -> Summary:
        scores: dict[str, list[float]] = {task: [] for task in TASKS}
        off_scale = 0
        for image in judged:
            if not image.present or JUDGE not in image.replies:
                continue
            if (score := self.image_score(image)) is None:
                off_scale += 1
            else:
                scores[image.item.task].append(score)
        means = {task: mean(values) for task, values in scores.items()}
        notes = [f"images judged off the scale, in no mean: {off_scale}"] if off_scale else []
        if empty := [task for task in TASKS if means[task] is None]:
            notes.append(f"no overall: no image of {', '.join(empty)} was judged")
        return Summary(self.rules.overall(means), means, notes=tuple(notes))

    def _published(self, judged: Sequence[Judged]) -> Summary:
        category = self._category(judged)
        lines = [self.result_line(image) for image in judged if JUDGE in image.replies]
        done = published([lines], self.rules, category)
        means = {task: done.tasks[task][0] if task in done.tasks else None for task in TASKS}
        notes = []
        if done.missing:
            some = ", ".join(map(str, done.missing[:10])) + (", ..." if len(done.missing) > 10 else "")
            notes.append(f"no scores: {len(done.missing)} prompts have no result: {some}")
        elif category != "all":
            notes.append(f"no overall: these are the prompts of {category} alone")
        return Summary(done.overall, means, notes=tuple(notes))

    def _category(self, judged: Sequence[Judged]) -> str:
        """The published file that holds all the prompts, which its script takes as an option."""
        ids = {int(image.item.key) for image in judged}
        return next((name for name, its in self.rules.categories().items() if ids <= set(its)), "all")

    def result_line(self, judged: Judged) -> str:
        """An image's line in the published file of results."""
        values = {name: judged.replies[JUDGE].get(name) for name in self.rules.values}
        subcategory = judged.item.facts.get("subcategory")
        return json.dumps({"prompt_id": int(judged.item.key), "Subcategory": subcategory, **values})


class WiseVerified(Wise):
    """`bicot bench run wise`."""

    name = data_name = "wise"
    title = "WISE Verified"
    rules = VERIFIED
    prompt_files = ("merge.json",)
    judge_source = "vllm_eval.py"
    asked: ClassVar[Mapping[str, Any]] = {
        "image_first": False,
        "image": "png",
        "read": "wise",
        "tries": 3,
        "parameters": {
            "temperature": 0.0,
            "max_tokens": 500,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    }


class WiseLegacy(Wise):
    """`bicot bench run wise_legacy`."""

    name = data_name = "wise_legacy"
    title = "WISE (legacy)"
    rules = LEGACY
    prompt_files = (
        "cultural_common_sense.json",
        "spatio-temporal_reasoning.json",
        "natural_science.json",
    )
    judge_source = "gpt_eval.py"
    asked: ClassVar[Mapping[str, Any]] = {
        "image_first": False,
        "image": "png",
        "read": "wise_legacy",
        "tries": 3,
        "parameters": {"temperature": 0.0, "max_tokens": 2000},
    }


def read_prompts(path: Path, rules: Rules) -> Iterable[Item]:
    """The prompts of a file, a JSON list of objects. Raises UserError naming the row."""
    # Wrapped into an object, the list gets the checks of `policy.jsonl`.
    rows = parse_object(b'{"rows":' + read_text(path).encode() + b"}", str(path))["rows"]
    if not isinstance(rows, list):
        raise UserError(f"{path}: this must be a JSON list of prompts")
    for number, row in enumerate(rows, 1):
        where = f"{path}: prompt {number}"
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
            raise UserError(f"{where}: this must be an object with the texts Prompt and Explanation")
        prompt_id = row.get("prompt_id")
        if type(prompt_id) is not int or (task := rules.task(prompt_id)) is None:
            raise UserError(f"{where}: prompt_id: this must be a number from 1 to 1000")
        facts = {"explanation": row["Explanation"], "subcategory": row.get("Subcategory")}
        yield Item(str(prompt_id), row["Prompt"], task, facts)


def read_rubric(source: str, where: str) -> Rubric:
    """The question in the published source of a judge, which is parsed and never run: the one text with
    fields in it that names both of FIELDS, and the one text that a message of the role "system" holds.

    Raises UserError for a source without exactly one of each.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{where}:{error.lineno}: not Python: {error.msg}") from None
    asked = [parts for node in ast.walk(tree) if (parts := _filled_in(node)) is not None]
    systems = [text for node in ast.walk(tree) for text in _system_texts(node)]
    if len(asked) != 1 or len(systems) != 1:
        raise UserError(f"{where}: the judge's question is not there as one text with a system message")
    return Rubric(systems[0], asked[0])


def _filled_in(node: ast.AST) -> tuple[str | tuple[str], ...] | None:
    """The parts of an f-string that quotes each of FIELDS by subscript, and nothing else."""
    if not isinstance(node, ast.JoinedStr):
        return None
    parts: list[str | tuple[str]] = []
    for value in node.values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            parts.append(value.value)
            continue
        inner = value.value if isinstance(value, ast.FormattedValue) else None
        if not isinstance(inner, ast.Subscript) or not isinstance(inner.slice, ast.Constant):
            return None
        parts.append((str(inner.slice.value),))
    fields = sorted(part[0] for part in parts if isinstance(part, tuple))
    return tuple(parts) if fields == sorted(FIELDS) else None


def _system_texts(node: ast.AST) -> list[str]:
    """The texts in a literal {"role": "system", ...}."""
    if not isinstance(node, ast.Dict):
        return []
    entries = {
        key.value: value
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant)
    }
    role = entries.get("role")
    if not isinstance(role, ast.Constant) or role.value != "system" or "content" not in entries:
        return []
    content = entries["content"]
    if isinstance(content, ast.Constant) and isinstance(content.value, str):
        return [content.value]
    return [
        value.value
        for part in ast.walk(content)
        if isinstance(part, ast.Dict)
        for key, value in zip(part.keys, part.values, strict=True)
        if isinstance(key, ast.Constant)
        and key.value == "text"
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
    ]
