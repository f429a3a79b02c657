"""Do drawing and judging overlap? `python -m benchmarks.bench`.

Runs the shapes benchmark on one worker, with a judge that waits as if it ran on a GPU of its own:
drawing alone; judging alone, of existing images; both as one run. They take turns. Prints medians, and
how much longer the whole run takes than its slower half. The judge takes as long as drawing did, where
overlap matters most.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ray.actor import ActorHandle
from rich.console import Console
from rich.table import Table

from cluster.commands.bench import BenchRunConfig, bench_config
from cluster.config import RayConfig
from cluster.ray_session import ray_session
from evaluation import pipeline
from evaluation.benchmark import Ask, Benchmark, Item, Reply, load_benchmark, some_of
from evaluation.config import judges_of
from evaluation.judges.base import Judge
from evaluation.pipeline import Pipeline, Progress
from evaluation.run_folder import RunFolder, identity
from rewards.config import RewardsConfig
from rewards.serving import deploy_experts, shutdown_experts

CHECKPOINT = "examples/shapes/checkpoint"


class SlowJudge(Judge):
    """A judge that waits for each image, and computes nothing."""

    def __init__(self, seconds_per_image: float):
        self._seconds = seconds_per_image

    def identity(self) -> dict[str, str]:
        return {"model": "slow", "revision": "1"}

    def replies(self, images: Sequence[np.ndarray], asks: Sequence[Ask]) -> list[Reply]:
        time.sleep(self._seconds * len(images))
        return [{"scores": {}, "passed": True} for _ in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=136)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    flags = {"policy": {"path": CHECKPOINT}, "limit": arguments.prompts}
    config = bench_config("shapes", None, flags, ["actors.batch_size=16"])
    benchmark = load_benchmark("shapes")
    items = some_of(benchmark.items, limit=arguments.prompts)
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_session(RayConfig(dashboard=False), 4, Console(quiet=True)),
    ):
        workers = pipeline.start_workers(config)
        _show(_measure(config, benchmark, items, workers, Path(folder), arguments.runs))
        pipeline.stop_workers(workers)


def _measure(
    config: BenchRunConfig,
    benchmark: Benchmark,
    items: Sequence[Item],
    workers: Sequence[ActorHandle],
    folder: Path,
    runs: int,
) -> list[tuple[float, float, float]]:
    """Seconds of (drawing, judging, both) for each run."""
    images = len(items) * benchmark.images_per_prompt

    def go(path: Path, draws: bool, judges: RewardsConfig | None) -> float:
        run = RunFolder(path, benchmark)
        run.open(identity(benchmark, config.generator(), config.seed, {}, None), {})
        started = time.perf_counter()
        Pipeline(run, items, config, workers if draws else [], judges, Progress()).run()
        return time.perf_counter() - started

    go(folder / "warm", True, None)
    seconds = go(folder / "first", True, None) / images
    entry = {"use": "benchmarks.bench:SlowJudge", "options": {"seconds_per_image": seconds}}
    judges = judges_of(benchmark, config.model_copy(update={"judges": {"eyes": entry}}))
    assert judges is not None
    deploy_experts(judges)
    try:
        return [
            (
                go(folder / f"{n}", True, None),
                go(folder / f"{n}", False, judges),
                go(folder / f"{n}_both", True, judges),
            )
            for n in range(runs)
        ]
    finally:
        shutdown_experts()


def _show(found: list[tuple[float, float, float]]) -> None:
    table = Table(title="drawing and judging")
    for column in ("", "s"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in zip(("draw", "judge", "both"), zip(*found, strict=True), strict=True):
        table.add_row(name, f"{statistics.median(values):.2f}")
    ratio = statistics.median(both / max(draw, judge) for draw, judge, both in found)
    table.add_row("both / the slower", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
