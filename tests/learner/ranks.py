"""Real DeepSpeed ranks for tests: processes that take turns, for to start one takes seconds.

A learner that has ended leaves its process group and everything that it had; then its processes are
ranks of another.
"""

import gc
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from learner.config import LearnerConfig
from learner.deepspeed_engine import Resume
from learner.group import LearnerGroup, TrainingGroups
from learner.worker import LearnerWorker
from policy.model import PolicyConfig
from policy.records import Sample
from policy.weights import unpack

FREEZE = ["model.vision_model", "model.aligner", "model.vqmodel"]
ADVANTAGES = np.array([1.0, -1.0, 0.5, -0.5, 0.2, -0.2, -1.0, 1.0], np.float32).reshape(4, 2)


class ReusableRank(LearnerWorker):
    """A rank that can be set up again."""

    def leave(self) -> None:
        """End what `setup` began."""
        from deepspeed import comm

        rank, world = self.rank, self.world
        vars(self).clear()
        self.__init__(rank, world)  # type: ignore[misc]
        gc.collect()
        comm.destroy_process_group()
        comm.comm.cdb = None  # or the next group finds this one's backend


class RankPool:
    """`start` is LearnerGroup.start, with processes that are free. Those that were ranks of one learner
    stay together: DeepSpeed counts modules per process, and its ranks must agree on the numbers."""

    def __init__(self):
        self._free: dict[int, list[list[Any]]] = defaultdict(list)  # by how many they are

    def start(
        self,
        policy: PolicyConfig,
        config: LearnerConfig,
        resume: Resume | None = None,
        *,
        fresh: bool = False,
    ) -> LearnerGroup:
        """`fresh`: in new processes. The last bits of a gradient depend on what a process did before,
        so two learners are equal to the last bit only as long as both are new."""
        if self._free[config.ranks] and not fresh:
            ranks = self._free[config.ranks].pop()
        else:
            actor = ray.remote(ReusableRank).options(num_cpus=0)
            ranks = [actor.remote(n, config.ranks) for n in range(config.ranks)]
        learner = LearnerGroup(config, ranks)
        try:
            where = ray.get(ranks[0].rendezvous.remote(True))
            asked = policy, config, 1.0, 2.0, where, resume
            ray.get([rank.setup.remote(*asked) for rank in ranks], timeout=config.load_timeout_s)
        except RayError:
            self.stop(learner)
            raise
        return learner

    def stop(self, learner: LearnerGroup) -> None:
        """Its processes are free again; none is, if one is lost or does not leave."""
        try:
            ray.get([rank.leave.remote() for rank in learner.ranks], timeout=30)
        except RayError:
            learner.stop()
        else:
            self._free[len(learner.ranks)].append(learner.ranks)

    def close(self) -> None:
        for ranks in (ranks for worlds in self._free.values() for ranks in worlds):
            for rank in ranks:
                ray.kill(rank)


def settings(**changes: Any) -> LearnerConfig:
    values: dict[str, Any] = {
        "lr": 2e-4,
        "num_cpus": 0.5,
        "freeze": FREEZE,
        "timeout_s": 60,
        "bucket_mb": 0.1,
        # Else ZeRO-3 never cuts up parameters as small as these, and no gather is tested.
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    return LearnerConfig(**(values | changes))


def scored(samples: Sequence[Sample], advantages: np.ndarray) -> TrainingGroups:
    """Groups of two, in the object store."""
    refs = [ray.put(samples[n : n + 2]) for n in range(0, len(samples), 2)]
    return TrainingGroups.of(refs, advantages)


def weights_of(learner: LearnerGroup, version: int = 1) -> dict[str, torch.Tensor]:
    published = learner.publish(version)
    assert published.version == version
    manifest, *buckets = ray.get(ray.get(published.parts))
    assert len(buckets) > 1
    return dict(unpack(manifest, buckets))


def save(learner: LearnerGroup, folder: object) -> None:
    learner.begin_save(str(folder))
    while learner.saved() is None:
        time.sleep(0.05)


def five_steps(learner: LearnerGroup, groups: TrainingGroups, micro_batches: int | None):
    metrics = [ray.get(learner.step(groups, micro_batches))[0] for _ in range(5)]
    return metrics, weights_of(learner)
