"""Thread pools for CPU-bound work, which must not block the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.cores import cores

Result = TypeVar("Result")

MOST_LONG = 4
"""Large images processed at a time: one of 50 megapixels takes up to 0.8 GB meanwhile."""


class Threads:
    """One thread per core for short work, fewer for long work and one for heat maps, so that short work never waits for either."""

    def __init__(self) -> None:
        number = cores()
        self.long = max(1, min(number // 2, MOST_LONG))
        self._short, self._long = ThreadPoolExecutor(number, "short"), ThreadPoolExecutor(self.long, "long")
        self._maps = ThreadPoolExecutor(1, "maps")

    async def run(self, work: Callable[[], Result], long: bool = False) -> Result:
        """Run work in a thread, and return or raise what it does; `long` is for work of a tenth of a second or more.

        If the caller is cancelled, work that has not begun is dropped; work that has begun keeps its thread until it ends.
        """
        return await asyncio.get_running_loop().run_in_executor(self._long if long else self._short, work)

    async def run_heat_map(self, work: Callable[[], Result]) -> Result:
        """The same for the work of a heat map. One at a time: attention is locked, and gradients take all cores."""
        return await asyncio.get_running_loop().run_in_executor(self._maps, work)
