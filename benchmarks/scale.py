"""Does the driver keep up? The real loop with simulated actors, experts and learner.

    python -m benchmarks.scale [--actors 1 4 16 64 256] [--steps 6] [--picture scale.png]

The loop, the experience, settling of scores, metrics, ledger and recorder are the program's own, and so
are Ray's calls: one an actor and step, and one for all judging. What answers them are three
processes that wait as long as the real roles were measured to take, and hand back samples without
images. Every actor draws one group of 8 a step, so work grows with the actors, and an ideal step takes
the same time at any number of them. 64 experts' replicas judge.

Shown: the time that the loop's thread computes in a step (what it does not spend waiting), the
throughput as a share of the ideal, and a plot of both.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import matplotlib.figure
import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from actors.rollout import SHARE, DrawReport
from benchmarks.samples import bare_sample
from cluster.checkpoint import Keeper
from cluster.config import load_config
from cluster.console import TrainProgress
from cluster.curves import read_metrics
from cluster.evaluation_record import Evaluation, Judged
from cluster.experience import Experience
from cluster.ledger import Ledger
from cluster.recorder import Recorder
from cluster.rollouts import Rollouts
from cluster.run import Run
from cluster.session import WORKER_ENV
from cluster.stopping import Request
from cluster.train import learn
from policy.prompts import read_prompts
from policy.records import Batch, Draw, Group
from policy.weights import PublishedWeights
from rewards.expert import Judgement
from rewards.opinions import Opinion, Opinions
from rewards.panel import Judge

DRAW_S, JUDGE_S, LEARN_S, PUBLISH_S = 2.0, 0.2, 1.0, 0.1
"""Of one group of a 1B model on a GPU, in round numbers; what matters is that they do not grow."""
REPLICAS = 64
EXPERTS = ("objects", "count", "relation")


class Host:
    """Stands for all rollout actors, which are called in turn: in one process, so that a core is left
    to the driver."""

    def __init__(self, count: int):
        self._turn = cycle(range(count))

    async def draw(self, batches: list[Batch], weights: PublishedWeights | None):
        groups = batches[next(self._turn) % SHARE]
        version = weights.version if weights else 0
        await asyncio.sleep(DRAW_S)
        drawn = [[bare_sample(draw, IMAGE, version) for draw in group] for group in groups]
        count = sum(map(len, groups))
        return [*drawn, DrawReport(version, count, 10 * count, count, 576 * count, 0.0, DRAW_S)]


class Experts(Judge):
    """Stands for all experts' replicas; what is asked of them is asked by the real judge."""

    def __init__(self):
        self._free = asyncio.Semaphore(REPLICAS)

    async def judge(self, sample_refs, group: Group) -> Opinions:
        async with self._free:
            await asyncio.sleep(JUDGE_S)
        rng = np.random.default_rng(group.first)
        said = Judgement(rng.random(len(group)).astype(np.float32))
        opinion = Opinion(said, JUDGE_S, 0, 0.5)
        return Opinions(tuple(d.sample_id for d in group), dict.fromkeys(EXPERTS, opinion))


IMAGE = np.zeros((1, 1, 3), np.uint8)


class SimulatedRollouts(Rollouts):
    def __init__(self, config):
        count = config.actors.count
        self.host = ray.remote(Host).options(num_cpus=0, max_concurrency=4000).remote(count)
        self._config, self.replaced, self._calls = config, 0, {}
        self.actors = [self.host] * count


class SimulatedExperience(Experience):
    def __init__(self, config):
        self.config = config
        self.rollouts = SimulatedRollouts(config)
        self.running = {}
        self._judge = ray.remote(Experts).options(num_cpus=0, max_concurrency=4000).remote()


class SimulatedLearner:
    def __init__(self):
        self._rank = ray.remote(_Rank).options(num_cpus=0).remote()
        self._buckets = tuple(ray.put(b"") for _ in range(56))

    def step(self, groups):
        return [self._rank.step.remote(len(groups))]

    def publish(self, version: int) -> PublishedWeights:
        """With as many references as a 7B model has buckets of 256 MB."""
        time.sleep(PUBLISH_S)
        return PublishedWeights(version, self._buckets[0], self._buckets)


class ClockedRecorder(Recorder):
    """Notes how long the loop's thread has computed when a step ends."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.computed_s = [time.thread_time()]

    def step(self, step: int, metrics) -> None:
        super().step(step, metrics)
        self.computed_s.append(time.thread_time())


class _Rank:
    def step(self, groups: int) -> dict[str, float]:
        time.sleep(LEARN_S)
        return {"loss": 0.0, "step/skipped": 0.0}


def measure(actors: int, steps: int, folder: Path) -> tuple[float, float]:
    """Medians over the steps, the first two left out: seconds of a step, and of them those in which the
    loop's thread computes."""
    overrides = [
        f"actors.count={actors}",
        "actors.batch_size=8",
        f"train.groups_per_step={actors}",
        f"train.steps={steps}",
        "train.show_every=100000",
        "train.save_every=100000",
        f"runs_dir={folder}",
        f"name=n{actors}",
    ]
    config = load_config("examples/shapes/train.yaml", overrides)
    config.folder.mkdir(parents=True)
    experience, learner = SimulatedExperience(config), SimulatedLearner()
    crew = SimpleNamespace(experience=experience, learner=learner, publish=learner.publish)
    quiet = Console(file=open("/dev/null", "w"))  # noqa: SIM115 (as long as the process)
    prompts = read_prompts(config.train.prompts)
    judged = Judged(
        prompts[0],
        bare_sample(Draw(prompts[0], 0), IMAGE),
        0,
        False,
        None,
        {"a": 0.0},
        {},
    )
    evaluator = lambda experience, weights, step: (Evaluation(step, 0, (judged,)), [])  # noqa: E731
    recorder = ClockedRecorder(config.folder)
    run = Run(
        config,
        crew,
        TrainProgress(quiet, steps),
        evaluator,
        recorder,
        Ledger(config.folder),
        Keeper(config.folder / "checkpoints", 1, print),
    )
    run.save = run.finish = lambda: None  # there is no state to keep
    learn(run, prompts, Request())
    run.close()
    lines = [
        line for line in read_metrics(config.folder / "metrics.jsonl").lines if "time/step" in line
    ]
    computed = np.diff(recorder.computed_s)[-len(lines) :]
    for host in (experience.rollouts.host, experience._judge, learner._rank):
        ray.kill(host)
    return statistics.median(line["time/step"] for line in lines[2:]), float(np.median(computed[2:]))


def plot(rows: list[tuple[int, float, float, float]], path: str) -> None:
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    actors = [row[0] for row in rows]
    left.plot(
        actors, [8 * n / row[1] for n, row in zip(actors, rows, strict=True)], "o-", label="measured"
    )
    left.plot(
        actors, [8 * n / row[3] for n, row in zip(actors, rows, strict=True)], "--", label="ideal"
    )
    left.set(xscale="log", yscale="log", xlabel="rollout actors", ylabel="samples a second")
    left.legend(frameon=False)
    right.plot(actors, [1000 * row[2] for row in rows], "o-")
    right.axhline(50, ls="--", lw=1)
    right.set(xscale="log", xlabel="rollout actors", ylabel="driver, ms a step", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(actors, [str(n) for n in actors])
        axes.minorticks_off()
    figure.savefig(path, dpi=150)


def ideal_s(actors: int) -> float:
    """A step in which nothing waits but for the roles themselves: judging takes turns when there are
    more groups than replicas."""
    return DRAW_S + JUDGE_S * -(-actors // REPLICAS) + LEARN_S + PUBLISH_S


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--picture", help="where to draw the plot (PNG)")
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": WORKER_ENV},
    )
    rows = []
    table = Table(title=f"simulated: draw {DRAW_S} s, judge {JUDGE_S} s, learn {LEARN_S} s")
    for column in ("actors", "samples/s", "step s", "ideal s", "of linear", "driver ms a step"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for actors in options.actors:
            step, driver = measure(actors, options.steps, Path(folder))
            ideal = ideal_s(actors)
            rows.append((actors, step, driver, ideal))
            table.add_row(
                str(actors),
                f"{8 * actors / step:.1f}",
                f"{step:.3f}",
                f"{ideal:.2f}",
                f"{ideal / step:.1%}",
                f"{1000 * driver:.1f}",
            )
    Console().print(table)
    if options.picture:
        plot(rows, options.picture)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
