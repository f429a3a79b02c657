"""The page of benchmarks: the tables of evaluation.compare with intervals, and the images on which the
models differ most."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evaluation.benchmark import Benchmark, Item, Judged, load_benchmark
from evaluation.bootstrap import ByPrompt, Interval, interval_of_means
from evaluation.compare import BenchmarkTable, Run, number
from evaluation.run_folder import RunFolder
from evaluation.side_by_side import (
    IMAGES,
    SHOWN,
    Cell,
    Comparison,
    Row,
    ShownPrompt,
    thumbnail,
    write_comparisons,
)

ByItem = dict[str, tuple[Item, list[float]]]
"""Item's key -> the item, and the scores of those of its images that have one."""


def item_scores(table: BenchmarkTable, data: Path | None = None) -> list[ByItem]:
    """The item scores of each run, from the replies in its folder. Raises UserError if the prompts are
    not here."""
    benchmark = load_benchmark(table.runs[0].result["benchmark"], data)
    folders = [open_run(run, benchmark) for run in table.runs]
    return [
        {item.key: (item, scores_of(folder, item)) for item in benchmark.items} for folder in folders
    ]


@dataclass(frozen=True)
class Difference:
    """One prompt, and the mean score of each run on it (None: not judged)."""

    item: Item
    scores: tuple[float | None, ...]

    @property
    def spread(self) -> float:
        known = [score for score in self.scores if score is not None]
        return max(known) - min(known) if len(known) > 1 else 0.0


def differences(scores: Sequence[ByItem]) -> list[Difference]:
    """The prompts on which the runs differ most; the largest first. Of a single run the worst ones,
    then the best."""
    found = [
        Difference(item, tuple(fmean(run[key][1]) if run[key][1] else None for run in scores))
        for key, (item, _) in scores[0].items()
        if any(run[key][1] for run in scores)
    ]
    if len(scores) > 1:
        return sorted(found, key=lambda one: -one.spread)[:SHOWN]
    rising = sorted(found, key=lambda one: one.scores[0] or 0.0)
    half = SHOWN // 2
    return rising[:half] + rising[half:][-half:][::-1]


def write_page(found: Sequence[BenchmarkTable], path: Path, data: Path | None = None) -> None:
    """Write the tables and the images as one self-contained HTML file."""
    write_comparisons("Benchmarks", [comparison(table, data) for table in found], path)


def comparison(table: BenchmarkTable, data: Path | None = None) -> Comparison:
    """Raises UserError if the benchmark's prompts are not here."""
    scores = item_scores(table, data)
    rows = [_row(table, task, scores) for task in table.scores]
    notes = [f"{run.label}: {note}" for run in table.runs for note in run.result["notes"]]
    if not any(cell.interval for row in rows for cell in row.cells):
        notes.append("No intervals: fewer than 5 prompts a task, or scores that are not means.")
    return Comparison(
        title=table.title,
        labels=tuple(run.label for run in table.runs),
        rows=rows,
        heading="Where they differ most" if len(table.runs) > 1 else "The worst, then the best",
        shown=_shown(table, scores, data),
        differing=table.differing,
        notes=notes,
        about=[_about(run) for run in table.runs],
    )


def _row(table: BenchmarkTable, task: str, scores: Sequence[ByItem]) -> Row:
    values = table.scores[task]
    parts = [_means_of(value, task, run) for value, run in zip(values, scores, strict=True)]
    cells = [
        Cell(number(value, table.unit), _words(_interval([part], table.unit), table.unit))
        for value, part in zip(values, parts, strict=True)
    ]
    difference = None
    if len(values) == 2 and None not in values:
        by = (values[1] or 0.0) - (values[0] or 0.0)
        interval = _interval(parts, table.unit)
        verdict = "" if interval is None or table.differing else "noise"
        if verdict and interval and not interval.has_zero:
            verdict = "better" if by > 0 else "worse"
        difference = Cell(_signed(by, table.unit), _words(interval, table.unit, True), verdict)
    return Row(task, tuple(cells), difference, strong=task == "overall")


_Means = list[ByPrompt]
"""One entry for each task whose mean goes into a score; a score of all images has one."""


def _means_of(value: float | None, task: str, run: ByItem) -> _Means | None:
    """The values that a score is the mean of: images, or tasks of images. None for any other score,
    which gets no interval."""
    by_task: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for item, found in run.values():
        if found:
            by_task[item.task][item.key] = found
    pooled = {key: found for each in by_task.values() for key, found in each.items()}
    choices: list[_Means] = [[by_task[task]]] if task in by_task else []
    if task == "overall":
        choices = [[pooled], list(by_task.values())]
    for choice in choices:
        if value is not None and all(choice):
            mean = fmean(fmean(v for found in part.values() for v in found) for part in choice)
            if any(math.isclose(value, mean * scale, rel_tol=1e-6, abs_tol=1e-9) for scale in (1, 100)):
                return choice
    return None


def _interval(parts: Sequence[_Means | None], unit: str) -> Interval | None:
    """The interval of one run's score, or of the difference of two. Paired where they have the same
    tasks."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({len(part) for part in known}) > 1:
        return None
    found = interval_of_means(list(zip(*known, strict=True)))
    scale = 100 if unit == "%" else 1
    return found and Interval(found.low * scale, found.high * scale)


def _words(interval: Interval | None, unit: str, signed: bool = False) -> str:
    if interval is None:
        return ""
    as_text = _signed if signed else number
    return f"{as_text(interval.low, unit)} to {as_text(interval.high, unit)}"


def _signed(value: float, unit: str) -> str:
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "\N{PLUS-MINUS SIGN}"
    return sign + number(abs(value), unit)


def _shown(table: BenchmarkTable, scores: Sequence[ByItem], data: Path | None) -> list[ShownPrompt]:
    benchmark = load_benchmark(table.runs[0].result["benchmark"], data)
    folders = [open_run(run, benchmark) for run in table.runs]
    return [
        ShownPrompt(
            one.item.text,
            f"{one.item.task}, {one.item.key}",
            tuple(number(score, table.unit) for score in one.scores),
            tuple(_pictures(folder, one.item) for folder in folders),
        )
        for one in differences(scores)
    ]


def _about(run: Run) -> str:
    """One line on a run: its generator and its judges."""
    result = run.result
    judges = [
        f"judge {name}: {judge.get('model') or judge.get('use')} {judge.get('revision', '')}".strip()
        for name, judge in result["judges"].items()
    ]
    generator = ", ".join(f"{key} {value}" for key, value in result["generator"].items())
    parts = [f"rules: {result['rules']}", f"seed {result['seed']}", *judges, f"generator: {generator}"]
    return f"{run.label}: {run.folder}; " + "; ".join(parts)


def open_run(run: Run, benchmark: Benchmark) -> RunFolder:
    images = run.result.get("images")
    folder = RunFolder(run.folder, benchmark, Path(images) if images else None)
    folder.look()
    return folder


def scores_of(folder: RunFolder, item: Item) -> list[float]:
    """The scores of an item's images, those that have one."""
    found = []
    for n in range(folder.benchmark.images_per_prompt):
        replies = folder.replies(item, n)
        score = folder.benchmark.image_score(Judged(item, n, replies)) if replies else None
        if score is not None:
            found.append(score)
    return found


def _pictures(folder: RunFolder, item: Item) -> tuple[tuple[str, str], ...]:
    images = folder.read(item)[:IMAGES]
    return tuple(
        ("" if isinstance(image, str) else thumbnail(image), folder.cot(item, n) or "")
        for n, image in enumerate(images)
    )
