"""Speed of the service compared with obvious implementations: `python -m benchmarks.serving --package DIR --seconds N`.

Services are loaded one at a time, on the same machine, with the same network and images; the clients are one more process there.
Results: benchmarks/results/serving.json and serving.md.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.gpu import Gpu
from benchmarks.load import Load, photograph, send, status, upload
from benchmarks.measure import RESULTS, memory, record
from benchmarks.project import ROOT, free_port
from pipeline.detector import Detector
from pipeline.face_weights import NONE
from pipeline.images import decode

CLIENTS = (1, 8, 32)
SIDE, PICTURES = 256, 64
LARGE_SIDE = 3464
"""12 megapixels."""

BATCH = 16
READY_SECONDS = 120
UVICORN = ["-m", "uvicorn", "--log-level", "warning", "--workers", "{workers}", "--host", "127.0.0.1", "--port", "{port}"]
PEERS = {
    "Flask, PyTorch": ["-m", "gunicorn", "-w", "{workers}", "--threads", "8", "-b", "127.0.0.1:{port}", "benchmarks.peers.flask_torch:app"],
    "FastAPI, PyTorch": [*UVICORN, "benchmarks.peers.fastapi_torch:app"],
    "LitServe, PyTorch": ["-m", "benchmarks.peers.litserve_torch", "{port}"],
    "Starlette, micro-batches": [*UVICORN, "benchmarks.peers.starlette_batches:app"],
    "Unmask": ["-m", "bentoml", "serve", "service:Unmask", "--host", "127.0.0.1", "--port", "{port}"],
}
"""Name -> arguments for Python."""


@dataclass(frozen=True)
class Running:
    """A running service: its port and its first process."""

    port: int
    process: psutil.Process

    @property
    def tree(self) -> list[psutil.Process]:
        """All its processes."""
        return [self.process, *self.process.children(recursive=True)]

    @property
    def cpu(self) -> float:
        """CPU seconds so far."""
        return sum(used.user + used.system for used in (process.cpu_times() for process in self.tree))

    @property
    def memory(self) -> float:
        """Megabytes; shared memory counts once."""
        return memory(self.process)

    def settle(self) -> None:
        """Wait, for at most half a minute, until it rests: the first of several processes answers while the others load the model."""
        before, end = 0.0, time.monotonic() + 30
        while self.cpu - before > 0.5 and time.monotonic() < end:  # LitServe never rests altogether
            before = self.cpu
            time.sleep(1)


@contextmanager
def running(
    arguments: list[str], package: Path, question: Callable[[int], bytes] | None = None, workers: int = 1, **environment: str
) -> Iterator[Running]:
    """Run a service until the block ends. The block starts when an image, or the request that `question` makes, gets a 200."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        own = {"PACKAGE": str(package), "UNMASK_PACKAGE": str(package), "UNMASK_VAR": folder, "BENTOML_HOME": f"{folder}/bentoml"}
        own |= {"UNMASK_FACE_DETECTOR": str(NONE)}  # the others do not look for faces
        own |= {"WORKERS": str(workers), "BENTOML_CONFIG_OPTIONS": f"services.unmask.workers={workers}"}
        command = [sys.executable, *(argument.format(port=port, workers=workers) for argument in arguments)]
        with (Path(folder) / "log").open("w+") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=os.environ | own | environment, stdout=log, stderr=log)
            try:
                wait_until_ready(port, process, question(port) if question else upload(port, photograph(SIDE, 0)))
                yield Running(port, psutil.Process(process.pid))
            except RuntimeError as error:
                log.seek(0)
                raise RuntimeError(f"{error}:\n{log.read()}") from None
            finally:
                children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
                process.terminate()
                process.wait(timeout=60)
                for child in psutil.wait_procs(children, timeout=5)[1]:  # LitServe leaves its workers running
                    child.kill()


def wait_until_ready(port: int, process: subprocess.Popen[bytes], content: bytes) -> None:
    """Wait until a service answers a request with 200. Raises RuntimeError if it exits first or takes too long."""
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if status(port, content) == 200:
            return
        time.sleep(0.2)
    raise RuntimeError(f"`{' '.join(process.args)}` does not answer")  # type: ignore[arg-type]


def loaded(service: Running, clients: int, seconds: float) -> dict[str, Any]:
    """A row of the table: this many clients that send small images."""
    requests = [upload(service.port, photograph(SIDE, seed)) for seed in range(PICTURES)]
    makers = [_turns(requests, "small", first) for first in range(clients)]
    send(service.port, makers, 2)
    before = service.cpu
    with Gpu() as gpu:
        load = send(service.port, makers, seconds)
    cpu = (service.cpu - before) * 1000 / max(load.all, 1)
    row = _figures(load) | {"cpu_ms": round(cpu, 1), "memory_mb": round(service.memory)}
    return row if gpu.busy is None else row | {"gpu_busy": gpu.busy}


def in_turns(names: list[str], package: Path, clients: Sequence[int], seconds: float, turns: int, workers: int) -> dict[str, Any]:
    """Rows of several running services, loaded in turns, in reverse order every other turn: the medians, and `rates` of each turn.

    The speed of a shared machine changes within minutes; with one turn each, that would look like a difference between the services.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {str(many): [] for many in clients} for name in names}
    with ExitStack() as stack:
        services = {name: stack.enter_context(running(PEERS[name], package, workers=workers)) for name in names}
        for service in services.values():
            service.settle()
        for turn in range(turns):
            for many in clients:
                for name in names if turn % 2 == 0 else names[::-1]:
                    found[name][str(many)].append(row := loaded(services[name], many, seconds))
                    print(turn, name, many, row, flush=True)
    return {name: {many: _medians(rows) for many, rows in by_clients.items()} for name, by_clients in found.items()}


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {key: round(median(row[key] for row in rows), 1) for key in rows[0]}
    return figures | {"errors": sum(row["errors"] for row in rows), "rates": [row["rate"] for row in rows]}


def mixed(service: Running, seconds: float) -> dict[str, Any]:
    """Latency of small images from eight clients, alone and beside two clients with images of 12 megapixels."""
    small = [upload(service.port, photograph(SIDE, seed)) for seed in range(PICTURES)]
    large = [upload(service.port, photograph(LARGE_SIDE, seed)) for seed in range(2)]
    eight = [_turns(small, "small", first) for first in range(8)]
    alone = send(service.port, eight, seconds, warm_up=1)
    together = send(service.port, [*eight, *(_turns(large, "large", first) for first in range(2))], seconds, warm_up=1)
    figures = {
        "alone_p99_ms": alone.percentile(99),
        "mixed_p99_ms": together.percentile(99, "small"),
        "large_p50_ms": together.percentile(50, "large"),
    }
    ratio = figures["mixed_p99_ms"] / figures["alone_p99_ms"]
    return {name: round(value, 1) for name, value in figures.items()} | {"ratio": round(ratio, 2), "errors": alone.errors + together.errors}


def in_process(package: Path, seconds: float) -> dict[str, Any]:
    """The package without HTTP, in batches: the graph alone, and from bytes to verdicts, with decoding in threads."""
    detector = Detector.load(package, faces=NONE)
    files = [photograph(SIDE, seed) for seed in range(BATCH)]
    pixels = np.stack([detector.prepare(decode(data)).parts[0].pixels for data in files])
    values = detector.preprocess.normalise(pixels)
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def opened() -> list[Any]:
            return [pool.submit(lambda data: detector.prepare(decode(data)), data) for data in files]

        ahead = [opened()]

        def whole() -> None:
            ahead.append(opened())  # the next batch is decoded while this one is judged
            detector.judge([future.result() for future in ahead.pop(0)])

        return {"graph": _rate(lambda: detector.runtime(values), seconds), "whole": _rate(whole, seconds)}


def _rate(work: Callable[[], Any], seconds: float) -> dict[str, float]:
    """Images per second, and CPU milliseconds per image, of a function on a batch."""
    for _ in range(3):
        work()
    begin, cpu, batches = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        work()
        batches += 1
    passed, images = time.perf_counter() - begin, batches * BATCH
    return {"rate": round(images / passed, 1), "cpu_ms": round((time.process_time() - cpu) * 1000 / images, 1)}


def _turns(requests: list[bytes], name: str, first: int) -> Callable[[int], tuple[str, bytes]]:
    return lambda number: (name, requests[(first + number) % len(requests)])


def _figures(load: Load) -> dict[str, Any]:
    return {
        "rate": round(load.rate, 1),
        "p50_ms": round(load.percentile(50), 1),
        "p99_ms": round(load.percentile(99), 1),
        "errors": load.errors,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    raw = results["in process"]
    gpu = any("gpu_busy" in row for rows in results["services"].values() for row in rows.values())
    lines = [
        f"| service | clients | requests/s | p50 ms | p99 ms | errors | CPU ms a request | memory MB |{' GPU busy % |' if gpu else ''}",
        f"| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |{' ---: |' if gpu else ''}",
    ]
    for name, rows in results["services"].items():
        for clients, row in rows.items():
            lines.append(f"| {name} | {clients} | {' | '.join(str(value) for key, value in row.items() if key != 'rates')} |")
    for name, what in (("graph", "the graph alone"), ("whole", "from bytes to verdicts")):
        rest = " | |" if gpu else " |"
        lines.append(f"| in process, batches of {BATCH}: {what} | | {raw[name]['rate']} | | | | {raw[name]['cpu_ms']} |{rest}")
    lines += ["", *(f"{name}: not measured, {why}." for name, why in results["left out"].items())]
    ours, most = results["services"].get("Unmask", {}), str(max(CLIENTS))
    if "turns" in results:  # these take minutes, so what is measured after them is not comparable
        lines.append(f"Medians of {results['turns']} alternate turns.")
    elif most in ours:
        lines.append(f"At {most} clients: {ours[most]['rate'] / raw['whole']['rate']:.2f} of the rate in process from bytes to verdicts,")
        lines.append(
            f"{ours[most]['rate'] / raw['graph']['rate']:.2f} of the graph's; {ours[most]['cpu_ms'] - raw['whole']['cpu_ms']:.1f} ms of"
        )
        lines.append("processor time a request beyond decoding and judging.")
    if results.get("mixed"):
        found = results["mixed"]
        lines.append(
            f"Small pictures beside two clients with 12 megapixels each: p99 {found['mixed_p99_ms']} ms, alone {found['alone_p99_ms']} ms."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("models/package"))
    parser.add_argument("--seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--only", nargs="*", choices=list(PEERS), help="some of the services")
    parser.add_argument("--workers", type=int, default=1, help="processes of each service")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--turns", type=int, default=1, help="more than one: all services are up, and take turns; medians are written")
    parser.add_argument("--name", default="serving", help="of the results")
    parser.add_argument("--no-mixed", action="store_true", help="without pictures of 12 megapixels beside small ones")
    arguments = parser.parse_args()
    package = arguments.package.resolve()
    results: dict[str, Any] = {"workers": arguments.workers, "services": {}, "left out": {}}
    names = list(arguments.only or PEERS)
    if importlib.util.find_spec("litserve") is None and (missing := next((name for name in names if name.startswith("LitServe")), None)):
        results["left out"][missing] = "because litserve is not installed"
        names.remove(missing)
    if arguments.turns > 1:
        results["turns"] = arguments.turns
        results["services"] = in_turns(names, package, arguments.clients, arguments.seconds, arguments.turns, arguments.workers)
        names = []
    for name in names:
        with running(PEERS[name], package, workers=arguments.workers) as service:
            rows = results["services"][name] = {}
            service.settle()
            for clients in arguments.clients:
                rows[str(clients)] = loaded(service, clients, arguments.seconds)
                print(name, clients, rows[str(clients)], flush=True)
            if name == "Unmask" and not arguments.no_mixed:
                results["mixed"] = mixed(service, arguments.seconds)
    # Right after Unmask, which it is compared with: the speed of a shared machine changes within minutes.
    results["in process"] = in_process(package, arguments.seconds)
    print(table(results))
    record(arguments.name, results)
    (RESULTS / f"{arguments.name}.md").write_text(table(results))


if __name__ == "__main__":
    main()
