"""Load generator: clients that send images without a pause. One process, so that it takes little CPU from the service."""

import asyncio
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

BOUNDARY = b"unmask-benchmark"


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        seconds: how long they sent.
        latencies: name of the request -> seconds of each answer with status 200.
        statuses: HTTP status, or 0 for a broken connection -> how often.
        all: answers with status 200, including those of the warm-up and after the end.
    """

    seconds: float
    latencies: dict[str, list[float]] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    all: int = 0

    @property
    def answered(self) -> int:
        """Answers with status 200."""
        return self.statuses[200]

    @property
    def errors(self) -> int:
        """Requests that got anything else."""
        return self.statuses.total() - self.answered

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    def percentile(self, percent: float, name: str | None = None) -> float:
        """Percentile of the latencies in milliseconds; NaN if there are none."""
        found = self.latencies.get(name, []) if name else [value for values in self.latencies.values() for value in values]
        return float(np.percentile(found, percent)) * 1000 if found else float("nan")


def photograph(side: int, seed: int, quality: int = 90) -> bytes:
    """A square JPEG with edges, texture and noise, about as many bytes as a photograph of that size."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.normal(0, 6, (side, side, 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def upload(port: int, data: bytes, path: str = "/predict") -> bytes:
    """A complete HTTP request with a file in the form field `image`."""
    head = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' % BOUNDARY
    body = head + data + b"\r\n--%s--\r\n" % BOUNDARY
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: localhost:{port}",
        f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def send(port: int, clients: Sequence[Callable[[int], tuple[str, bytes]]], seconds: float, warm_up: float = 0) -> Load:
    """Let clients send for a while, each its next request as soon as the last one is answered.

    Args:
        port: on this machine.
        clients: for each, a function from the number of a request to its name and bytes (see `upload`).
        seconds: how long to measure.
        warm_up: seconds before that, which do not count.
    """
    return asyncio.run(_send(port, clients, seconds, warm_up))


def status(port: int, content: bytes) -> int:
    """The status of one request, 0 if there is no answer."""

    async def ask() -> int:
        return (await asyncio.wait_for(_exchange(*await asyncio.open_connection("127.0.0.1", port), content), 60))[0]

    try:
        return asyncio.run(ask())
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return 0


async def _send(port: int, clients: Sequence[Callable[[int], tuple[str, bytes]]], seconds: float, warm_up: float) -> Load:
    load = Load(seconds)
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def client(request: Callable[[int], tuple[str, bytes]]) -> None:
        number, connection = 0, None
        while (sent := time.perf_counter()) < end:
            name, content = request(number)
            number += 1
            try:
                connection = connection or await asyncio.open_connection("127.0.0.1", port)
                status, last = await asyncio.wait_for(_exchange(*connection, content), 60)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                status, last = 0, True
            if last and connection:
                connection[1].close()
                connection = None
            load.all += status == 200
            if begin <= (now := time.perf_counter()) < end:
                load.statuses[status] += 1
                if status == 200:
                    load.latencies.setdefault(name, []).append(now - sent)
            if not status:
                await asyncio.sleep(0.05)

    await asyncio.gather(*map(client, clients))
    return load


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> tuple[int, bool]:
    """The status of the answer, and whether the connection ends with it."""
    writer.write(content)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1]), b"connection: close" in head
