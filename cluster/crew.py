"""All the processes of a run: experts, rollout actors, learner ranks. Started together, stopped
together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ray.util import remove_placement_group
from rich.console import Console

from cluster.config import RunConfig
from cluster.experience import Experience
from cluster.placement import reserve, roles
from cluster.publish import Publisher
from cluster.session import existing_cluster
from learner.group import LearnerGroup
from policy.records import Prompt
from rewards.gateway import start_gateway
from rewards.serving import check_applicability, deploy_experts, shutdown_experts


@dataclass(frozen=True)
class Crew:
    experience: Experience
    learner: LearnerGroup | None
    publish: Publisher | None


@contextmanager
def start_crew(
    config: RunConfig, prompts: Sequence[Prompt], console: Console, *, learn: bool = True
) -> Iterator[Crew]:
    """Bring every role up, in a Ray session that is already there; take them down at the end.

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
            experience = Experience(config, groups[-1])
            learner = publish = None
            if learn:
                status.update("starting the learner")
                groups.append(reserve(learner_role, config.ray.start_timeout_s))
                sampling = config.actors.sampling
                learner = LearnerGroup(
                    config.policy,
                    config.learner,
                    temperature=sampling.temperature,
                    guidance=sampling.guidance,
                    placement=groups[-1],
                )
                publish = Publisher(config, learner, experience.actors)
        yield Crew(experience, learner, publish)
    finally:
        if existing_cluster(config.ray):  # our own ends with us, all at once
            shutdown_experts()
            for group in groups:
                remove_placement_group(group)  # ends the actors in it
