"""A run in progress: its position, its records, and what a step ends with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.checkpoint import Checkpoint, CheckpointManager, State, truncate_after
from cluster.config import RunConfig
from cluster.fingerprints import fingerprints
from cluster.learner_run import LearnerRun, Limits
from cluster.ledger import Entry, Ledger, Outcome
from cluster.pending import RolloutBatch, ScoredGroup
from cluster.recovery import learner_at_work
from cluster.requests import GroupRequests, StreamPosition
from cluster.validate import Inputs
from cluster.watch.benchmarks import BenchmarkSlice, benchmark_metrics
from cluster.watch.console import TrainProgress
from cluster.watch.curves import read_metrics
from cluster.watch.evaluation import Evaluator, NothingScored, saved_evaluations
from cluster.watch.image_drift import ImageDrift
from cluster.watch.recorder import Recorder
from cluster.watch.reward_warnings import RewardWarnings
from cluster.watch.wandb_log import WandbLog
from cluster.workers import Workers
from learner.group import LearnerGroup
from learner.schedules import Coefficients
from policy.errors import UserError, in_one_line
from policy.records import PublishedWeights

_WARN_AFTER_EMPTY_STEPS = 3


@dataclass
class Run(LearnerRun):
    """The state of the training loop. `weights` is the newest published version (None: as loaded,
    version 0)."""

    config: RunConfig
    workers: Workers
    progress: TrainProgress
    evaluator: Evaluator
    recorder: Recorder
    ledger: Ledger
    checkpoints: CheckpointManager
    fingerprints: dict[str, str] = field(default_factory=dict)
    benchmarks: Sequence[BenchmarkSlice] = ()
    wandb: WandbLog | None = None
    reward_warnings: RewardWarnings = field(default_factory=RewardWarnings)
    image_drift: ImageDrift = field(default_factory=ImageDrift)
    step: int = 0
    weights: PublishedWeights | None = None
    requested: StreamPosition = field(default_factory=StreamPosition)
    """The position in the stream at the start, or at the checkpoint that the run went back to."""
    skipped: int = 0
    empty: int = 0
    lost_at: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.coefficients = Coefficients.at_start(self.config.learner)
        self.requests: GroupRequests
        """Set by the loop when it starts."""

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        workers: Workers,
        progress: TrainProgress,
        inputs: Inputs,
        start: Checkpoint | None,
    ) -> "Run":
        """Begin in a new run directory, or at the checkpoint that the learner was started from."""
        checkpoints = CheckpointManager(
            config.folder / "checkpoints", config.train.keep_checkpoints, progress.say
        )
        wandb = None
        if config.train.wandb:
            wandb = WandbLog(config.train.wandb, config.folder, config.model_dump(mode="json"))
        recorder = Recorder(config.folder, wandb=wandb, tell=progress.say)
        records = recorder, Ledger(config.folder, progress.say)
        marks = fingerprints(config)
        looked_at = inputs.evaluator, *records, checkpoints, marks, inputs.benchmarks
        run = cls(config, workers, progress, *looked_at, wandb)
        if start:
            run.restore(start)
        return run

    @property
    def version(self) -> int:
        return self.weights.version if self.weights else 0

    @property
    def learner(self) -> LearnerGroup:
        assert self.workers.learner is not None
        return self.workers.learner

    @property
    def limits(self) -> Limits:
        return self.config.train

    # --- going back ---

    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        self.workers.start_learner(checkpoint.resume(self.config.learner.ranks) if checkpoint else None)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Restore step, statistics, records and weights from a checkpoint that the learner has loaded;
        None: the start."""
        self.step = checkpoint.state.step if checkpoint else 0
        version = checkpoint.state.weights_version if checkpoint else 0
        stats = checkpoint.state.expert_stats if checkpoint else {}
        self.requested = StreamPosition(self.step * self.config.train.groups_per_step)
        self.coefficients = Coefficients.at_start(self.config.learner)
        if checkpoint:  # formats up to 2 have none
            self.requested = checkpoint.state.requested or self.requested
            self.coefficients = checkpoint.state.coefficients or self.coefficients
        self.workers.rollouts.running = dict(stats)
        self.recorder.close()
        self.ledger.forget_after(self.step)
        for name in ("metrics.jsonl", "ledger.jsonl"):
            truncate_after(self.config.folder / name, self.step)
        recorded = self.config.folder / "metrics.jsonl"
        self.image_drift = ImageDrift.after(read_metrics(recorded).lines if recorded.exists() else ())
        self.recorder = Recorder(self.config.folder, self.step + 1, self.wandb, self.progress.say)
        self.skipped = self.empty = 0
        assert self.workers.weight_sync is not None
        with learner_at_work():
            self.weights = self.workers.weight_sync.publish(version)

    # --- a step's end ---

    def finish_step(
        self,
        rollout: RolloutBatch,
        trained: Sequence[ScoredGroup],
        metrics: dict[str, float],
        skipped: bool,
    ) -> None:
        """Record a step, and do what is due after it.

        Raises UserError after too many skipped steps in a row.
        """
        metrics["learner/restarts"] = float(len(self.lost_at))
        metrics |= self.checkpoints.metrics()
        self.log_groups(rollout, trained, skipped)
        self.recorder.step(self.step, metrics)
        warnings = self.reward_warnings.new(metrics) + self.image_drift.new(metrics)
        self.progress.step(self.step, metrics, rollout.failures, warnings)
        self.check_skipped(skipped)
        self.check_empty(rollout, trained)
        self.run_hooks(rollout)

    def log_groups(self, rollout: RolloutBatch, trained: Sequence[ScoredGroup], skipped: bool) -> None:
        """Put the step's groups into the ledger."""
        learned = {group.index for group in trained}
        fates: list[tuple[Any, Outcome, str]] = [
            (group, "dropped", why) for group, why in rollout.dropped
        ]
        for group in rollout.groups:
            fate: Outcome = (
                "filtered" if group.index not in learned else "skipped" if skipped else "trained"
            )
            fates.append((group, fate, ""))
        entries = [
            Entry(
                group=each.group.number,
                step=self.step,
                prompt_id=each.prompt.id,
                first_index=each.group.first,
                weights_version=each.weights_version,
                outcome=fate,
                attempts=each.attempts,
                why=why,
            )
            for each, fate, why in fates
        ]
        self.ledger.add(sorted(entries, key=lambda entry: entry.group))

    def check_staleness(self, groups: Sequence[ScoredGroup]) -> None:
        """Raises RuntimeError for a group that is staler than `train.max_staleness` allows."""
        staleness = max((self.version - group.weights_version for group in groups), default=0)
        if staleness > self.config.train.max_staleness:
            raise RuntimeError(f"a group is {staleness} steps old: max_staleness was not kept")

    def check_empty(self, rollout: RolloutBatch, trained: Sequence[ScoredGroup]) -> None:
        """Count steps in a row without a group to learn from, and warn. Raises UserError, after a
        checkpoint, when there are too many."""
        self.empty = 0 if trained else self.empty + 1
        most = self.config.train.max_empty_steps
        if self.empty not in (_WARN_AFTER_EMPTY_STEPS, most):
            return
        why = rollout.failures[-1] if rollout.failures else "the rewards of each group are all equal"
        message = f"nothing was learned in {self.empty} steps in a row, up to step {self.step}: {why}"
        if self.empty < most:
            self.progress.say(f"{message}; the run stops after {most} (train.max_empty_steps)")
            return
        self.leave_checkpoint()
        raise UserError(f"{message}; correct that, and the same command goes on from here")

    def run_hooks(self, rollout: RolloutBatch) -> None:
        """Gallery, checkpoint and evaluation, when they are due; always at the last step. A checkpoint
        is finished after its step's evaluation, so that a resumed run lacks none."""
        train, last = self.config.train, self.step == self.config.train.steps
        if rollout.groups and (last or self.step % train.show_every == 0):
            shown = rollout.groups[:4]
            generated = self.workers.rollouts.samples(rollout.pending, [g.index for g in shown])
            self.recorder.samples(self.step, self.evaluator.scored_samples(shown, generated))
        with learner_at_work():
            if last or self.step % train.save_every == 0:
                self.save()
        every = self.config.evaluate.every
        if last or self.step % every == 0:
            self.evaluate()
        if last or self.step % (self.config.evaluate.benchmark_every or every) == 0:
            self.look_at_benchmarks()
        with learner_at_work():
            self.checkpoints.poll(self.learner)

    def state(self) -> State:
        return State(
            step=self.step,
            weights_version=self.version,
            ranks=self.config.learner.ranks,
            config=self.config.model_dump(mode="json"),
            fingerprints=self.fingerprints,
            expert_stats=dict(self.workers.rollouts.running),
            requested=self.requests.position(),
            coefficients=self.coefficients,
        )

    # --- evaluations ---

    def first_evaluation(self) -> None:
        """Evaluate the weights before the first step, unless that is done already."""
        if not self.step and not saved_evaluations(self.config.folder):
            self.evaluate()
            self.look_at_benchmarks()

    def evaluate(self) -> None:
        """Evaluate the current weights. Training goes on if no sample was scored, but does not begin
        without a first evaluation."""
        try:
            found, failures = self.evaluator(self.workers.rollouts, self.weights, self.step)
        except NothingScored as error:
            if self.step == 0:
                raise
            self.progress.say(str(error))
            return
        self.recorder.evaluation(self.step, found)
        self.progress.evaluation(found, failures)

    def look_at_benchmarks(self) -> None:
        """Draw and score some prompts of each benchmark. Only rollouts that are lost for good end the
        run."""
        for one in self.benchmarks:
            drawn = one.draw(self.workers.rollouts, self.weights)
            try:
                result = one.score(drawn, self.config.folder, self.step, self.version)
            except Exception as error:  # from a judge, a formula, a full disk
                self.progress.say(
                    f"benchmark {one.name} at step {self.step}: left out: {in_one_line(error)}"
                )
                continue
            self.recorder.step(self.step, benchmark_metrics(one.name, result))
            self.progress.benchmark(self.step, one.name, result)

    def close(self) -> None:
        self.recorder.close()
        self.ledger.close()
        if self.wandb:
            self.wandb.close()
