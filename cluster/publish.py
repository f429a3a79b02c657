"""New weights on their way from the learner to the rollout actors."""

import logging

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.config import RunConfig
from learner.group import LearnerGroup
from policy.errors import UserError
from policy.weights import PublishedWeights

log = logging.getLogger(__name__)


class Publisher:
    """By broadcast to all actors, where that can be had; else through the object store, from which
    each actor pulls.

    A broadcast that fails is the last: from then on the store carries the weights, so that a lost
    actor costs no more than speed.
    """

    def __init__(
        self, config: RunConfig, learner: LearnerGroup, actors: list[ActorHandle], timeline: int = 0
    ):
        self._learner = learner
        self._actors = actors
        self._timeline = timeline
        self._timeout_s = config.learner.timeout_s
        self._stored: PublishedWeights | None = None
        self.broadcasts = wants_broadcast(config)
        if self.broadcasts:
            self._try(lambda: learner.join_broadcast(actors))

    def __call__(self, version: int) -> PublishedWeights:
        """Returns when every actor has the version, or can pull it."""
        if self.broadcasts and self._try(lambda: self._broadcast(version)):
            return PublishedWeights(version, timeline=self._timeline)
        return self._store(version)

    def restore(self, weights: PublishedWeights) -> PublishedWeights:
        """A version that was broadcast, for an actor that was not there: now in the store. From here
        on there is no broadcast, for its group is broken."""
        self.broadcasts = False
        if self._stored is None or self._stored.version != weights.version:
            self._store(weights.version)
        return self._stored

    def _store(self, version: int) -> PublishedWeights:
        self._stored = self._learner.publish(version, self._timeline)
        return self._stored

    def _broadcast(self, version: int) -> None:
        # An actor that still draws is not late, and one that is lost is found before the sender waits.
        ray.get([actor.ready.remote() for actor in self._actors], timeout=self._timeout_s)
        receiving = [actor.receive.remote(version, self._timeline) for actor in self._actors]
        ray.get([*self._learner.broadcast(), *receiving], timeout=self._timeout_s)

    def _try(self, call) -> bool:
        try:
            call()
        except RayError as error:
            log.warning("no broadcast of weights from here on, the object store instead: %s", error)
            self.broadcasts = False
        return self.broadcasts


def wants_broadcast(config: RunConfig) -> bool:
    """Whether the configuration asks for it, or leaves the choice and has the GPUs. Raises UserError
    for what cannot be."""
    actors, learner = config.actors, config.learner
    both = (actors.num_gpus > 0) == (learner.num_gpus > 0)
    whole = actors.vllm.tensor_parallel_size == 1
    if learner.transport == "broadcast" and not (both and whole):
        raise UserError(
            "learner.transport: broadcast goes between GPUs or between CPUs, into engines on one GPU:"
            " give num_gpus to actors and learner alike, or set learner.transport: store"
        )
    on_gpus = whole and min(actors.num_gpus, learner.num_gpus) >= 1  # NCCL: one process a GPU
    return learner.transport == "broadcast" or (learner.transport == "auto" and on_gpus)
