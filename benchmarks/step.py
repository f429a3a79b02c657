"""Where a step's time goes: `python -m benchmarks.step RUN` for a run directory, or without one,
which makes a short shapes run first.

Reads the run's own metrics: the median of each phase and its share of the step (cluster/metrics.py
says what each phase holds). Drawing, judging and learning are the work; publishing weights and the
driver's own doing are overhead.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from cluster.curves import read_metrics
from cluster.train import train

PHASES = ("sample", "judge", "learn", "publish", "wait", "driver")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.run
        if folder is None:
            overrides = [
                f"train.steps={args.steps}",
                f"evaluate.every={args.steps}",
                f"runs_dir={scratch}",
            ]
            folder = train(load_config("examples/shapes/train.yaml", overrides), console)
        lines = [line for line in read_metrics(folder / "metrics.jsonl").lines if "time/step" in line]
    lines = lines[3:]  # the first steps warm caches up
    step = statistics.median(line["time/step"] for line in lines)
    table = Table(title=f"{len(lines)} steps, median {step:.3f} s")
    for column in ("phase", "median s", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    total = sum(line["time/step"] for line in lines)
    share = {phase: sum(line[f"time/{phase}"] for line in lines) / total for phase in PHASES}
    for phase in PHASES:
        median = statistics.median(line[f"time/{phase}"] for line in lines)
        table.add_row(phase, f"{median:.4f}", f"{share[phase]:.1%}")
    console.print(table)
    console.print(f"publish and driver together: {share['publish'] + share['driver']:.1%}")


if __name__ == "__main__":
    main()
