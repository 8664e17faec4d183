"""Plain Starlette: decoding in threads, micro-batches of up to 16 within 5 ms, our graph at the same precision; answers only a number."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipeline.detector import Detector
from pipeline.face_weights import NONE

detector = Detector.load(Path(os.environ["PACKAGE"]), faces=NONE)
preprocess, runtime = detector.preprocess, detector.runtime
MOST, WAIT = 16, 0.005


def pixels(data: bytes) -> np.ndarray:
    """The network's input."""
    return preprocess.pixels(Image.open(io.BytesIO(data)).convert("RGB"))


async def predict(request: Request) -> JSONResponse:
    """The verdict on the form's `image`."""
    async with request.form() as form:
        data = await form["image"].read()  # type: ignore[union-attr]
    answer = asyncio.get_running_loop().create_future()
    await request.app.state.waiting.put((await asyncio.to_thread(pixels, data), answer))
    return JSONResponse({"probability_fake": await answer})


async def batches(waiting: asyncio.Queue) -> None:
    """Run the network on waiting images, in batches."""
    while True:
        batch = [await waiting.get()]
        end = asyncio.get_running_loop().time() + WAIT
        while len(batch) < MOST and (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                batch.append(await asyncio.wait_for(waiting.get(), left))
            except TimeoutError:
                break
        logits, _ = await asyncio.to_thread(runtime, preprocess.normalise(np.stack([one for one, _ in batch])))
        for (_, answer), row in zip(batch, logits, strict=True):
            answer.set_result(float(1 / (1 + np.exp(row[0] - row[1]))))


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Run the batching task as long as the app."""
    app.state.waiting = asyncio.Queue()
    task = asyncio.create_task(batches(app.state.waiting))
    yield
    task.cancel()


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=lifespan)
