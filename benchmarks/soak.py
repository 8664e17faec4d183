"""Soak test: the service at saturation, long enough to see a leak: `python -m benchmarks.soak --package DIR --minutes 30`.

One request in twenty carries a file made to break a decoder. Results: benchmarks/results/soak.json and soak.png (memory over time).
Exits with 1 if a connection broke, a status was 500 or above, or memory grows by significantly more than 60 MB an hour.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.hostile import damaged, special
from benchmarks.load import photograph, send, upload
from benchmarks.measure import RESULTS, record
from benchmarks.serving import PEERS, SIDE, Running, running

CLIENTS, ONE_IN = 32, 20
WARM_UP = 0.25
"""Share of the time that is left out: what is set up then (threads, arenas, the log's pages) is not a leak."""

MOST = 60.0
"""Megabytes an hour. A run of half an hour cannot tell less than that from noise."""


def turns(normal: list[bytes], hostile: list[bytes], first: int) -> Callable[[int], tuple[str, bytes]]:
    """What a client sends: a hostile file every ONE_IN requests; each client starts at a different file."""

    def turn(number: int) -> tuple[str, bytes]:
        place = first * 7 + number
        if place % ONE_IN == 0:
            return "hostile", hostile[(place // ONE_IN) % len(hostile)]
        return "normal", normal[place % len(normal)]

    return turn


def soak(service: Running, seconds: float) -> dict[str, Any]:
    """Load the service, and record its memory once a second."""
    normal = [upload(service.port, photograph(SIDE, seed)) for seed in range(64)]
    hostile = [upload(service.port, data) for data in (*special().values(), *damaged(280))]
    memory: list[tuple[float, float]] = []
    end, begin = threading.Event(), time.monotonic()

    def watch() -> None:
        while not end.wait(1):
            memory.append((time.monotonic() - begin, sum(process.memory_info().rss for process in service.tree) / 1e6))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        load = send(service.port, [turns(normal, hostile, client) for client in range(CLIENTS)], seconds)
    finally:
        end.set()
        watching.join()
    times, sizes = np.array(memory).T
    late = times > WARM_UP * seconds
    slope, error = _slope(times[late] / 3600, sizes[late])
    return {
        "minutes": round(seconds / 60, 1),
        "clients": CLIENTS,
        "requests_a_second": round(load.statuses.total() / seconds, 1),
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "p99_ms": round(load.percentile(99, "normal"), 1),
        "memory_mb": {"first": round(float(sizes[late][0])), "last": round(float(sizes[-1])), "most": round(float(sizes.max()))},
        "slope_mb_an_hour": round(slope, 1),
        "slope_error": round(error, 1),
        "memory": [(round(when), round(size)) for when, size in memory[:: max(1, len(memory) // 300)]],
    }


def _slope(hours: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Least-squares slope and standard error, over the medians of ten parts.

    Neighbouring seconds are not independent; and the gigabyte that large images take for a moment is not a leak, but with means it made the
    error so large that any leak would have passed.
    """
    x = np.array([part.mean() for part in np.array_split(hours, 10)])
    y = np.array([np.median(part) for part in np.array_split(sizes, 10)])
    slope, start = np.polyfit(x, y, 1)
    rest = y - slope * x - start
    return float(slope), float(np.sqrt((rest**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum()))


def plot(found: dict[str, Any], path: Path) -> None:
    """Memory over time."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    times, sizes = np.array(found["memory"]).T
    axes.plot(times / 60, sizes)
    axes.set(xlabel="minutes", ylabel="memory of all processes, MB", ylim=(0, None))
    slope, error, most = found["slope_mb_an_hour"], found["slope_error"], found["requests_a_second"]
    axes.set_title(f"{most} requests/s, one in {ONE_IN} hostile: {slope:+.1f} ± {error:.1f} MB an hour after the first quarter", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("models/package"))
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    with running(PEERS["Unmask"], arguments.package.resolve()) as service:
        found = soak(service, arguments.minutes * 60)
    record("soak", found)
    plot(found, RESULTS / "soak.png")
    print({name: value for name, value in found.items() if name != "memory"})
    broken = sum(count for status, count in found["statuses"].items() if status == "0" or status >= "500")
    if broken or found["slope_mb_an_hour"] - 2 * found["slope_error"] > MOST:
        sys.exit(f"{broken} broken answers; the memory rises by {found['slope_mb_an_hour']} MB an hour")


if __name__ == "__main__":
    main()
