"""What /metrics counts."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector


class Metrics:
    """The counters of a worker; /metrics shows the sums over all workers."""

    def __init__(self) -> None:
        self._predictions = Counter("unmask_predictions", "Answers, by verdict and model version", ["verdict", "version"])
        self._seconds = Histogram("unmask_prediction_seconds", "From the request's headers to the answer, by model version", ["version"])
        self._errors = Counter("unmask_errors", "Refused requests and images, by code", ["code"])
        self._lost = Counter("unmask_predictions_lost", "Answers that could not be written to the prediction log")
        self._feedback = Counter(
            "unmask_feedback", "Statements of users, by the verdict they are about and their label", ["verdict", "label"]
        )

    def text(self) -> bytes:
        """The sums over all workers, as Prometheus reads them. BentoML sets the folder in which the workers' figures lie."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)

    def predicted(self, verdict: str, version: str, seconds: float) -> None:
        """Count an answer."""
        self._predictions.labels(verdict, version).inc()
        self._seconds.labels(version).observe(seconds)

    def refused(self, code: str) -> None:
        """Count an error that a client was told of."""
        self._errors.labels(code).inc()

    def lost(self, rows: int) -> None:
        """Count answers that are not in the log."""
        self._lost.inc(rows)

    def told(self, verdict: str, label: str) -> None:
        """Count a user's statement."""
        self._feedback.labels(verdict, label).inc()
