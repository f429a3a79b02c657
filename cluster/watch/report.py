"""`report.html`: one page that tells a run, made from its directory alone and at any time."""

import base64
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from cluster.watch.plots import before_after, reward_curve, spread
from policy.errors import UserError
from policy.paths import write_whole

log = logging.getLogger(__name__)
MOST_EVALUATIONS = 12  # with their pictures; the first and the last are always among them
MOST_PROMPTS = 48  # of an evaluation
MOST_SAMPLES = 4  # of a prompt
LARGEST = 192  # pixels; larger images are reduced

LABELS = {
    "reward": "Reward",
    "strict_accuracy": "Strict accuracy",
    "cot_accuracy": "Plan accuracy",
    "diversity": "Diversity",
    "cot_tokens": "CoT tokens",
}
NEITHER_GOOD_NOR_BAD = ("diversity", "cot_tokens")


@dataclass(frozen=True)
class Change:
    """One number of the first and of the last evaluation, None where it was not measured."""

    label: str
    table: str  # "" for the headlines, else "expert" or "reward by task type"
    before: str | None
    after: str | None
    difference: str
    verdict: str  # "better", "worse" or ""


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
    """What a finished run tells and leaves to look at, made from its directory alone."""

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
    """Reward curve, before/after pictures and report: as much as can be made of what there is."""
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
    """Write `report.html` into a run directory, whether the run is going on, finished or dead. Tells of
    what cannot be read, which is left out."""
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
    config = folder / "config.yaml"

    page = _template().render(
        title=folder.resolve().name,
        steps=max((line["step"] for line in lines), default=None),
        duration=in_words(max((line.get("time", 0.0) for line in lines), default=0.0)),
        unreadable=unreadable,
        found=len(found),
        changes=changes(first, last) if first and last else [],
        first=first,
        last=last,
        benchmarks=benchmark_tables(folder, tell),
        charts=charts(series(lines), experts),
        frame={"w": WIDTH, "h": HEIGHT, "l": LEFT, "r": WIDTH - RIGHT, "t": TOP, "b": HEIGHT - BOTTOM},
        tabs=[_tab(evaluation) for evaluation in evaluations],
        best_worst=[_rows(last, expert) for expert in last.experts] if last else [],
        config=config.read_text("utf-8", "replace") if config.exists() else None,
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def changes(first: Evaluation, last: Evaluation) -> list[Change]:
    """The numbers of two evaluations side by side: the headlines, each expert, and the reward of each
    task type."""
    before, after = first.metrics(), last.metrics()
    tables = dict.fromkeys(RESERVED, "") | dict.fromkeys((*first.experts, *last.experts), "expert")
    for task_type in sorted({*first.task_types, *last.task_types}):
        tables[f"reward/task/{task_type}"] = "reward by task type"
    rows = []
    for name, table in tables.items():
        a, b = before.get(f"eval/{name}"), after.get(f"eval/{name}")
        if a is None and b is None:
            continue
        difference = None if a is None or b is None else b - a
        verdict = ""
        if difference and name not in NEITHER_GOOD_NOR_BAD:
            verdict = "better" if difference > 0 else "worse"
        rows.append(
            Change(
                label=LABELS.get(name, name.removeprefix("reward/task/")),
                table=table,
                before=None if a is None else _number(name, a),
                after=None if b is None else _number(name, b),
                difference="" if difference is None else _signed(name, difference),
                verdict=verdict,
            )
        )
    return rows


def spread_with_ends(items: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the items at even distances, the first and the last among them."""
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
    return Tab(
        evaluation=evaluation,
        numbers=[(LABELS[name], _number(name, metrics[f"eval/{name}"])) for name in names],
        groups=[
            [Shown(scored, data_uri(scored.sample.image)) for scored in groups[id][:MOST_SAMPLES]]
            for id in spread(list(groups), MOST_PROMPTS)
        ],
        prompts=len(groups),
        samples=len(evaluation.scored),
    )


def _rows(evaluation: Evaluation, expert: str) -> dict[str, Any]:
    """By "best" and "worst" what an expert scored so, as it saw it."""
    found = best_worst(evaluation, expert)
    return {
        "expert": expert,
        **{
            kind: [Shown(j, data_uri(as_seen(j, expert))) for j in getattr(found, kind)]
            for kind in ("best", "worst")
        },
    }


def _number(name: str, value: float) -> str:
    if name.endswith("_accuracy"):
        return f"{value:.1%}"
    return f"{value:.1f}" if name == "cot_tokens" else f"{value:.3f}"


def _signed(name: str, value: float) -> str:
    text = _number(name, abs(value)).replace("%", " points")
    return ("+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else "\N{PLUS-MINUS SIGN}") + text


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
