"""Reads what a run has recorded so far, and reads on as it grows.

A page is looked at while runs go on, and a run of a week has 100,000 lines of 1 KB in `metrics.jsonl`.
So
- a **first view** parses a few hundred lines, spread over the whole file, and all evaluations, which
  are few and the most looked at; of a longer run only the search for these takes longer;
- `MetricsReader` then **reads on** from where it was, so many bytes at a time, and every curve is exact
  when it has caught up; from there on a look costs what was added since;
- a line that is still being written waits for its end; a run that went back to a checkpoint cuts its
  file, which is then read anew;
- nothing is ever written, and nothing but whole lines of numbers is kept: 12 bytes a number.

A line that cannot be read is left out, as `bicot report` leaves it out.
"""

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cluster.watch.curves import Points, parse_metrics, series
from policy.errors import UserError
from policy.paths import home
from studio.tail import PIECE, FileTail

METRICS = "metrics.jsonl"
FIRST_LINES = 400  # of training, that a first view parses
_EVALUATION = b'"eval/'
_TAIL = 2**16  # bytes at the end of a file, in which its last line is looked for


@dataclass(frozen=True)
class RunSummary:
    """A run in the list of runs, without reading more than the end of its file."""

    name: str
    folder: Path
    last: dict[str, Any] = field(repr=False)
    """Its last line; empty before the first."""
    written: float
    """When it last wrote, in seconds since 1970."""


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs of a folder (or the one that it is), last written first. Raises UserError if there is no
    such folder."""
    folder = home(str(folder))
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of runs")
    found = []
    for path in [folder / METRICS, *folder.glob(f"*/{METRICS}")]:
        try:
            written, last = path.stat().st_mtime, _last_line(path)
        except FileNotFoundError:  # put aside meanwhile
            continue
        found.append(RunSummary(path.parent.name, path.parent, last, written))
    return sorted(found, key=lambda run: -run.written)


def first_view(path: Path, most: int = FIRST_LINES) -> dict[str, Points]:
    """Name -> points in rising order of steps: at most about `most` of training, not averaged, and all
    of evaluations. Raises UserError for a file that is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            texts = dict(_line_behind(file, size * n // most) for n in range(most))
            texts |= dict([_line_behind(file, max(0, size - _TAIL), last=True)])
            texts |= _evaluations(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such metrics file") from None
    lines = (_parsed(texts[begin], path) for begin in sorted(texts))
    return series([line for line in lines if line])


class MetricsReader:
    """One `metrics.jsonl`, read a piece at a time. Its curves are those of what was read so far."""

    def __init__(self, path: Path):
        self._path = path
        self._tail = FileTail(path, "metrics")
        self._columns: dict[str, tuple[array, array]] = {}  # steps, values
        self.version = 0
        """Changes whenever there is anything new."""

    def read_on(self, most: int = PIECE) -> bool:
        """Read whole lines, about `most` bytes in all. Returns whether there is more to read at once. A
        file that was replaced or got shorter is read from its beginning.

        Raises UserError for a file that is not there.
        """
        lines, more, anew = self._tail.read_on(most)
        if anew:
            self._columns = {}
        for text in lines:
            if line := _parsed(text, self._path):
                self._add(line)
        self.version += bool(lines) or anew
        return more

    @property
    def names(self) -> list[str]:
        """The names of all curves."""
        return list(self._columns)

    def curve(self, name: str) -> Points:
        """Points in rising order of steps. One curve at a time: as points it takes ten times the memory
        that it does here."""
        steps, values = self._columns[name]
        return list(zip(steps, values, strict=True))

    def thinned(self, name: str, most: int) -> tuple[list[int], list[float]]:
        """Steps and values of at most `most` points, each the mean of its neighbours; an evaluation's
        are all there, up to ten times as many."""
        steps, values = self._columns[name]
        most *= 10 if name.startswith(("eval/", "bench/")) else 1
        stride = -(-len(steps) // most)
        if stride <= 1:
            return steps.tolist(), values.tolist()
        starts = np.arange(0, len(steps), stride)
        sums = np.add.reduceat(np.frombuffer(values), starts)
        counts = np.diff([*starts, len(steps)])
        middles = np.frombuffer(steps, np.intc)[starts + counts // 2]
        return middles.tolist(), (sums / counts).tolist()

    def newest(self, name: str) -> float:
        """The last value of a curve."""
        return self._columns[name][1][-1]

    def raised(self, name: str) -> tuple[int, int]:
        """At how many steps a curve is not 0, and the last of them; (0, 0) where it never is."""
        steps, values = self._columns[name]
        there = np.flatnonzero(np.frombuffer(values) if len(values) else ())
        return (len(there), int(steps[there[-1]])) if len(there) else (0, 0)

    def _add(self, line: dict[str, Any]) -> None:
        step = line["step"]
        if not 0 <= step < 2**31:  # no run takes so many steps
            return
        for name, value in line.items():
            if name in ("step", "time") or value is None:
                continue
            steps, values = self._columns.setdefault(name, (array("i"), array("d")))
            while steps and steps[-1] >= step:  # an earlier life of the run recorded it
                steps.pop()
                values.pop()
            steps.append(step)
            values.append(value)


def _parsed(text: bytes, path: Path) -> dict[str, Any] | None:
    if not text.strip():
        return None
    try:
        return parse_metrics(text, str(path))
    except UserError:
        return None


def _line_behind(file: BinaryIO, offset: int, *, last: bool = False) -> tuple[int, bytes]:
    """Where the first whole line behind an offset begins (or the `last` one), and the line; b"" where
    there is none."""
    file.seek(offset)
    if offset:
        file.readline()  # the end of another
    found = file.tell(), b""
    while (text := file.readline()).endswith(b"\n"):
        found = file.tell() - len(text), text
        if not last:
            break
    return found


def _evaluations(file: BinaryIO) -> dict[int, bytes]:
    """Where each line of an evaluation begins, and the line."""
    found: dict[int, bytes] = {}
    begin, rest = file.seek(0), b""
    while piece := file.read(PIECE):
        piece = rest + piece
        at = piece.find(_EVALUATION)
        while at >= 0 and (end := piece.find(b"\n", at)) >= 0:
            first = piece.rfind(b"\n", 0, at) + 1
            found[begin + first] = piece[first : end + 1]
            at = piece.find(_EVALUATION, end)
        whole = piece.rfind(b"\n") + 1
        begin, rest = begin + whole, piece[whole:]
    return found


def _last_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        *lines, _ = file.read().split(b"\n")
    read = (_parsed(text, path) for text in reversed(lines))
    return next((line for line in read if line), {})
