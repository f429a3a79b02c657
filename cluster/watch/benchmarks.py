"""Evaluates public benchmarks during training: some prompts of each, drawn with the current weights and
fixed seeds, judged by the benchmark's own judges, scored by its formula.

Images and replies are saved as a run of the benchmark, in `samples/bench_NAME_000100/` of the run
directory, which `bicot bench score` reads like any other.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.benchmarks import application_prefix, bench_configs, judges_by_benchmark, plain
from cluster.config import RunConfig
from evaluation.benchmark import Benchmark, Item, load_benchmark, some_of
from evaluation.compare import number
from evaluation.config import BenchConfig
from evaluation.generators import Drawn
from evaluation.result import read_result, score, what_differs
from evaluation.run_folder import RunFolder, identity
from policy.errors import UserError
from policy.prompts import prompt_id
from policy.records import Group, Prompt, PublishedWeights, Sample
from rewards.config import RewardsConfig

if TYPE_CHECKING:
    from cluster.rollouts import RolloutManager

Result = dict[str, Any]
"""A result of evaluation.result.score."""
NO_INTERVAL = (
    "These differences have no interval, and a slice of a benchmark is small: `bicot compare` on two of"
    " the folders samples/bench_* has intervals."
)
UNSCORED = ("missing", "unreadable", "unjudged")


@dataclass(frozen=True)
class BenchmarkSlice:
    """The prompts of a benchmark that a run evaluates, the same every time, and its judges."""

    benchmark: Benchmark
    config: BenchConfig
    judges: RewardsConfig | None
    items: Sequence[Item] = field(repr=False)

    @classmethod
    def all_of(cls, config: RunConfig) -> list["BenchmarkSlice"]:
        """The slices of every benchmark that a run evaluates. Raises UserError, e.g. for prompts that
        are not here."""
        judges = judges_by_benchmark(config)
        found = []
        for name, bench in bench_configs(config).items():
            benchmark = load_benchmark(name, bench.data)
            items = some_of(benchmark.items, limit=bench.limit)
            found.append(cls(benchmark, bench, judges.get(name), items))
        return found

    @property
    def name(self) -> str:
        return self.config.benchmark

    @property
    def images(self) -> int:
        return len(self.items) * self.benchmark.images_per_prompt

    def draw(self, rollouts: "RolloutManager", weights: PublishedWeights | None) -> list[list[Sample]]:
        """Samples of every prompt: those that `bicot bench` would draw with these weights and the
        run's seed. Raises as rollouts do."""
        prompts = [Prompt(prompt_id(item.text), item.text, item.task) for item in self.items]
        groups = [Group(prompt, self.benchmark.images_per_prompt) for prompt in prompts]
        return rollouts.draw(groups, weights)

    def score(self, drawn: Sequence[Sequence[Sample]], run: Path, step: int, version: int) -> Result:
        """Save the images drawn at a step with a version of the weights, have them judged, and score
        them. Images without a judge's reply are counted apart."""
        from evaluation.pipeline import Pipeline, Progress  # and Ray Serve, which no check needs

        out = run / "samples" / f"bench_{plain(self.name)}_{step:06d}"
        if out.exists():  # written before the run went back to a checkpoint
            shutil.rmtree(out)
        out.mkdir(parents=True)
        generator = {**self.config.generator(), "run": run.name, "step": step, "version": version}
        entries = self.judges.model_dump(mode="json")["experts"] if self.judges else {}
        folder = RunFolder(out, self.benchmark)
        what = identity(self.benchmark, generator, self.config.seed, entries, None)
        folder.open(what, {"tasks": [], "limit": self.config.limit})
        for item, samples in zip(self.items, drawn, strict=True):
            folder.write(item, [Drawn(sample.image, sample.cot_text) for sample in samples])
        prefix = application_prefix(self.name)
        Pipeline(folder, self.items, self.config, [], self.judges, Progress(), prefix).run()
        return score(folder, self.items, may_be_empty=True)


def unscored(result: Result) -> int:
    """How many images lack a usable reply of some judge; no score counts them as 0."""
    return sum(result["gaps"].get(why, 0) for why in UNSCORED)


def benchmark_metrics(name: str, result: Result) -> dict[str, float]:
    """As `bench/NAME/...`: the score of each task, `overall`, and `unjudged`, the images that are
    `unscored`. A score that cannot be computed is absent, never 0."""
    scores = {**result["tasks"], "overall": result["overall"]}
    known = {task: float(value) for task, value in scores.items() if value is not None}
    found = {**known, "unjudged": float(unscored(result))}
    return {f"bench/{name}/{key}": value for key, value in found.items()}


def in_a_line(name: str, result: Result) -> str:
    """The overall score, and how many images are not in it."""
    line = f"{name}: overall {number(result['overall'], result['unit'])}"
    left_out = unscored(result)
    return f"{line}, {left_out} of {result['asked']['images']} images not judged" if left_out else line


# --- read back -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A score before and now, as text; "-" if it cannot be computed."""

    label: str
    before: str
    now: str
    difference: str


@dataclass(frozen=True)
class BenchmarkTable:
    """A run's last evaluation of a benchmark, beside the first of the same prompts; None: it is the
    only one."""

    title: str
    prompts: str
    before: int | None
    now: int
    rows: list[Row]
    notes: list[str]


def benchmark_tables(run: Path, tell: Callable[[str], None]) -> list[BenchmarkTable]:
    """The tables of all benchmarks that a run has evaluated. Reports and leaves out an evaluation that
    cannot be read."""
    looks: dict[str, list[tuple[int, Result]]] = {}
    for folder in sorted((run / "samples").glob("bench_*")):
        if match := re.fullmatch(r"bench_(.+)_([0-9]+)", folder.name):
            try:
                looks.setdefault(match[1], []).append((int(match[2]), read_result(folder)))
            except UserError as error:
                tell(f"left out: {error}")
    return [_table(sorted(looks[name], key=lambda look: look[0])) for name in sorted(looks)]


def _table(looks: Sequence[tuple[int, Result]]) -> BenchmarkTable:
    now, last = looks[-1]
    alike = (
        (step, result)
        for step, result in looks[:-1]
        if result["asked"].get("keys") == last["asked"].get("keys")
    )
    before, first = next(alike, (None, None))
    scores = {**last["tasks"], "overall": last["overall"]}
    earlier = {**first["tasks"], "overall": first["overall"]} if first else {}
    rows = [_row(task, earlier.get(task), value, last["unit"]) for task, value in scores.items()]
    if first and (unscored(first) or unscored(last)):
        rows.append(Row("images not judged", str(unscored(first)), str(unscored(last)), ""))
    notes = list(last["notes"])
    if first and first["overall"] is not None and last["overall"] is not None:
        notes.append(NO_INTERVAL)
    if first and first["overall"] is not None and last["overall"] is not None:
        notes += what_differs([first, last])
    asked = f"{last['asked']['prompts']} of {last['asked']['of']} prompts"
    return BenchmarkTable(last["title"], asked, before, now, rows, notes)


def _row(label: str, before: float | None, now: float | None, unit: str) -> Row:
    difference = "-"
    if before is not None and now is not None:
        by = now - before
        sign = "+" if by > 0 else "\N{MINUS SIGN}" if by < 0 else "\N{PLUS-MINUS SIGN}"
        difference = sign + number(abs(by), unit)
    return Row(label, number(before, unit), number(now, unit), difference)
