"""The account of every prompt: which group of samples was requested, and what became of it.

A group's number is its place in the run's endless stream of prompts (`policy.prompts.group_stream`), so
the account adds up if each number from 0 on stands there once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from policy.errors import UserError

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

    group: int
    step: int
    prompt_id: str
    first_index: int
    weights_version: int
    outcome: Outcome
    attempts: int = 1
    why: str = ""


class Ledger:
    """`ledger.jsonl` of a run directory: one line a group, written when its step is over."""

    def __init__(self, folder: Path):
        self._file = (folder / "ledger.jsonl").open("a", encoding="utf-8")

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._file.write(json.dumps(vars(entry), ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_ledger(folder: Path) -> list[Entry]:
    """Raises UserError for a folder without a ledger, or naming the line that is no entry."""
    path = folder / "ledger.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: no ledger: {error.strerror}") from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not an entry of a ledger: {error}") from None
    return entries


def faults(entries: Sequence[Entry]) -> list[str]:
    """What does not add up: groups that are missing or stand there twice, samples used twice."""
    counts = Counter(entry.group for entry in entries)
    found = [f"group {n} stands there {k} times" for n, k in sorted(counts.items()) if k > 1]
    missing = sorted(set(range(max(counts, default=-1) + 1)) - set(counts))
    found += [f"group {n} is missing" for n in missing]
    samples = Counter((entry.prompt_id, entry.first_index) for entry in entries)
    found += [
        f"samples {index} of prompt {name} were used {k} times"
        for (name, index), k in samples.items()
        if k > 1
    ]
    return found
