"""Runs of benchmarks side by side: every model x every task, and the images where they differ most.

Results that say different things are not put into one table: other prompts, another judge, other rules.
"""

import base64
import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from evaluation.benchmark import Benchmark, Item, Judged, load_benchmark
from evaluation.result import label, read_result, what_differs
from evaluation.run_folder import RunFolder
from policy.errors import UserError
from policy.paths import write_whole

_SHOWN = 40  # prompts on the page
_IMAGES = 2  # of a prompt and model
_SIDE = 256  # pixels


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
    compared, where a person wanted to see them all the same."""

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
            told = "; ".join(differing)
            raise UserError(
                f"{title}: {names} cannot be compared: {told}. (--anyway shows them, marked)"
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


@dataclass(frozen=True)
class Difference:
    """One prompt, and what each run made of it: its mean score (None: not judged), and images with
    their CoTs."""

    item: Item
    scores: tuple[float | None, ...]
    images: tuple[tuple[tuple[str, str], ...], ...]
    """By run: (data URL, CoT)."""

    @property
    def spread(self) -> float:
        known = [score for score in self.scores if score is not None]
        return max(known) - min(known) if len(known) > 1 else 0.0


def differences(table: BenchmarkTable, data: Path | None = None) -> list[Difference]:
    """The prompts on which the runs differ most; the largest first. A single run: its best and its
    worst."""
    benchmark = load_benchmark(table.runs[0].result["benchmark"], data)
    folders = [open_run(run, benchmark) for run in table.runs]
    scored: list[tuple[Item, tuple[float | None, ...]]] = []
    for item in benchmark.items:
        scores = tuple(item_score(folder, item) for folder in folders)
        if any(score is not None for score in scores):
            scored.append((item, scores))
    if len(folders) == 1:
        scored.sort(key=lambda one: one[1][0] or 0.0)
        half = _SHOWN // 2
        scored = scored[:half] + scored[half:][-half:][::-1]
    else:
        scored.sort(key=lambda one: -Difference(one[0], one[1], ()).spread)
    return [
        Difference(item, scores, tuple(_pictures(folder, item) for folder in folders))
        for item, scores in scored[:_SHOWN]
    ]


def write_page(found: Sequence[BenchmarkTable], path: Path, data: Path | None = None) -> None:
    """The tables and the images, as one HTML file that needs nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    shown = [(table, differences(table, data)) for table in found]
    page = environment.get_template("compare.html.j2").render(shown=shown, number=number)
    write_whole(path, page)


def number(value: float | None, unit: str) -> str:
    """A score for people."""
    if value is None:
        return "-"
    return f"{value:.2f}" if unit == "%" else f"{value:.4f}"


def open_run(run: Run, benchmark: Benchmark) -> RunFolder:
    images = run.result.get("images")
    folder = RunFolder(run.folder, benchmark, Path(images) if images else None)
    folder.look()
    return folder


def item_score(folder: RunFolder, item: Item) -> float | None:
    """The mean over the images of an item that have a score."""
    found = []
    for n in range(folder.benchmark.images_per_prompt):
        replies = folder.replies(item, n)
        score = folder.benchmark.image_score(Judged(item, n, replies)) if replies else None
        if score is not None:
            found.append(score)
    return fmean(found) if found else None


def _pictures(folder: RunFolder, item: Item) -> tuple[tuple[str, str], ...]:
    images = folder.read(item)[:_IMAGES]
    return tuple(
        ("" if isinstance(image, str) else _thumbnail(image), folder.cot(item, n) or "")
        for n, image in enumerate(images)
    )


def _thumbnail(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    if max(picture.size) > _SIDE:
        picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG" if max(picture.size) <= 64 else "JPEG", quality=85)
    kind = "png" if max(picture.size) <= 64 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
