"""The loop of `bicot sft`: worked examples, one update after the other.

The learner is that of training, but samples come from the rows of a file, in an order that is a
function of the seed, so that a resumed run learns what an uninterrupted one would.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import ray
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from rich.console import Console

from cluster.encode import encode_pictures
from cluster.files import KeepGoing
from cluster.fingerprints import fingerprint, policy_fingerprints
from cluster.placement import check_room, reserve
from cluster.ray_session import existing_cluster, ray_session
from cluster.recovery import StopSignal, learner_at_work, train_with_recovery
from cluster.resume import resume_point
from cluster.sft_config import SftConfig
from cluster.sft_rows import Example, Lessons, read_examples
from cluster.sft_run import SftRun, start_learner
from cluster.start_progress import StartProgress
from cluster.validate import run_folder
from cluster.watch.console import SftProgress
from cluster.watch.report import write_report
from cluster.watch.wandb_log import check_wandb
from learner.config import check_learner
from learner.group import TrainingGroups
from learner.schedules import Coefficients, StepSettings
from policy.hub import is_hub_id, model_folder
from policy.lock import run_lock
from policy.model import PolicyModel, check_policy, countable_janus
from policy.records import Sample


def sft(config: SftConfig, console: Console) -> Path:
    """Run fine-tuning, or the rest of a run that stopped. Returns the run directory.

    Raises UserError for anything wrong in the configuration or the data before anything is written.
    """
    janus, examples, held_out = validate_sft(config)
    with run_lock(config.folder):
        marks = fingerprints(config)
        tell = partial(console.print, highlight=False, soft_wrap=True, markup=False)
        start = resume_point(config.folder, config, "sft", marks, tell)
        done, as_json = (start.state.step if start else 0), config.sft.log == "json"
        if done < config.sft.steps:  # else only the report is missing
            with learner_place(config, console) as place:
                ids = encode_pictures(config, examples, place, console)
                held_out_ids = encode_pictures(config, held_out, place, console)
                lessons = Lessons(examples, ids, janus, config.seed, config.sft.drop_prompt)
                heldout = Lessons(held_out, held_out_ids, janus).all()
                with StartProgress(console) as starting:
                    starting.begin("starting the learner")
                    learner = start_learner(config, place, start)
                run_folder(config, goes_on=start is not None)
                with SftProgress(console, config.sft.steps, done, as_json) as progress:
                    begin = SftRun.begin(config, place, learner, progress, marks, start)
                    with closing(begin) as run:
                        train_with_recovery(run, partial(train_loop, run, lessons, heldout))
        with KeepGoing(tell)("report.html"):
            tell(str(write_report(config.folder, tell)))
    return config.folder


def validate_sft(config: SftConfig) -> tuple[PolicyModel, list[Example], list[Example]]:
    """The model without weights, the examples and the held-out ones. Raises UserError for the first
    thing that would stop the run later."""
    check_policy(config.policy)
    check_learner(config.learner, config.policy)
    if config.sft.wandb:
        check_wandb()
    if is_hub_id(config.policy.path):
        model_folder(config.policy.path, weights=False)  # samples are made here, with the tokenizer
    janus = countable_janus(config.policy)
    assert janus is not None
    read = partial(read_examples, janus=janus, resize=config.sft.resize)
    return janus, read(config.sft.data), read(config.sft.heldout) if config.sft.heldout else []


def fingerprints(config: SftConfig) -> dict[str, str]:
    """Key -> fingerprint of the files that it names and the run reads."""
    return policy_fingerprints(config.policy) | {"sft.data": fingerprint(Path(config.sft.data))}


@contextmanager
def learner_place(config: SftConfig, console: Console) -> Iterator[PlacementGroup]:
    """Starts or joins Ray, and reserves a bundle for each rank."""
    role = config.role
    with ray_session(config.ray, role.count * role.cpus, console):
        check_room(config.ray, [role])
        place = reserve(role, config.ray)
        try:
            yield place
        finally:
            if existing_cluster(config.ray):  # our own cluster ends with this process
                remove_placement_group(place)


def train_loop(run: SftRun, lessons: Lessons, heldout: Sequence[Sample], stop: StopSignal) -> None:
    """All steps that are left, with evaluations on held-out examples before the first and after the
    last.

    Raises LearnerLost in the middle of a step, and Stopped between two.
    """
    config, settings, size = run.config.learner, run.config.sft, run.config.sft.batch_size
    batches = lessons.batches(size, done=run.step)
    if run.step == 0:
        run.evaluate(heldout)
    while run.step < settings.steps:
        started = time.perf_counter()
        groups = training_groups(next(batches), config.ranks)
        run.step += 1
        with learner_at_work():
            done, steps = run.step - 1, settings.steps
            schedule = StepSettings.of(config, Coefficients.at_start(config), done, steps)
            asked = run.learner.step(groups, settings=schedule)
            metrics = ray.get(asked, timeout=config.timeout_s)[0]
        seconds = time.perf_counter() - started
        metrics["epoch"] = run.step * size / len(lessons.examples)
        metrics |= {"time/step": seconds, "throughput/samples_per_s": size / seconds}
        run.finish_step(metrics, heldout)
        if stop.requested and run.step < settings.steps:
            run.stop()
    run.finish()


def training_groups(samples: Sequence[Sample], ranks: int) -> TrainingGroups:
    """A batch in the learner's form: a group for each rank, of equal size."""
    groups = [samples[n::ranks] for n in range(ranks)]
    refs = [ray.put(group) for group in groups]
    return TrainingGroups.of(refs, np.zeros((ranks, len(groups[0])), np.float32))
