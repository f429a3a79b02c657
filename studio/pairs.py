"""Two evaluations, or two results of a benchmark, side by side: the same prompts, and both images.

Pairs are matched by prompt and by the image's number; the biggest difference of scores comes first.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy.errors import UserError
from studio.run_folders import RunFolders
from studio.samples import Row, SampleFiles, sample_folders

_BENCH_S = 300  # how long reading the results of a benchmark may take
_MOST = 2_000  # pairs

Pair = dict[str, Any]


def comparable(folders: RunFolders) -> list[dict[str, str]]:
    """What can be compared, with its path: evaluations of all runs, and results of benchmarks."""
    found = []
    for run in folders.all():
        for step, name in sample_folders(run.folder):
            if name.startswith("eval_"):
                path = folders.relative(run.folder / "samples" / name)
                found.append({"path": path, "kind": "evaluation", "label": f"{run.name}, step {step}"})
    for pattern in ("*/result.json", "*/*/result.json", "*/samples/bench_*/result.json"):
        for file in sorted(folders.root.glob(pattern)):
            path = folders.relative(file.parent)
            if all(one["path"] != path for one in found):
                found.append({"path": path, "kind": "benchmark", "label": path})
    return found


def compare(folders: RunFolders, files: SampleFiles, a: str, b: str) -> dict[str, Any]:
    """All pairs of two folders, with notes on what makes the comparison unfair. Raises UserError."""
    first, second = folders.inside(a), folders.inside(b)
    are_benchmarks = [(folder / "result.json").is_file() for folder in (first, second)]
    if all(are_benchmarks):
        return _of_benchmark(folders, first, second)
    if any(are_benchmarks):
        raise UserError(
            "one of them is an evaluation, the other the result of a benchmark: choose alike"
        )
    sides = [files.rows(first), files.rows(second)]
    pairs = match(sides[0], sides[1], a, b)
    notes = [] if pairs else ["they have no prompt in common"]
    if other := sum(pair["a"]["seed"] != pair["b"]["seed"] for pair in pairs):
        notes.append(f"{other} of {len(pairs)} pairs were drawn with different seeds")
    if alone := len(sides[0]) + len(sides[1]) - 2 * len(pairs):
        notes.append(f"{alone} images have no counterpart and are left out")
    return {"pairs": biggest_first(pairs), "notes": notes}


def match(first: Sequence[Row], second: Sequence[Row], a: str, b: str) -> list[Pair]:
    """Rows of the same prompt and index, in the first's order."""
    there = {(row["prompt_id"], row["index"]): row for row in second}
    pairs = []
    for row in first:
        other = there.get((row["prompt_id"], row["index"]))
        if other:
            pairs.append(
                {
                    "key": f"{row['prompt_id']}/{row['index']}",
                    "prompt": row["prompt"],
                    "task": row["task"],
                    "a": _side(row, a),
                    "b": _side(other, b),
                }
            )
    return pairs


def biggest_first(pairs: list[Pair]) -> list[Pair]:
    """First those with a score on both sides, then the others; `difference` is B's less A's."""
    for pair in pairs:
        one, other = pair["a"]["score"], pair["b"]["score"]
        known = one is not None and other is not None
        pair["difference"] = other - one if known else None
    pairs.sort(key=_rank)
    return pairs[:_MOST]


def _rank(pair: Pair) -> float:
    return 1.0 if pair["difference"] is None else -abs(pair["difference"])


def _side(row: Row, folder: str) -> dict[str, Any]:
    kept = {key: row[key] for key in ("cot", "seed", "scores", "explanation", "boxes")}
    return {**kept, "score": row["reward"], "image": f"{folder}/{row['image']}"}


def _of_benchmark(folders: RunFolders, first: Path, second: Path) -> dict[str, Any]:
    """Runs in a process of its own: benchmarks import half a gigabyte of libraries."""
    command = [sys.executable, "-m", "studio.bench_pairs", str(folders.root), str(first), str(second)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BENCH_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"the results were not read within {_BENCH_S} s") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(f"the results could not be read: {last[0][:500]}")
    found = json.loads(done.stdout)
    found["pairs"] = biggest_first(found["pairs"])
    return found
