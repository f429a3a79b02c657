"""The best split of a number of GPUs over rollouts, learner and experts, by the speed model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.benchmarks import served_gpus
from cluster.config import RunConfig
from cluster.estimate.gpu_memory import needs
from cluster.estimate.speed import SpeedModel
from cluster.estimate.step_times import Times


@dataclass(frozen=True)
class Split:
    """Whole GPUs of each role, `experts` with benchmarks' judges; `sets`: the factor on each expert's
    configured replicas."""

    rollouts: int
    ranks: int
    experts: int
    sets: int
    times: Times
    fits: bool

    @property
    def gpus(self) -> int:
        return self.rollouts + self.ranks + self.experts

    def overrides(self, config: RunConfig) -> list[str]:
        """The overrides that give the configuration this split."""
        tensor = config.actors.vllm.tensor_parallel_size
        wanted = {
            "actors.count": (config.actors.count, self.rollouts // tensor),
            "actors.num_gpus": (config.actors.num_gpus, tensor),
            "learner.ranks": (config.learner.ranks, self.ranks),
            "learner.num_gpus": (config.learner.num_gpus, 1),
        }
        for name, expert in config.rewards.experts.items():
            if expert.num_gpus:
                replicas = expert.most_replicas
                key = "autoscale.max" if expert.autoscale else "replicas"
                wanted[f"rewards.experts.{name}.{key}"] = (replicas, replicas * self.sets)
        return [f"{key}={new}" for key, (old, new) in wanted.items() if new != old]


def gpus_of(config: RunConfig) -> int:
    """How many GPUs a configuration takes, benchmarks' judges included; fractions share GPUs."""
    actors, learner = config.actors, config.learner
    asked = actors.count * actors.num_gpus + learner.ranks * learner.num_gpus
    return math.ceil(asked + served_gpus(config) - 1e-9)


def splits(model: SpeedModel, gpus: int, gpu_gib: float) -> list[Split]:
    """All whole-GPU splits, the fastest first, those that do not fit their memory last. Empty if there
    are fewer GPUs than roles, or no role has any.

    More copies of the experts are tried as long as a split would be faster if scoring took no time.
    """
    found = []
    for sets in range(1, gpus):
        some = list(_with_sets(model, gpus, gpu_gib, sets))
        found += some
        if not any(s.times.period_s > replace(s.times, score_s=0.0).period_s for s in some):
            break
    return sorted(found, key=lambda s: (not s.fits, s.times.period_s))


def _with_sets(model: SpeedModel, gpus: int, gpu_gib: float, sets: int) -> Iterator[Split]:
    config = model.config
    if not config.actors.num_gpus or not config.learner.num_gpus:
        return
    tensor = config.actors.vllm.tensor_parallel_size
    experts = {
        name: e.model_copy(update={"replicas": e.most_replicas * sets, "autoscale": None})
        for name, e in config.rewards.experts.items()
    }
    rewards = config.rewards.model_copy(update={"experts": experts})
    served = served_gpus(config.model_copy(update={"rewards": rewards}))
    for_experts = math.ceil(served - 1e-9)
    for rollouts in range(tensor, gpus - for_experts, tensor):
        ranks = gpus - for_experts - rollouts
        count = rollouts // tensor
        split = config.model_copy(
            update={
                "actors": config.actors.model_copy(update={"count": count, "num_gpus": float(tensor)}),
                "learner": config.learner.model_copy(update={"ranks": ranks, "num_gpus": 1.0}),
                "rewards": rewards,
            }
        )
        times = replace(model, config=split).times()
        fits = all(need.fits(gpu_gib) for need in needs(split, model.model))
        yield Split(rollouts, ranks, for_experts, sets, times, fits)
