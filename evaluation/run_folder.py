"""The folder of one benchmark run: what it is a run of, its images, and every judge's reply.

    bench.json      benchmark, prompts, generator, judges: a folder holds one of each
    images/         in the benchmark's published layout
    images.jsonl    a line for each image: its hash, and the semantic CoT
    replies.jsonl   a line for each reply
    result.json     the scores (evaluation/result.py)

Lines are added when the thing itself is there, so a run that was killed goes on where it stopped.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException

from evaluation.benchmark import Benchmark, Item, Reply
from evaluation.data import write_whole
from evaluation.generators import Drawn, as_png
from evaluation.judges.base import UNUSABLE
from policy.errors import UserError
from policy.jsonl import parse_object, read_object
from rewards.images import read_images

_MAX_PIXELS = 8192 * 8192
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_INCIDENTAL = {"device", "batch_size", "url", "api_key_env", "timeout_s", "retries", "concurrent"}
"""Options of a judge that do not change what it says."""


@dataclass
class Journal:
    """A file of JSON lines that is only added to. A last line without an end is one whose writer was
    killed: it is cut off."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            self.rows.append(parse_object(line, f"{self.path}:{number}"))

    def add(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode("utf-8", "replace"))
        self.rows.append(row)


def identity(
    benchmark: Benchmark,
    generator: Mapping[str, Any],
    seed: int,
    judges: Mapping[str, Any],
    images: Path | None,
) -> dict[str, Any]:
    """What a folder is a run of. `judges`: name -> {use, options}; `images`: where they lie, if not in
    it."""
    named = {
        name: {
            "use": entry["use"],
            "options": {k: v for k, v in entry["options"].items() if k not in _INCIDENTAL},
        }
        for name, entry in judges.items()
    }
    return {
        "benchmark": benchmark.name,
        "prompts": benchmark.source(),
        "generator": dict(generator),
        "seed": seed,
        "images": None if images is None else str(images.absolute()),
        "judges": named,
    }


class RunFolder:
    """A run's folder, new or begun. `images`: where images lie, if not in it."""

    def __init__(self, folder: Path, benchmark: Benchmark, images: Path | None = None):
        self.folder = folder
        self.benchmark = benchmark
        self.foreign = images is not None
        self.images = images if images is not None else folder / "images"

    def open(self, what: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Begin, or go on; `asked` says which of the prompts, and may be another each time. Raises
        UserError, with nothing written, if the folder is a run of something else, or holds files that
        are no run's."""
        path = self.folder / "bench.json"
        what = json.loads(json.dumps(what))
        if path.exists():
            there = read_object(path)
            there.pop("asked", None)
            if differing := _difference(there, what):
                raise UserError(
                    f"{self.folder}: there is another run in it ({differing}): choose another --out"
                )
        else:
            taken = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
            taken = [name for name in taken if not name.startswith(".")]
            if taken and not (self.foreign and self.images == self.folder):
                raise UserError(
                    f"{self.folder}: holds {sorted(taken)[0]} and is no run of a benchmark: name a new"
                    " or an empty folder with --out; `bicot bench score` scores images that lie there"
                )
        text = json.dumps({**what, "asked": asked}, indent=1, ensure_ascii=False) + "\n"
        write_whole(path, text.encode())
        self.what = what
        self._read_journals()

    def look(self) -> None:
        """Open a run to read it only. Raises UserError if there is none."""
        self.what = read_object(self.folder / "bench.json")
        self._read_journals()

    def _read_journals(self) -> None:
        self._drawn = Journal(self.folder / "images.jsonl")
        self._replies = Journal(self.folder / "replies.jsonl")
        self._by_image = {(row["item"], row["index"]): row for row in self._drawn.rows}
        self._by_ask = {(row["item"], row["index"], row["judge"]): row for row in self._replies.rows}
        self._asked: dict[str, Mapping[str, str]] = {}
        self.by: dict[str, dict[str, str]] = {}
        for row in self._replies.rows:
            self._check_by(row["judge"], row["by"])

    # --- images ---

    def write(self, item: Item, drawn: Sequence[Drawn | str]) -> None:
        """Keep the images of an item. Of a 2 x 2 picture all four, or none."""
        paths = self.benchmark.files(item)
        for path, text in self.benchmark.side_files(item).items():
            write_whole(self.images / path, text.encode())
        if self.benchmark.tiles:
            refused = next((one for one in drawn if isinstance(one, str)), None)
            whole = [one for one in drawn if isinstance(one, Drawn)]
            cots = [one.cot for one in whole if one.cot is not None]
            together = refused or Drawn(
                _two_by_two([one.image for one in whole]), "\n\n".join(cots) or None
            )
            drawn = [together]
        for index, (path, one) in enumerate(zip(paths, drawn, strict=True)):
            if isinstance(one, str):
                row = {"item": item.key, "index": index, "refused": one}
            else:
                content = as_png(one.image)
                write_whole(self.images / path, content)
                row = {
                    "item": item.key,
                    "index": index,
                    "file": path,
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "cot": one.cot,
                }
            self._drawn.add(row)
            self._by_image[item.key, index] = row

    def is_drawn(self, item: Item) -> bool:
        """Whether all of an item's images are there as they were drawn. Raises UserError for one that
        was changed since."""
        for index, path in enumerate(self.benchmark.files(item)):
            row = self._by_image.get((item.key, index))
            file = self.images / path
            if row is None or "refused" in row or not file.exists():
                return False
            if hashlib.sha256(file.read_bytes()).hexdigest() != row["sha256"]:
                raise UserError(
                    f"{file}: not the image that this run drew: put that one back, or delete this one"
                    " to have it drawn again"
                )
        return True

    def read(self, item: Item) -> list[np.ndarray | str]:
        """The images of an item, uint8 [H, W, 3] each; in place of one that cannot be had, why."""
        found: list[np.ndarray | str] = []
        for path in self.benchmark.files(item):
            found.append(self._read(self.images / path))
        if not self.benchmark.tiles:
            return found
        (whole,) = found
        count = self.benchmark.images_per_prompt
        if isinstance(whole, str):
            return [whole] * count
        height, width = whole.shape[0] // 2, whole.shape[1] // 2
        corners = [(0, 0), (0, width), (height, 0), (height, width)]
        found = [whole[y : y + height, x : x + width].copy() for y, x in corners]
        return found[:count]

    def _read(self, file: Path) -> np.ndarray | str:
        try:
            return read_images([file.read_bytes()], _MAX_PIXELS)[0]
        except FileNotFoundError:
            return "missing"
        except HTTPException as error:
            return f"unreadable: {error.detail.partition(' ')[2].partition(' ')[2]}"
        except OSError as error:
            return f"unreadable: {error.strerror}"

    def cot(self, item: Item, index: int) -> str | None:
        row = self._by_image.get((item.key, 0 if self.benchmark.tiles else index), {})
        return row.get("cot")

    def refused(self, item: Item, index: int) -> str | None:
        """Why a server would not draw an image."""
        return self._by_image.get((item.key, index), {}).get("refused")

    def strangers(self, items: Sequence[Item]) -> list[str]:
        """Image files that belong to no prompt: misnamed, or of another benchmark."""
        expected = {path for item in items for path in self.benchmark.files(item)}
        there = (p for p in self.images.rglob("*") if p.suffix.lower() in _SUFFIXES)
        names = (p.relative_to(self.images).as_posix() for p in there)
        return sorted(name for name in names if name not in expected)

    # --- replies ---

    def reply(self, item: Item, index: int, judge: str) -> Reply | None:
        """A usable one to what the judge would be asked today, with its "by"; or None."""
        row = self._row(item, index, judge)
        if row is None or UNUSABLE in row["reply"]:
            return None
        return {**row["reply"], "by": row["by"]}

    def why_unusable(self, item: Item, index: int, judge: str) -> str | None:
        row = self._row(item, index, judge)
        return None if row is None else row["reply"].get(UNUSABLE)

    def _row(self, item: Item, index: int, judge: str) -> dict[str, Any] | None:
        row = self._by_ask.get((item.key, index, judge))
        return row if row is not None and row["ask"] == self._ask(item, judge) else None

    def add_reply(self, item: Item, index: int, judge: str, reply: Reply) -> None:
        """Keep what a judge said. Raises UserError if it is not the model that it was before."""
        by = reply.pop("by", {})
        self._check_by(judge, by)
        row = {"item": item.key, "index": index, "judge": judge, "ask": self._ask(item, judge)}
        row |= {"by": by, "reply": reply}
        self._replies.add(row)
        self._by_ask[item.key, index, judge] = row

    def _ask(self, item: Item, judge: str) -> str:
        """Tells one question from another: with another version of spaCy, say, a benchmark asks other
        questions, and old replies are no answers to them."""
        if item.key not in self._asked:
            self._asked[item.key] = {
                name: hashlib.sha256(json.dumps(ask, sort_keys=True).encode()).hexdigest()[:8]
                for name, ask in self.benchmark.asks(item).items()
            }
        return self._asked[item.key].get(judge, "")

    def _check_by(self, judge: str, by: dict[str, str]) -> None:
        if not by:
            return
        before = self.by.setdefault(judge, by)
        if _model_of(before) != _model_of(by):  # at another address it may be the same
            raise UserError(
                f"{self.folder}: the judge {judge} was {_told(before)} and is now {_told(by)}; what two"
                " judges say makes no score together: bring the first one back, or score into another"
                " folder with `bicot bench score DIR --out NEW`"
            )


def _model_of(by: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in by.items() if key != "url"}


def _told(by: Mapping[str, str]) -> str:
    return " ".join(str(value) for value in by.values())


def _two_by_two(images: Sequence[np.ndarray]) -> np.ndarray:
    height, width, _ = images[0].shape
    whole = np.zeros((2 * height, 2 * width, 3), np.uint8)
    for n, image in enumerate(images):
        y, x = height * (n // 2), width * (n % 2)
        whole[y : y + height, x : x + width] = image
    return whole


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any], at: str = "") -> str | None:
    """The first key in which two records differ, with both values."""
    for key in [*there, *(k for k in wanted if k not in there)]:
        one, other = there.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if found := _difference(one, other, f"{at}{key}."):
                return found
        elif one != other:
            return f"{at}{key}: {json.dumps(one)} there, {json.dumps(other)} asked for"
    return None
