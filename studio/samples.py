"""The samples that a run keeps, as rows: an evaluation's with every expert's score, explanation and
boxes; training's with the reward."""

import os
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from policy.errors import UserError
from policy.jsonl import read_object

FILES = {"eval": "evaluation.json", "step": "samples.json"}
LONGEST_FILE = 64 * 2**20  # bytes
_KEPT = 4  # files in memory
_MOST_BOXES = 200

Row = dict[str, Any]


def sample_folders(run: Path) -> list[tuple[int, str]]:
    """(step, folder's name) of all that are written whole; newest first, and of one step the evaluation
    first."""
    found = []
    try:
        with os.scandir(run / "samples") as entries:
            for entry in entries:
                match = re.fullmatch(r"(eval|step)_([0-9]{1,18})", entry.name)
                if match and (Path(entry.path) / FILES[match[1]]).is_file():
                    found.append((int(match[2]), entry.name))
    except OSError:  # no samples yet
        return []
    return sorted(found, key=lambda one: (-one[0], one[1]))


class SampleFiles:
    """Reads files of samples, and keeps the last few until they change."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[tuple[int, int, int], list[Row]]] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, folder: Path) -> list[Row]:
        """Raises UserError for a folder without such a file, or one that cannot be read."""
        path = folder / FILES["step" if folder.name.startswith("step_") else "eval"]
        try:
            there = path.stat()
        except OSError:
            raise UserError(f"{path}: no such samples") from None
        if there.st_size > LONGEST_FILE:
            raise UserError(f"{path}: more than {LONGEST_FILE // 2**20} MiB of samples")
        version = (there.st_mtime_ns, there.st_size, there.st_ino)
        with self._lock:
            if path not in self._kept or self._kept[path][0] != version:
                self._kept[path] = version, _read(path)
            self._kept.move_to_end(path)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[path][1]


def chosen(rows: list[Row], expert: str, order: str, task: str) -> list[Row]:
    """In their own order, or by the score of an expert (or the reward), `best` or `worst` first."""
    some = [row for row in rows if not task or row["task"] == task]
    if order not in ("best", "worst"):
        return some
    if expert:
        some = [row for row in some if expert in row["scores"]]
    by = (lambda row: row["scores"][expert]) if expert else (lambda row: row["reward"])
    return sorted(some, key=by, reverse=order == "best")


def _read(path: Path) -> list[Row]:
    scored = read_object(path).get("scored")
    if not isinstance(scored, list):
        raise UserError(f"{path}: not a file of samples")
    rows = [_row(row, number) for number, row in enumerate(scored) if isinstance(row, dict)]
    return [row for row in rows if row]


def _row(row: dict[str, Any], number: int) -> Row:
    """What a page shows of a row, with the types that the page relies on; empty if it is no such
    row."""
    prompt, image, reward = row.get("prompt"), row.get("image"), row.get("reward")
    if not isinstance(prompt, dict) or type(image) is not str or type(reward) not in (int, float):
        return {}
    return {
        "number": number,
        "image": Path(image).name,
        "prompt": str(prompt.get("prompt", "")),
        "prompt_id": str(prompt.get("id", "")),
        "task": str(prompt.get("task_type", "")),
        "cot": str(row.get("cot") or ""),
        "reward": reward,
        "passed": row.get("passed") is True,
        "index": row.get("index"),
        "seed": row.get("seed"),
        "scores": {k: v for k, v in _mapping(row, "scores").items() if type(v) in (int, float)},
        "explanation": {k: str(v) for k, v in _mapping(row, "explanation").items()},
        "boxes": {k: _boxes(v) for k, v in _mapping(row, "boxes").items()},
    }


def _mapping(row: dict[str, Any], key: str) -> dict[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _boxes(found: Any) -> list[dict[str, Any]]:
    """The boxes; `xyxy` as fractions of the image's width and height."""
    boxes = []
    for box in (found if isinstance(found, list) else [])[:_MOST_BOXES]:
        corners = box.get("xyxy") if isinstance(box, dict) else None
        if isinstance(corners, list) and [type(c) in (int, float) for c in corners] == [True] * 4:
            boxes.append({"label": str(box.get("label", "")), "xyxy": corners})
    return boxes
