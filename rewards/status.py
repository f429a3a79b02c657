"""The state of a cluster's experts, from any process that is connected to it.

Also the counters of the replicas and the gateway, in Prometheus' text format.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from policy.errors import UserError
from rewards import controller
from rewards.replica import BUCKETS_S, ReplicaStats, latency
from rewards.serving import EXPERT_PREFIX, app_name

_ANSWER_S = 5.0  # how long a replica may take to report its state


@dataclass(frozen=True)
class ExpertStatus:
    """One expert: its state in Serve, and the counters of the replicas that answered."""

    name: str
    status: str
    replicas: dict[str, int]
    """State -> number of replicas, e.g. {"RUNNING": 2, "STARTING": 1}."""
    stats: tuple[ReplicaStats, ...]

    @property
    def running(self) -> int:
        return self.replicas.get("RUNNING", 0)

    @property
    def held(self) -> int:
        return sum(s.held for s in self.stats)

    @property
    def images(self) -> int:
        return sum(s.images for s in self.stats)

    @property
    def failures(self) -> int:
        return sum(s.failures for s in self.stats)

    @property
    def images_per_s(self) -> float:
        return sum(s.images_per_s for s in self.stats)

    def latency(self, share: float) -> float | None:
        return latency(self.stats, share)


def expert_statuses(*, ask: bool = True) -> list[ExpertStatus]:
    """The status of all experts that run, sorted by name; with `ask`, also their replicas' counters.
    Blocks for some seconds at most."""
    if not controller.is_running():
        return []
    found = []
    for app, overview in sorted(controller.status().applications.items()):
        if app.startswith(EXPERT_PREFIX):
            states: dict[str, int] = {}
            for deployment in overview.deployments.values():
                states |= {str(state): n for state, n in deployment.replica_states.items() if n}
            running = overview.status == ApplicationStatus.RUNNING or states.get("RUNNING")
            stats = _ask_replicas(app) if ask and running else ()
            name = app.removeprefix(EXPERT_PREFIX)
            found.append(ExpertStatus(name, overview.status.value, states, stats))
    return found


def _ask_replicas(app: str) -> tuple[ReplicaStats, ...]:
    """The counters of all replicas; empty if one of them dies or hangs meanwhile."""
    try:
        return tuple(serve.get_app_handle(app).broadcast("stats").results(timeout_s=_ANSWER_S))
    except (RayError, RayServeException, TimeoutError):
        return ()


def scale_expert(name: str, replicas: int) -> None:
    """Change the number of replicas of an expert that runs. Those that stay are not disturbed, and
    those that go finish their requests. Returns at once.

    Raises UserError if there is no such expert, or if it scales by itself.
    """
    known = [status.name for status in expert_statuses()]
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "none runs on this cluster"
        raise UserError(f"no expert {name!r} runs: {there}")
    if not controller.set_replicas(app_name(name), name, replicas):
        raise UserError(f"expert {name} has `autoscale` set: it scales by itself, between its bounds")


_COUNTERS = {
    "requests": "requests that came in",
    "images": "images that were scored",
    "failures": "requests without an answer",
}


def exposition(experts: Sequence[ExpertStatus], replies: Mapping[int, int]) -> bytes:
    """Counters and latencies of every replica since it started; replies of the gateway by status."""
    registry = CollectorRegistry()
    registry.register(_Once(experts, Counter(replies)))
    return generate_latest(registry)


class _Once:
    """The client library's collector interface for numbers that are counted elsewhere."""

    def __init__(self, experts: Sequence[ExpertStatus], replies: Mapping[int, int]):
        self._experts, self._replies = experts, replies

    def collect(self) -> Iterator[Metric]:
        labels = ("expert", "replica")
        each = [((e.name, s.replica), s) for e in self._experts for s in e.stats]
        for name, what in _COUNTERS.items():
            family = CounterMetricFamily(f"bicot_expert_{name}", what, labels=labels)
            for key, stats in each:
                family.add_metric(key, getattr(stats, name))
            yield family
        held = GaugeMetricFamily("bicot_expert_held", "requests waiting or being scored", labels=labels)
        took = HistogramMetricFamily("bicot_expert_latency_seconds", "of an answer", labels=labels)
        ends = [*map(str, BUCKETS_S), "+Inf"]
        for key, stats in each:
            held.add_metric(key, stats.held)
            counts = list(zip(ends, accumulate(stats.buckets), strict=True))
            took.add_metric(key, counts, stats.seconds)
        running = GaugeMetricFamily("bicot_expert_replicas", "that run", labels=("expert",))
        for expert in self._experts:
            running.add_metric((expert.name,), expert.running)
        replies = CounterMetricFamily("bicot_gateway_replies", "by HTTP status", labels=("status",))
        for status, count in sorted(self._replies.items()):
            replies.add_metric((str(status),), count)
        yield from (held, took, running, replies)
