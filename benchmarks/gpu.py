"""Throughput of a package's network on a GPU: `python -m benchmarks.gpu --package DIR`. Also measures GPU utilisation for other benchmarks.

Images per second for each batch size: eager in 32 and 16 bits, compiled, and as a CUDA graph, as in the service. Copies to and from the
GPU are included. Results: benchmarks/results/gpu.json.
"""

import argparse
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np
import torch

from benchmarks.measure import record
from pipeline.network.embedding import WithEmbedding
from pipeline.preprocess import Preprocess
from pipeline.runtime import TorchRuntime

BATCHES = (1, 4, 16, 64)


class Gpu:
    """GPU utilisation as NVML reports it, sampled ten times a second while this is open.

    Attributes:
        busy: mean in percent; None without a GPU.
    """

    def __init__(self) -> None:
        self.busy: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if torch.cuda.is_available():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.ident:
            self._thread.join()

    def _watch(self) -> None:
        seen = []
        while not self._end.wait(0.1):
            with suppress(Exception):  # not every driver reports it
                seen.append(torch.cuda.utilization())
        self.busy = round(float(np.mean(seen)), 1) if seen else None


def rate(work: Callable[[np.ndarray], Any], values: np.ndarray, seconds: float) -> float:
    """Images per second of a function on a batch, from its median time."""
    for _ in range(3):
        work(values)
    passed = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work(values)
        passed.append(time.perf_counter() - begin)
    return round(len(values) / median(passed), 1)


def plain(folder: Path, kind: torch.dtype, compiled: bool = False) -> Callable[[np.ndarray], Any]:
    """The network without a CUDA graph."""
    network = WithEmbedding.load(folder).to("cuda", kind)
    run = torch.compile(network) if compiled else network

    def work(values: np.ndarray) -> Any:
        with torch.inference_mode():
            return [output.float().cpu() for output in run(torch.from_numpy(values).to("cuda", kind))]

    return work


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("models/package"))
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--compiled", action="store_true", help="torch.compile too, which takes minutes")
    arguments = parser.parse_args()
    folder = arguments.package / "model"
    ways: dict[str, Callable[[], Callable[[np.ndarray], Any]]] = {
        "f32": partial(plain, folder, torch.float32),
        "bf16": partial(plain, folder, torch.bfloat16),
    }
    if arguments.compiled:
        ways["bf16 compiled"] = partial(plain, folder, torch.bfloat16, compiled=True)
    side = Preprocess.load(arguments.package).size
    ways["bf16 CUDA graph"] = partial(TorchRuntime.load, folder, bf16=True, size=side)
    rng = np.random.default_rng(0)
    rows: dict[str, dict[int, float]] = {}
    for name, make in ways.items():
        work = make()
        rows[name] = {batch: rate(work, rng.normal(size=(batch, 3, side, side)).astype(np.float32), arguments.seconds) for batch in BATCHES}
        print(name, rows[name], flush=True)
    parameters = sum(weight.numel() for weight in WithEmbedding.load(folder).parameters())
    record("gpu", {f"{parameters:,} parameters": rows, "device": torch.cuda.get_device_name()})


if __name__ == "__main__":
    main()
