"""The terminal output of `bicot bench`: progress bars and tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from evaluation import pipeline
from evaluation.compare import BenchmarkTable, number


@contextmanager
def bars(console: Console) -> Iterator[pipeline.Progress]:
    """Two bars with the time left; without a terminal, a line at every tenth."""
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    printed = 0

    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        drawing, judging = shown.add_task("drawn", total=None), shown.add_task("judged", total=None)

        def tell(now: pipeline.Progress) -> None:
            nonlocal printed
            shown.update(drawing, completed=now.drawn, total=now.to_draw, visible=now.to_draw > 0)
            shown.update(judging, completed=now.judged, total=now.to_judge, visible=now.to_judge > 0)
            tenth = 10 * (now.drawn + now.judged) // max(1, now.to_draw + now.to_judge)
            if not console.is_terminal and tenth > printed:
                printed = tenth
                console.print(
                    f"drawn {now.drawn} of {now.to_draw} images, judged {now.judged} of {now.to_judge}",
                    highlight=False,
                )

        yield pipeline.Progress(tell=tell)


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result as a table with its notes."""
    asked = result["asked"]
    table = Table(title=f"{result['title']}, {asked['prompts']} of {asked['of']} prompts")
    table.add_column("task")
    table.add_column("score", justify="right")
    for task, value in result["tasks"].items():
        table.add_row(task, number(value, result["unit"]))
    table.add_section()
    table.add_row("overall", number(result["overall"], result["unit"]), style="bold")
    for name, value in result["further"].items():
        table.add_row(name, number(value, result["unit"]), style="dim")
    console.print(table)
    for note in result["notes"]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def show_comparison(found: Sequence[BenchmarkTable], console: Console) -> None:
    """Print a table a benchmark, with its notes under it."""
    for one in found:
        table = Table(title=one.title, caption="; ".join(one.differing) or None)
        table.add_column("task", overflow="fold")
        for each in one.runs:
            table.add_column(each.label, justify="right", overflow="fold")
        for task, scores in one.scores.items():
            table.add_row(task, *(number(score, one.unit) for score in scores))
        console.print(table)
        for each in one.runs:
            for note in each.result["notes"]:
                line = f"{each.label}: {note}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)
