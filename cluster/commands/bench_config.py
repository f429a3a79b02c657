"""The configuration of a command line of `bicot bench`."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from cluster.config import RayConfig, load_config, validated
from evaluation.benchmark import benchmark_class
from evaluation.config import BenchConfig, merged


class BenchRunConfig(BenchConfig):
    ray: RayConfig = RayConfig()
    """Which Ray cluster, and how long to wait for it."""


def bench_config(
    name: str, config: Path | None, flags: dict[str, Any], overrides: Sequence[str]
) -> BenchRunConfig:
    """The configuration from the benchmark's own defaults, the model and sampling of a run's
    configuration file, options, and overrides, in this order."""
    tree: dict[str, Any] = deepcopy(dict(benchmark_class(name).defaults))
    if config is not None:
        run = load_config(config).model_dump(mode="json", exclude_unset=True)
        shared = ("policy", "actors", "seed", "ray")
        tree = merged(tree, {key: run[key] for key in shared if key in run})
    source = flags.keys() & {"policy", "diffusers", "api", "images"}
    if source and "policy" not in source:
        tree.pop("policy", None)
    tree = merged(tree, {"benchmark": name, **flags})
    if "path" not in (tree.get("policy") or {"path": ""}):
        tree.pop("policy")  # only templates: there is no policy to use them
    return validated(BenchRunConfig, tree, "command line", overrides)
