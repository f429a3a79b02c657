"""The resources of each role of a run, whether a cluster has them, and the placement groups that
reserve them."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.table import Table

from cluster.benchmarks import with_judges
from cluster.config import RayConfig, RunConfig
from cluster.ray_session import existing_cluster
from policy.errors import UserError


@dataclass(frozen=True)
class Role:
    """`count` processes of one kind, each with its resources; `custom` ones, by name, and `labels`, by
    key, restrict it to the nodes that have them. `strategy` is a placement group's, or "" where Ray
    Serve places the processes."""

    name: str
    count: int
    cpus: float
    gpus: float
    strategy: str
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def roles(config: RunConfig, *, fewest: bool = False, learn: bool = True) -> list[Role]:
    """The roles of a run: learner ranks packed (they exchange gradients), rollouts spread (they
    exchange nothing); experts and benchmarks' judges with all the replicas that they may have, or with
    the fewest. A run that does not `learn` has rollouts and experts alone."""

    def role(name, count, strategy, of) -> Role:
        return Role(name, count, of.num_cpus, of.num_gpus, strategy, of.resources, of.labels)

    actors, learner, experts = config.actors, config.learner, config.rewards.experts
    served = with_judges(config).experts if learn else experts
    return [
        role("rollout", actors.count, "SPREAD", actors),
        *([role("learner", learner.ranks, "PACK", learner)] if learn else []),
        *(
            role(
                f"{'expert' if name in experts else 'judge'} {name}",
                entry.fewest_replicas if fewest else entry.most_replicas,
                "",
                entry,
            )
            for name, entry in served.items()
        ),
    ]


def total_cpus(config: RunConfig) -> float:
    return sum(role.count * role.cpus for role in roles(config))


def check_room(config: RayConfig, roles: Sequence[Role]) -> None:
    """Raises UserError if idle nodes could not hold a role that Ray Serve places (it would wait without
    end), or have fewer GPUs than all roles together; does nothing if nodes may still come."""
    if config.wait_for_nodes_s:
        return
    gpus: dict[str, float] = {}
    for role in roles:
        kind = role.name.partition(" ")[0]
        gpus[kind] = gpus.get(kind, 0) + role.count * role.gpus
    have, want = sum(node.get("GPU", 0) for node in nodes_with({})), sum(gpus.values())
    if want > have + 1e-6:
        where = "the cluster" if existing_cluster(config) else "this machine"
        each = ", ".join(f"{kind} {amount:g}" for kind, amount in gpus.items() if amount)
        raise UserError(f"{where} has {have:g} GPUs; the run asks for {want:g}: {each}")
    for role in roles:
        wrong = missing(bundle_of(role), role.count, nodes_with(role.labels))
        if wrong and not role.strategy:
            raise UserError(f"{no_room(role)}: {wrong}")


def bundle_of(role: Role) -> dict[str, float]:
    """The resources of one process. A placement group may not hold an empty bundle; a role without
    resources runs anywhere."""
    bundle = {"CPU": role.cpus, "GPU": role.gpus, **role.custom}
    return {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}


def no_room(role: Role) -> str:
    return f"no room for {role.name}, {role.count} x {_listed(bundle_of(role))}{_on(role.labels)}"


def reserve(role: Role, config: RayConfig) -> PlacementGroup:
    """Reserve a placement group with one bundle a process.

    Raises UserError, with what is missing and what the cluster has: at once if its nodes could not hold
    the role even when idle, unless `wait_for_nodes_s` has it wait for more nodes; and if there is no
    room after `start_timeout_s`.
    """
    bundle = bundle_of(role)
    group = placement_group(  # from here on an autoscaler sees the demand
        [bundle] * role.count,
        strategy=role.strategy,
        bundle_label_selector=[dict(role.labels)] * role.count,
    )
    deadline = time.monotonic() + config.wait_for_nodes_s
    while wrong := missing(bundle, role.count, nodes_with(role.labels)):
        if time.monotonic() > deadline:
            remove_placement_group(group)
            hint = "" if config.wait_for_nodes_s else "; ray.wait_for_nodes_s has it wait for more"
            raise UserError(f"{no_room(role)}: {wrong}{hint}")
        time.sleep(1)
    if not group.wait(config.start_timeout_s):
        remove_placement_group(group)
        free = {k: v for k, v in ray.available_resources().items() if k in bundle}
        raise UserError(
            f"{no_room(role)}, in {config.start_timeout_s:g} s: the cluster has enough, but others"
            f" use it; free now: {_listed(free) or 'nothing'}"
        )
    return group


def nodes_with(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """The total resources of each living node with these labels."""
    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and labels.items() <= node["Labels"].items()
    ]


def missing(
    bundle: Mapping[str, float], count: int, nodes: Sequence[Mapping[str, float]]
) -> str | None:
    """A phrase on what keeps idle nodes from holding `count` bundles; None: they can."""
    fits = [
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items()) for node in nodes
    ]
    if sum(fits) >= count:
        return None
    have = "; ".join(
        f"{number} x {_listed({name: node.get(name, 0) for name in bundle})}"
        for node, number in _alike(nodes, bundle)
    )
    if not nodes:
        return "there are no such nodes"
    return f"the nodes hold {sum(fits)} of them, having {have}"


def _alike(nodes, bundle) -> list[tuple[Mapping[str, float], int]]:
    """Nodes grouped by the resources of the bundle, with their number."""
    counts = Counter(tuple(node.get(name, 0) for name in bundle) for node in nodes)
    return [(dict(zip(bundle, values, strict=True)), n) for values, n in counts.items()]


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _on(labels: Mapping[str, str]) -> str:
    named = ", ".join(f"{key}={value}" for key, value in labels.items())
    return f" on nodes with {named}" if named else ""


def placement_table(asked: Sequence[Role]) -> Table:
    """The resources of each role, and the sum."""
    table = Table(title="placement")
    for column in ("role", "processes", "CPUs each", "GPUs each", "placed"):
        side: Literal["left", "right"] = "left" if column in ("role", "placed") else "right"
        table.add_column(column, justify=side, overflow="fold")
    placed = {"SPREAD": "spread over nodes", "PACK": "packed together", "": "by Ray Serve"}
    for r in asked:
        where = placed[r.strategy] + "".join(f", on {name} nodes" for name in r.custom)
        where += f",{_on(r.labels)}" if r.labels else ""
        table.add_row(r.name, str(r.count), f"{r.cpus:g}", f"{r.gpus:g}", where)
    cpus, gpus = (sum(r.count * getattr(r, kind) for r in asked) for kind in ("cpus", "gpus"))
    table.add_section()
    table.add_row("sum", str(sum(r.count for r in asked)), f"{cpus:g}", f"{gpus:g}", "")
    return table
