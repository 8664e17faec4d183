"""What the routes share in a worker: the model, its log, the settings, and how much is under way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio

from pipeline import predictions
from pipeline.champion import Champion, Served
from pipeline.predictions import PredictionLog
from serving.access import RateLimit
from serving.errors import ApiError
from serving.settings import Settings

if TYPE_CHECKING:
    pass

Result = TypeVar("Result")
FEEDBACK = Path("feedback")
DRIFT_REPORT = Path("drift/report.json")
"""Inside UNMASK_VAR; the drift flow writes the latter."""


class Context:
    """Made when the service starts."""

    def __init__(self, settings: Settings, champion: Champion) -> None:
        # Imported late: prometheus_client looks once for the folder that BentoML names before it makes the service.
        from serving.metrics import Metrics

        self.settings, self.champion = settings, champion
        self.log = PredictionLog(settings.var / predictions.FILE)
        self.metrics: Metrics = Metrics()
        self.rate = RateLimit(settings.requests_a_minute)
        self._threads = anyio.CapacityLimiter(os.cpu_count() or 2)
        self._under_way = 0

    def served(self) -> Served:
        """The model that answers now. Raises ApiError: no_model."""
        served, trouble = self.champion.served, self.champion.trouble
        if served is None:
            raise ApiError("no_model", *(trouble or ("", "")), {"Retry-After": "5"})
        return served

    def enter(self) -> None:
        """Count an upload in. Raises ApiError: busy."""
        if self._under_way >= self.settings.queue:
            raise ApiError("busy", f"{self._under_way} uploads are under way", "Try again in a second.", {"Retry-After": "1"})
        self._under_way += 1

    def leave(self) -> None:
        """Count an upload out."""
        self._under_way -= 1

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Run something that takes the processor, beside the requests that only wait."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads, abandon_on_cancel=True)
