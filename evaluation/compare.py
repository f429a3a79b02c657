"""Runs of benchmarks side by side: every model x every task.

Results with other prompts, another judge or other rules are not put into one table.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.result import label, read_result, what_differs
from policy.errors import UserError


@dataclass(frozen=True)
class Run:
    """A folder with a result."""

    folder: Path
    result: dict[str, Any]

    @property
    def label(self) -> str:
        return label(self.result, self.folder)


@dataclass(frozen=True)
class BenchmarkTable:
    """The runs of one benchmark. `scores[task][n]` is run n's; `differing` says why they cannot be
    compared; it is empty unless they are shown `anyway`."""

    title: str
    unit: str
    runs: tuple[Run, ...]
    scores: dict[str, list[float | None]]
    differing: tuple[str, ...] = ()


def read_runs(folders: Sequence[Path], *, published_rules: bool = False) -> list[Run]:
    """Raises UserError for a folder without a result."""
    return [Run(f, read_result(f, published_rules=published_rules)) for f in folders]


def tables(runs: Sequence[Run], *, anyway: bool = False) -> list[BenchmarkTable]:
    """A table a benchmark, in order of appearance. Raises UserError if results of one benchmark cannot
    be compared, unless they are to be shown `anyway`."""
    by_benchmark: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_benchmark[run.result["benchmark"]].append(run)
    found = []
    for some in by_benchmark.values():
        differing = what_differs([run.result for run in some])
        title = some[0].result["title"]
        if differing and not anyway:
            names = ", ".join(str(run.folder) for run in some)
            reasons = "; ".join(differing)
            raise UserError(
                f"{title}: {names} cannot be compared: {reasons}. (--anyway shows them, marked)"
            )
        tasks = dict.fromkeys(task for run in some for task in run.result["tasks"])
        scores = {task: [run.result["tasks"].get(task) for run in some] for task in tasks}
        scores["overall"] = [run.result["overall"] for run in some]
        found.append(
            BenchmarkTable(title, some[0].result["unit"], tuple(some), scores, tuple(differing))
        )
    return found


def as_csv(found: Sequence[BenchmarkTable]) -> str:
    """One row for each benchmark, task and run."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        (
            "benchmark",
            "task",
            "run",
            "score",
            "unit",
            "rules",
            "comparable",
            "images",
            "without a score",
        )
    )
    for table in found:
        for task, scores in table.scores.items():
            for run, value in zip(table.runs, scores, strict=True):
                gaps = run.result["gaps"]
                lost = sum(count for name, count in gaps.items() if name != "strangers")
                rows.writerow(
                    (
                        table.title,
                        task,
                        run.label,
                        "" if value is None else repr(value),
                        table.unit,
                        run.result["rules"],
                        "no: " + "; ".join(table.differing) if table.differing else "yes",
                        run.result["asked"]["images"],
                        lost,
                    )
                )
    return text.getvalue()


def number(value: float | None, unit: str) -> str:
    """A score as text."""
    if value is None:
        return "-"
    return f"{value:.2f}" if unit == "%" else f"{value:.4f}"
