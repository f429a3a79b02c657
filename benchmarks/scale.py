"""Does the driver keep up? The real loop with simulated actors, experts and learner.

    python -m benchmarks.scale [--actors 1 4 16 64 256] [--steps 8] [--runs 1] [--picture scale.png]

The loop, the rollout manager, rewards, metrics, ledger and recorder are the program's own, and so are
Ray's calls: one a worker and step, one for all scoring, two for the learner's step, and weights that
are published as a stream of buckets. Three waiting processes stand for the roles
(benchmarks/simulated.py). Every rollout worker generates one group of 8 a step, so work grows with the
workers, and an ideal step takes the same time at any number of them. 64 experts' replicas score.

It shows the throughput as a share of the ideal, and the time that the loop's thread computes in a step
(without waiting), with a plot. Each run has a process and a Ray of its own; several runs of a size give
medians.
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib.figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.simulated import GENERATE_S, GROUP_SIZE, LEARN_S, SCORE_S, Pace, ideal_s, measure

BOUND_MS = 100
"""Bound of the driver's time a step, at 256 actors."""


@dataclass(frozen=True)
class Measured:
    actors: int
    runs: tuple[Pace, ...]

    @property
    def step_s(self) -> float:
        return median(run.step_s for run in self.runs)

    @property
    def driver_ms(self) -> float:
        return median(1000 * run.driver_s for run in self.runs)

    @property
    def samples_s(self) -> float:
        return GROUP_SIZE * self.actors / self.step_s

    @property
    def of_linear(self) -> float:
        return ideal_s(self.actors) / self.step_s


def table(sizes: Sequence[Measured]) -> Table:
    shown = Table(title=f"simulated: generate {GENERATE_S} s, score {SCORE_S} s, learn {LEARN_S} s")
    for column in ("actors", "samples/s", "step s", "of linear", "driver ms"):
        shown.add_column(column, justify="right", no_wrap=True)
    for size in sizes:
        shown.add_row(
            str(size.actors),
            f"{size.samples_s:.1f}",
            f"{size.step_s:.3f}",
            f"{size.of_linear:.1%}",
            f"{size.driver_ms:.1f}",
        )
    return shown


def plot(sizes: Sequence[Measured], path: str) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    actors = [size.actors for size in sizes]
    ideal = [GROUP_SIZE * n / ideal_s(n) for n in actors]
    left.plot(actors, [size.samples_s for size in sizes], "o-", label="measured")
    left.plot(actors, ideal, "--", label="ideal")
    left.set(xscale="log", yscale="log", xlabel="rollout workers", ylabel="samples a second")
    left.legend(frameon=False)
    right.plot(actors, [size.driver_ms for size in sizes], "o-")
    right.axhline(BOUND_MS, ls="--", lw=1)
    right.set(xscale="log", xlabel="rollout workers", ylabel="driver, ms a step", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(actors, [str(n) for n in actors])
        axes.minorticks_off()
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1, help="of each size")
    parser.add_argument("--picture", help="where to draw the plot (PNG)")
    options = parser.parse_args()
    if options.steps < 3:
        parser.error("--steps must be 3 at least: the first two do not count")
    console = Console(stderr=True)
    found: dict[int, list[Pace]] = {actors: [] for actors in options.actors}
    todo = [(actors, run) for run in range(options.runs) for actors in options.actors]
    with tempfile.TemporaryDirectory() as folder:
        for actors, run in track(todo, "runs", console=console):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                place = Path(folder) / f"n{actors}-{run}"
                found[actors].append(fresh.submit(measure, actors, options.steps, place).result())
    sizes = [Measured(actors, tuple(runs)) for actors, runs in found.items()]
    Console().print(table(sizes))
    if options.picture:
        plot(sizes, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
