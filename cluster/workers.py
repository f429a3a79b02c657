"""All the processes of a run: experts, rollout workers, learner ranks. Started together, stopped
together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from rich.console import Console

from cluster.benchmarks import with_judges
from cluster.config import RunConfig
from cluster.placement import check_room, reserve, roles
from cluster.ray_session import existing_cluster
from cluster.rollouts import RolloutManager
from cluster.start_progress import StartProgress
from cluster.weight_sync import WeightSync
from learner.deepspeed_engine import Resume
from learner.group import LearnerGroup
from policy.records import Prompt
from rewards.gateway import start_gateway
from rewards.serving import check_applicability, deploy_experts, shutdown_experts


@dataclass
class Workers:
    """The rollout side and the learner of a run. `incarnation` counts the learners so far, so that
    weights of a lost one are never confused with its successor's."""

    config: RunConfig
    rollouts: RolloutManager
    learner_place: PlacementGroup | None = None
    learner: LearnerGroup | None = None
    weight_sync: WeightSync | None = None
    incarnation: int = -1

    def start_learner(self, resume: Resume | None = None) -> None:
        """Start the learner's ranks as a new incarnation, in place of any earlier ones."""
        if self.learner is not None:
            self.learner.stop()
        self.incarnation += 1
        sampling = self.config.actors.sampling
        self.learner = LearnerGroup.start(
            self.config.policy,
            self.config.learner,
            temperature=sampling.temperature,
            guidance=sampling.guidance,
            placement=self.learner_place,
            resume=resume,
        )
        handles = self.rollouts.workers.handles
        self.weight_sync = WeightSync(self.config, self.learner, handles, self.incarnation)
        self.rollouts.weight_sync = self.weight_sync


@contextmanager
def start_workers(
    config: RunConfig,
    prompts: Sequence[Prompt],
    console: Console,
    *,
    learn: bool = True,
    resume: Resume | None = None,
) -> Iterator[Workers]:
    """Start every role in an existing Ray session, and stop them at the end. The learner starts from
    the checkpoint `resume` if given; with `learn=False` there is no learner and no benchmark's judge.

    Raises UserError if a role finds no room, an expert does not start, or some prompt has no expert
    that applies to it.
    """
    rollout, learner_role, *_ = roles(config)
    check_room(config.ray, roles(config, fewest=True, learn=learn))
    groups = []
    try:
        with StartProgress(console) as starting:
            starting.begin("starting experts")
            deploy_experts(with_judges(config) if learn else config.rewards)
            check_applicability(config.rewards, prompts)
            if config.rewards.gateway is not None:
                console.print(f"gateway: {start_gateway(config.rewards)}/docs", highlight=False)
            starting.begin("starting rollout workers")
            groups.append(reserve(rollout, config.ray))
            workers = Workers(config, RolloutManager.start(config, groups[-1]))
            if learn:
                starting.begin("starting the learner")
                groups.append(reserve(learner_role, config.ray))
                workers.learner_place = groups[-1]
                workers.start_learner(resume)
        yield workers
    finally:
        if existing_cluster(config.ray):  # our own cluster ends with this process
            shutdown_experts()
            for group in groups:
                remove_placement_group(group)  # ends the actors in it
