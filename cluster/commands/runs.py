"""Commands that read a run directory: its state, and what became of its prompts."""

import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.checkpoint import newest
from cluster.config import load_config, read_tree
from cluster.ledger import OUTCOMES, faults, read_ledger
from cluster.sft_config import load_sft_config
from cluster.watch.curves import read_metrics
from policy.errors import UserError

_OF_TRAINING = ("reward/mean", "reward/strict_accuracy", "staleness/max")
_OF_SFT = ("loss/cot", "loss/image")
_LOST = ("groups/dropped", "actors/replaced", "step/skipped")


def show_ledger(folder: Path, console: Console) -> bool:
    """Print what became of every group. Returns False, and prints the faults, if the numbers do not add
    up."""
    entries = read_ledger(folder)
    counts = Counter(entry.outcome for entry in entries)
    steps = max((entry.step for entry in entries), default=0)
    heading = f"{folder}: {len(entries)} groups in {steps} steps"
    console.print(heading, highlight=False, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("outcome")
    table.add_column("groups", justify="right")
    table.add_column("", justify="left")
    for outcome, meaning in OUTCOMES.items():
        table.add_row(outcome, str(counts[outcome]), meaning)
    console.print(table)
    again = sum(entry.attempts > 1 for entry in entries)
    if again:
        console.print(f"{again} were generated more than once, for a worker was lost")
    for why, number in Counter(e.why for e in entries if e.why).most_common(5):
        console.print(f"{number} x {why}", highlight=False, markup=False)
    wrong = faults(entries)
    for line in wrong[:20]:
        console.print(line, style="red", highlight=False, markup=False)
    console.print("it adds up" if not wrong else f"it does not add up: {len(wrong)} faults")
    return not wrong


def show_status(folder: Path, console: Console) -> None:
    """Print the state of a run from its own records; it may run on another machine."""

    def warn(text: str) -> None:
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    if not (folder / "metrics.jsonl").exists():
        raise UserError(f"{folder}: no run is there: it has no metrics.jsonl")
    lines, unreadable = read_metrics(folder / "metrics.jsonl")
    for wrong in unreadable[:20]:
        warn(wrong)
    last_step = _steps_of(folder / "config.yaml")
    steps = [line for line in lines if line.get("time/step") is not None]
    evaluated = "eval/reward" if any("eval/reward" in line for line in lines) else "eval/loss"
    evaluations = [line for line in lines if line.get(evaluated) is not None]
    table = Table(show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    if steps:
        last, recent = steps[-1], steps[-20:]
        pace = sum(line["time/step"] for line in recent) / len(recent)
        age = time.time() - (folder / "metrics.jsonl").stat().st_mtime
        table.add_row("step", f"{last['step']} of {last_step}")
        table.add_row("last written", f"{age:.0f} s ago, a step takes {pace:.1f} s")
        if last["step"] < last_step:
            table.add_row("left", f"{pace * (last_step - last['step']) / 60:.0f} min")
        for name in _OF_SFT if "epoch" in last else _OF_TRAINING:
            values = [line[name] for line in recent if line.get(name) is not None]
            if values:
                table.add_row(f"{name}, {len(values)} steps", f"{sum(values) / len(values):.3f}")
        for name in _LOST if "epoch" not in last else _LOST[-1:]:
            table.add_row(name, f"{sum(line.get(name) or 0 for line in steps):.0f} in all")
    for line in evaluations[:1] + evaluations[1:][-1:]:
        table.add_row(f"{evaluated} at step {line['step']}", f"{line[evaluated]:.3f}")
    checkpoint = newest(folder / "checkpoints", warn, read_all=False)
    newest_one = f"newest checkpoint: {checkpoint.folder if checkpoint else 'none yet'}"
    # Paths are printed outside of the table, so that a narrow terminal does not break them.
    console.print(str(folder), highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(newest_one, highlight=False, markup=False, soft_wrap=True)


def _steps_of(path: Path) -> int:
    """How many steps a run of either kind has by its configuration."""
    _, tree = read_tree(path)
    return load_sft_config(path).sft.steps if "sft" in tree else load_config(path).train.steps
