"""The phases of a step, and the sizes of its processes: `python -m benchmarks.step`.

Makes a short shapes run and reads its own metrics: the median of each phase and its share of the step
(cluster/watch/metrics.py describes the phases). Generating, scoring and learning are the work;
publishing weights and the driver's own work are overhead. Beside it, the largest resident size that
each kind of process reached (the kernel's VmHWM).
"""

import argparse
import statistics
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from cluster.train import train
from cluster.watch.curves import read_metrics

PHASES = ("generate", "score", "learn", "publish", "wait", "driver")


class PeakSizes(threading.Thread):
    """Records every second the peak resident size of this process and all its children, by kind."""

    def __init__(self):
        super().__init__(daemon=True)
        self.megabytes: dict[str, float] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(1.0):
            here = psutil.Process()
            for process in [here, *here.children(recursive=True)]:
                try:
                    title = " ".join(process.cmdline()[:2])
                    status = Path(f"/proc/{process.pid}/status").read_text()
                except (psutil.Error, OSError):
                    continue  # it ended meanwhile
                peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
                kind = "driver" if process.pid == here.pid else _kind(title)
                if peak and kind:
                    self.megabytes[kind] = max(self.megabytes.get(kind, 0), int(peak[0]) / 1024)


def _kind(title: str) -> str | None:
    """Ray names its workers "ray::RolloutWorker.generate" and the like."""
    if not title.startswith("ray::"):
        return None
    name = title.removeprefix("ray::").split(".")[0].strip()
    return "expert" if name.startswith("ServeReplica") else name


def phase_table(lines: Sequence[dict]) -> tuple[Table, float]:
    """The phases, and the share of publishing and the driver together."""
    total = sum(line["time/step"] for line in lines)
    share = {phase: sum(line[f"time/{phase}"] for line in lines) / total for phase in PHASES}
    step = statistics.median(line["time/step"] for line in lines)
    table = Table(title=f"{len(lines)} steps, median {step:.3f} s")
    for column in ("phase", "median s", "share"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase in PHASES:
        median = statistics.median(line[f"time/{phase}"] for line in lines)
        table.add_row(phase, f"{median:.4f}", f"{share[phase]:.1%}")
    return table, share["publish"] + share["driver"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    console = Console()
    sizes = PeakSizes()
    sizes.start()
    with tempfile.TemporaryDirectory() as scratch:
        overrides = [f"train.steps={args.steps}", f"evaluate.every={args.steps}", f"runs_dir={scratch}"]
        folder = train(load_config("examples/shapes/train.yaml", overrides), console)
        lines = [line for line in read_metrics(folder / "metrics.jsonl").lines if "time/step" in line]
    sizes.done.set()
    table, overhead = phase_table(lines[3:])  # the first steps warm caches up
    console.print(table)
    console.print(f"publish and driver together: {overhead:.1%}")
    table = Table("process", "peak MB", title="largest of its kind")
    for kind, megabytes in sorted(sizes.megabytes.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{megabytes:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
