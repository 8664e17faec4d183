"""Pictures that wait at the same time go through the network together."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, takewhile

from pipeline.detector import Detector, Prediction, Prepared


@dataclass(frozen=True)
class Waiting:
    """A picture, who shall judge it, and where the answer goes."""

    detector: Detector
    prepared: Prepared
    answer: asyncio.Future[Prediction]


class Batches:
    """While a batch runs, what arrives gathers and becomes the next one: no picture ever waits for company. For one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._running: asyncio.Task[None] | None = None

    async def judge(self, detector: Detector, prepared: Prepared) -> Prediction:
        """The verdict on a picture. Raises what the network raises."""
        waiting = Waiting(detector, prepared, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        try:
            while batch := self._next():
                try:
                    pictures = [one.prepared for one in batch]
                    found = await asyncio.get_running_loop().run_in_executor(self._thread, batch[0].detector.judge, pictures)
                except Exception as error:  # each of them tells its own client
                    for one in batch:
                        if not one.answer.done():
                            one.answer.set_exception(error)
                else:
                    for one, prediction in zip(batch, found, strict=True):
                        if not one.answer.done():  # its client may have gone
                            one.answer.set_result(prediction)
                del batch  # a model that was replaced is freed while nothing waits
        finally:
            self._running = None

    def _next(self) -> list[Waiting]:
        """The oldest that wait for the same model, as many as fit."""
        self._waiting = deque(one for one in self._waiting if not one.answer.done())
        same = takewhile(lambda one: one.detector is self._waiting[0].detector, self._waiting)
        # More than its runtime makes use of would only let the first of them wait for the last.
        batch = list(islice(same, self._waiting[0].detector.runtime.batch)) if self._waiting else []
        for _ in batch:
            self._waiting.popleft()
        return batch
