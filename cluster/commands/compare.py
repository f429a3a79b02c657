"""`bicot compare`: two runs, by their last evaluations, or two results of `bicot bench`, on a page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.commands.bench_show import show_comparison
from cluster.watch.changes import Change, Value, changes
from cluster.watch.evaluation import Evaluation, ScoredSample, load_evaluation, saved_evaluations
from cluster.watch.report import experts_of, share_prompts, watched
from evaluation.compare import read_runs, tables
from evaluation.compare_page import write_page
from evaluation.result import NAMES
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
from policy.errors import UserError
from policy.jsonl import read_text


@dataclass(frozen=True)
class Side:
    """One of the two: its evaluation, and the experts of the run that made it, None without its
    configuration."""

    folder: Path
    evaluation: Evaluation
    experts: dict[str, dict[str, Any]] | None
    before: Evaluation | None = None
    """The run's first evaluation of the same prompts."""

    @property
    def label(self) -> str:
        return f"{self.folder.resolve().name}, step {self.evaluation.step}"


def compare(
    one: Path, other: Path, out: Path, console: Console, *, anyway: bool, data: Path | None
) -> None:
    """Write the page, and print its numbers. Raises UserError if they cannot be compared; with
    `anyway`, such results of benchmarks are shown and marked."""
    kinds = {_is_result(one), _is_result(other)}
    if len(kinds) > 1:
        raise UserError(
            f"{one} and {other}: one is a result of `bicot bench`, the other a run; name two of a kind"
        )
    if kinds == {True}:
        found = tables(read_runs([one, other]), anyway=anyway)
        show_comparison(found, console)
        write_page(found, out, data)
    else:
        comparison = compare_runs(read_side(one), read_side(other))
        _show(comparison, console)
        write_comparisons("Two runs side by side", [comparison], out)
    console.print(str(out), highlight=False, soft_wrap=True)


def _is_result(folder: Path) -> bool:
    return any((folder / name).exists() for name in NAMES.values())


def read_side(folder: Path) -> Side:
    """The last evaluation of a run directory, or the one that a folder is. Raises UserError."""
    if (folder / "evaluation.json").exists():
        run = folder.parents[1] if folder.parent.name == "samples" else folder
        before, after = None, load_evaluation(folder)
    elif saved := saved_evaluations(folder):
        run, after = folder, load_evaluation(saved[-1])
        first = load_evaluation(saved[0])
        before = first if first.step < after.step and share_prompts(first, after) else None
    else:
        raise UserError(
            f"{folder}: nothing to compare is there: no evaluation of a run, no evaluation.json of"
            " `bicot evaluate --out`, and no result.json of `bicot bench`"
        )
    config = run / "config.yaml"
    experts = experts_of(read_text(config), str(config)) if config.exists() else None
    return Side(folder, after, experts, before)


def compare_runs(one: Side, other: Side) -> Comparison:
    """Compare two runs on the prompts that both have. Raises UserError if there are none."""
    both = one.evaluation.by_prompt().keys() & other.evaluation.by_prompt().keys()
    if not both:
        raise UserError(f"{one.folder} and {other.folder}: their evaluations have no prompt in common")
    before, after = (_only(side.evaluation, both) for side in (one, other))
    unrewarded = watched(one.experts or {}) & watched(other.experts or {})
    rows = [_row(change) for change in changes(before, after, unrewarded)]
    rows += _gains((one, other), both)
    shown = _shown(before, after)
    notes = _differences(one, other, before, after)
    if len(both) > len(shown):
        notes.append(f"Pictures: of {len(shown)} of the {len(both)} prompts, {IMAGES} each at most.")
    if not any(cell.interval for row in rows for cell in row.cells):
        notes.append("No intervals: there are fewer than 5 prompts.")
    labels = one.label, other.label
    if labels[0] == labels[1]:
        labels = str(one.folder), str(other.folder)
    return Comparison(
        title="Held-out prompts",
        labels=labels,
        rows=rows,
        heading="The prompts on which they differ most",
        shown=shown,
        notes=notes,
        about=[
            f"{label}: {side.folder.resolve()}; step {side.evaluation.step}, weights version"
            f" {side.evaluation.weights_version}, {len(side.evaluation.scored)} samples"
            for label, side in zip(labels, (one, other), strict=True)
        ],
    )


def _only(evaluation: Evaluation, prompts: set[str]) -> Evaluation:
    scored = tuple(j for j in evaluation.scored if j.prompt.id in prompts)
    return Evaluation(evaluation.step, evaluation.weights_version, scored)


def _row(change: Change) -> Row:
    def cell(value: Value | None, verdict: str = "") -> Cell:
        return Cell(value.text, value.interval, verdict) if value else Cell("-")

    cells = cell(change.before), cell(change.after)
    difference = cell(change.difference, change.verdict) if change.difference else None
    return Row(change.label, cells, difference, change.table)


def _gains(sides: tuple[Side, Side], prompts: set[str]) -> list[Row]:
    """Rows of each run's own gain since its first evaluation of these prompts."""
    gains: list[dict[str, Change]] = []
    for side in sides:
        if side.before and not prompts.isdisjoint(side.before.by_prompt()):
            found = changes(_only(side.before, prompts), _only(side.evaluation, prompts))
            gains.append({each.label: each for each in found if not each.table and each.difference})
        else:
            gains.append({})
    section = "change since the first evaluation of each"
    labels = dict.fromkeys(label for side in gains for label in side)
    return [
        Row(label, (_gain(gains[0].get(label)), _gain(gains[1].get(label))), section=section)
        for label in labels
    ]


def _gain(change: Change | None) -> Cell:
    if change is None or change.difference is None:
        return Cell("-")
    return Cell(change.difference.text, change.difference.interval, change.verdict)


def _shown(before: Evaluation, after: Evaluation) -> list[ShownPrompt]:
    old, new = before.by_prompt(), after.by_prompt()
    by = {id: _reward(new[id]) - _reward(old[id]) for id in old}
    largest = sorted(by, key=lambda id: (-abs(by[id]), id))[:SHOWN]
    return [
        ShownPrompt(
            text=old[id][0].prompt.text,
            what=f"{old[id][0].prompt.task_type}, reward {by[id]:+.2f}",
            scores=(f"{_reward(old[id]):.2f}", f"{_reward(new[id]):.2f}"),
            pictures=(_pictures(old[id]), _pictures(new[id])),
        )
        for id in largest
    ]


def _reward(group: list[ScoredSample]) -> float:
    return sum(j.reward for j in group) / len(group)


def _pictures(group: list[ScoredSample]) -> tuple[tuple[str, str], ...]:
    return tuple((thumbnail(j.sample.image), j.sample.cot_text) for j in group[:IMAGES])


def _differences(one: Side, other: Side, before: Evaluation, after: Evaluation) -> list[str]:
    """Sentences on what makes the two less comparable."""
    notes = []
    counts = [len(side.evaluation.by_prompt()) for side in (one, other)]
    both = len(before.by_prompt())
    if counts != [both, both]:
        notes.append(
            f"Compared: the {both} prompts that both have, of {counts[0]} and {counts[1]}; all numbers"
            " are of those alone."
        )
    seeds = [{(j.prompt.id, j.sample.index, j.sample.seed) for j in e.scored} for e in (before, after)]
    if seeds[0] != seeds[1]:
        notes.append(
            "The two drew with other seeds, or another number of samples: part of every prompt's"
            " difference is chance."
        )
    if one.experts is not None and other.experts is not None:
        names = sorted({*one.experts, *other.experts})
        if differ := [name for name in names if _settings(one, name) != _settings(other, name)]:
            notes.append(
                f"The experts differ ({', '.join(differ)}): rewards and strict accuracies are on two"
                " scales."
            )
    return notes


_KEYS = ("use", "options", "weight", "normalize")
"""Keys of an expert that its scores or the reward depend on."""


def _settings(side: Side, expert: str) -> list[Any]:
    return [(side.experts or {}).get(expert, {}).get(key) for key in _KEYS]


def _show(comparison: Comparison, console: Console) -> None:
    table = Table(title=comparison.title)
    table.add_column("")
    for label in (*comparison.labels, "difference"):
        table.add_column(label, justify="right", overflow="fold")
    for row in comparison.rows:
        difference = row.difference or Cell("-")
        by = f"{difference.text} ({difference.interval})" if difference.interval else difference.text
        label = f"{row.section}: {row.label}" if row.section else row.label
        table.add_row(label, *(cell.text for cell in row.cells), by)
    console.print(table)
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
