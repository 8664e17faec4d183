"""Startup time of the service, memory with a ViT-base, size of the page: `python -m benchmarks.startup`.

The ViT-base is made on the spot, with random weights. Memory is peak resident memory: of the worker, and the sum over all processes,
which counts shared pages more than once. Results: benchmarks/results/startup.json. Exits with 1 if a bound is missed.
"""

import argparse
import re
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.load import photograph, status, upload
from benchmarks.measure import record
from benchmarks.serving import PEERS, SIDE, Running, running
from tests.package_helpers import untrained_package

READY_SECONDS, WORKER_MB, PAINT_BYTES = 15.0, 1500, 100_000
"""The bounds."""

STARTS, REQUESTS, CLIENTS = 3, 100, 32


def readiness(port: int) -> bytes:
    """A request to /readyz."""
    return f"GET /readyz HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()


def peak(service: Running) -> dict[str, int]:
    """Peak megabytes of the worker (the largest process) and of all processes."""
    lines = [line for process in service.tree for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()]
    sizes = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")]
    return {"worker": round(max(sizes)), "all": round(sum(sizes))}


def used(service: Running, path: str, requests: int) -> tuple[int, float]:
    """Send this many requests, CLIENTS at a time. Returns how many were answered, and the seconds of the slowest."""

    def ask(seed: int) -> tuple[bool, float]:
        content = upload(service.port, photograph(SIDE, seed), path=path)
        begin = time.monotonic()
        return status(service.port, content) == 200, time.monotonic() - begin

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(ask, range(requests)))
    return sum(answered for answered, _ in found), round(max(seconds for _, seconds in found), 2)


def first_paint(port: int) -> dict[str, int]:
    """File -> bytes, of everything that the page loads before an image is chosen."""
    sizes: dict[str, int] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop()
        if name in sizes:
            continue
        with urllib.request.urlopen(f"http://localhost:{port}/{name}") as response:
            body = response.read()
        sizes[name] = len(body)
        waiting += re.findall(r'(?:href|src|from)[= ]"(?:\./)?([\w-]+\.(?:js|css|svg))"', body.decode())
    return {name or "index.html": size for name, size in sizes.items()}


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        package = untrained_package(Path(folder) / "package", {})
        seconds = []
        for _ in range(STARTS):
            begin = time.monotonic()
            with running(PEERS["Unmask"], package, readiness) as service:
                seconds.append(round(time.monotonic() - begin, 1))
                memory = {"ready": peak(service)}
                answered, _ = used(service, "/predict", REQUESTS)
                memory[f"after {REQUESTS} requests"] = peak(service)
                explained, first_map = used(service, "/explain", 1)
                memory["after a map"] = peak(service)
                paint = first_paint(service.port)
    found: dict[str, Any] = {
        "ready_seconds": seconds,
        "memory_mb": memory,
        "first_map_seconds": first_map,
        "first_paint_bytes": {"all": sum(paint.values()), **paint},
    }
    print(found)
    record("startup", found)
    missed = {
        f"{READY_SECONDS:g} s to be ready": max(seconds) > READY_SECONDS,
        f"{WORKER_MB} MB a worker": max(part["worker"] for part in memory.values()) > WORKER_MB,
        f"{PAINT_BYTES} bytes to paint the page": sum(paint.values()) > PAINT_BYTES,
        "an answer to each request": answered < REQUESTS or not explained,
    }
    if any(missed.values()):
        sys.exit(f"missed: {', '.join(name for name, so in missed.items() if so)}")


if __name__ == "__main__":
    main()
