"""Sends new weights from the learner to the rollout workers."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.config import RunConfig
from policy.errors import UserError
from policy.records import PublishedWeights

if TYPE_CHECKING:
    from learner.group import LearnerGroup

log = logging.getLogger(__name__)


class WeightSync:
    """Broadcasts weights to all rollout workers if possible; else puts them into the object store, from
    which each worker pulls.

    After a failed broadcast the store carries the weights, so that a lost worker costs only speed.
    """

    def __init__(
        self,
        config: RunConfig,
        learner: "LearnerGroup",
        handles: Sequence[ActorHandle],
        incarnation: int = 0,
    ):
        """`handles`: the rollout workers; a list that changes as workers are replaced."""
        self._learner = learner
        self._handles = handles
        self._incarnation = incarnation
        self._timeout_s = config.learner.timeout_s
        self._version = 0
        self._stored: PublishedWeights | None = None
        self._members: list[ActorHandle] = list(handles)
        self.broadcasts = wants_broadcast(config)
        if self.broadcasts:
            self._try(lambda: learner.join_broadcast(handles))

    def publish(self, version: int) -> PublishedWeights:
        """Returns when every worker has the version, or can pull it."""
        self._version = version
        if self.broadcasts and list(self._handles) != self._members:
            log.warning("no broadcast of weights from here on, for a rollout worker was replaced")
            self.broadcasts = False
        if self.broadcasts and self._try(lambda: self._broadcast(version)):
            return PublishedWeights(version, incarnation=self._incarnation)
        return self._store(version)

    def pullable(self) -> PublishedWeights:
        """Put the newest version into the object store, for a worker that missed the broadcast. Older
        versions are gone: a broadcast leaves no copy."""
        if self._stored is None or self._stored.version != self._version:
            return self._store(self._version)
        return self._stored

    def _store(self, version: int) -> PublishedWeights:
        self._stored = self._learner.publish(version, self._incarnation)
        return self._stored

    def _broadcast(self, version: int) -> None:
        # Wait for workers that still generate, and find lost ones before the sender waits for them.
        ray.get([worker.ready.remote() for worker in self._handles], timeout=self._timeout_s)
        receiving = [worker.receive.remote(version, self._incarnation) for worker in self._handles]
        ray.get([*self._learner.broadcast(), *receiving], timeout=self._timeout_s)

    def _try(self, call) -> bool:
        try:
            call()
        except RayError as error:
            log.warning("no broadcast of weights from here on, the object store instead: %s", error)
            self.broadcasts = False
        return self.broadcasts


def wants_broadcast(config: RunConfig) -> bool:
    """Whether to broadcast: the configuration requires it, or leaves the choice and has the GPUs.
    Raises UserError if it is required and impossible."""
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
