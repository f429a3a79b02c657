"""DPG-Bench: 1065 long prompts, each with yes/no questions that depend on each other. arXiv 2403.05135;
TencentQQGYLab/ELLA at 3c228f1, `dpg_bench/compute_dpg_bench.py`.

Four images of a prompt, one 2 x 2 picture, are tiles that are judged by themselves. An answer is 1 if
it is "yes", else 0, and 0 as well if a question that it depends on has a 0. A tile's score is the mean
over questions, an item's the mean over its tiles, and the overall score 100 x the mean over items.

The published judge is mPLUG-large, which is asked question by question. Here a vision-language model is
asked all questions of a prompt at once, in another wording, so scores are comparable between models
that are judged alike, and not with the published tables; hence the judge's name, "vqa_by_vlm".

The published rules have faults, which are corrected by default:

- The first row of the table is skipped: its item lacks that question, or fails if another depends on
  it. By default it is read.
- A question is zeroed in the order of the table: a parent that is zeroed later leaves a child before
  it. By default the order does not matter: what depends on a 0, over any number of steps, is 0.
- Rows of an item that are not adjacent: only the last block of them is asked. By default all are.
- A missing parent: the item fails and is left out. By default that parent zeroes nothing, and a note
  says so.
- Categories (L1, L2) are of the last tile alone, before zeroing. By default they are of all tiles,
  after it, as the score is.
- An item that fails or is missing is left out without a message. Here a result names its tiles.

A proposition id that is twice in an item is a question asked once, the later one, under both rules. A
dependency that is no list of numbers ends the published run; here the table is refused when it is read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Summary, mean
from evaluation.data import data_file
from evaluation.judges.defaults import VLM
from evaluation.tables import read_csv
from policy.errors import UserError

JUDGE = "vqa_by_vlm"
_ANSWER = re.compile(r"(\d{1,4})\s*[.:)]\s*\**(yes|no)\b", re.IGNORECASE)


_NOT_A_VALUE = frozenset(
    [
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
        "",
    ]
)
"""Cells that pandas, with which the published script reads the table, takes for missing."""


@dataclass(frozen=True)
class Question:
    """A row of the table."""

    id: int
    """The id of its proposition, within its item."""
    parents: tuple[int, ...]
    """Propositions that it depends on."""
    category: str
    """L2, such as "attribute - color"."""
    text: str
    row: int
    """Its number in the table, from 0."""


def answered(questions: Sequence[Question], answers: Sequence[str]) -> dict[int, float]:
    """Proposition -> 1.0 or 0.0, before zeroing: only exactly "yes" is 1. A duplicate id has the later
    answer."""
    pairs = zip(questions, answers, strict=True)
    return {question.id: float(answer == "yes") for question, answer in pairs}


def zeroed(questions: Sequence[Question], scores: Mapping[int, float]) -> dict[int, float]:
    """Scores once every question that depends on a 0, over any number of steps, is 0. The order of the
    questions does not matter, and a missing parent is ignored."""
    by_id = {question.id: question for question in questions}
    zeros = {key for key, score in scores.items() if score == 0}
    while True:
        more = {key for key, q in by_id.items() if key not in zeros and zeros & set(q.parents)}
        if not more:
            return {key: 0.0 if key in zeros else score for key, score in scores.items()}
        zeros |= more


def zeroed_in_order(questions: Sequence[Question], scores: Mapping[int, float]) -> dict[int, float]:
    """As published: one pass in the order of the table. Raises KeyError for a missing parent."""
    by_id = {question.id: question for question in questions}
    after = dict(scores)
    for key, question in by_id.items():
        if any(after[parent] == 0 for parent in question.parents):
            after[key] = 0.0
    return after


def published_questions(rows: Iterable[tuple[str, Question]]) -> dict[str, list[Question]]:
    """Which questions the published script asks of each item, from the rows of the table."""
    runs = groupby((pair for pair in rows if pair[1].row > 0), key=lambda pair: pair[0])
    return {item: [question for _, question in run] for item, run in runs}


class DpgBench(Benchmark):
    name = data_name = "dpg"
    title = "DPG-Bench"
    images_per_prompt = 4
    tiles = True
    unit = "%"
    judges: ClassVar[Mapping[str, Mapping[str, Any]]] = {JUDGE: VLM}

    def read_items(self) -> Iterable[Item]:
        path = data_file(self.data, "dpg_bench.csv", self.data_name)
        rows: list[tuple[str, Question]] = []
        texts: dict[str, str] = {}
        for number, (line, row) in enumerate(read_csv(path)):
            where = f"{path}:{line}"
            question = read_question(row, number, where)
            if not row.get("item_id") or not row.get("text"):
                raise UserError(f"{where}: a question has no item_id or no text")
            rows.append((row["item_id"], question))
            texts.setdefault(row["item_id"], row["text"])
        asked = published_questions(rows)
        for key, text in texts.items():
            questions = [question for item, question in rows if item == key]
            facts = {
                "questions": [asdict(question) for question in questions],
                "published_rows": [question.row for question in asked.get(key, [])],
            }
            yield Item(key, text, "all", facts)

    def files(self, item: Item) -> Sequence[str]:
        return (f"{item.key}.png",)

    def asks(self, item: Item) -> Mapping[str, Ask]:
        texts = [question.text for question in questions_of(item)]
        return {
            JUDGE: {
                "text": asked_at_once(texts),
                "image_first": True,
                "image": "png",
                "read": "dpg",
                "points": len(texts),
                "tries": 3,
                "parameters": {"temperature": 0.0, "max_tokens": 500 + 8 * len(texts)},
            }
        }

    def image_score(self, judged: Judged) -> float | None:
        scores = tile_scores(judged)
        return None if scores is None else mean(scores.values())

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        items: dict[str, list[Judged]] = {}
        for tile in judged:
            items.setdefault(tile.item.key, []).append(tile)
        tiles = [sorted(found, key=lambda tile: tile.index) for found in items.values()]
        return published_summary(tiles) if published_rules else mended_summary(tiles)


def questions_of(item: Item) -> list[Question]:
    """All questions of an item, in the order of the table."""
    return [Question(**{**row, "parents": tuple(row["parents"])}) for row in item.facts["questions"]]


def tile_scores(judged: Judged) -> dict[int, float] | None:
    """A tile's scores by proposition, after zeroing. None: it is not judged."""
    if (reply := judged.replies.get(JUDGE)) is None:
        return None
    questions = questions_of(judged.item)
    return zeroed(questions, answered(questions, reply["answers"]))


def mended_summary(items: Sequence[Sequence[Judged]]) -> Summary:
    """The default rules' summary of each item's tiles."""
    means, categories = [], []
    for tiles in items:
        by_tile = [(tile, tile_scores(tile)) for tile in tiles]
        scored = [(tile, scores) for tile, scores in by_tile if scores is not None]
        if scored:
            values = [sum(scores.values()) / len(scores) for _, scores in scored]
            means.append(sum(values) / len(values))
        for tile, scores in scored:
            names = {question.id: question.category for question in questions_of(tile.item)}
            categories += [(names[key], score) for key, score in scores.items()]
    notes = []
    if lost := sum(_parents_missing(tiles[0].item) for tiles in items):
        notes.append(f"questions that depend on one that is not there, which zeroes nothing: {lost}")
    return _summary(means, categories, notes)


def published_summary(items: Sequence[Sequence[Judged]]) -> Summary:
    """The published rules' summary of each item's tiles, in the order of the pictures' names."""
    means, categories, failed = [], [], []
    for tiles in sorted(items, key=lambda tiles: f"{tiles[0].item.key}.png"):
        if not all(tile.present for tile in tiles):
            continue  # no picture, so nothing fails
        try:
            scores, last = _published_item(tiles)
        except KeyError:
            failed.append(tiles[0].item.key)
            continue
        means.append(sum(scores) / len(scores))
        names = {question.id: question.category for question in questions_of(tiles[-1].item)}
        categories += [(names[key], score) for key, score in last.items()]
    notes = [f"left out, as published: {', '.join(failed)}"] if failed else []
    return _summary(means, categories, notes)


def _published_item(tiles: Sequence[Judged]) -> tuple[list[float], dict[int, float]]:
    """The scores of an item's tiles, and its last tile's answers before zeroing. Raises KeyError where
    the published script fails, and for a tile without answers."""
    wanted = set(tiles[0].item.facts["published_rows"])
    every = questions_of(tiles[0].item)
    questions = [question for question in every if question.row in wanted]
    if not questions:
        raise KeyError(tiles[0].item.key)
    means = []
    for tile in tiles:
        given = zip(every, tile.replies[JUDGE]["answers"], strict=True)
        before = answered(questions, [answer for question, answer in given if question.row in wanted])
        after = zeroed_in_order(questions, before)
        means.append(sum(after.values()) / len(after))
    return means, before


def _summary(
    means: Sequence[float], categories: Sequence[tuple[str, float]], notes: Sequence[str]
) -> Summary:
    """The summary in percent: the mean over items, and over the answers of each category, L1 then
    L2."""
    coarse: dict[str, list[float]] = {}
    fine: dict[str, list[float]] = {}
    for name, score in categories:
        coarse.setdefault(name.split("-")[0].strip(), []).append(score)
        fine.setdefault(name, []).append(score)
    # numpy's mean, as published: it rounds differently from a sum.
    tasks = {name: float(np.mean(coarse[name])) * 100 for name in sorted(coarse)}
    further = {f"L2 {name}": float(np.mean(fine[name])) * 100 for name in sorted(fine)}
    overall = float(np.mean(means)) * 100 if means else None
    return Summary(overall, dict(tasks), dict(further), tuple(notes))


def read_question(row: Mapping[str, str], number: int, where: str) -> Question:
    """A row of the table. Raises UserError, with what the published script makes of it."""
    cells = {name: row.get(name, "") for name in ("tuple", "question_natural_language")}
    if empty := [name for name, cell in cells.items() if not cell.strip()]:
        raise UserError(f"{where}: {empty[0]}: is empty")
    if row.get("dependency", "") in _NOT_A_VALUE:
        raise UserError(
            f"{where}: dependency: is empty, where the published script ends with an AttributeError:"
            " 0 stands for none"
        )
    try:
        key = int(row.get("proposition_id", ""))
        parents = [int(part.strip()) for part in row["dependency"].split(",")]
    except ValueError as error:
        raise UserError(
            f"{where}: proposition_id or dependency: these must be numbers, with commas between them;"
            f" the published script ends with a ValueError: {error}"
        ) from None
    category = row["tuple"].split("(")[0].strip()
    text = row["question_natural_language"]
    return Question(key, tuple(parent for parent in parents if parent != 0), category, text, number)


def _parents_missing(item: Item) -> int:
    questions = questions_of(item)
    known = {question.id for question in questions}
    return sum(not known.issuperset(question.parents) for question in questions)


def asked_at_once(questions: Sequence[str]) -> str:
    """The judge's question, in our own wording."""
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(questions, 1))
    return (
        f"Look at the image and answer these questions about it, {len(questions)} of them, each by"
        " itself and by what can be seen.\n\n"
        f"{listed}\n\n"
        'Answer with one line for each question and nothing else: its number, a full stop, and "yes" or'
        ' "no", such as\n1. yes'
    )


def read_reply(text: str, points: int) -> dict[str, list[str]] | None:
    """{"answers": ["yes" or "no", ...]}, from lines numbered 1, 2, ... `points` in order. None: another
    number of lines, another order, or a line that says neither."""
    answers = [match for line in _lines(text) if (match := _ANSWER.match(line))]
    if [int(match[1]) for match in answers] != list(range(1, points + 1)):
        return None
    return {"answers": [match[2].lower() for match in answers]}


def _lines(text: str) -> Iterator[str]:
    """The reply's lines, without the model's thoughts before the answer and stars around words."""
    for line in text.rpartition("</think>")[2].split("\n"):
        yield line.strip().lstrip("*-").strip()
