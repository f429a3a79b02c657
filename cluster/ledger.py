"""The ledger of all groups of samples that a run requested, with the outcome of each.

A group's number is its place in the run's endless stream of prompts (`policy.prompts.group_stream`), so
the ledger adds up if each number from 0 on is there once.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from cluster.files import KeepGoing, Lines, first_fault
from policy.errors import UserError
from policy.jsonl import read_rows

log = logging.getLogger(__name__)

Outcome = Literal["trained", "filtered", "dropped", "skipped"]
OUTCOMES: dict[Outcome, str] = {
    "trained": "learned from",
    "filtered": "left out: all rewards equal",
    "dropped": "left out: an expert gave no score",
    "skipped": "the step's gradient was not finite",
}


@dataclass(frozen=True)
class Entry:
    """One group. `first_index` is its first sample's; `attempts` counts how often it was
    generated (more than once if a worker was lost); `why` explains an outcome that is not "trained"."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    group: NonNegativeInt
    step: NonNegativeInt
    prompt_id: str
    first_index: NonNegativeInt
    weights_version: NonNegativeInt
    outcome: Outcome
    attempts: int = 1
    why: str = ""


_ENTRY = TypeAdapter(Entry)


class Ledger:
    """`ledger.jsonl` of a run directory: one line a group, written when its step is over, or as soon as
    the disk has room."""

    def __init__(self, folder: Path, tell: Callable[[str], None] = log.warning):
        self._lines = Lines(folder / "ledger.jsonl", KeepGoing(tell))
        self.forget_after, self.close = self._lines.forget_after, self._lines.close

    def add(self, entries: Iterable[Entry]) -> None:
        self._lines.add(vars(entry) for entry in entries)


def read_ledger(folder: Path) -> list[Entry]:
    """All entries. Raises UserError for a folder without a ledger, or naming an invalid line."""
    path = folder / "ledger.jsonl"
    entries = []
    for number, row in read_rows(path, "ledger"):
        try:
            entries.append(_ENTRY.validate_python(row))
        except ValidationError as error:
            raise UserError(
                f"{path}:{number}: not an entry of a ledger: {first_fault(error)}"
            ) from None
    return entries


def faults(entries: Sequence[Entry]) -> list[str]:
    """What does not add up: missing or repeated groups, samples used twice."""
    counts = Counter(entry.group for entry in entries)
    found = [f"group {n} stands there {k} times" for n, k in sorted(counts.items()) if k > 1]
    for before, after in pairwise([-1, *sorted(counts)]):
        if after - before == 2:
            found.append(f"group {before + 1} is missing")
        elif after - before > 2:
            found.append(f"groups {before + 1} to {after - 1} are missing")
    samples = Counter((entry.prompt_id, entry.first_index) for entry in entries)
    found += [
        f"samples {index} of prompt {name} were used {k} times"
        for (name, index), k in samples.items()
        if k > 1
    ]
    return found
