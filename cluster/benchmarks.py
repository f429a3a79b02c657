"""The benchmarks that a run evaluates while it trains, and their judges beside its experts.

A judge runs as an expert does, as an application of Ray Serve of its own, "BENCHMARK.JUDGE": a name
with a full stop, which no expert can have. It gives no reward.
"""

import re

from pydantic import ValidationError

from cluster.config import RunConfig
from cluster.files import first_fault
from evaluation.benchmark import benchmark_class
from evaluation.config import BenchConfig, judges_of
from policy.errors import UserError
from rewards.config import RewardsConfig


def bench_configs(config: RunConfig) -> dict[str, BenchConfig]:
    """The benchmarks of a run by name, each with the configuration of a run of its own.

    Raises UserError for one that is unknown or named twice, and for a key that belongs to none.
    """
    asked = config.evaluate
    try:
        classes = {name: benchmark_class(name) for name in asked.benchmarks}
    except UserError as error:
        raise UserError(f"evaluate.benchmarks: {error}") from None
    if len({plain(name) for name in asked.benchmarks}) < len(asked.benchmarks):
        raise UserError("evaluate.benchmarks: a benchmark is named twice")
    known = {judge for found in classes.values() for judge in found.judges}
    for key, named, there in (
        ("benchmark_data", asked.benchmark_data, classes.keys()),
        ("judges", asked.judges, known),
    ):
        if strange := sorted(named.keys() - there):
            have = ", ".join(sorted(there)) or "none"
            raise UserError(
                f"evaluate.{key}.{strange[0]}: not of evaluate.benchmarks, which have {have}"
            )
    return {
        name: BenchConfig(
            benchmark=name,
            data=asked.benchmark_data.get(name),
            limit=asked.benchmark_prompts,
            seed=config.seed,
            policy=config.policy,
            actors=config.actors,
            judges={judge: asked.judges[judge] for judge in found.judges if judge in asked.judges},
        )
        for name, found in classes.items()
    }


def judges_by_benchmark(config: RunConfig) -> dict[str, RewardsConfig]:
    """The judges that a run starts. Raises UserError."""
    found = {}
    for name, bench in bench_configs(config).items():
        try:
            judges = judges_of(benchmark_class(name), bench)
        except ValidationError as error:
            raise UserError(f"evaluate.judges: of {name}: {first_fault(error)}") from None
        if judges is not None:
            found[name] = judges
    return found


def with_judges(config: RunConfig) -> RewardsConfig:
    """The experts of a run and all of its judges, to be started together. Raises UserError."""
    served = dict(config.rewards.experts)
    for name, judges in judges_by_benchmark(config).items():
        for judge, entry in judges.experts.items():
            limits = {"timeout_s": judges.timeout_of(judge), "retries": judges.retries_of(judge)}
            served[application_prefix(name) + judge] = entry.model_copy(update=limits)
    return config.rewards.model_copy(update={"experts": served})


def served_gpus(config: RunConfig) -> float:
    """GPUs of a run's experts and judges, at most. Raises UserError."""
    return sum(e.most_replicas * e.num_gpus for e in with_judges(config).experts.values())


def application_prefix(benchmark: str) -> str:
    """The prefix of its judges' application names."""
    return f"{plain(benchmark)}."


def plain(benchmark: str) -> str:
    """Its name in letters, digits and underscores alone."""
    return re.sub(r"[^A-Za-z0-9]", "_", benchmark)
