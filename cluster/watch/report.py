"""`report.html`: one page about a run, made from its directory alone and at any time."""

import base64
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from rich.console import Console

from cluster.files import KeepGoing
from cluster.watch.benchmarks import benchmark_tables
from cluster.watch.best_worst import as_seen, best_worst
from cluster.watch.changes import LABELS, Change, changes, number
from cluster.watch.console import evaluation_table
from cluster.watch.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    charts,
    read_metrics,
    series,
    short,
)
from cluster.watch.evaluation import (
    RESERVED,
    Evaluation,
    ScoredSample,
    load_evaluation,
    saved_evaluations,
)
from cluster.watch.flat import fold
from cluster.watch.plots import before_after, reward_curve, spread
from cluster.watch.starts import Start, read_starts
from cluster.yaml_text import read_yaml
from policy.errors import UserError
from policy.paths import write_whole

log = logging.getLogger(__name__)
MOST_EVALUATIONS = 12  # with their pictures; the first and the last are always among them
MOST_PROMPTS = 48  # of an evaluation
AT_ONCE = 12  # of those; a click shows the others
MOST_SAMPLES = 4  # of a prompt
LARGEST = 192  # pixels; larger images are reduced


@dataclass(frozen=True)
class Shown:
    scored: ScoredSample
    picture: str  # a data: URI


@dataclass(frozen=True)
class Tab:
    """One evaluation as shown: some of its prompts, each with some of its samples."""

    evaluation: Evaluation
    numbers: list[tuple[str, str]]
    groups: list[list[Shown]]
    prompts: int
    samples: int

    @property
    def is_cut(self) -> bool:
        return sum(map(len, self.groups)) < self.samples


def summarize(folder: Path, console: Console) -> None:
    """Print a finished run's summary, and write its pictures and report from its directory alone."""

    def tell(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    before, after = first_and_last(folder, tell)
    columns = {"before": before, "after": after}
    if found := {name: each for name, each in columns.items() if each}:
        console.print(evaluation_table("held-out prompts", found))
    for path in write_summary(folder, before, after, tell):
        tell(str(path))


def first_and_last(
    folder: Path, tell: Callable[[str], None]
) -> tuple[Evaluation | None, Evaluation | None]:
    """The last evaluation, and the first that shares prompts with it: a run may have gone on with
    another held-out file. None where there is none."""
    saved = saved_evaluations(folder)
    after = next(_readable(reversed(saved), tell), None)
    if after is None:
        return None, None
    earlier = (e for e in _readable(saved, tell) if e.step < after.step)
    return next((e for e in earlier if share_prompts(e, after)), None), after


def share_prompts(one: Evaluation, other: Evaluation) -> bool:
    return not one.by_prompt().keys().isdisjoint(other.by_prompt())


def _readable(folders: Iterable[Path], tell: Callable[[str], None]) -> Iterator[Evaluation]:
    for folder in folders:
        try:
            yield load_evaluation(folder)
        except UserError as error:
            tell(f"left out: {error}")


def write_summary(
    folder: Path,
    before: Evaluation | None,
    after: Evaluation | None,
    tell: Callable[[str], None] = log.warning,
) -> list[Path]:
    """Write reward curve, before/after pictures and report, as far as the records allow."""
    metrics = folder / "metrics.jsonl"
    curve, pictures, report = (
        folder / n for n in ("reward_curve.png", "before_after.png", "report.html")
    )
    makers: dict[Path, Callable[[], Any]] = {
        curve: lambda: reward_curve(read_metrics(metrics).lines, curve),
        report: lambda: write_report(folder, tell),
    }
    if before and after:
        both = before, after
        makers[pictures] = lambda: before_after(*both).save(pictures)
    written = []
    for path in (curve, pictures, report):
        with KeepGoing(tell)(path.name):
            if path in makers:
                makers[path]()
                written.append(path)
    return written


def write_report(folder: Path, tell: Callable[[str], None] = log.warning) -> Path:
    """Write `report.html` into a run directory, whether the run is going on, finished or dead. Reports
    and leaves out what cannot be read."""
    folder = Path(folder)
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{folder} is not a run directory: it has no metrics.jsonl")
    lines, unreadable = read_metrics(metrics)
    found = saved_evaluations(folder)
    evaluations = list(_readable(spread_with_ends(found, MOST_EVALUATIONS), tell))
    for line in unreadable:
        tell(f"left out: {line}")
    last = evaluations[-1] if evaluations else None
    first = next((e for e in evaluations if last and share_prompts(e, last)), None)
    experts = list(dict.fromkeys(name for e in evaluations for name in e.experts))
    config = _config(folder)
    unrewarded = _watched(folder, config, tell)
    rows = changes(first, last, unrewarded) if first and last else []
    folded = fold(series(lines))

    page = _template().render(
        title=folder.resolve().name,
        steps=max((line["step"] for line in lines), default=None),
        duration=in_words(max((line.get("time", 0.0) for line in lines), default=0.0)),
        unreadable=unreadable,
        found=len(found),
        headlines=[row for row in rows if not row.table],
        tables=_by_table(rows),
        intervals=any(value and value.interval for row in rows for value in (row.before, row.after)),
        first=first,
        last=last,
        benchmarks=benchmark_tables(folder, tell),
        charts=charts(folded.curves, experts),
        folded=folded,
        frame={"w": WIDTH, "h": HEIGHT, "l": LEFT, "r": WIDTH - RIGHT, "t": TOP, "b": HEIGHT - BOTTOM},
        tabs=[_tab(evaluation) for evaluation in evaluations],
        best_worst=[_rows(last, expert) for expert in last.experts] if last else [],
        watched=unrewarded,
        at_once=AT_ONCE,
        starts=_starts(folder, tell),
        config=config,
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def experts_of(config: str, where: str) -> dict[str, dict[str, Any]]:
    """The experts of a run's config.yaml with their keys; empty without experts, as for `bicot sft`.
    Raises UserError for invalid YAML."""
    experts = read_yaml(config, where)
    for key in ("rewards", "experts"):
        experts = experts.get(key) if isinstance(experts, dict) else None
    entries = experts.items() if isinstance(experts, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def watched(experts: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The experts of weight 0: their scores are shown, but are no part of any reward."""
    return {name for name, entry in experts.items() if entry.get("weight") == 0}


def _watched(folder: Path, config: str | None, tell: Callable[[str], None]) -> set[str]:
    try:
        return watched(experts_of(config or "", str(folder / "config.yaml")))
    except UserError as error:
        tell(f"left out: {error}")
        return set()


def _config(folder: Path) -> str | None:
    path = folder / "config.yaml"
    return path.read_text("utf-8", "replace") if path.exists() else None


def _starts(folder: Path, tell: Callable[[str], None]) -> list[Start]:
    try:
        return read_starts(folder)
    except UserError as error:
        tell(f"left out: {error}")
        return []


def _by_table(rows: Sequence[Change]) -> dict[str, list[Change]]:
    """Rows by table, without the headlines."""
    tables: dict[str, list[Change]] = {}
    for row in rows:
        if row.table:
            tables.setdefault(row.table, []).append(row)
    return tables


def spread_with_ends(items: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def data_uri(image: np.ndarray) -> str:
    """The image itself as PNG; one beyond 192 pixels is reduced, and a JPEG, to keep the page small."""
    picture, buffer = Image.fromarray(image).convert("RGB"), io.BytesIO()
    kind = "PNG" if max(picture.size) <= LARGEST else "JPEG"
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    picture.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _tab(evaluation: Evaluation) -> Tab:
    groups = evaluation.by_prompt()
    metrics = evaluation.metrics()
    names = [name for name in RESERVED if f"eval/{name}" in metrics]
    chosen = spread(list(groups), MOST_PROMPTS)
    first = spread(chosen, AT_ONCE)
    ordered = first + [id for id in chosen if id not in first]
    return Tab(
        evaluation=evaluation,
        numbers=[(LABELS[name], number(name, metrics[f"eval/{name}"])) for name in names],
        groups=[
            [Shown(scored, data_uri(scored.sample.image)) for scored in groups[id][:MOST_SAMPLES]]
            for id in ordered
        ],
        prompts=len(groups),
        samples=len(evaluation.scored),
    )


def _rows(evaluation: Evaluation, expert: str) -> dict[str, Any]:
    """ "best" and "worst" -> the samples that an expert scored so, with its boxes."""
    found = best_worst(evaluation, expert)
    return {
        "expert": expert,
        **{
            kind: [Shown(j, data_uri(as_seen(j, expert))) for j in getattr(found, kind)]
            for kind in ("best", "worst")
        },
    }


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    return environment.get_template("report.html.j2")
