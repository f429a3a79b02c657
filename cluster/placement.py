"""Where everything runs: what each role asks for, and placement groups that reserve it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from rich.table import Table

from cluster.config import RunConfig
from policy.errors import UserError


@dataclass(frozen=True)
class Role:
    """`count` processes of one kind, each with its resources; `custom` ones, by name, hold it to the
    nodes that have them. `strategy` is a placement group's, or "" where Ray Serve places the
    processes."""

    name: str
    count: int
    cpus: float
    gpus: float
    strategy: str
    custom: Mapping[str, float] = field(default_factory=dict)


def roles(config: RunConfig) -> list[Role]:
    """Learner ranks together (they exchange gradients), rollouts apart (they exchange nothing)."""
    actors, learner = config.actors, config.learner
    return [
        Role("rollout", actors.count, actors.num_cpus, actors.num_gpus, "SPREAD", actors.resources),
        Role("learner", learner.ranks, learner.num_cpus, learner.num_gpus, "PACK", learner.resources),
        *(
            Role(f"expert {name}", e.most_replicas, e.num_cpus, e.num_gpus, "", e.resources)
            for name, e in config.rewards.experts.items()
        ),
    ]


def total_cpus(config: RunConfig) -> float:
    return sum(role.count * role.cpus for role in roles(config))


def reserve(role: Role, timeout_s: float) -> PlacementGroup:
    """One bundle a process. Raises UserError, naming what is missing, if the cluster cannot give it."""
    bundle = {"CPU": role.cpus, "GPU": role.gpus, **role.custom}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    # A placement group may not hold an empty bundle; a role that asks for nothing runs anywhere.
    group = placement_group([bundle or {"CPU": 0.001}] * role.count, strategy=role.strategy)
    if not group.wait(timeout_s):
        wanted = f"{role.count} x {bundle}"
        named = {"CPU", "GPU", *role.custom}
        have = {k: v for k, v in ray.available_resources().items() if k in named}
        raise UserError(f"no room for {role.name}: it needs {wanted}, free in the cluster: {have}")
    return group


def placement_table(config: RunConfig) -> Table:
    """What each role asks for, and the sum."""
    table = Table(title="placement")
    for column in ("role", "processes", "CPUs each", "GPUs each", "placed"):
        table.add_column(column, justify="left" if column in ("role", "placed") else "right")
    placed = {"SPREAD": "spread over nodes", "PACK": "packed together", "": "by Ray Serve"}
    asked = roles(config)
    for r in asked:
        where = placed[r.strategy] + "".join(f", on {name} nodes" for name in r.custom)
        table.add_row(r.name, str(r.count), f"{r.cpus:g}", f"{r.gpus:g}", where)
    gpus = sum(r.count * r.gpus for r in asked)
    table.add_section()
    table.add_row("sum", str(sum(r.count for r in asked)), f"{total_cpus(config):g}", f"{gpus:g}", "")
    return table
