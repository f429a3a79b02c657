"""TIIF-Bench, its small set of prompts: yes/no questions whose answers are known. arXiv 2506.02161;
A113N-W3I/TIIF-Bench at 3aae750, `eval/summary_results.py`, `eval/summary_dimension_results.py` and
`eval/eval_with_vlm.py`.

277 prompts of 39 types, each short and long. A vision-language model is asked all questions of a
prompt at once; a reply counts if exactly as many of its lines begin with "yes" or "no" as there are
questions. A type's score, for each length, is the share of right answers over all its questions; a
group's the mean over its types; the overall score of a length the mean over nine groups. The score that
counts letters in `text` is not here.

The published judges are GPT-4o and Qwen2.5-VL-72B, at temperature 1, with one of three wordings drawn
at random, and asked again without end. Here one wording of our own is used, at temperature 0, so scores
are comparable between models judged alike. The published repository has no licence: `bicot fetch
tiif_mini` gets the files for your own use.

What differs under the published rules:

- A type's share is rounded to 4 digits before it enters a group, and so is every number that is
  printed. By default nothing is rounded.
- A type or a group without any answer is skipped without a message. By default the overall score needs
  all nine groups.
- There is an overall score for each length, and none for both. By default it is the mean of the two.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from evaluation.benchmark import Ask, Benchmark, Item, Judged, Summary, mean
from evaluation.data import data_file
from evaluation.judges.defaults import VLM
from evaluation.tiif_files import FILES
from policy.errors import UserError
from policy.jsonl import read_rows

JUDGE = "vlm"
LENGTHS = ("short", "long")


def _pairs(firsts: str, seconds: str) -> tuple[str, ...]:
    return tuple(f"{first}+{second}" for first in firsts.split() for second in seconds.split())


GROUPS: dict[str, tuple[str, ...]] = {
    "Basic Attribute": ("shape+color", "color+texture", "texture+color", "shape+texture"),
    "Basic Relation": ("2d_spatial_relation", "3d_spatial_relation", "action+2d", "action+3d"),
    "Basic Reasoning": ("numeracy", "negation", "differentiation", "comparison"),
    "Advanced Attribute+Relation": (
        *_pairs("action", "color texture"),
        *_pairs("color shape texture", "2d 3d"),
    ),
    "Advanced Attribute+Reasoning": _pairs(
        "numeracy comparison differentiation negation", "color texture"
    ),
    "Advanced Relation+Reasoning": _pairs("numeracy comparison differentiation negation", "2d 3d"),
    "Advanced Text Generation": ("text",),
    "Advanced Style Control": ("style",),
    "Real Complex": ("real_world",),
}
"""The nine groups whose mean is the overall score, each with its types."""
WIDER = {
    "Basic Following": tuple(
        t for name, its in GROUPS.items() if name.startswith("Basic") for t in its
    ),
    "Advanced Following": tuple(
        t for name, its in GROUPS.items() if name.startswith("Advanced") for t in its
    ),
    "Real World Following": GROUPS["Real Complex"],
}
"""Other groups that the published script prints."""

Shares = Mapping[tuple[str, str], float]
"""Right answers over questions, by (type, length)."""


def shares(
    verdicts: Iterable[tuple[str, str, Sequence[str], Sequence[str]]],
) -> dict[tuple[str, str], float]:
    """The shares of right answers, from (type, length, expected answers, given answers) of each image.
    Case and white space do not matter; extra answers are ignored."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for kind, length, expected, given in verdicts:
        count = counts[kind, length]
        for right, answer in zip(expected, given, strict=False):
            count[0] += right.strip().lower() == answer.strip().lower()
            count[1] += 1
    return {key: right / total for key, (right, total) in counts.items() if total}


def group_means(models: Sequence[Shares], kinds: Iterable[str], length: str) -> list[float | None]:
    """The mean of each model over the types that it has a share of.

    Exactly as pandas computes it, column by column for several models of one table, and pairwise for
    one: a rounded mean may lie at a tie.
    """
    there = {kind for found in models for kind, _ in found}
    columns = [kind for kind in kinds if kind in there]
    return row_means([[found.get((kind, length)) for kind in columns] for found in models])


def row_means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean of each row's values that are not None."""
    filled = np.array([[value or 0.0 for value in row] for row in rows], order="F")
    counts = [sum(value is not None for value in row) for row in rows]
    sums = filled.sum(axis=1)
    return [float(total / n) if n else None for total, n in zip(sums, counts, strict=True)]


def rounded(value: float | None) -> float | None:
    """Rounded to 4 digits as pandas does it, and so the published script."""
    return None if value is None else float(np.round(value, 4))


def as_written(found: Shares) -> dict[tuple[str, str], float]:
    """Shares as the published workbook holds them, in 4 digits."""
    return {key: float(f"{share:.4f}") for key, share in found.items()}


class TiifMini(Benchmark):
    name = data_name = "tiif_mini"
    title = "TIIF-Bench (mini)"
    images_per_prompt = 1
    judges: ClassVar[Mapping[str, Mapping[str, Any]]] = {JUDGE: VLM}

    def read_items(self) -> Iterable[Item]:
        groups = {kind: name for name, kinds in GROUPS.items() for kind in kinds}
        for kind in FILES:
            prompts = data_file(self.data, f"{kind}_prompts.jsonl", self.data_name)
            questions = data_file(self.data, f"{kind}_eval_prompts.jsonl", self.data_name)
            rows = list(read_rows(prompts)), list(read_rows(questions))
            if len(rows[0]) != len(rows[1]):
                raise UserError(f"{questions}: not as many rows as {prompts}")
            for number, ((line, prompt), (_, asked)) in enumerate(zip(*rows, strict=True)):
                for length in LENGTHS:
                    text = prompt.get(f"{length}_description")
                    if not isinstance(text, str):
                        raise UserError(f"{prompts}:{line}: {length}_description: this must be a text")
                    facts = {
                        "type": kind,
                        "length": length,
                        "row": number,
                        **_questions(asked, f"{questions}:{line}"),
                    }
                    yield Item(f"{kind}-{length}-{number}", text, f"{groups[kind]}, {length}", facts)

    def files(self, item: Item) -> Sequence[str]:
        facts = item.facts
        return (f"{facts['type']}/bicot/{facts['length']}_description/{facts['row']}.png",)

    def asks(self, item: Item) -> Mapping[str, Ask]:
        questions = item.facts["questions"]
        return {
            JUDGE: {
                "text": asked_at_once(questions),
                "image_first": False,
                "image": "png",
                "read": "tiif",
                "points": len(questions),
                "tries": 5,
                "parameters": {"temperature": 0.0, "max_tokens": 2000},
            }
        }

    def image_score(self, judged: Judged) -> float | None:
        return (
            next(iter(shares([_verdict(judged)]).values()), None) if JUDGE in judged.replies else None
        )

    def summarise(self, judged: Sequence[Judged], *, published_rules: bool = False) -> Summary:
        found = shares(_verdict(image) for image in judged if JUDGE in image.replies)
        every = found
        if published_rules:
            found = as_written(found)
        groups = {
            f"{name}, {length}": group_means([found], kinds, length)[0]
            for name, kinds in GROUPS.items()
            for length in LENGTHS
        }
        overalls = {length: _overall(groups, length, published_rules) for length in LENGTHS}
        further = {
            f"{name}, {length}": group_means([found], kinds, length)[0]
            for name, kinds in WIDER.items()
            for length in LENGTHS
        }
        further |= {f"Overall, {length}": overall for length, overall in overalls.items()}
        further["Mean accuracy"] = mean(every.values())
        notes = []
        if published_rules:
            notes.append("there is no published overall of both lengths: see Overall, short and long")
            return Summary(
                None,
                {name: rounded(score) for name, score in groups.items()},
                {name: rounded(score) for name, score in further.items()},
                tuple(notes),
            )
        if empty := [name for name, score in groups.items() if score is None]:
            notes.append(f"no overall where no image was judged: {'; '.join(empty)}")
        known = [score for score in overalls.values() if score is not None]
        return Summary(mean(known) if len(known) == 2 else None, groups, further, tuple(notes))


def _overall(groups: Mapping[str, float | None], length: str, published_rules: bool) -> float | None:
    """The mean over the nine groups; by the published rules over those that are there."""
    scores = [groups[f"{name}, {length}"] for name in GROUPS]
    known = [score for score in scores if score is not None]
    if not known or (len(known) < len(scores) and not published_rules):
        return None
    return row_means([scores])[0]


def _verdict(judged: Judged) -> tuple[str, str, Sequence[str], Sequence[str]]:
    facts = judged.item.facts
    return facts["type"], facts["length"], facts["expected"], judged.replies[JUDGE]["answers"]


def _questions(row: Mapping[str, Any], where: str) -> dict[str, list[str]]:
    questions, expected = row.get("yn_question_list"), row.get("yn_answer_list")
    for value in (questions, expected):
        if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
            raise UserError(
                f"{where}: yn_question_list and yn_answer_list: these must be lists of texts"
            )
    assert questions is not None and expected is not None
    if len(questions) != len(expected) or not {x.strip().lower() for x in expected} <= {"yes", "no"}:
        raise UserError(f'{where}: yn_answer_list: this must have a "yes" or "no" for each question')
    return {"questions": [question.strip() for question in questions], "expected": expected}


def asked_at_once(questions: Sequence[str]) -> str:
    """The judge's question, in our own wording."""
    listed = "\n".join(questions)
    return (
        f"Look at the image and answer these questions about it, {len(questions)} of them, each by"
        " itself and by what can be seen.\n\n"
        f"{listed}\n\n"
        'Answer with one line for each question, in their order and without numbers: "yes" or "no",'
        " then the reason. Write nothing else."
    )


def read_reply(text: str, points: int) -> dict[str, list[str]] | None:
    """{"answers": ["yes" or "no", ...]}: the first words of those lines that begin with one of them,
    which must be as many as there are questions, `points`. None if they are not."""
    lines = (line.strip() for line in text.split("\n"))
    begins = (re.match(r"(yes|no)\b", line, re.IGNORECASE) for line in lines)
    answers = [begin[1].lower() for begin in begins if begin]
    return {"answers": answers} if len(answers) == points else None
