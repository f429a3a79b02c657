"""Reads `metrics.jsonl` as curves, and lays curves out as charts for the report."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from policy.errors import UserError
from policy.jsonl import parse_object, read_lines

Points = list[tuple[int, float]]

MOST_POINTS = 400  # of one curve in a chart; longer ones are averaged down
WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22
EXACT = ("lr",)  # curves with no noise to smooth away
_LARGEST = 1e300  # the sum of all points of a chart is still finite


class MetricsFile(NamedTuple):
    lines: list[dict[str, Any]]
    unreadable: list[str]
    """For each line that is left out, its place and its fault."""


def read_metrics(path: Path) -> MetricsFile:
    """All lines that can be read; the last one is torn where a run died in the middle of it.

    Raises UserError for a file that is not there.
    """
    lines, unreadable = [], []
    for number, text in enumerate(read_lines(path, "metrics"), 1):
        if text.strip():
            try:
                lines.append(parse_metrics(text, f"{path}:{number}"))
            except UserError as error:
                unreadable.append(str(error))
    return MetricsFile(lines, unreadable)


def parse_metrics(text: bytes, where: str) -> dict[str, Any]:
    """A line of a step, the time, and numbers or null by name."""
    line = parse_object(text, where)
    if type(line.get("step")) is not int:
        raise UserError(f"{where}: `step` is no whole number")
    for name, value in line.items():
        is_number = type(value) in (int, float) and abs(value) < _LARGEST
        if not is_number and (value is not None or name == "time"):
            raise UserError(f"{where}: `{name}` is no number")
    return line


def series(lines: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """Name -> points in rising order of steps; null is a gap. A resumed run repeats steps: earlier
    records of them are dropped."""
    curves: dict[str, Points] = {}
    for line in lines:
        for name, value in line.items():
            if name in ("step", "time") or value is None:
                continue
            points = curves.setdefault(name, [])
            while points and points[-1][0] >= line["step"]:
                points.pop()
            points.append((line["step"], float(value)))
    return curves


def smooth(points: Points) -> Points:
    """Centred mean over about a fifteenth of the curve, so that it does not lag."""
    reach = len(points) // 30
    means = []
    for i, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, i - reach) : i + reach + 1]]
        means.append((step, sum(window) / len(window)))
    return means


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points, each the mean of its neighbours."""
    stride = math.ceil(len(points) / most)
    if stride <= 1:
        return points
    buckets = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(b[len(b) // 2][0], sum(value for _, value in b) / len(b)) for b in buckets]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    first, last = math.ceil(low / gap - 1e-9), math.floor(high / gap + 1e-9)
    return [round(i * gap, 12) for i in range(first, last + 1)]


# --- charts --------------------------------------------------------------------------------------

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Reward", ("reward/mean", "eval/reward")),
    ("Accuracy", ("reward/strict_accuracy", "eval/strict_accuracy", "eval/cot_accuracy")),
    ("KL to the reference", ("kl/cot", "kl/image")),
    ("Clip fraction", ("clip_fraction/cot", "clip_fraction/image")),
    ("Loss", ("loss", "loss/cot", "loss/image")),
    ("Held-out loss", ("eval/loss", "eval/loss/cot", "eval/loss/image")),
    ("Gradient norm", ("grad_norm",)),
    ("Learning rate", ("lr",)),
    ("Guidance gap", ("guidance_gap",)),
    ("Distance between learner and sampler", ("sampler_gap/cot", "sampler_gap/image")),
    ("Reward spread within a group", ("reward/std",)),
    ("Diversity", ("eval/diversity",)),
    ("Images of training", ("image/edge_density", "image/brightness", "image/saturation")),
    ("Images of training: entropy of colours, bits", ("image/color_entropy",)),
    ("Near duplicates within a group", ("image/near_duplicates",)),
    ("Length of the semantic CoT", ("cot/tokens", "eval/cot_tokens")),
    ("CoTs that ended by themselves", ("cot/stopped",)),
    ("Staleness", ("staleness/mean", "staleness/max")),
    ("Groups not learned from", ("groups/dropped", "groups/filtered")),
)


@dataclass(frozen=True)
class Line:
    """One curve of a chart, in the chart's own coordinates where it is a `path`."""

    name: str
    path: str  # the values as they are
    smooth: str  # their smoothed course; "" where `path` is drawn alone
    dots: list[tuple[float, float]]
    last: str
    points: list[tuple[float, str, int]]  # x, value as text, step: for the tooltip


@dataclass(frozen=True)
class Chart:
    title: str
    lines: list[Line]
    across: list[tuple[float, str]]  # x, label
    up: list[tuple[float, str]]  # y, label


def charts(curves: dict[str, Points], experts: Sequence[str]) -> list[Chart]:
    """Every curve in exactly one chart: the known panels first, one for each expert, then whatever
    else there is by the first part of its name. All charts share one range of steps."""
    steps = [step for points in curves.values() for step, _ in points]
    if not steps:
        return []
    span = (min(steps), max(steps))
    laid_out = panels(curves, experts)
    return [_chart(title, {name: curves[name] for name in names}, span) for title, names in laid_out]


def panels(curves: Iterable[str], experts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Title and names of each chart that has a curve."""
    curves = list(curves)
    known = list(PANELS[:2])
    known += [(f"Expert: {name}", (f"reward/{name}", f"eval/{name}")) for name in experts]
    known += PANELS[2:]
    found = [(title, [name for name in names if name in curves]) for title, names in known]
    named = {name for _, names in known for name in names}
    others: dict[str, list[str]] = {}
    for name in curves:
        if name not in named:
            others.setdefault(_other_panel(name), []).append(name)
    return [(title, names) for title, names in [*found, *others.items()] if names]


def _other_panel(name: str) -> str:
    part, last = name.partition("/")[0], name.rpartition("/")[2]
    if part == "bench":
        unjudged = last == "unjudged"
        return "Benchmarks: images not judged" if unjudged else f"Benchmark: {name.split('/')[1]}"
    if name.startswith(("reward/task/", "eval/reward/task/")):
        return "Held-out reward by task type" if part == "eval" else "Reward by task type"
    return {"expert": f"Experts: {last}", "time": "Seconds a step"}.get(part, part)


def _chart(title: str, curves: dict[str, Points], span: tuple[int, int]) -> Chart:
    left, right = span if span[0] < span[1] else (span[0], span[0] + 1)
    thinned = {name: thin(points) for name, points in curves.items()}
    values = [value for points in thinned.values() for _, value in points]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    bottom, top = low - margin, high + margin
    if 0 <= low < 0.4 * high:  # near enough to zero to stand on it
        bottom = 0.0

    def x(step: float) -> float:
        return round(LEFT + (step - left) / (right - left) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (top - value) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Points) -> str:
        return "M" + "L".join(f"{x(step)} {y(value)}" for step, value in points)

    lines = []
    for name, points in thinned.items():
        dotted = name.startswith(("eval/", "bench/")) or len(points) == 1
        plain = dotted or name in EXACT
        lines.append(
            Line(
                name=name,
                path=path(points),
                smooth="" if plain else path(smooth(points)),
                dots=[(x(step), y(value)) for step, value in points] if dotted else [],
                last=short(curves[name][-1][1]),
                points=[(x(step), short(value), step) for step, value in points],
            )
        )
    across = [(x(t), f"{t:,.0f}") for t in ticks(left, right, 5) if t == int(t)]
    return Chart(title, lines, across, [(y(t), short(t)) for t in ticks(bottom, top)])


def short(value: float) -> str:
    """A number in at most about seven characters."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    decimals = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
