"""Commands for a running job: the state of its experts, and how many replicas they have."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError
from rich.console import Console
from rich.table import Table

from cluster.ray_session import check_answers, leave_ray, not_let_in
from policy.errors import UserError
from rewards.status import ExpertStatus, expert_statuses, scale_expert


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Connects to a running Ray cluster. Raises UserError if none answers there."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    check_answers(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, AuthenticationError) as error:
        raise not_let_in(address, error) from None
    try:
        yield
    finally:
        leave_ray()


def show_experts(address: str, console: Console) -> None:
    """Print a table of the experts that run."""
    with joined(address):
        statuses = expert_statuses()
    if not statuses:
        raise UserError("no experts run on this cluster")
    console.print(experts_table(statuses))


def experts_table(statuses: Sequence[ExpertStatus]) -> Table:
    """One row an expert: replicas, requests held, speed and failures."""
    table = Table("expert", "replicas", title="experts")
    for column in ("queue", "images/s", "p50 s", "p95 s", "images", "failures"):
        table.add_column(column, justify="right", no_wrap=True)
    for status in statuses:
        p50, p95 = status.latency(0.5), status.latency(0.95)
        table.add_row(
            status.name,
            _replicas(status),
            str(status.held),
            f"{status.images_per_s:.1f}",
            "" if p50 is None else f"{p50:.3f}",
            "" if p95 is None else f"{p95:.3f}",
            str(status.images),
            str(status.failures),
        )
    table.caption = "queue: requests waiting or being scored; images/s: over the last minute"
    return table


def _replicas(status: ExpertStatus) -> str:
    others = [f"{n} {state.lower()}" for state, n in status.replicas.items() if state != "RUNNING"]
    return " + ".join([str(status.running), *others])


def scale(expert: str, replicas: int, address: str, console: Console) -> None:
    """Give an expert another number of replicas; they start and stop while the job goes on."""
    with joined(address):
        scale_expert(expert, replicas)
    console.print(f"{expert}: {replicas} replicas wanted; `bicot experts` shows them come and go")
