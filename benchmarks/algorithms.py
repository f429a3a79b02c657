"""Compares the algorithms in the shapes world: `python -m benchmarks.algorithms`.

Each variant is `bicot train examples/shapes/train.yaml` with some keys, for each seed, with the same
number of samples. Finished runs are not repeated, so the command may be stopped and given again. It
prints a Markdown table of the held-out scores after training, mean and spread over the seeds, and plots
it.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

CONFIG = "examples/shapes/train.yaml"
LEARNER = "learner.old_logps=learner"
TWO = ["learner.minibatches=2", LEARNER]
# Against stale samples: with the sampler's log-probabilities the ratio itself corrects, and is clipped;
# with the learner's own it is 1 before the first update, and corrects nothing unless a weight does.
TRUNCATED = [LEARNER, "learner.importance=truncated"]
VARIANTS: dict[str, dict[str, list[str]]] = {
    "loss, one update a batch": {
        "grpo": [],
        "grpo without std": ["learner.advantage_scale=none"],
        "gdpo": ["learner.advantages=gdpo"],
    },
    "loss, two mini-batches": {
        "grpo x 2": TWO,
        "dr_grpo x 2": ["learner.loss=dr_grpo", "learner.loss_length=48", *TWO],
        "dapo x 2": ["learner.loss=dapo", *TWO],
        "gspo x 2": ["learner.loss=gspo", *TWO],
        "cispo x 2": ["learner.loss=cispo", *TWO],
    },
    "updates of a batch": {
        "2 updates": ["learner.updates_per_batch=2", LEARNER],
        "4 updates": ["learner.updates_per_batch=4", LEARNER],
    },
    "staleness": {
        "1 stale, uncorrected": ["train.max_staleness=1", LEARNER],
        "1 stale, PPO's ratio": ["train.max_staleness=1"],
        "1 stale, truncated": ["train.max_staleness=1", *TRUNCATED],
        "4 stale, uncorrected": ["train.max_staleness=4", LEARNER],
        "4 stale, PPO's ratio": ["train.max_staleness=4"],
        "4 stale, truncated": ["train.max_staleness=4", *TRUNCATED],
    },
    "schedule": {
        "linear": ["learner.schedule=linear"],
        "cosine": ["learner.schedule=cosine"],
    },
    "what is trained": {
        "semantic CoT only": ["learner.image_weight=0"],
        "image only": ["learner.cot_weight=0"],
        "image only, guided": ["learner.cot_weight=0", "learner.train_distribution=guided"],
        "both, guided": ["learner.train_distribution=guided"],
    },
}
COLUMNS = {
    "eval/reward": "reward",
    "eval/strict_accuracy": "strict",
    "eval/cot_accuracy": "CoT right",
    "eval/diversity": "diversity",
    "eval/reward/task/riddle": "riddles",
}


class Job(NamedTuple):
    name: str
    keys: Sequence[str]
    seed: int
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / f"{re.sub(r'[^a-zA-Z0-9]+', '_', self.name)}-{self.seed}"


def scores(run: Path) -> tuple[dict[str, float], dict[str, float]] | None:
    """The scores of the first and the last evaluation of a finished run, else None."""
    if not (run / "report.html").exists():
        return None
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval/reward" in row]
    return evaluations[0], evaluations[-1]


def train(job: Job, steps: int) -> None:
    """Make one run, unless it is there. It has one worker of each role, so that two runs share two
    cores."""
    if scores(job.run):
        return
    small = ["learner.ranks=1", "actors.count=1", "ray.dashboard=false"]
    every = [f"{key}={steps}" for key in ("train.steps", "evaluate.every", "train.save_every")]
    where = [f"name={job.run.name}", f"runs_dir={job.folder}", f"seed={job.seed}"]
    command = [sys.executable, "-m", "cluster", "train", CONFIG, *small, *every, *where, *job.keys]
    done = subprocess.run(command, capture_output=True, text=True, timeout=steps * 60 + 600)
    print(f"{job.run.name}: exit status {done.returncode}", flush=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean and half the range, as text."""
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.3f}" + (f" ± {half:.3f}" if len(values) > 1 else "")


def table(found: dict[str, list[dict[str, float]]], groups: Sequence[str]) -> str:
    """The table as Markdown."""
    lines = ["| | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    wanted = {"": ["before training"]} | {group: list(VARIANTS[group]) for group in groups}
    for group, names in wanted.items():
        if group:
            lines.append(f"| **{group}** |" + " |" * (1 + len(COLUMNS)))
        for name in names:
            if rows := found.get(name):
                cells = [spread([row[key] for row in rows if key in row]) for key in COLUMNS]
                lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot each variant's reward, a dot a seed, beside that before training."""
    names = [name for group in VARIANTS.values() for name in group if name in found]
    figure = Figure(figsize=(7, 0.32 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    before = statistics.mean(row["eval/reward"] for row in found["before training"])
    axes.axvline(before, color="0.6", linestyle=":", label="before training")
    for place, name in enumerate(reversed(names)):
        rewards = [row["eval/reward"] for row in found[name]]
        axes.plot(rewards, [place] * len(rewards), "o", color="tab:blue", markersize=4, alpha=0.6)
        axes.plot(statistics.mean(rewards), place, "|", color="black", markersize=14)
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set_xlabel("held-out reward after training")
    axes.legend(loc="center left")
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    jobs = [
        Job(name, keys, seed, args.out)
        for seed in args.seeds
        for group in args.only
        for name, keys in VARIANTS[group].items()
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: train(job, args.steps), jobs))
    found: dict[str, list[dict[str, float]]] = {"before training": []}
    for job in jobs:
        if of_run := scores(job.run):
            found.setdefault(job.name, []).append(of_run[1])
            if job.name == "grpo" or not found["before training"]:
                found["before training"].append(of_run[0])
    print(table(found, args.only))
    if args.picture:
        picture(found, args.picture)


if __name__ == "__main__":
    main()
