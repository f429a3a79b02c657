"""The loop: sample, judge, compare, learn, publish.

The driver moves references and numbers, never tensors. With `max_staleness` 0 drawing waits for the
newest weights; with S, up to S further steps are being drawn while one is learned from. A learner that
is lost takes the loop back to the newest checkpoint; everything drawn since is drawn again, the same.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import ray
import torch
from ray import ObjectRef
from rich.console import Console

from cluster.config import RunConfig
from cluster.console import TrainProgress, evaluation_table
from cluster.crew import start_crew
from cluster.evaluation_record import Evaluation
from cluster.experience import Harvest, JudgedGroup
from cluster.lock import only_run
from cluster.metrics import (
    expert_metrics,
    reward_metrics,
    rewards_of,
    sampling_metrics,
    time_metrics,
)
from cluster.placement import total_cpus
from cluster.preflight import check_inputs, run_folder
from cluster.prompt_stream import group_stream
from cluster.report import write_summary
from cluster.resume import where_to_start
from cluster.run import LearnerLost, Run, learner_at_work
from cluster.session import ray_session
from cluster.stopping import Request, heed
from learner.group import ScoredGroups
from learner.advantages import group_advantages
from policy.records import Prompt


def train(config: RunConfig, console: Console) -> Path:
    """A whole run, from prompts to report, or what is left of one that stopped. Returns the run
    directory.

    Raises UserError for anything wrong in the configuration before anything starts, and for anything
    that does not start before anything is written.
    """
    inputs = check_inputs(config)
    with only_run(config.folder):
        start = where_to_start(config, console.print)
        done, as_json = (start.state.step if start else 0), config.train.log == "json"
        if start:
            told = f"{config.folder} goes on from step {done}"
            console.print(told, highlight=False, soft_wrap=True)
        resume = start.resume(config.learner.ranks) if start else None
        with (
            ray_session(config.ray, total_cpus(config), console, inputs.store_need(config)),
            start_crew(config, inputs.all_prompts, console, resume=resume) as crew,
            TrainProgress(console, config.train.steps, done, as_json) as progress,
        ):
            run_folder(config, goes_on=start is not None)
            with closing(Run.begin(config, crew, progress, inputs.evaluator, start)) as run:
                before, after = learn_to_the_end(run, inputs.prompts)
        console.print(evaluation_table("held-out prompts", {"before": before, "after": after}))
        for path in write_summary(config.folder, before, after):
            console.print(str(path), highlight=False, soft_wrap=True)
    return config.folder


def learn_to_the_end(run: Run, prompts: Sequence[Prompt]) -> tuple[Evaluation, Evaluation]:
    lost = None
    with heed() as request:
        while True:
            try:
                if lost:
                    run.go_back(lost)
                return learn(run, prompts, request)
            except LearnerLost as error:
                lost = error


def learn(run: Run, prompts: Sequence[Prompt], stop: Request) -> tuple[Evaluation, Evaluation]:
    """All steps that are left. Returns the evaluations before the first and after the last.

    Raises LearnerLost, after which the run stands in the middle of a step; and Stopped between two.
    """
    config, experience, learner = run.config.train, run.crew.experience, run.crew.learner
    taken = run.step * config.groups_per_step
    groups = islice(group_stream(prompts, config.group_size, run.config.seed), taken, None)
    orders: deque = deque()
    ordered = run.step
    before = after = run.first_evaluation()
    while run.step < config.steps:
        run.step += 1
        started = time.perf_counter()
        while ordered < min(config.steps, run.step + config.max_staleness):
            orders.append(experience.order(list(islice(groups, config.groups_per_step)), run.weights))
            ordered += 1
        order = orders.popleft()
        ahead = learner.prepare(order.drawing.samples)  # while groups are drawn and judged
        harvest = experience.collect(order)
        metrics = reward_metrics(harvest.groups) | sampling_metrics(harvest, run.version)
        metrics |= expert_metrics(harvest)
        worth = those_that_teach(run, harvest.groups)
        metrics["groups/filtered"] = float(len(harvest.groups) - len(worth))
        learning = publishing = time.perf_counter()
        skipped = False
        if worth:
            with learner_at_work():
                ranks = learner.step(compare(run, harvest, worth, ahead))
                metrics |= ray.get(ranks, timeout=run.config.learner.timeout_s)[0]
                publishing = time.perf_counter()
                skipped = bool(metrics["step/skipped"])
                if not skipped:
                    run.weights = run.crew.publish(run.version + 1)
        done = time.perf_counter()
        metrics |= time_metrics(
            harvest, step_s=done - started, learn_s=publishing - learning, publish_s=done - publishing
        )
        metrics |= run.upkeep_metrics()
        run.account(harvest, worth, skipped)
        run.recorder.step(run.step, metrics)
        run.progress.step(run.step, metrics, harvest.failures, run.alarms.new(metrics))
        run.mind(skipped)
        after = run.keep(harvest) or after
        if stop.asked and run.step < config.steps:
            run.stop()
    run.finish()
    return before, after


def those_that_teach(run: Run, groups: Sequence[JudgedGroup]) -> list[JudgedGroup]:
    """A group whose rewards are all equal has nothing to teach but the KL term, and may be left out.
    Raises RuntimeError for one that is staler than was promised."""
    if not groups:
        return []
    staleness = run.version - min(group.weights_version for group in groups)
    if staleness > run.config.train.max_staleness:
        raise RuntimeError(f"a group is {staleness} steps old: max_staleness was not kept")
    rewards = rewards_of(groups)
    differ = (rewards != rewards[:, :1]).any(1)
    keep_all = not run.config.train.filter_equal_groups
    return [group for group, teaches in zip(groups, differ, strict=True) if teaches or keep_all]


def compare(
    run: Run, harvest: Harvest, groups: Sequence[JudgedGroup], ahead: Sequence[ObjectRef]
) -> ScoredGroups:
    """Some groups of a harvest with the advantage of each sample over its group, and what the learner
    prepared."""
    size, scale = run.config.train.group_size, run.config.learner.advantage_scale
    rewards = torch.from_numpy(rewards_of(groups)).flatten()
    advantages = group_advantages(rewards, size, scale=scale).numpy().reshape(-1, size)
    return ScoredGroups(
        harvest.drawing.all_samples(),
        [group.place for group in groups],
        advantages,
        tokens=[group.tokens for group in groups],
        ahead=ahead,
    )
