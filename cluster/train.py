"""The loop: generate, score, update, sync weights.

The driver moves references and numbers, never tensors. With `max_staleness` 0 generating waits for the
newest weights; with S, up to S further steps are generated while one is learned from. When the learner
is lost, the loop restarts from the newest checkpoint; the same samples are generated again.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console

from cluster.config import RunConfig
from cluster.placement import total_cpus
from cluster.ray_session import ray_session
from cluster.recovery import StopSignal, learner_at_work, train_with_recovery
from cluster.requests import GroupRequests
from cluster.resume import where_to_start
from cluster.run import Run
from cluster.update import collect_groups, update
from cluster.validate import run_folder, validate_run
from cluster.watch.console import TrainProgress
from cluster.watch.metrics import rollout_metrics, time_metrics
from cluster.watch.report import summarize
from cluster.workers import start_workers
from policy.lock import run_lock
from policy.prompts import GroupStream
from policy.records import Prompt


def train(config: RunConfig, console: Console) -> Path:
    """Run training from prompts to report, or resume a run that stopped. Returns the run directory.

    Raises UserError for anything wrong in the configuration before anything starts, and for anything
    that does not start before anything is written.
    """
    inputs = validate_run(config)
    with run_lock(config.folder):
        start = where_to_start(config, partial(console.print, highlight=False, soft_wrap=True))
        done, as_json = (start.state.step if start else 0), config.train.log == "json"
        if done < config.train.steps:  # else only the report is missing
            resume = start.resume(config.learner.ranks) if start else None
            with (
                ray_session(config.ray, total_cpus(config), console, inputs.store_need(config)),
                start_workers(config, inputs.all_prompts, console, resume=resume) as workers,
                TrainProgress(console, config.train.steps, done, as_json) as progress,
            ):
                run_folder(config, goes_on=start is not None)
                with closing(Run.begin(config, workers, progress, inputs, start)) as run:
                    train_with_recovery(run, partial(train_loop, run, inputs.prompts))
        summarize(config.folder, console)
    return config.folder


def train_loop(run: Run, prompts: Sequence[Prompt], stop: StopSignal) -> None:
    """All steps that are left, with the evaluations before the first and after the last.

    Raises LearnerLost in the middle of a step, and Stopped between two.
    """
    config = run.config.train
    stream = GroupStream(prompts, config.group_size, run.config.seed)
    run.requests = GroupRequests(run.workers.rollouts, stream, config.groups_per_step, run.requested)
    run.first_evaluation()
    while run.step < config.steps:
        run.step += 1
        started = time.perf_counter()
        # The groups of this step, and of those that are generated ahead of it.
        in_flight = min(1 + config.max_staleness, config.steps - run.step + 1)
        while len(run.requests) < in_flight:
            run.requests.request_step(run.weights)
        rollout, kept, prepared = collect_groups(run)
        learned: dict[str, float] = {}
        learning = publishing = time.perf_counter()
        if kept:
            with learner_at_work():
                kept, learned = update(run, rollout, kept, prepared)
                publishing = time.perf_counter()
        skipped = bool(learned.get("step/skipped"))
        metrics = rollout_metrics(rollout, run.version, kept) | learned
        if learned and not skipped:
            with learner_at_work():
                assert run.workers.weight_sync is not None
                run.weights = run.workers.weight_sync.publish(run.version + 1)
        done_at = time.perf_counter()
        seconds = {"step_s": done_at - started, "learn_s": publishing - learning}
        metrics |= time_metrics(rollout, **seconds, publish_s=done_at - publishing)
        run.finish_step(rollout, kept, metrics, skipped)
        if stop.requested and run.step < config.steps:
            run.stop()
    run.finish()
