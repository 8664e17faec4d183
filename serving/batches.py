"""Micro-batching: images that wait at the same time go through the network together."""

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile

from pipeline.detector import Detector, Prediction, Prepared

MOST_WAIT = 15
"""Milliseconds that a batch waits at most for images that are being decoded."""
RETURN = 5
"""Milliseconds that clients get after an answer to send their next image."""


@dataclass(frozen=True)
class Waiting:
    """An image, the detector that judges it, and the future for its answer."""

    detector: Detector
    prepared: Prepared
    answer: asyncio.Future[Prediction]


class Batches:
    """Images that arrive while a batch runs become the next one. For one event loop.

    On a CPU, inference shares its cores with decoding. Both in parallel take longer than one after the other, so a batch waits a few
    milliseconds for images that are being decoded; a single image does not wait.
    """

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._running: asyncio.Task[None] | None = None
        self._decoding = 0

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """To wrap the decoding of an image that is judged right afterwards."""
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1

    async def judge(self, detector: Detector, prepared: Prepared) -> Prediction:
        """The verdict on an image. Raises what the network raises."""
        waiting = Waiting(detector, prepared, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        try:
            answered = False
            while self._waiting:
                await self._gather(answered)
                if not (batch := self._next()):
                    break
                answered = True
                try:
                    pictures = [one.prepared for one in batch]
                    found = await asyncio.get_running_loop().run_in_executor(self._thread, batch[0].detector.judge, pictures)
                except Exception as error:  # each request tells its own client
                    for one in batch:
                        if not one.answer.done():
                            one.answer.set_exception(error)
                else:
                    for one, prediction in zip(batch, found, strict=True):
                        if not one.answer.done():  # its client may have disconnected
                            one.answer.set_result(prediction)
                del batch  # so that a replaced model is freed while nothing waits
        finally:
            self._running = None

    async def _gather(self, answered: bool) -> None:
        """Wait for images that are being decoded and, right after a batch, for the next images of the clients it answered."""
        runtime = self._waiting[0].detector.runtime
        for passed in range(MOST_WAIT if runtime.shares_cores else 0):
            if len(self._waiting) >= runtime.batch or (not self._decoding and passed >= (RETURN if answered else 0)):
                return
            await asyncio.sleep(0.001)

    def _next(self) -> list[Waiting]:
        """The oldest images that wait for the same model, as many as fit in a batch."""
        self._waiting = deque(one for one in self._waiting if not one.answer.done())
        same = takewhile(lambda one: one.detector is self._waiting[0].detector, self._waiting)
        # Beyond what speeds up its runtime, a larger batch would only make the first image wait for the last.
        batch = list(islice(same, self._waiting[0].detector.runtime.batch)) if self._waiting else []
        for _ in batch:
            self._waiting.popleft()
        return batch
