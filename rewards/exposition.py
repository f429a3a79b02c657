"""What the replicas and the gateway counted, in Prometheus' text format."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from rewards.meter import BUCKETS_S
from rewards.status import ExpertStatus

_COUNTERS = {
    "requests": "requests that came in",
    "images": "images that were judged",
    "failures": "requests without an answer",
}


def exposition(experts: Sequence[ExpertStatus], replies: Mapping[int, int]) -> bytes:
    """Counters and latencies of every replica since it started; replies of the gateway by status."""
    registry = CollectorRegistry()
    registry.register(_Once(experts, Counter(replies)))
    return generate_latest(registry)


class _Once:
    """The client library's interface for numbers that are counted elsewhere."""

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
