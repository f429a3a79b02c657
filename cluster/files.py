"""Files of a run directory: written to a disk that may be full, and read in the order of steps."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

log = logging.getLogger(__name__)


def by_step(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Entries `KIND_000100`, ... of a folder with their steps, first to last. (By name, step 1,000,000
    would come before 999,999.)"""
    named = ((re.fullmatch(rf"{kind}_([0-9]+)", path.name), path) for path in folder.glob(f"{kind}_*"))
    return sorted((int(match[1]), path) for match, path in named if match)


def first_fault(error: ValidationError) -> str:
    """The first of pydantic's faults of a record that was read back, in a few words."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


class KeepGoing:
    """Reports errors of output that must never end a run: once when they begin, and once when they are
    over."""

    def __init__(self, tell: Callable[[str], None] = log.warning):
        self._tell = tell
        self._failing: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._failing:
                why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self._tell(f"warning: {what} could not be written: {why}; the run goes on")
            self._failing.add(what)
        else:
            if what in self._failing:
                self._tell(f"{what} is written again")
            self._failing.discard(what)


class Lines:
    """Adds rows, which have a `step`, to a file of JSON lines. Rows that do not fit on the disk wait in
    memory, in order; the file always ends in a whole line."""

    def __init__(self, path: Path, keep_going: KeepGoing):
        self._path = path
        self._keep_going = keep_going
        self._waiting: list[Mapping[str, Any]] = []
        self._file = path.open("a+b", buffering=0)
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, end - 1))
        self._torn = self._file.read() not in (b"", b"\n")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._waiting += rows
        with self._keep_going(self._path.name):
            self._write()

    def forget_after(self, step: int) -> None:
        """Drop waiting rows after a step. (`checkpoint.truncate_after` does so with the file.)"""
        self._waiting = [row for row in self._waiting if row["step"] <= step]

    def close(self) -> None:
        self.add([])
        self._file.close()

    def _write(self) -> None:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self._waiting]
        content = "".join(["\n" if self._torn else "", *lines]).encode("utf-8", "replace")
        whole = self._file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError:
            self._file.truncate(whole)
            raise
        self._waiting, self._torn = [], False
