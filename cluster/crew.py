"""All the processes of a run: experts, rollout actors, learner ranks. Started together, stopped
together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from rich.console import Console

from cluster.config import RunConfig
from cluster.experience import Experience
from cluster.placement import reserve, roles
from cluster.publish import Publisher
from cluster.session import existing_cluster
from learner.engine import Resume
from learner.group import LearnerGroup
from policy.records import Prompt
from rewards.gateway import start_gateway
from rewards.serving import check_applicability, deploy_experts, shutdown_experts


@dataclass
class Crew:
    config: RunConfig
    experience: Experience
    learner_place: PlacementGroup | None = None
    learner: LearnerGroup | None = None
    publish: Publisher | None = None
    timeline: int = -1

    def start_learner(self, resume: Resume | None = None) -> None:
        """Bring up the learner's ranks, in place of those that may be there, on a new timeline."""
        if self.learner is not None:
            self.learner.stop()
        self.timeline += 1
        sampling = self.config.actors.sampling
        self.learner = LearnerGroup(
            self.config.policy,
            self.config.learner,
            temperature=sampling.temperature,
            guidance=sampling.guidance,
            placement=self.learner_place,
            resume=resume,
        )
        rollouts = self.experience.rollouts
        self.publish = Publisher(self.config, self.learner, rollouts.actors, self.timeline)
        rollouts.restore = self.publish.restore


@contextmanager
def start_crew(
    config: RunConfig,
    prompts: Sequence[Prompt],
    console: Console,
    *,
    learn: bool = True,
    resume: Resume | None = None,
) -> Iterator[Crew]:
    """Bring every role up, in a Ray session that is already there; take them down at the end. The
    learner, if there is to be one, as the checkpoint `resume` has it.

    Raises UserError if a role finds no room, an expert does not start, or some prompt has no expert
    that applies to it.
    """
    rollout, learner_role, *_ = roles(config)
    groups = []
    try:
        with console.status("starting experts") as status:
            deploy_experts(config.rewards)
            check_applicability(config.rewards, prompts)
            if config.rewards.gateway is not None:
                console.print(f"gateway: {start_gateway(config.rewards)}/docs", highlight=False)
            status.update("starting rollout actors")
            groups.append(reserve(rollout, config.ray.start_timeout_s))
            crew = Crew(config, Experience(config, groups[-1]))
            if learn:
                status.update("starting the learner")
                groups.append(reserve(learner_role, config.ray.start_timeout_s))
                crew.learner_place = groups[-1]
                crew.start_learner(resume)
        yield crew
    finally:
        if existing_cluster(config.ray):  # our own ends with us, all at once
            shutdown_experts()
            for group in groups:
                remove_placement_group(group)  # ends the actors in it
