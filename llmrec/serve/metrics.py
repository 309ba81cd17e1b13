"""What a server counts, in the form of Prometheus: `GET /metrics`."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from llmrec.serve.workers import SEVERAL

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server, in a registry of their own. With several workers, each of them can tell the sums."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        labels = ["method", "route"]
        self.requests = Counter("llmrec_requests", "Answered requests.", [*labels, "status"], registry=own)
        self.seconds = Histogram(
            "llmrec_request_seconds", "Time from a request to its answer.", labels, buckets=SECONDS, registry=own
        )
        self.batch = Histogram(
            "llmrec_batch_requests", "Requests per batch.", ["lane"], buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.inside = Gauge(
            "llmrec_inside",
            "Requests that wait or are being answered.",
            ["lane"],
            registry=own,
            multiprocess_mode="livesum",
        )
        self.refused = Counter("llmrec_refused", "Refused requests.", ["code"], registry=own)
        self.items = Gauge("llmrec_items", "Items of the catalogue.", registry=own, multiprocess_mode="mostrecent")

    def text(self, items: int) -> bytes:
        """All metrics in the text format of Prometheus.

        Args:
            items: number of items of the catalogue as of now.
        """
        self.items.set(items)
        if SEVERAL not in os.environ:
            return generate_latest(self.registry)
        sums = CollectorRegistry()
        MultiProcessCollector(sums)
        return generate_latest(sums)
