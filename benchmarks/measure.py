"""Measures time and memory of a function in its own process, and describes the machine."""

import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """What a function returned, how long it took, and the peak memory of its process and children (proportional set size)."""

    result: Any
    seconds: float
    peak_mb: float


def measured(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Run a top-level function in a fresh process. Raises RuntimeError if it fails there."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, function, arguments))
    process.start()
    sender.close()
    assert process.pid is not None
    sampler = _Sampler(process.pid)
    sampler.start()
    try:
        result, seconds = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__}{arguments} failed") from None
    finally:
        process.join()
        sampler.end.set()
        sampler.join()
    return Measured(result, seconds, sampler.peak)


def memory(process: psutil.Process) -> float:
    """Megabytes of a process and its children; shared memory counts once (proportional set size). Ended processes have none."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_full_info().pss
    return total / 1e6


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, date."""
    described = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in described.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "avx512": " avx512f " in described,
        "bf16": " avx512_bf16 " in described,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def record(name: str, results: dict[str, Any]) -> Path:
    """Add results to results/<name>.json, or replace those with the same keys. Returns the file."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | results | {"machine": machine()}, indent=2) + "\n")
    return path


def _work(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    begin = time.perf_counter()
    result = function(*arguments)
    sender.send((result, time.perf_counter() - begin))


class _Sampler(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.end = psutil.Process(pid), 0.0, threading.Event()

    def run(self) -> None:
        while not self.end.wait(0.1):
            self.peak = max(self.peak, memory(self.process))
