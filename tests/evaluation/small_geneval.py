"""GenEval with six prompts of our own, in its published form: one of each task."""

import hashlib
import json
from pathlib import Path

from evaluation.data import RELEASES, PublishedFile, Release
from evaluation.geneval import GenEval

NAMES = [f"thing {n}" for n in range(79)] + ["toothbrush"]
ROWS = [
    {
        "tag": "single_object",
        "include": [{"class": "thing 0", "count": 1}],
        "prompt": "a photo of a thing",
    },
    {
        "tag": "two_object",
        "include": [{"class": "thing 0", "count": 1}, {"class": "thing 1", "count": 1}],
        "prompt": "a photo of two things",
    },
    {
        "tag": "counting",
        "include": [{"class": "thing 1", "count": 2}],
        "exclude": [{"class": "thing 1", "count": 3}],
        "prompt": "a photo of two of a thing",
    },
    {
        "tag": "colors",
        "include": [{"class": "thing 2", "count": 1, "color": "red"}],
        "prompt": "a photo of a red thing",
    },
    {
        "tag": "position",
        "include": [
            {"class": "thing 0", "count": 1},
            {"class": "thing 1", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a thing left of a thing",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "thing 0", "count": 1, "color": "red"},
            {"class": "thing 1", "count": 1, "color": "blue"},
        ],
        "prompt": "a photo of a red thing and a blue thing",
    },
]
FILES = {
    "evaluation_metadata.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "object_names.txt": "\n".join(NAMES) + "\n",
}

RELEASES["small_geneval"] = Release(
    "somebody/geneval",
    "0" * 40,
    "MIT",
    tuple(
        PublishedFile(name, len(text), hashlib.sha256(text.encode()).hexdigest())
        for name, text in FILES.items()
    ),
)


class SmallGenEval(GenEval):
    name = "tests.evaluation.small_geneval:SmallGenEval"
    data_name = "small_geneval"


def write_data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
