"""What the routes of a worker share: the model, the prediction log, the settings, and the uploads under way."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from PIL.Image import Image

from pipeline import credentials, images
from pipeline.champion import Champion, Served
from pipeline.credentials import Credentials
from pipeline.detector import Prediction, Prepared
from pipeline.images import ImageError, identify, picture
from pipeline.monitoring import feedback, predictions
from pipeline.monitoring.predictions import PredictionLog
from serving.access import RateLimiter, Uploads
from serving.batches import Batches
from serving.errors import ApiError
from serving.settings import Settings
from serving.threads import Threads
from serving.trial import Picture, Trial

Result = TypeVar("Result")
LARGE = 2_000_000
"""Pixels: a larger image takes a tenth of a second or more to decode, and waits in a queue of its own."""


@dataclass(frozen=True)
class Opened:
    """An image ready to be judged: the model that judges it, that model's input, and the content credentials of the file."""

    picture: Picture
    served: Served
    prepared: Prepared
    signed: Credentials | None


class Context:
    """Created when the service starts, in each worker."""

    def __init__(self, settings: Settings, champion: Champion) -> None:
        # Imported late: prometheus_client reads PROMETHEUS_MULTIPROC_DIR on import, and service.py sets it just before this.
        from serving.metrics import Metrics

        self.settings, self.champion = settings, champion
        self.metrics = Metrics()
        self.log = PredictionLog(settings.var / predictions.FILE, settings.log_rows, self.metrics.lost)
        self.room = feedback.Room(settings.var / feedback.FOLDER, settings.feedback_megabytes * 1e6, settings.share)
        self.rate = RateLimiter(settings.requests_per_minute)
        self.batches = Batches()
        self.trial = Trial(settings, champion, self.log, self.metrics)
        self.threads = Threads()
        self.uploads = Uploads(settings)

    def served(self) -> Served:
        """The model that answers now. Raises ApiError: no_model."""
        served, trouble = self.champion.served, self.champion.trouble
        if served is None:
            raise ApiError("no_model", *(trouble or ("", "")), {"Retry-After": "5"})
        return served

    async def open(self, champion: Served, data: bytes) -> Opened:
        """Prepare an image file for the model that judges it. Raises ImageError."""
        picture = self.trial.picture(data)
        return await self.with_fallback(champion, self.trial.canary_for(picture), lambda served: self._open(served, picture, data))

    async def judge(self, champion: Served, opened: Opened) -> tuple[Served, Prediction]:
        """The verdict and the model that gave it: the champion, if the challenger fails. Raises what the champion's network raises."""

        async def judged(served: Served) -> tuple[Served, Prediction]:
            own = opened if served is opened.served else await self._open(served, opened.picture, opened.picture.data)
            batches = self.batches if served is champion else self.trial.batches
            return served, await batches.judge(served.detector, own.prepared)

        challenger = opened.served if opened.served is not champion else None
        return await self.with_fallback(champion, challenger, judged, self.settings.timeout / 2)

    async def with_fallback(
        self, champion: Served, challenger: Served | None, work: Callable[[Served], Awaitable[Result]], seconds: float | None = None
    ) -> Result:
        """The challenger's result, or the champion's if there is no challenger, or it fails or takes longer than `seconds`."""
        if challenger is not None:
            try:
                with anyio.fail_after(seconds):
                    return await work(challenger)
            except ImageError:  # the client's mistake, whichever model looks at it
                raise
            except Exception as error:
                self.trial.failed(error)
        return await work(champion)

    async def decoded(self, data: bytes, work: Callable[[images.Picture], Result]) -> Result:
        """Decode an image file and run `work` on it, in a thread; large images have a queue of their own. Raises ImageError."""

        def begin() -> Image | tuple[Result]:
            image = identify(data, self.settings.images)
            return image if image.width * image.height > LARGE else (work(picture(image, data)),)

        with self.batches.decoding():
            begun = await self.threads.run(begin)
        return begun[0] if isinstance(begun, tuple) else await self.threads.run(lambda: work(picture(begun, data)), long=True)

    async def _open(self, served: Served, mark: Picture, data: bytes) -> Opened:
        def opened(found: images.Picture) -> Opened:
            return Opened(mark, served, served.detector.prepare(found), credentials.read(data))

        return await self.decoded(data, opened)
