"""The files of a benchmark run's records: the schema of their lines, and how lines are added.

Records may have been edited or cut off: a line of another form is refused, by file and line.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from policy.errors import UserError
from policy.jsonl import parse_object, read_bytes, read_object
from policy.paths import not_written


class ImageRow(BaseModel):
    """A line of images.jsonl: an image, or why there is none."""

    item: str
    index: int
    file: str | None = None
    sha256: str | None = None
    cot: str | None = None
    refused: str | None = None

    @model_validator(mode="after")
    def _drawn_or_refused(self):
        if (self.sha256 is None) == (self.refused is None):
            raise ValueError("an image has either a sha256, or was refused")
        return self


class ReplyRow(BaseModel):
    """A line of replies.jsonl."""

    item: str
    index: int
    judge: str
    ask: str
    """Hash of the question."""
    image: str
    """Hash of the image file."""
    by: dict[str, str]
    reply: dict[str, Any]


class JudgeEntry(BaseModel):
    use: str
    options: dict[str, Any]


class RunAsked(BaseModel):
    tasks: list[str] | None = None
    limit: int | None = None


class RunRecord(BaseModel):
    """The file bench.json."""

    benchmark: str
    prompts: dict[str, str]
    generator: dict[str, Any]
    seed: int
    images: str | None
    judges: dict[str, JudgeEntry]
    asked: RunAsked


class ResultAsked(BaseModel):
    tasks: list[str]
    prompts: int
    of: int
    images: int
    keys: str


class ResultRecord(BaseModel):
    """The keys of result.json that are read again."""

    benchmark: str
    prompts: dict[str, str]
    generator: dict[str, Any]
    seed: int
    images: str | None
    judges: dict[str, dict[str, Any]]
    title: str
    unit: str
    rules: str
    asked: ResultAsked
    gaps: dict[str, int]
    overall: float | None
    tasks: dict[str, float | None]
    further: dict[str, float | None]
    notes: list[str]


def checked(row: dict[str, Any], form: type[BaseModel], where: str) -> dict[str, Any]:
    """The row, if it has the form. Raises UserError."""
    try:
        form.model_validate(row, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {key + ': ' if key else ''}{first['msg']}") from None
    return row


def read_record(folder: Path) -> dict[str, Any]:
    """A folder's bench.json. Raises UserError."""
    path = folder / "bench.json"
    return checked(read_object(path), RunRecord, str(path))


def difference(
    there: Mapping[str, Any], wanted: Mapping[str, Any], at: str = ""
) -> tuple[str, str, str] | None:
    """The first key in which two records differ, and both values as JSON; None: there is none."""
    for key in [*there, *(k for k in wanted if k not in there)]:
        one, other = there.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if found := difference(one, other, f"{at}{key}."):
                return found
        elif one != other:
            return f"{at}{key}", json.dumps(one), json.dumps(other)
    return None


def check_same(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError, naming the first key that differs, if a folder's record is not `wanted`."""
    if differing := difference(there, wanted):
        key, one, other = differing
        raise UserError(
            f"{folder}: there is another run in it ({key}: {one} there, {other} asked for):"
            " choose another --out"
        )


def check_empty(folder: Path, what: str, instead: str = "") -> None:
    """Raises UserError if a folder without a record holds files: they do not belong to a `what`."""
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if taken := sorted(name for name in there if not name.startswith(".")):
        raise UserError(
            f"{folder}: holds {taken[0]} and is no {what}: name a new or an empty folder with --out"
            + instead
        )


class Journal:
    """A file of JSON lines that is only added to. A last line without an end does not count: its writer
    was killed, or is still writing."""

    def __init__(self, path: Path, form: type[BaseModel]):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        content = read_bytes(path) if path.exists() else b""
        self._whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._whole].split(b"\n")[:-1], 1):
            where = f"{path}:{number}"
            self.rows.append(checked(parse_object(line, where), form, where))

    def mend(self) -> None:
        """Cut off a last line without an end. Only the process that adds lines calls it; others may
        read meanwhile."""
        if self.path.exists() and self.path.stat().st_size > self._whole:
            os.truncate(self.path, self._whole)

    def add(self, row: Mapping[str, Any]) -> None:
        """Raises UserError, with the lines before it whole, if there is no room."""
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(line)
        except OSError as error:
            raise not_written(self.path, error) from None
        if written < len(line):  # the next write raises the reason
            os.truncate(self.path, self._whole)
            raise UserError(f"{self.path}: cannot be written: no room for a line of {len(line)} bytes")
        self._whole += len(line)
        self.rows.append(dict(row))
