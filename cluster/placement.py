"""Where everything runs: what each role asks for, and placement groups that reserve it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.table import Table

from cluster.config import RayConfig, RunConfig
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


def reserve(role: Role, config: RayConfig) -> PlacementGroup:
    """One bundle a process.

    Raises UserError, saying what is missing and what the cluster has: at once if its nodes could not
    hold the role even if they were idle, unless `wait_for_nodes_s` has it wait for nodes to come; and
    if there is no room after `start_timeout_s`.
    """
    bundle = {"CPU": role.cpus, "GPU": role.gpus, **role.custom}
    # A placement group may not hold an empty bundle; a role that asks for nothing runs anywhere.
    bundle = {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}
    group = placement_group([bundle] * role.count, strategy=role.strategy)  # an autoscaler sees it now
    wanted = f"no room for {role.name}, {role.count} x {_listed(bundle)}"
    deadline = time.monotonic() + config.wait_for_nodes_s
    while wrong := missing(bundle, role.count, node_resources()):
        if time.monotonic() > deadline:
            remove_placement_group(group)
            hint = "" if config.wait_for_nodes_s else "; ray.wait_for_nodes_s has it wait for more"
            raise UserError(f"{wanted}: {wrong}{hint}")
        time.sleep(1)
    if not group.wait(config.start_timeout_s):
        remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in bundle}
        raise UserError(
            f"{wanted}, in {config.start_timeout_s:g} s: the cluster has enough, but others use it;"
            f" free now: {_listed(free) or 'nothing'}"
        )
    return group


def node_resources() -> list[dict[str, float]]:
    """What each living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def missing(
    bundle: Mapping[str, float], count: int, nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """What keeps idle nodes from holding `count` bundles, in words; None: nothing does."""
    fits = [
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items()) for node in nodes
    ]
    if sum(fits) >= count:
        return None
    have = "; ".join(
        f"{number} x {_listed({name: node.get(name, 0) for name in bundle})}"
        for node, number in _alike(nodes, bundle)
    )
    return f"the nodes hold {sum(fits)} of them, having {have or 'nothing'}"


def _alike(nodes, bundle) -> list[tuple[Mapping[str, float], int]]:
    """Nodes that are the same in what is asked for, and how many."""
    counts = Counter(tuple(node.get(name, 0) for name in bundle) for node in nodes)
    return [(dict(zip(bundle, values, strict=True)), n) for values, n in counts.items()]


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


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
