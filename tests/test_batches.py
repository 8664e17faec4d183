"""Which images share a batch."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.detector import Detector
from pipeline.images import Picture
from pipeline.package import GRAPH, verify
from pipeline.runtime import OpenVinoRuntime
from serving.batches import Batches


class Watched(OpenVinoRuntime):
    """Records the size of each batch."""

    def __init__(self, graph: Path, shares_cores: bool) -> None:
        super().__init__(graph)
        self.shares_cores, self.sizes = shares_cores, []
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(values))
        self.may_end.wait(60)
        return super().__call__(values)


async def two(runtime: Watched, package: Path) -> list[int]:
    """Batch sizes for two images, the second of which is still being decoded when the first is ready."""
    detector, batches = Detector(verify(package), runtime), Batches()
    prepared = detector.prepare(Picture(Image.new("RGB", (80, 80), "grey"), "PNG"))
    with batches.decoding():
        first = asyncio.create_task(batches.judge(detector, prepared))
        for _ in range(4):  # turns of the event loop, enough for a batch to begin
            await asyncio.sleep(0)
        second = asyncio.create_task(batches.judge(detector, prepared))
        await asyncio.sleep(0)
    answers = await asyncio.gather(first, second)
    assert answers[0].probability_fake == pytest.approx(answers[1].probability_fake)
    return runtime.sizes


def test_on_a_cpu_a_batch_waits_for_the_pictures_that_are_being_decoded(package: Path):
    assert asyncio.run(two(Watched(package / GRAPH, shares_cores=True), package)) == [2]


def test_a_device_with_cores_of_its_own_waits_for_nothing(package: Path):
    assert asyncio.run(two(Watched(package / GRAPH, shares_cores=False), package)) == [1, 1]


def test_a_client_that_leaves_while_its_batch_runs_costs_the_others_no_answer(package: Path):
    async def left() -> list[int]:
        runtime = Watched(package / GRAPH, shares_cores=True)
        detector, batches = Detector(verify(package), runtime), Batches()
        prepared = detector.prepare(Picture(Image.new("RGB", (80, 80), "grey"), "PNG"))
        runtime.may_end.clear()
        leaves, stays = (asyncio.create_task(batches.judge(detector, prepared)) for _ in range(2))
        while not runtime.sizes:
            await asyncio.sleep(0.001)
        leaves.cancel()
        await asyncio.wait([leaves])
        runtime.may_end.set()
        await stays
        await batches.judge(detector, prepared)  # and later ones are answered too
        return runtime.sizes

    assert asyncio.run(asyncio.wait_for(left(), 60)) == [2, 1]


def test_while_a_model_replaces_another_each_picture_is_judged_by_its_own(package: Path):
    async def both() -> list[list[int]]:
        old, new = (Watched(package / GRAPH, shares_cores=True) for _ in range(2))
        detectors, batches = [Detector(verify(package), runtime) for runtime in (old, new)], Batches()
        prepared = detectors[0].prepare(Picture(Image.new("RGB", (80, 80), "grey"), "PNG"))
        await asyncio.gather(*(batches.judge(detectors[number], prepared) for number in (0, 0, 1, 0)))
        return [old.sizes, new.sizes]

    assert asyncio.run(asyncio.wait_for(both(), 60)) == [[2, 1], [1]]


def test_a_picture_that_takes_long_to_decode_does_not_hold_up_the_others(package: Path):
    async def beside() -> list[int]:
        runtime = Watched(package / GRAPH, shares_cores=True)
        detector, batches = Detector(verify(package), runtime), Batches()
        with batches.decoding():  # and never arrives
            await batches.judge(detector, detector.prepare(Picture(Image.new("RGB", (80, 80), "grey"), "PNG")))
        return runtime.sizes

    assert asyncio.run(asyncio.wait_for(beside(), 60)) == [1]
