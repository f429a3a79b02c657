"""Writes figures as they are measured: a line for people, and a line of JSON for machines.

A line of JSON is a figure, `{"part", "figure", "value", "unit", "predicted": [low, high] or null,
"rests_on", "conditions", "started", "at_s"}`, or a failure, `{"part", "failed", "why", ...}`.
"""

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from benchmarks.gpu.predicted import prediction
from policy.errors import UserError

Value = float | int | bool | str


class Figures:
    """The figures of one part. `conditions`: what holds for all its figures (model, device, ...)."""

    def __init__(
        self, path: Path, part: str, started: str, people: TextIO, conditions: dict[str, Value]
    ):
        self.failed = 0
        self._path, self._part, self._started, self._people = path, part, started, people
        self._conditions = conditions
        self._begin = time.monotonic()

    def add(self, figure: str, value: Value, unit: str = "", **conditions: Value) -> None:
        holds = self._conditions | conditions
        found = prediction(f"{self._part}.{figure}", holds)
        value = value if isinstance(value, bool | int | str) else np.asarray(value).item()
        where = ", ".join(_as_text(key, condition) for key, condition in conditions.items())
        line = f"{figure.replace('_', ' ')}{f' ({where})' if where else ''}: {_short(value)} {unit}"
        if found:
            line = f"{line.rstrip():<72} predicted {found.range}: {found.rests_on}"
        self._say(line)
        self._write(
            figure=figure,
            value=value,
            unit=unit,
            predicted=found and [found.low, found.high],
            rests_on=found and found.rests_on,
            conditions=holds,
        )

    def add_factor(self, factor: str, value: float) -> None:
        """A factor of the speed model, as `bicot estimate --figures` reads it; on GPUs alone, and for
        the model's published shapes."""
        if self._conditions.get("gpu") and self._conditions.get("model") != "tiny":
            self.add(factor, value)

    def fail(self, what: str, why: str) -> None:
        """Report in one line that something could not be measured."""
        self.failed += 1
        self._say(f"{f'{what}: ' if what else ''}failed: {why}")
        self._write(failed=what or self._part, why=why, conditions=self._conditions)

    @contextmanager
    def attempt(self, what: str = "") -> Iterator[None]:
        """Reports any error inside this context, with its traceback in the log, and lets the next
        measurement go on: time on a GPU is too expensive to lose the rest."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.fail(what, " ".join(f"{kind}{error}".split())[:300])

    def _say(self, line: str) -> None:
        at = time.monotonic() - self._begin
        print(f"[{at:6.1f} s] {self._part:<10} {line.rstrip()}", file=self._people, flush=True)

    def _write(self, **fields) -> None:
        line = {"part": self._part, **fields, "started": self._started}
        line["at_s"] = round(time.monotonic() - self._begin, 2)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _as_text(key: str, value: Value) -> str:
    return value if isinstance(value, str) else f"{value} {key}"


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
