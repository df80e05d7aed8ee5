"""Counters for Prometheus. Labels are routes, kinds and statuses, of which there are few, and never what users sent."""

from __future__ import annotations

import os
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where several workers add up their figures; prometheus_client reads it, too
disable_created_metrics()  # a second series for each, which says little
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What one server has done. `cut` and `batches` are where connections and the engine leave their counts."""

    def __init__(self, depth: Callable[[], int], batches: list[int], cut: dict[str, int]) -> None:
        self.registry = CollectorRegistry()
        self._depth, self._batches, self._cut, self._counted = depth, batches, cut, dict.fromkeys(cut, 0)
        self.requests = Counter("coca_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "coca_request_seconds",
            "From headers to the answer's end",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.received = Counter("coca_received_bytes", "Bytes of bodies", registry=self.registry)
        self.batch = Histogram("coca_batch_jobs", "Jobs of a batch", buckets=SIZES, registry=self.registry)
        self.cut = Counter(
            "coca_connections_cut", "Connections ended before their time", ("why",), registry=self.registry
        )
        self.filtered = Counter("coca_filtered", "Texts that the word list withheld", registry=self.registry)
        self.queue = Gauge("coca_queue_jobs", "Jobs that wait", registry=self.registry, multiprocess_mode="livesum")

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        self.collect()
        if os.environ.get(FOLDER):
            together = CollectorRegistry()
            multiprocess.MultiProcessCollector(together)
            return generate_latest(together)
        return generate_latest(self.registry)

    def collect(self) -> None:
        """Takes in what was counted elsewhere."""
        self.queue.set(self._depth())
        while self._batches:
            self.batch.observe(self._batches.pop())
        for why, count in self._cut.items():
            self.cut.labels(why).inc(count - self._counted[why])
            self._counted[why] = count
