"""A run with the real loop, whose roles only wait as long as real ones take."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import ray
from rich.console import Console

from actors.rollout import RolloutStats
from benchmarks.samples import dummy_sample
from cluster.checkpoint import CheckpointManager
from cluster.config import RunConfig, load_config
from cluster.ledger import Ledger
from cluster.ray_session import WORKER_ENV
from cluster.recovery import StopSignal
from cluster.rollout_workers import RolloutWorkers
from cluster.rollouts import RolloutManager
from cluster.run import Run
from cluster.train import train_loop
from cluster.watch.console import TrainProgress
from cluster.watch.evaluation import Evaluation, ScoredSample
from cluster.watch.recorder import Recorder
from learner.group import LearnerGroup
from policy.prompts import read_prompts
from policy.records import Group, Prompt, Sample, SampleRequest, Work
from rewards.client import RewardWorker
from rewards.expert import ExpertResult, ExpertScores, GroupResults

GENERATE_S, SCORE_S, LEARN_S, PUBLISH_S = 2.0, 0.2, 1.0, 0.1
"""Seconds of one group of a 1B model on a GPU, in round numbers; it matters only that they do not
grow."""
REPLICAS, BUCKETS = 64, 56
GROUP_SIZE = 8
EXPERTS = ("objects", "count", "relation")
IMAGE = np.zeros((1, 1, 3), np.uint8)


# --- the roles ---


class Host:
    """Stands for all rollout workers, so that a core is left to the driver. All groups are the same
    object: work that each actor does on a core of its own would here run in turns, on the driver's."""

    def __init__(self):
        nothing = dummy_sample(SampleRequest(Prompt("nothing", "nothing", "nothing"), 0), IMAGE)
        self._group = [nothing] * GROUP_SIZE

    async def ready(self) -> bool:
        return True

    async def generate(self, work: Work) -> tuple[list[Sample], RolloutStats]:
        await asyncio.sleep(GENERATE_S)
        version = work.weights.version if work.weights else 0
        n = GROUP_SIZE
        return self._group, RolloutStats(version, n, 10 * n, n, 576 * n, 0.0, GENERATE_S, (586 * n,))


class Experts(RewardWorker):
    """Stands for all experts' replicas; the real reward worker calls them."""

    def __init__(self):
        self._free = asyncio.Semaphore(REPLICAS)
        scores = ExpertScores(np.linspace(0, 1, GROUP_SIZE, dtype=np.float32))
        self._results = dict.fromkeys(EXPERTS, ExpertResult(scores, SCORE_S, 0, 0.5))

    async def score_group(self, sample_refs, group: Group) -> GroupResults:
        async with self._free:
            await asyncio.sleep(SCORE_S)
        return GroupResults(tuple(d.sample_id for d in group), self._results)


class Rank:
    """Stands for the learner's only rank."""

    def prepare(self, samples) -> dict:
        return {}

    def fetch(self, samples, indices) -> list[int]:
        return []

    def step(self, samples, minibatches, settings, micro_batches, prepared) -> dict[str, float]:
        time.sleep(LEARN_S)
        return {"loss": 0.0, "step/skipped": 0.0}

    def publish(self) -> Iterator[np.ndarray]:
        """The manifest, and as many buckets as a 7B model has of 256 MB, but empty."""
        for _ in range(1 + BUCKETS):
            yield IMAGE
            time.sleep(PUBLISH_S / (1 + BUCKETS))


# --- their places in the run ---


def simulated_rollouts(config: RunConfig) -> RolloutManager:
    """The program's own manager; one process stands for all workers, another for all experts."""
    host = ray.remote(Host).options(num_cpus=0, max_concurrency=4000).remote()
    workers = RolloutWorkers(config.actors.count, lambda number: host, load_timeout_s=60)
    scorer = ray.remote(Experts).options(num_cpus=0, max_concurrency=4000).remote()
    return RolloutManager(config, workers, lambda: scorer)


def simulated_learner(config: RunConfig) -> LearnerGroup:
    return LearnerGroup(config.learner, [ray.remote(Rank).options(num_cpus=0).remote()])


class FixedEvaluator:
    """Stands for evaluations, which are no part of a step: always returns the same samples."""

    def __init__(self, scored: tuple[ScoredSample, ...]):
        self._scored = scored

    def __call__(self, rollouts, weights, step: int) -> tuple[Evaluation, list[str]]:
        return Evaluation(step, 0, self._scored), []

    def scored_samples(self, groups, generated) -> tuple[ScoredSample, ...]:
        return self._scored


class ClockedRecorder(Recorder):
    """Also records how long each step took, and how long the loop's thread computed in it."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.step_s: list[float] = []
        self.computed_s: list[float] = []
        self._since = time.thread_time()

    def step(self, step: int, metrics) -> None:
        super().step(step, metrics)
        now = time.thread_time()
        if "time/step" in metrics:  # not an evaluation
            self.step_s.append(metrics["time/step"])
            self.computed_s.append(now - self._since)
        self._since = now


# --- a run of them ---


class Pace(NamedTuple):
    """Medians over a run's steps but the first two: seconds of a step, and of them those in which the
    loop's thread computes."""

    step_s: float
    driver_s: float


def ideal_s(actors: int) -> float:
    """Seconds of a step that waits for the roles alone: scoring takes turns when there are more groups
    than replicas."""
    return GENERATE_S + SCORE_S * -(-actors // REPLICAS) + LEARN_S + PUBLISH_S


def measure(actors: int, steps: int, folder: Path) -> Pace:
    """Measure a run with one group an actor and step, in a new `folder` and on a Ray of its own."""
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": WORKER_ENV},
    )
    overrides = [
        f"actors.count={actors}",
        f"actors.batch_size={GROUP_SIZE}",
        f"train.group_size={GROUP_SIZE}",
        f"train.groups_per_step={actors}",
        f"train.steps={steps}",
        "train.show_every=100000",
        "train.save_every=100000",
        f"runs_dir={folder.parent}",
        f"name={folder.name}",
    ]
    config = load_config("examples/shapes/train.yaml", overrides)
    config.folder.mkdir(parents=True)
    rollouts, learner = simulated_rollouts(config), simulated_learner(config)
    prompts = read_prompts(config.train.prompts)
    nothing = dummy_sample(SampleRequest(prompts[0], 0), IMAGE)
    scored = (ScoredSample(prompts[0], nothing, 0, False, None, {"a": 0.0}, {}),)
    recorder = ClockedRecorder(config.folder)
    workers: Any = SimpleNamespace(rollouts=rollouts, learner=learner, weight_sync=learner)
    with open(os.devnull, "w") as nowhere:
        run = Run(
            config=config,
            workers=workers,
            progress=TrainProgress(Console(file=nowhere), steps),
            evaluator=cast(Any, FixedEvaluator(scored)),
            recorder=recorder,
            ledger=Ledger(config.folder),
            checkpoints=CheckpointManager(config.folder / "checkpoints", 1, print),
        )
        # There is no state to save.
        run.save = run.finish = lambda: None  # type: ignore[method-assign]  # of this run alone
        train_loop(run, prompts, StopSignal())
        run.close()
    ray.shutdown()
    return Pace(median(recorder.step_s[2:]), median(recorder.computed_s[2:]))
