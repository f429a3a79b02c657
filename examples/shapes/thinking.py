"""Measures the gain of training each CoT, and of thinking: `python -m examples.shapes.thinking`.

Three runs of `bicot train examples/shapes/train.yaml` that differ in what is trained: the semantic CoT
alone, the images alone, both. Then the shapes benchmark, with and without a CoT, of the model before
and after each, and a table of riddles beside plain prompts. Finished parts are not repeated, so the
command may be stopped and given again. Further arguments (train.steps=120 seed=1) go to the runs.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.config import load_config
from evaluation.result import read_result

CONFIG = "examples/shapes/train.yaml"
TRAINED = {
    "CoT alone": ["learner.image_weight=0"],
    "images alone": ["learner.cot_weight=0"],
    "both": [],
}


def bicot(*arguments: object) -> None:
    command = [sys.executable, "-m", "cluster", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=6 * 3600)


def trained(folder: Path, name: str, overrides: Sequence[str]) -> Path:
    """The last checkpoint of a run, which is made if it is not there."""
    every = [*overrides, f"name={name.replace(' ', '_')}", f"runs_dir={folder}"]
    config = load_config(CONFIG, every)
    checkpoint = config.folder / "checkpoints" / f"step_{config.train.steps:06d}"
    if not (checkpoint / "state.json").exists():
        bicot("train", CONFIG, *every)
    return checkpoint


def scored(policy: Path, out: Path, *, cot: bool) -> dict[str, float]:
    """The share of images that every expert accepts, for riddles and for plain prompts (the mean over
    their kinds)."""
    if not (out / "result.json").exists():
        bicot(
            "bench", "run", "shapes", "--policy", policy, "--cot" if cot else "--no-cot", "--out", out
        )
    tasks = dict(read_result(out)["tasks"])
    return {"riddles": tasks.pop("riddle"), "plain": sum(tasks.values()) / len(tasks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/thinking"))
    parser.add_argument("overrides", nargs="*", help="for the three runs, e.g. train.steps=120")
    args = parser.parse_args()

    models = {"nothing": Path(load_config(CONFIG, args.overrides).policy.path)}
    for name, own in TRAINED.items():
        models[name] = trained(args.out, name, [*own, *args.overrides])
    table = Table(title="share of held-out images that every expert accepts")
    table.add_column("trained")
    for prompts in ("riddles", "plain prompts"):
        for drawn in ("with CoT", "without"):
            table.add_column(f"{prompts}, {drawn}", justify="right")
    for name, policy in models.items():
        folder = args.out / "bench" / name.replace(" ", "_")
        found = [scored(policy, folder / ("cot" if cot else "plain"), cot=cot) for cot in (True, False)]
        cells = [f"{one[kind]:.3f}" for kind in ("riddles", "plain") for one in found]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
