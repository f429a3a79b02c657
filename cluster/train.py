"""The loop: sample, judge, compare, learn, publish.

Promised: a group is used whole or not at all; every sample's weights are at most `max_staleness`
optimizer steps old when it is learned from; the driver moves references, never tensors.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import ray
import torch
from rich.console import Console

from cluster.config import RunConfig
from cluster.console import TrainProgress, evaluation_table
from cluster.crew import Crew, start_crew
from cluster.evaluate import Evaluator
from cluster.evaluation_record import Evaluation
from cluster.experience import JudgedGroup
from cluster.metrics import reward_metrics, sampling_metrics, time_metrics
from cluster.placement import total_cpus
from cluster.preflight import check_inputs, fresh_folder
from cluster.prompt_stream import group_stream
from cluster.recorder import Recorder
from cluster.report import write_summary
from cluster.session import ray_session
from learner.grpo import group_advantages
from learner.rank import ScoredGroup
from policy.records import Prompt
from policy.weights import PublishedWeights


@dataclass
class Run:
    """What the loop works with; `weights` is the newest published version (None: as loaded, version
    0)."""

    config: RunConfig
    crew: Crew
    recorder: Recorder
    progress: TrainProgress
    evaluator: Evaluator
    weights: PublishedWeights | None = None

    @property
    def version(self) -> int:
        return self.weights.version if self.weights else 0


def train(config: RunConfig, console: Console) -> Path:
    """A whole run, from prompts to report. Returns the run directory.

    Raises UserError for anything wrong in the configuration before anything starts, and for anything
    that does not start before anything is written.
    """
    inputs = check_inputs(config)
    with (
        ray_session(config.ray, total_cpus(config), console),
        start_crew(config, inputs.all_prompts, console) as crew,
        closing(Recorder(fresh_folder(config))) as recorder,
        TrainProgress(console, config.train.steps) as progress,
    ):
        run = Run(config, crew, recorder, progress, inputs.evaluator)
        before, after = learn(run, inputs.prompts)
    console.print(evaluation_table("held-out prompts", {"before": before, "after": after}))
    for path in write_summary(config.folder, before, after):
        console.print(str(path), highlight=False, soft_wrap=True)
    return config.folder


def learn(run: Run, prompts: Sequence[Prompt]) -> tuple[Evaluation, Evaluation]:
    """All steps. Returns the evaluations before the first and after the last."""
    config, experience, learner = run.config.train, run.crew.experience, run.crew.learner
    groups = group_stream(prompts, config.group_size, run.config.seed)
    orders: deque = deque()
    ordered = 0
    before = after = evaluate(run, 0)
    for step in range(1, config.steps + 1):
        started = time.perf_counter()
        while ordered < min(config.steps, step + config.max_staleness):
            orders.append(experience.order(list(islice(groups, config.groups_per_step)), run.weights))
            ordered += 1
        harvest = experience.collect(orders.popleft())
        metrics = reward_metrics(harvest.groups) | sampling_metrics(harvest, run.version)
        scored = compare(run, harvest.groups)
        metrics["groups/filtered"] = float(len(harvest.groups) - len(scored))
        learning = time.perf_counter()
        if scored:
            metrics |= ray.get(learner.step(scored))[0]
        publishing = time.perf_counter()
        if scored:
            run.weights = run.crew.publish(run.version + 1)
        done = time.perf_counter()
        metrics |= time_metrics(
            harvest, step_s=done - started, learn_s=publishing - learning, publish_s=done - publishing
        )
        run.recorder.step(step, metrics)
        run.progress.step(step, metrics, harvest.failures)
        after = keep(run, step, harvest.groups) or after
    return before, after


def compare(run: Run, groups: Sequence[JudgedGroup]) -> list[ScoredGroup]:
    """Groups with their advantages; those that have nothing to teach may be left out."""
    config = run.config
    scored = []
    for group in groups:
        staleness = run.version - group.weights_version
        if staleness > config.train.max_staleness:
            raise RuntimeError(f"a group is {staleness} steps old: max_staleness was not kept")
        rewards = torch.tensor(group.scores.rewards)
        if config.train.filter_equal_groups and bool((rewards == rewards[0]).all()):
            continue
        advantages = group_advantages(rewards, len(rewards), scale=config.learner.advantage_scale)
        scored.append(ScoredGroup(group.samples, advantages.numpy()))
    return scored


def keep(run: Run, step: int, groups: Sequence[JudgedGroup]) -> Evaluation | None:
    """Gallery, checkpoint and evaluation, when it is time for them; the last step is always one."""
    config, last = run.config, step == run.config.train.steps
    if groups and (last or step % config.train.show_every == 0):
        gallery = [
            (group.prompt, sample, float(reward))
            for group in groups[:4]
            for sample, reward in zip(ray.get(group.samples), group.scores.rewards, strict=True)
        ]
        run.recorder.samples(step, gallery)
    if last or step % config.train.save_every == 0:
        run.crew.learner.save(str((config.folder / "checkpoints" / f"step_{step:06d}").absolute()))
    return evaluate(run, step) if last or step % config.evaluate.every == 0 else None


def evaluate(run: Run, step: int) -> Evaluation:
    found, failures = run.evaluator(run.crew.experience, run.weights, step)
    run.recorder.evaluation(step, found)
    run.progress.evaluation(found, failures)
    return found
