"""Pictures that wait at the same time go through the network together."""

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile

from pipeline.detector import Detector, Prediction, Prepared

MOST_WAIT = 15
"""Milliseconds that a batch waits for pictures that are being decoded."""
RETURN = 5
"""Milliseconds within which a client that got an answer sends its next picture."""


@dataclass(frozen=True)
class Waiting:
    """A picture, who shall judge it, and where the answer goes."""

    detector: Detector
    prepared: Prepared
    answer: asyncio.Future[Prediction]


class Batches:
    """While a batch runs, what arrives gathers and becomes the next one. For one event loop.

    On a CPU the network shares its cores with what decodes pictures. Both at a time take longer than one after the other, so there a batch
    waits a few milliseconds for pictures that are on their way; a picture that is alone waits for nothing.
    """

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._running: asyncio.Task[None] | None = None
        self._coming = 0

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Around the decoding of a picture that will be judged at once."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def judge(self, detector: Detector, prepared: Prepared) -> Prediction:
        """The verdict on a picture. Raises what the network raises."""
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

    async def _gather(self, answered: bool) -> None:
        """Wait for pictures that are being decoded, and right after answers for the next ones of those who got them."""
        runtime = self._waiting[0].detector.runtime
        for passed in range(MOST_WAIT if runtime.shares_cores else 0):
            if len(self._waiting) >= runtime.batch or (not self._coming and passed >= (RETURN if answered else 0)):
                return
            await asyncio.sleep(0.001)

    def _next(self) -> list[Waiting]:
        """The oldest that wait for the same model, as many as fit."""
        self._waiting = deque(one for one in self._waiting if not one.answer.done())
        same = takewhile(lambda one: one.detector is self._waiting[0].detector, self._waiting)
        # More than its runtime makes use of would only let the first of them wait for the last.
        batch = list(islice(same, self._waiting[0].detector.runtime.batch)) if self._waiting else []
        for _ in batch:
            self._waiting.popleft()
        return batch
