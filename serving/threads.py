"""Work that takes the processor, beside the requests that only wait."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.cores import cores

Result = TypeVar("Result")

MOST_LONG = 4
"""Pictures of up to 50 megapixels that are looked at together: each takes up to 0.8 GB meanwhile."""


class Threads:
    """A thread for each core, and beside them fewer for long work and one for heat maps, so that short work does not wait for those."""

    def __init__(self) -> None:
        number = cores()
        self.long = max(1, min(number // 2, MOST_LONG))
        self._short, self._long = ThreadPoolExecutor(number, "short"), ThreadPoolExecutor(self.long, "long")
        self._maps = ThreadPoolExecutor(1, "maps")

    async def run(self, work: Callable[[], Result], long: bool = False) -> Result:
        """What the work returns or raises; `long` is what takes a tenth of a second and more.

        Once nobody waits for it, what has not begun is dropped, and what has begun keeps its thread until it ends.
        """
        return await asyncio.get_running_loop().run_in_executor(self._long if long else self._short, work)

    async def look(self, work: Callable[[], Result]) -> Result:
        """What the work of a heat map returns or raises. One at a time: attention is locked, and gradients take all cores."""
        return await asyncio.get_running_loop().run_in_executor(self._maps, work)
