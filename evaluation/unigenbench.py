"""UniGenBench++: 600 prompts, in English and in Chinese, short and long, each with test points that an
image meets or not. arXiv 2510.18701; CodeGoat24/UniGenBench at 49d0bce, `eval/src/eval_common.py`.

A vision-language model gets the prompt, its test points, what each means and what to look for, and
scores each point 0 or 1. The published judges are Gemini 2.5 Pro and the authors' own fine-tuned Qwen:
each has a table of its own. Their question is not known here, so this one has another wording: scores
are comparable between models that are judged alike, and not with the published tables.

A point's score is the share of right images; a dimension's is the share over all its points; the
overall score is the plain mean of the ten dimensions, which the authors' tables show, not the published
code.

What differs under the published rules:

- scores are rounded to 4 digits, before the overall mean too;
- a reply that holds True, False or None among its Python literals is in no mean: the published file of
  results holds it as JSON, and reads it as Python. By default True counts as 1.
- index 509 of the long English prompts is not JSON, where the published code stops with a
  JSONDecodeError. By default its image is made, not judged, and noted.
"""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Summary, mean
from evaluation.data import data_file
from evaluation.judges.defaults import VLM
from evaluation.tables import read_csv
from evaluation.unigenbench_points import CHINESE, ENGLISH, dimension, dimensions
from policy.errors import UserError
from policy.jsonl import parse_object

JUDGE = "vlm"
_BLOCK = "<{0}>(.*?)</{0}>"


def parsed(text: str | None, points: int) -> dict[str, list[Any]] | None:
    """{"analysis": [...], "score": [...]} of a reply, a list each with a value for every point. None:
    one is missing, is no Python literal, or has another length."""
    found = {}
    for name in ("analysis", "score"):
        block = re.search(_BLOCK.format(name), text or "", re.DOTALL)
        try:
            value = ast.literal_eval(block[1].strip()) if block else None
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
        if not isinstance(value, list | tuple) or len(value) != points:
            return None
        found[name] = list(value)
    return found


def read_reply(text: str, points: int) -> dict[str, list[Any]] | None:
    """`parsed`, in types of JSON: a value of another type becomes the type's name, which is never
    right."""
    found = parsed(text, points)
    return found and {name: [_plain(value) for value in values] for name, values in found.items()}


def _plain(value: object) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # half a surrogate cannot be written
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    small = isinstance(value, int | float) and abs(value) < 2**53  # false for NaN and infinity
    return value if value is None or small else type(value).__name__


def is_right(score: object) -> bool:
    """Whether a score is 1, 1.0 or True; not "1"."""
    return not isinstance(score, str) and score == 1


def tally(rows: Iterable[tuple[Sequence[str], Sequence[Any]]]) -> dict[str, tuple[int, int]]:
    """(right, total) of each test point, over (points, scores) of images. Scores beyond the points, and
    points beyond the scores, are cut."""
    counts: dict[str, tuple[int, int]] = {}
    for points, scores in rows:
        for point, score in zip(points, scores, strict=False):
            right, total = counts.get(point, (0, 0))
            counts[point] = (right + is_right(score), total + 1)
    return counts


def by_dimension(counts: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """(right, total) of each primary dimension, over all its points."""
    pooled: dict[str, tuple[int, int]] = {}
    for point, (right, total) in counts.items():
        before = pooled.get(dimension(point), (0, 0))
        pooled[dimension(point)] = (before[0] + right, before[1] + total)
    return pooled


def published_reads(reply: Mapping[str, Any]) -> bool:
    """Whether the published script reads a reply back from its file of results: it was written as JSON
    and is read as Python, where true, false, null, NaN and Infinity are no literals."""
    try:
        ast.literal_eval(json.dumps({name: reply.get(name) for name in ("analysis", "score")}))
    except (ValueError, SyntaxError):
        return False
    return True


class UniGenBench(Benchmark):
    data_name = "unigenbench"
    images_per_prompt = 4
    judges: ClassVar[Mapping[str, Mapping[str, Any]]] = {JUDGE: VLM}
    prompt_file: ClassVar[str]
    language: ClassVar[str]
    point_keys: ClassVar[tuple[str, str]] = ("Testpoints", "Testpoint Description")
    meanings: ClassVar[dict[str, str]] = ENGLISH

    def read_items(self) -> Iterable[Item]:
        path = data_file(self.data, self.prompt_file, self.data_name)
        for line, row in read_csv(path):
            where = f"{path}:{line}"
            facts = self._points(row.get(f"sub_dims_{self.language}") or "", where)
            text = row.get(f"prompt_{self.language}")
            if not text or not row.get("index"):
                raise UserError(f"{where}: a prompt has no text or no index")
            yield Item(row["index"], text, "all", facts)

    def _points(self, cell: str, where: str) -> dict[str, Any]:
        """The test points of a row; none, and `broken`, if its JSON is broken."""
        try:
            row = parse_object(cell.encode(), where)
        except UserError as error:
            return {"points": [], "looked_for": [], "broken": str(error)}
        points, looked_for = (_texts(row.get(key)) for key in self.point_keys)
        if points is None or looked_for is None or len(points) != len(looked_for):
            keys = " and ".join(self.point_keys)
            raise UserError(f"{where}: {keys}: these must be lists of texts of equal length")
        if unknown := [point for point in points if point not in self.meanings]:
            raise UserError(f"{where}: {unknown[0]!r} is no test point")
        return {"points": points, "looked_for": looked_for}

    def files(self, item: Item) -> Sequence[str]:
        return [f"{item.key}_{number}.png" for number in range(self.images_per_prompt)]

    def asks(self, item: Item) -> Mapping[str, Ask]:
        points = item.facts["points"]
        if not points:
            return {}
        return {
            JUDGE: {
                "text": question(item.text, points, item.facts["looked_for"], self.meanings),
                "image_first": True,
                "image": "jpeg",
                "read": "unigenbench",
                "points": len(points),
                "tries": 11,
                "parameters": {"max_tokens": 4096},
            }
        }

    def image_score(self, judged: Judged) -> float | None:
        """The share of its points that are right."""
        reply = judged.replies.get(JUDGE)
        return mean(float(is_right(score)) for score in reply["score"]) if reply else None

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        asked = [image for image in judged if image.item.facts["points"]]
        broken = {image.item.key: image.item for image in judged if "broken" in image.item.facts}
        if broken and published_rules:
            why = next(iter(broken.values())).facts["broken"]
            raise UserError(f"the published script stops here with a JSONDecodeError: {why}")
        notes = [f"prompt {key} has no readable test points, and is not judged" for key in broken]
        replied = [image for image in asked if JUDGE in image.replies]
        if published_rules:
            whole = [image for image in replied if published_reads(image.replies[JUDGE])]
            if len(whole) < len(replied):
                notes.append(
                    "replies that hold True, False or None, in no mean as published:"
                    f" {len(replied) - len(whole)}"
                )
            replied = whole
        return self._summary(replied, notes, digits=4 if published_rules else None)

    def _summary(self, judged: Sequence[Judged], notes: Sequence[str], digits: int | None) -> Summary:
        points = tally((image.item.facts["points"], image.replies[JUDGE]["score"]) for image in judged)
        pooled = by_dimension(points)
        tasks = {name: _share(pooled.get(name), digits) for name in dimensions(self.meanings)}
        further = {point: _share(points.get(point), digits) for point in self.meanings}
        known = [score for score in tasks.values() if score is not None]
        overall = mean(known) if len(known) == len(tasks) else None
        if overall is None:
            empty = ", ".join(name.strip() for name, score in tasks.items() if score is None)
            notes = [*notes, f"no overall: no image was judged for {empty}"]
        return Summary(overall, {name.strip(): tasks[name] for name in tasks}, further, tuple(notes))


class English(UniGenBench):
    name = "unigenbench_en"
    title = "UniGenBench++ (English, short)"
    prompt_file = "test_prompts_en.csv"
    language = "en"


class EnglishLong(English):
    name = "unigenbench_en_long"
    title = "UniGenBench++ (English, long)"
    prompt_file = "test_prompts_en_long.csv"


class Chinese(UniGenBench):
    name = "unigenbench_zh"
    title = "UniGenBench++ (Chinese, short)"
    prompt_file = "test_prompts_zh.csv"
    language = "zh"
    point_keys = ("考点", "考点对应描述")
    meanings = CHINESE


class ChineseLong(Chinese):
    name = "unigenbench_zh_long"
    title = "UniGenBench++ (Chinese, long)"
    prompt_file = "test_prompts_zh_long.csv"


def question(
    prompt: str, points: Sequence[str], looked_for: Sequence[str], meanings: Mapping[str, str]
) -> str:
    """The judge's question, in our own wording."""
    listed = "\n".join(
        f"{number}. {point}. What it means: {meanings[point]} What to look for: {words}"
        for number, (point, words) in enumerate(zip(points, looked_for, strict=True), 1)
    )
    return (
        "An image was made from a prompt. Judge for each of the test points below whether the image"
        " meets it. Go by what can be seen, be strict, and judge each point by itself.\n\n"
        f"Prompt: {json.dumps(prompt, ensure_ascii=False)}\n\n"
        f"Test points ({len(points)}):\n{listed}\n\n"
        "Answer with two Python lists, and nothing after them. Both have exactly"
        f" {len(points)} values, in the order of the test points. The first holds a short reason for"
        " each as a string; the second a 1 for a point that is met and a 0 for one that is not:\n"
        '<analysis>["...", "..."]</analysis>\n<score>[1, 0]</score>'
    )


def _texts(value: Any) -> list[str] | None:
    """The value if it is a list of texts, else None."""
    return value if isinstance(value, list) and all(isinstance(x, str) for x in value) else None


def _share(count: tuple[int, int] | None, digits: int | None) -> float | None:
    if count is None:
        return None
    share = count[0] / count[1]
    return share if digits is None else round(share, digits)
