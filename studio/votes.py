"""`votes.jsonl` of a folder of runs: which of two images a person liked better. The page writes no
other file."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

from policy.errors import UserError
from policy.jsonl import parse_object
from policy.paths import not_written

_Path = Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
_LARGEST = 256 * 2**20  # bytes of the file, beyond which nothing more is kept


class Vote(BaseModel):
    """`a` and `b` are the two folders, `key` the prompt and the image's number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    a: _Path
    b: _Path
    key: Annotated[str, StringConstraints(min_length=1, max_length=1_000)]
    vote: Literal["a", "b", "tie"]


class Votes:
    """Appends votes to the file, a line each; the last vote on a pair counts."""

    def __init__(self, folder: Path):
        self.path = folder / "votes.jsonl"
        self._lock = threading.Lock()

    def add(self, vote: Vote) -> None:
        """Raises UserError if it cannot be written."""
        row = {"time": round(time.time(), 3), **vote.model_dump()}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._lock:
            try:
                with open(os.open(self.path, how, 0o644), "r+b", buffering=0) as file:
                    size = file.seek(0, os.SEEK_END)
                    if size + len(line) > _LARGEST:
                        raise UserError(f"{self.path}: is full: move it elsewhere")
                    file.seek(max(0, size - 1))
                    torn = file.read(1) not in (b"", b"\n")
                    file.write(b"\n" + line if torn else line)
            except OSError as error:
                raise not_written(self.path, error) from None

    def of(self, a: str, b: str) -> dict[str, str]:
        """Key -> the last vote on it, for two folders in either order."""
        found: dict[str, str] = {}
        other = {"a": "b", "b": "a", "tie": "tie"}
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return {}
        for number, line in enumerate(lines, 1):
            try:
                row = parse_object(line, f"{self.path}:{number}") if line.strip() else {}
            except UserError:
                continue
            vote, key = row.get("vote"), row.get("key")
            if vote in ("a", "b", "tie") and isinstance(key, str):
                if (row.get("a"), row.get("b")) == (a, b):
                    found[key] = vote
                elif (row.get("a"), row.get("b")) == (b, a):
                    found[key] = other[vote]
        return found
