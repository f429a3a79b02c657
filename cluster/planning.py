"""The command `bicot plan`: memory, time and money of a run, before anything is loaded or started."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster.config import load_config
from cluster.efficiency import Efficiency, read_figures
from cluster.gpus import gpu_named
from cluster.lengths import lengths_of
from cluster.plan import model_shapes, needs, plan_table
from cluster.speed import SpeedModel
from cluster.speed_table import cost_lines, split_line, split_table, step_table
from cluster.split import gpus_of, splits


@dataclass(frozen=True)
class Question:
    """What the command was asked; None: the configuration's, the type's or an assumed one."""

    gpu: str
    gpus: int | None = None
    gpu_gb: float | None = None
    price: float | None = None
    cot_tokens: int | None = None
    figures: Path | None = None


def show_plan(path: Path, overrides: Sequence[str], asked: Question, console: Console) -> bool:
    """Print it. Returns whether every process fits its GPU."""
    config = load_config(path, overrides)
    shapes, gpu = model_shapes(config.policy), gpu_named(asked.gpu)
    gib = asked.gpu_gb or gpu.gib
    needed = needs(config, shapes)
    console.print(plan_table(config, needed, gib))
    efficiency = read_figures(asked.figures) if asked.figures else Efficiency()
    lengths = lengths_of(config, asked.cot_tokens)
    model = SpeedModel(config, shapes, gpu, efficiency, lengths)
    times = model.times()
    console.print(step_table(model, times))
    for line in cost_lines(model, times, asked.price):
        console.print(line, highlight=False, soft_wrap=True)
    gpus = asked.gpus or gpus_of(config)
    if gpus:
        found = splits(model, gpus, gib)
        if found:
            console.print(split_table(model, found, gpus))
        console.print(split_line(model, found, gpus), highlight=False, soft_wrap=True)
    return all(need.fits(gib) for need in needed)
