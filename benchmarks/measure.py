"""Time and memory of a piece of work in a process of its own, and what machine it ran on."""

import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measured:
    """What a piece of work returned, how long it took, and the most memory it and its children had at a time (sum of their shares)."""

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
    return Measured(result, seconds, sampler.peak / 1e6)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, date."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    flags = Path("/proc/cpuinfo").read_text()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "avx512": " avx512f " in flags,
        "bf16": " avx512_bf16 " in flags,
        "memory_gb": round(memory / 1e9),
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def record(name: str, results: dict[str, Any]) -> Path:
    """Put results beside those that are there, in results/<name>.json."""
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
        self.pid, self.peak, self.end = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.end.wait(0.1):
            self.peak = max(self.peak, sum(map(_share, _tree(self.pid))))


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in _tree(int(child)))]


def _share(pid: int) -> int:
    """Proportional set size in bytes: memory that several processes share counts once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
