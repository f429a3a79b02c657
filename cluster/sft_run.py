"""A run of `bicot sft` in progress: its position, its records, and what a step ends with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup

from cluster.checkpoint import Checkpoint, CheckpointManager, State, truncate_after
from cluster.learner_run import LearnerRun, Limits
from cluster.recovery import learner_at_work
from cluster.sft_config import SftConfig
from cluster.watch.console import SftProgress
from cluster.watch.recorder import Recorder
from cluster.watch.wandb_log import WandbLog
from learner.group import LearnerGroup
from policy.records import Sample

_RECORDED = ("loss", "step/skipped", "grad_norm", "lr", "epoch", "time/", "throughput/")
"""Prefixes of the step's metrics that apply here. (The learner also compares its log-probabilities with
a sampler's, but there is no sampler.)"""


def start_learner(
    config: SftConfig, place: PlacementGroup, checkpoint: Checkpoint | None
) -> LearnerGroup:
    """Start the learner from a checkpoint, or from the model. Raises UserError if it does not start."""
    return LearnerGroup.start(
        config.policy,
        config.learner,
        temperature=1.0,
        guidance=1.0,
        placement=place,
        resume=checkpoint.resume(config.learner.ranks) if checkpoint else None,
    )


@dataclass
class SftRun(LearnerRun):
    """The state of the loop."""

    config: SftConfig
    place: PlacementGroup
    started_learner: LearnerGroup
    progress: SftProgress
    recorder: Recorder
    checkpoints: CheckpointManager
    fingerprints: dict[str, str]
    wandb: WandbLog | None = None
    step: int = 0
    skipped: int = 0
    lost_at: list[int] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        config: SftConfig,
        place: PlacementGroup,
        learner: LearnerGroup,
        progress: SftProgress,
        fingerprints: dict[str, str],
        start: Checkpoint | None,
    ) -> "SftRun":
        """Begin in a new run directory, or at the checkpoint that the learner was started from."""
        wandb = None
        if config.sft.wandb:
            wandb = WandbLog(config.sft.wandb, config.folder, config.model_dump(mode="json"))
        recorder = Recorder(config.folder, wandb=wandb, tell=progress.say)
        folder, keep = config.folder / "checkpoints", config.sft.keep_checkpoints
        checkpoints = CheckpointManager(folder, keep, progress.say)
        run = cls(config, place, learner, progress, recorder, checkpoints, fingerprints, wandb)
        if start:
            run.restore(start)
        return run

    @property
    def learner(self) -> LearnerGroup:
        return self.started_learner

    @property
    def limits(self) -> Limits:
        return self.config.sft

    # --- going back ---

    def restart_learner(self, checkpoint: Checkpoint | None) -> None:
        self.learner.stop()
        self.started_learner = start_learner(self.config, self.place, checkpoint)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        self.step, self.skipped = (checkpoint.state.step if checkpoint else 0), 0
        self.recorder.close()
        truncate_after(self.config.folder / "metrics.jsonl", self.step)
        self.recorder = Recorder(self.config.folder, self.step + 1, self.wandb, self.progress.say)

    # --- a step's end ---

    def finish_step(self, metrics: Mapping[str, float], heldout: Sequence[Sample]) -> None:
        """Record a step, and do what is due after it. Raises UserError after too many skipped steps in
        a row."""
        recorded = {name: value for name, value in metrics.items() if name.startswith(_RECORDED)}
        recorded["learner/restarts"] = float(len(self.lost_at))
        recorded |= self.checkpoints.metrics()
        self.recorder.step(self.step, recorded)
        self.progress.step(self.step, recorded)
        self.check_skipped(bool(metrics["step/skipped"]))
        settings, last = self.config.sft, self.step == self.config.sft.steps
        if last or self.step % settings.save_every == 0:
            with learner_at_work():
                self.save()
        if last or self.step % settings.evaluate_every == 0:
            self.evaluate(heldout)
        with learner_at_work():
            self.checkpoints.poll(self.learner)

    def evaluate(self, heldout: Sequence[Sample]) -> None:
        """Measure the loss on held-out examples, if there are any."""
        if not heldout:
            return
        size = self.config.sft.batch_size
        refs = [ray.put(list(heldout[n : n + size])) for n in range(0, len(heldout), size)]
        with learner_at_work():
            measured = self.learner.measure(refs)
        metrics = {f"eval/{name}": x for name, x in measured.items() if name.startswith("loss")}
        self.recorder.step(self.step, metrics)
        self.progress.heldout(self.step, metrics)

    def state(self) -> State:
        return State(
            step=self.step,
            weights_version=self.step,
            ranks=self.config.learner.ranks,
            config=self.config.model_dump(mode="json"),
            fingerprints=self.fingerprints,
        )

    def close(self) -> None:
        self.recorder.close()
        if self.wandb:
            self.wandb.close()
