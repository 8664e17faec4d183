"""The counters behind /metrics."""

import os
from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving import counters


class Read(Collector):
    """Collector of metrics that were read elsewhere."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self.found = list(found)

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        return self.found


class Metrics:
    """The counters of a worker; /metrics shows the sums over all workers."""

    def __init__(self) -> None:
        self._predictions = Counter("unmask_predictions", "Answers, by verdict and model version", ["verdict", "version"])
        self._seconds = Histogram("unmask_prediction_seconds", "From the request's headers to the answer, by model version", ["version"])
        self._errors = Counter("unmask_errors", "Refused requests and images, by code", ["code"])
        self._lost = Counter("unmask_predictions_lost", "Answers that could not be written to the prediction log")
        self._feedback = Counter("unmask_feedback", "User feedback, by verdict and by the user's label", ["verdict", "label"])

        self._shadowed = Counter("unmask_shadow", "Pictures for the shadow challenger, by outcome", ["outcome"])
        self._canary_failures = Counter("unmask_canary_failures", "Pictures on which the challenger failed and the champion answered")
        self._canaries_ended = Counter("unmask_canaries_ended", "Canaries that were stopped automatically")

    def text(self, others: Iterable[Metric] = ()) -> bytes:
        """The sums over all workers, and `others`, in Prometheus' text format."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, os.environ.get(counters.FOLDER))
        registry.register(Read(others))
        return generate_latest(registry)

    def predicted(self, verdict: str, version: str, seconds: float) -> None:
        """Count an answer."""
        self._predictions.labels(verdict, version).inc()
        self._seconds.labels(version).observe(seconds)

    def refused(self, code: str) -> None:
        """Count an error that was sent to a client."""
        self._errors.labels(code).inc()

    def lost(self, rows: int) -> None:
        """Count answers missing from the prediction log."""
        self._lost.inc(rows)

    def shadowed(self, outcome: Literal["judged", "dropped", "failed"]) -> None:
        """Count an image for the shadow."""
        self._shadowed.labels(outcome).inc()

    def canary_failed(self) -> None:
        """Count an image on which the challenger failed."""
        self._canary_failures.inc()

    def canary_ended(self) -> None:
        """Count a canary that was stopped automatically."""
        self._canaries_ended.inc()

    def labelled(self, verdict: str, label: str) -> None:
        """Count a user's statement."""
        self._feedback.labels(verdict, label).inc()
