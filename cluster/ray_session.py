"""Ray for the length of a command: an existing cluster, or one of our own that ends with us; and what
each role asks of it, with the placement groups that reserve it.
"""

import json
import logging
import math
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from rich.console import Console
from rich.table import Table

from cluster.config import RayConfig, RunConfig
from cluster.estimate.store_memory import MB, StoreNeed, asked_of_cluster, machine_mb, store_size
from policy.errors import UserError
from rewards.middleware import digests
from rewards.proxy import CALLBACK

WORKER_ENV = {
    # One thread a process: on a shared machine more only get in each other's way.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    **CALLBACK,
}


@contextmanager
def ray_session(
    config: RayConfig, cpus: float, console: Console, need: StoreNeed | None = None
) -> Iterator[None]:
    """Connect, or start a cluster that has at least `cpus` (as a number: a laptop with fewer cores than
    roles shares them) and an object store for `need`; warns where that is more than can be had. SIGTERM
    ends the command like Ctrl-C does, so that nothing is left behind."""
    need = need or StoreNeed()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # An answer that nobody fetches is one of a batch that was given to another worker.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = existing_cluster(config)
    options = {
        "runtime_env": {"env_vars": WORKER_ENV | digests()},
        "logging_level": logging.ERROR,  # Ray's warning that it asks for a token; said below
        "log_to_driver": bool(os.environ.get("BICOT_WORKER_LOGS")),
    }
    if address:
        check_answers(address)
        options["address"] = address
    else:
        store_mb, told, small = store_size(config, need, machine_mb())
        if small:
            warn(console, told)
        options |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, math.ceil(cpus)),
            "include_dashboard": config.dashboard,
            "object_store_memory": store_mb * MB,
        }
    try:
        with console.status("starting Ray"):
            context = ray.init(**options)
    except (ConnectionError, AuthenticationError) as error:
        raise not_let_in(address, error) from None
    if address:
        told, small = asked_of_cluster(need, address, largest_store_mb())
        if small:
            warn(console, told)
    if context.dashboard_url:
        console.print(f"Ray dashboard: http://{context.dashboard_url}", highlight=False)
        if not address:
            console.print("  to sign in: ray get-auth-token", highlight=False)
    previous = signal.signal(signal.SIGTERM, _interrupt)  # after Ray, which sets a handler itself
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, previous)


def largest_store_mb() -> int:
    """Of the connected cluster's nodes."""
    sizes = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(max(sizes, default=0) / MB)


def tell_store(config: RayConfig, need: StoreNeed, console: Console) -> None:
    """Say how large the object store will be, or must be; connects to nothing."""
    if address := existing_cluster(config):
        told, small = asked_of_cluster(need, address)
    else:
        _, told, small = store_size(config, need, machine_mb())
    if small:
        warn(console, told)
    else:
        console.print(told, highlight=False, soft_wrap=True)


def warn(console: Console, told: str) -> None:
    console.print(f"warning: {told}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def existing_cluster(config: RayConfig) -> str | None:
    """The address of the cluster to join; None: we start our own."""
    return config.address or os.environ.get("RAY_ADDRESS")


def check_answers(address: str) -> None:
    """Raises UserError if nobody listens at a host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not (colon and port.isdecimal()):
        return  # "auto", or a way of Ray's own to say it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from None


def not_let_in(address: str | None, error: Exception) -> UserError:
    return UserError(
        f"no Ray cluster lets us in at {address}: {error}; one with a token wants RAY_AUTH_MODE=token"
        " and its RAY_AUTH_TOKEN"
    )


def check_kept(folder: Path) -> None:
    """Raises UserError for a folder that would be lost: one inside the copy of the working directory
    in which Ray runs a submitted job."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # as Ray names it
    if submitted.get("runtime_env", {}).get("working_dir") and not folder.is_absolute():
        raise UserError(
            f"runs_dir: {folder} would lie in Ray's copy of the working directory, which Ray deletes:"
            " set runs_dir to an absolute path, on a volume that outlives the node"
        )


def _interrupt(signum, frame):
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Role:
    """`count` processes of one kind, each with its resources; `custom` ones, by name, and `labels`, by
    key, hold it to the nodes that have them. `strategy` is a placement group's, or "" where Ray Serve
    places the processes."""

    name: str
    count: int
    cpus: float
    gpus: float
    strategy: str
    custom: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def roles(config: RunConfig) -> list[Role]:
    """Learner ranks together (they exchange gradients), rollouts apart (they exchange nothing)."""

    def role(name, count, strategy, of) -> Role:
        return Role(name, count, of.num_cpus, of.num_gpus, strategy, of.resources, of.labels)

    actors, learner, experts = config.actors, config.learner, config.rewards.experts
    return [
        role("rollout", actors.count, "SPREAD", actors),
        role("learner", learner.ranks, "PACK", learner),
        *(role(f"expert {name}", e.most_replicas, "", e) for name, e in experts.items()),
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
    group = placement_group(  # an autoscaler sees it now
        [bundle] * role.count,
        strategy=role.strategy,
        bundle_label_selector=[dict(role.labels)] * role.count,
    )
    wanted = f"no room for {role.name}, {role.count} x {_listed(bundle)}{_on(role.labels)}"
    deadline = time.monotonic() + config.wait_for_nodes_s
    while wrong := missing(bundle, role.count, nodes_with(role.labels)):
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


def nodes_with(labels: Mapping[str, str]) -> list[dict[str, float]]:
    """What each living node with these labels has in all."""
    return [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and labels.items() <= node["Labels"].items()
    ]


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
    if not nodes:
        return "there are no such nodes"
    return f"the nodes hold {sum(fits)} of them, having {have}"


def _alike(nodes, bundle) -> list[tuple[Mapping[str, float], int]]:
    """Nodes that are the same in what is asked for, and how many."""
    counts = Counter(tuple(node.get(name, 0) for name in bundle) for node in nodes)
    return [(dict(zip(bundle, values, strict=True)), n) for values, n in counts.items()]


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _on(labels: Mapping[str, str]) -> str:
    named = ", ".join(f"{key}={value}" for key, value in labels.items())
    return f" on nodes with {named}" if named else ""


def placement_table(config: RunConfig) -> Table:
    """What each role asks for, and the sum."""
    table = Table(title="placement")
    for column in ("role", "processes", "CPUs each", "GPUs each", "placed"):
        side: Literal["left", "right"] = "left" if column in ("role", "placed") else "right"
        table.add_column(column, justify=side, overflow="fold")
    placed = {"SPREAD": "spread over nodes", "PACK": "packed together", "": "by Ray Serve"}
    asked = roles(config)
    for r in asked:
        where = placed[r.strategy] + "".join(f", on {name} nodes" for name in r.custom)
        where += f",{_on(r.labels)}" if r.labels else ""
        table.add_row(r.name, str(r.count), f"{r.cpus:g}", f"{r.gpus:g}", where)
    gpus = sum(r.count * r.gpus for r in asked)
    table.add_section()
    table.add_row("sum", str(sum(r.count for r in asked)), f"{total_cpus(config):g}", f"{gpus:g}", "")
    return table
