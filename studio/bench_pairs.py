"""`python -m studio.bench_pairs ROOT A B`: two results of a benchmark as JSON, for studio/pairs.py."""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.benchmark import Item, load_benchmark
from evaluation.compare import read_runs, tables
from evaluation.compare_page import open_run, scores_of
from evaluation.run_folder import RunFolder
from policy.errors import UserError

Pair = dict[str, Any]


def bench_pairs(root: Path, first: Path, second: Path) -> Pair:
    """One pair a prompt, by its first image; scores are means over all its images. Raises UserError."""
    found = tables(read_runs([first, second]), anyway=True)
    if len(found) != 1:
        raise UserError("they are results of different benchmarks")
    (table,) = found
    benchmark = load_benchmark(table.runs[0].result["benchmark"])
    one, other = (open_run(run, benchmark) for run in table.runs)
    pairs = [
        {
            "key": f"{item.key}/0",
            "prompt": item.text,
            "task": item.task,
            "a": _side(root, one, item),
            "b": _side(root, other, item),
        }
        for item in benchmark.items
        if one.is_there(item, 0) and other.is_there(item, 0)
    ]
    return {"pairs": pairs, "notes": list(table.differing)}


def _side(root: Path, run: RunFolder, item: Item) -> Pair:
    """One run's side of a pair. An image outside of `root` is not shown."""
    path = run.path(item, 0)
    image = path.relative_to(root).as_posix() if path.is_relative_to(root) else None
    explanation = {judge: json.dumps(reply) for judge, reply in run.replies(item, 0).items()}
    side: Pair = {"cot": run.cot(item, 0) or "", "seed": None, "scores": {}, "boxes": {}}
    scores = scores_of(run, item)
    return {
        **side,
        "score": fmean(scores) if scores else None,
        "image": image,
        "explanation": explanation,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(bench_pairs(*map(Path, sys.argv[1:4]))))
    except UserError as error:
        sys.exit(str(error))
