"""A run in progress: where it stands, what it leaves behind, and how it goes back to a checkpoint."""

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.alarms import Alarms
from cluster.checkpoint import Checkpoint, Keeper, State, newest
from cluster.config import RunConfig
from cluster.console import TrainProgress
from cluster.crew import Crew
from cluster.evaluate import Evaluator
from cluster.evaluation_record import Evaluation, load_evaluation
from cluster.experience import Harvest, JudgedGroup
from cluster.fingerprints import fingerprints
from cluster.ledger import Entry, Ledger
from cluster.lines import forget_after
from cluster.recorder import Recorder
from cluster.stopping import Stopped
from cluster.wandb_log import WandbLog
from policy.errors import UserError
from policy.weights import PublishedWeights
from rewards.scale import RunningStats


class LearnerLost(Exception):
    """A rank died, hangs, or failed in a way that leaves the others waiting."""


@contextmanager
def learner_at_work():
    """What a lost learner looks like from outside becomes LearnerLost. What a person can mend stays."""
    try:
        yield
    except (RayActorError, GetTimeoutError, RayTaskError) as error:
        if isinstance(getattr(error, "cause", None), UserError):
            raise
        raise LearnerLost(_in_short(error)) from error


def _in_short(error: Exception) -> str:
    if isinstance(error, RayActorError):
        return "a rank died"
    if isinstance(error, GetTimeoutError):
        return "no answer in learner.timeout_s"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


@dataclass
class Run:
    """What the loop works with. `weights` is the newest published version (None: as loaded, version
    0)."""

    config: RunConfig
    crew: Crew
    progress: TrainProgress
    evaluator: Evaluator
    recorder: Recorder
    ledger: Ledger
    keeper: Keeper
    fingerprints: dict[str, str] = field(default_factory=dict)
    wandb: WandbLog | None = None
    alarms: Alarms = field(default_factory=Alarms)
    step: int = 0
    weights: PublishedWeights | None = None
    skipped: int = 0
    lost_at: list[int] = field(default_factory=list)

    @classmethod
    def begin(
        cls, config: RunConfig, crew: Crew, progress: TrainProgress, evaluator, start: Checkpoint | None
    ) -> "Run":
        """In a run directory that is new, or at the checkpoint that the learner was started from."""
        keeper = Keeper(config.folder / "checkpoints", config.train.keep_checkpoints, progress.say)
        wandb = None
        if config.train.wandb:
            wandb = WandbLog(config.train.wandb, config.folder, config.model_dump(mode="json"))
        records = Recorder(config.folder, wandb=wandb), Ledger(config.folder)
        marks = fingerprints(config)
        run = cls(config, crew, progress, evaluator, *records, keeper, marks, wandb)
        if start:
            run.stand_at(start)
        return run

    @property
    def version(self) -> int:
        return self.weights.version if self.weights else 0

    # --- going back ---

    def go_back(self, lost: LearnerLost) -> None:
        """Rebuild the learner from the newest checkpoint, and stand where it was written. Raises the
        loss if that has not helped at this step before."""
        self.lost_at.append(self.step)
        if self.lost_at.count(self.step) > self.config.train.max_learner_restarts:
            raise lost
        started = time.monotonic()
        self.keeper.abandon()
        checkpoint = newest(self.keeper.folder, self.progress.say)
        ranks = self.config.learner.ranks
        with learner_at_work():
            self.crew.start_learner(checkpoint.resume(ranks) if checkpoint else None)
        self.stand_at(checkpoint)
        self.progress.say(
            f"the learner was lost in step {self.lost_at[-1]} ({lost}); it was built again from step"
            f" {self.step} in {time.monotonic() - started:.0f} s"
        )

    def stand_at(self, checkpoint: Checkpoint | None) -> None:
        """Take the place in the prompts, the weights and the records of a checkpoint that the learner
        holds; of the beginning for None."""
        self.step = checkpoint.state.step if checkpoint else 0
        version = checkpoint.state.weights_version if checkpoint else 0
        stats = checkpoint.state.expert_stats if checkpoint else {}
        self.crew.experience.running = {name: RunningStats(**kept) for name, kept in stats.items()}
        self.recorder.close()
        self.ledger.close()
        for name in ("metrics.jsonl", "ledger.jsonl"):
            forget_after(self.config.folder / name, self.step)
        self.recorder = Recorder(self.config.folder, next_step=self.step + 1, wandb=self.wandb)
        self.ledger = Ledger(self.config.folder)
        self.skipped = 0
        with learner_at_work():
            self.weights = self.crew.publish(version)

    # --- a step's end ---

    def upkeep_metrics(self) -> dict[str, float]:
        """What it took to keep going: learners that were built again since this command began, and the
        last checkpoint."""
        return {"learner/restarts": float(len(self.lost_at)), **self.keeper.metrics()}

    def account(self, harvest: Harvest, trained: Sequence[JudgedGroup], skipped: bool) -> None:
        """Put the step's groups into the ledger."""
        first = (self.step - 1) * self.config.train.groups_per_step
        learned = {group.place for group in trained}
        fates = [(group, "dropped", why) for group, why in harvest.dropped]
        for group in harvest.groups:
            fate = "filtered" if group.place not in learned else "skipped" if skipped else "trained"
            fates.append((group, fate, ""))
        entries = [
            Entry(
                group=first + drawn.place,
                step=self.step,
                prompt_id=drawn.prompt.id,
                first_index=drawn.group.first,
                weights_version=drawn.weights_version,
                outcome=fate,
                draws=drawn.draws,
                why=why,
            )
            for drawn, fate, why in fates
        ]
        self.ledger.add(sorted(entries, key=lambda entry: entry.group))

    def mind(self, skipped: bool) -> None:
        """Count steps in a row that changed nothing. Raises UserError when there are too many."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped >= self.config.train.max_skipped_steps:
            raise UserError(
                f"the gradient was not finite in {self.skipped} steps in a row, up to step {self.step};"
                f" the last good checkpoint is in {self.keeper.folder}"
            )

    def keep(self, harvest: Harvest) -> Evaluation | None:
        """Gallery, checkpoint and evaluation, when it is time for them; the last step is always one."""
        train, last = self.config.train, self.step == self.config.train.steps
        if harvest.groups and (last or self.step % train.show_every == 0):
            shown = harvest.groups[:4]
            drawn = self.crew.experience.samples(harvest, shown)
            gallery = [
                (group.prompt, sample, float(reward))
                for group, samples in zip(shown, drawn, strict=True)
                for sample, reward in zip(samples, group.scores.rewards, strict=True)
            ]
            self.recorder.samples(self.step, gallery)
        with learner_at_work():
            if last or self.step % train.save_every == 0:
                self.save()
            self.keeper.poll(self.crew.learner)
        return self.evaluate() if last or self.step % self.config.evaluate.every == 0 else None

    def save(self) -> None:
        """Begin a checkpoint of where the run stands."""
        state = State(
            step=self.step,
            weights_version=self.version,
            ranks=self.config.learner.ranks,
            config=self.config.model_dump(mode="json"),
            fingerprints=self.fingerprints,
            expert_stats={k: asdict(v) for k, v in self.crew.experience.running.items()},
        )
        self.keeper.begin(self.crew.learner, state)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written."""
        with learner_at_work():
            self.keeper.wait(self.crew.learner, pause=lambda: time.sleep(0.05))

    def stop(self) -> None:
        """Leave a checkpoint of this step, and raise Stopped."""
        with learner_at_work():
            if self.keeper.begun != self.step:
                self.save()
        self.finish()
        raise Stopped(self.step)

    # --- evaluations ---

    def first_evaluation(self) -> Evaluation:
        """Of the weights before the first step; a run that goes on has it on disk."""
        folder = self.config.folder / "samples" / "eval_000000"
        if (folder / "evaluation.json").exists():
            return load_evaluation(folder)
        if self.step:
            raise UserError(f"{folder}: the first evaluation of the run that goes on is missing")
        return self.evaluate()

    def evaluate(self) -> Evaluation:
        found, failures = self.evaluator(self.crew.experience, self.weights, self.step)
        self.recorder.evaluation(self.step, found)
        self.progress.evaluation(found, failures)
        return found

    def close(self) -> None:
        self.recorder.close()
        self.ledger.close()
        if self.wandb:
            self.wandb.close()
