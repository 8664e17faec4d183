"""What the routes share in a worker: the model, its log, the settings, and how much is under way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import anyio
from PIL.Image import Image

from pipeline import credentials, predictions
from pipeline.champion import Champion, Served
from pipeline.credentials import Credentials
from pipeline.detector import Detector, Prepared
from pipeline.images import identify, picture
from pipeline.predictions import PredictionLog
from serving.access import RateLimit
from serving.batches import Batches
from serving.errors import ApiError
from serving.settings import Settings

Result = TypeVar("Result")
FEEDBACK = Path("feedback")
DRIFT_REPORT = Path("drift/report.json")
"""Inside UNMASK_VAR; the drift flow writes the latter."""

LARGE = 2_000_000
"""Pixels: a larger picture takes a tenth of a second and more to decode, and waits in a queue of its own for it."""


class Context:
    """Made when the service starts."""

    def __init__(self, settings: Settings, champion: Champion) -> None:
        # Imported late: prometheus_client looks once for the folder that BentoML names before it makes the service.
        from serving.metrics import Metrics

        self.settings, self.champion = settings, champion
        self.metrics = Metrics()
        self.log = PredictionLog(settings.var / predictions.FILE, settings.log_rows, self.metrics.lost)
        self.rate = RateLimit(settings.requests_a_minute)
        self.batches = Batches()
        cores = os.cpu_count() or 2
        # Long work has fewer threads than there are cores, so that it never keeps short work from all of them.
        self._short, self._long = anyio.CapacityLimiter(cores), anyio.CapacityLimiter(max(1, cores // 2))
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

    async def in_thread(self, work: Callable[[], Result], long: bool = False) -> Result:
        """Run something that takes the processor, beside the requests that only wait; `long` is what takes a tenth of a second and more."""
        return await anyio.to_thread.run_sync(work, limiter=self._long if long else self._short, abandon_on_cancel=True)

    async def open(self, detector: Detector, data: bytes) -> tuple[Prepared, Credentials | None]:
        """What is to be judged of an image file, and who says what of it. Raises ImageError."""

        def rest(image: Image) -> tuple[Prepared, Credentials | None]:
            return detector.prepare(picture(image, data)), credentials.read(data)

        def begin() -> Image | tuple[Prepared, Credentials | None]:
            image = identify(data, self.settings.images)
            return image if image.width * image.height > LARGE else rest(image)

        begun = await self.in_thread(begin)
        return begun if isinstance(begun, tuple) else await self.in_thread(lambda: rest(begun), long=True)
