"""Does a long run grow? `python -m benchmarks.soak`: 2,000 small steps of the shapes run.

Every few seconds it records each process's own memory (USS: what would be free again if it ended), open
file descriptors and threads; every minute the object store. The table has, for each kind of process,
the values at the first step that counts and at the end, and the slope a thousand steps of a straight
line through all values.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import ray
from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from cluster.train import train

SMALL = [
    "train.groups_per_step=2",
    "train.group_size=4",
    "train.save_every=200",
    "train.show_every=100",
    "evaluate.every=500",
    "evaluate.samples_per_prompt=1",
    "actors.count=1",
    "learner.ranks=1",
    "train.max_empty_steps=1000000",  # after a thousand steps two small groups are often all right
]
MEASURES = ("MB", "descriptors", "threads")


@dataclass
class Watcher(threading.Thread):
    """Records (step, MB, descriptors, threads) of this process and its children, summed by kind, and
    (step, MB) of the object store."""

    metrics: Path
    pause_s: float = 4.0
    processes: dict[str, list[tuple[float, ...]]] = field(default_factory=lambda: defaultdict(list))
    store: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(daemon=True)
        self.done = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        store_at = time.monotonic()
        while not self.done.wait(self.pause_s):
            if not self.metrics.exists():
                continue
            step = self.metrics.read_bytes().count(b'"time/step"')
            for kind, values in _family().items():
                self.processes[kind].append((step, *values))
            if time.monotonic() > store_at:
                store_at = time.monotonic() + 60
                if (used := _store_mb()) is not None:
                    self.store.append((step, used))


def _family() -> dict[str, np.ndarray]:
    """Kind -> MB, descriptors, threads of this process and all its children."""
    here = psutil.Process()
    found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    for process in [here, *here.children(recursive=True)]:
        try:
            kind = "driver" if process.pid == here.pid else _kind(process.cmdline())
            memory = process.memory_full_info().uss / 2**20
            found[kind] += (memory, process.num_fds(), process.num_threads())
        except psutil.Error:
            continue  # it ended meanwhile
    return {kind: values for kind, values in found.items() if kind}


def _kind(command: Sequence[str]) -> str:
    """Ray names its workers "ray::RolloutWorker.generate" and the like; its idle ones come and go."""
    title = " ".join(command)
    if title.startswith("ray::"):
        name = re.split(r"[.: ]", title.removeprefix("ray::"))[0]
        return "" if name == "IDLE" else "expert" if name == "ServeReplica" else name
    for service in ("raylet", "gcs_server", "log_monitor", "runtime_env", "dashboard"):
        if service in title:
            return f"Ray's {service}"
    return ""


def _store_mb() -> float | None:
    """Megabytes in the object store, from Ray's command line; None while Ray does not run."""
    if not ray.is_initialized():
        return None
    address = ray.get_runtime_context().gcs_address
    command = [
        str(Path(sys.executable).with_name("ray")),
        "memory",
        "--stats-only",
        "--address",
        address,
    ]
    output = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    used = re.search(r"Plasma memory usage (\d+) MiB", output)
    return float(used[1]) if used else None


def trend(points: np.ndarray) -> tuple[float, float, float]:
    """A straight line through points (step, value), float [N, 2]: its first and its last value, and its
    slope a thousand steps."""
    steps, values = points.T
    slope, offset = map(float, np.polyfit(steps, values, 1))
    return offset + slope * float(steps.min()), offset + slope * float(steps.max()), slope * 1000


def tables(watcher: Watcher, first: int) -> list[Table]:
    each = Table("process", title=f"from step {first} on; slope a thousand steps")
    for measure in MEASURES:
        for column in ("from", "to", "slope"):
            each.add_column(f"{measure} {column}" if column == "from" else column, justify="right")
    for kind, rows in sorted(watcher.processes.items()):
        counted = np.array([row for row in rows if row[0] >= first])
        if len(counted) < 3:
            continue
        cells = [kind]
        for index in (1, 2, 3):
            begin, end, slope = trend(counted[:, [0, index]])
            cells += [f"{begin:.0f}", f"{end:.0f}", f"{slope:+.1f}"]
        each.add_row(*cells)
    store = [point for point in watcher.store if point[0] >= first]
    used = Table("object store", "MB")
    for step, megabytes in store[:: max(1, len(store) // 8)]:
        used.add_row(f"step {step:.0f}", f"{megabytes:.0f}")
    return [each, used]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--first", type=int, default=200, help="the first step that counts")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two looks")
    args = parser.parse_args()
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as scratch:
        held_out = Path(scratch) / "heldout.jsonl"
        rows = Path("examples/shapes/prompts/heldout.jsonl").read_text().splitlines()
        held_out.write_text("\n".join(rows[::10]) + "\n")
        own = [f"train.steps={args.steps}", f"evaluate.prompts={held_out}", f"runs_dir={scratch}"]
        config = load_config("examples/shapes/train.yaml", [*SMALL, *own])
        watcher = Watcher(config.folder / "metrics.jsonl", args.pause)
        watcher.start()
        started = time.monotonic()
        try:
            train(config, console)
        finally:  # shows the values of a run that fails, too
            watcher.done.set()
            watcher.join(130)
            took = time.monotonic() - started
            console.print(f"{args.steps} steps, {took / args.steps:.2f} s each, set-up included")
            for table in tables(watcher, args.first):
                console.print(table)


if __name__ == "__main__":
    main()
