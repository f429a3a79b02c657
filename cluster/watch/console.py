"""A run's output in the terminal: a progress bar, or one line a step in a log."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cluster.terminal import visible
from cluster.watch.benchmarks import Result, benchmark_metrics, in_a_line
from cluster.watch.evaluation import Evaluation


class TrainProgress:
    """Use as a context manager. In a terminal: a bar with step, reward, strict accuracy and time left;
    elsewhere (a job's log): a line a step with the same, or with `as_json` a JSON object a line, with
    an `event` (step, evaluation, benchmark, message) and for the first three all of their numbers."""

    shown: Mapping[str, str] = {"reward": "reward/mean", "strict": "reward/strict_accuracy"}
    """Label -> the step's number that is shown under it."""

    def __init__(self, console: Console, steps: int, done: int = 0, as_json: bool = False):
        self.console = console
        self.as_json = as_json and not console.is_terminal
        self.steps = steps
        self.done = done
        self.started = time.monotonic()
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, completed=done, numbers="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        failures: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        numbers = "  ".join(
            f"{label} {metrics[name]:.3f}" for label, name in self.shown.items() if name in metrics
        )
        self.bar.update(self.task, completed=step, numbers=numbers)
        if self.as_json:
            self._event("step", step=step, steps=self.steps, **metrics)
        elif not self.console.is_terminal:
            left = self._left(step)
            self.say(
                f"step {step}/{self.steps}  {numbers}  {metrics['time/step']:.2f} s  {left:.0f} s left"
            )
        for failure in failures:
            self.say(f"step {step}: dropped the group of {failure}")
        for warning in warnings:
            self.say(f"step {step}: warning: {warning}")

    def _left(self, step: int) -> float:
        """Seconds left, at the pace so far. A run that went back to a checkpoint may be behind its
        start."""
        made = max(1, step - self.done)
        return (time.monotonic() - self.started) / made * (self.steps - step)

    def evaluation(self, evaluation: Evaluation, failures: Sequence[str] = ()) -> None:
        numbers = evaluation.metrics()
        keys = ("eval/reward", "eval/strict_accuracy", "eval/cot_accuracy")
        text = "  ".join(f"{k.partition('/')[2]} {numbers[k]:.3f}" for k in keys if k in numbers)
        if self.as_json:
            self._event("evaluation", step=evaluation.step, **numbers)
        else:
            self.say(f"evaluation at step {evaluation.step}: {text}")
        for failure in failures:
            self.say(f"evaluation at step {evaluation.step}: left out {failure}")

    def benchmark(self, step: int, name: str, result: Result) -> None:
        """Print a benchmark's score at a step with its notes."""
        if self.as_json:
            numbers = benchmark_metrics(name, result)
            self._event("benchmark", step=step, **numbers)
        else:
            self.say(f"benchmark at step {step}: {in_a_line(name, result)}")
        for note in result["notes"]:
            self.say(f"benchmark at step {step}: {name}: {note}")

    def say(self, text: str) -> None:
        if self.as_json:
            self._event("message", message=text)
        else:
            self._print(text)

    def _event(self, event: str, **fields) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        self._print(json.dumps({"time": now, "event": event, **finite}, allow_nan=False))

    def _print(self, text: str) -> None:
        self.console.print(visible(text), soft_wrap=True, highlight=False, markup=False)


class SftProgress(TrainProgress):
    """The same for supervised fine-tuning, whose numbers are losses."""

    shown = {"loss": "loss", "cot": "loss/cot", "image": "loss/image"}

    def heldout(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the loss on held-out examples."""
        if self.as_json:
            self._event("evaluation", step=step, **metrics)
            return
        text = "  ".join(f"{name.removeprefix('eval/')} {value:.3f}" for name, value in metrics.items())
        self.say(f"held-out examples at step {step}: {text}")


def evaluation_table(title: str, evaluations: Mapping[str, Evaluation]) -> Table:
    """One row a number, one column an evaluation."""
    table = Table(title=title)
    table.add_column("")
    columns = [evaluation.metrics() for evaluation in evaluations.values()]
    for name in evaluations:
        table.add_column(name, justify="right", overflow="fold")  # it may be a path
    for key in columns[0]:
        cells = [f"{column[key]:.3f}" if key in column else "" for column in columns]
        table.add_row(key.partition("/")[2].replace("_", " "), *cells)
    return table
