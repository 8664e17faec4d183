"""Runs a network: in OpenVINO on a CPU, where that is twice as fast as PyTorch, and in PyTorch on a GPU."""

import copy
import logging
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

import numpy as np

from pipeline.cores import cores

if TYPE_CHECKING:  # importing torch takes seconds, which a service on a CPU does not need
    import openvino
    import torch

    from pipeline.network.embedding import WithEmbedding

Precision = Literal["f32", "bf16", "int8"]

DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
"""Traces of NVIDIA's driver: on a host, in a container, in WSL."""

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
"""Linux's CPU flags for dot products of 8-bit integers: Intel and AMD; the last one is ARM's."""

log = logging.getLogger(__name__)


class Runtime(Protocol):
    """Something that runs the network.

    Attributes:
        name: shown to people, with precision and device.
        precision: what it computes in.
        batch: inputs at a time; more are no faster.
        shares_cores: whether it runs on the cores that decode pictures.
    """

    name: str
    precision: Precision
    batch: int
    shares_cores: bool

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 3, size, size) -> logits float32 (n, 2) and embeddings float32 (n, d)."""


class OpenVinoRuntime:
    """A graph on the CPU.

    Attributes:
        graph: the compiled model; a part of it that is compiled as well shares the weights.
    """

    batch = 16
    shares_cores = True

    def __init__(self, graph: "Path | openvino.Model", bf16: bool = False) -> None:
        """`bf16` allows bfloat16 if the processor computes in it; an 8-bit graph stays in 8 bits."""
        self.graph = read(graph) if isinstance(graph, Path) else graph
        quantised = any(node.get_type_name() == "FakeQuantize" for node in self.graph.get_ops())
        kind: Precision = "bf16" if bf16 and not quantised and has_bf16() else "f32"
        self._model = compiled(self.graph, kind)
        self.precision: Precision = "int8" if quantised else kind
        self.name = f"openvino {self.precision} on CPU"

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        result = self._model(values)
        return result[0], result[1]


@dataclass(frozen=True)
class CapturedGraph:
    """The CUDA graph of one batch size, with the buffers of its input and outputs."""

    graph: "torch.cuda.CUDAGraph"
    host: "torch.Tensor"
    values: "torch.Tensor"
    outputs: "tuple[torch.Tensor, torch.Tensor]"


class TorchRuntime:
    """The PyTorch network on a GPU. Not thread-safe.

    A CUDA graph is captured once for each batch size (a power of two) and replayed: launched one by one, the kernels of a small network
    take longer to launch than to run.
    """

    batch = 64
    shares_cores = False

    def __init__(self, module: "WithEmbedding", bf16: bool) -> None:
        import torch

        self._torch, self._kind = torch, torch.bfloat16 if bf16 else torch.float32
        self._model = module.to("cuda", self._kind)
        self._captured: dict[int, CapturedGraph | None] = {}
        self.precision: Precision = "bf16" if bf16 else "f32"
        self.name = f"torch {self.precision} on {torch.cuda.get_device_name()}"

    @classmethod
    def load(cls, folder: Path, bf16: bool, size: int) -> Self:
        """Read a trained model from its folder, and capture every batch size, so that no request waits for that.

        Args:
            folder: of the network.
            bf16: whether it computes in bfloat16.
            size: side of its input, pixels.
        """
        from pipeline.network.embedding import WithEmbedding

        running = cls(WithEmbedding.load(folder), bf16)
        for exponent in range(cls.batch.bit_length()):
            running(np.zeros((1 << exponent, 3, size, size), np.float32))
        return running

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        if len(values) > self.batch:
            parts = [self(values[start : start + self.batch]) for start in range(0, len(values), self.batch)]
            return np.concatenate([logits for logits, _ in parts]), np.concatenate([embeddings for _, embeddings in parts])
        count = len(values)
        rows = 1 << max(0, count - 1).bit_length()  # rows beyond the batch hold stale input; their outputs are not read
        with self._torch.inference_mode():
            if rows not in self._captured:
                self._captured[rows] = self._capture((rows, *values.shape[1:]))
            captured = self._captured[rows]
            if captured is None:
                logits, embeddings = (output.cpu().numpy() for output in self._work(self._torch.from_numpy(values).to("cuda")))
                return logits, embeddings
            captured.host[:count].copy_(self._torch.from_numpy(values))
            captured.values.copy_(captured.host, non_blocking=True)
            captured.graph.replay()
            logits, embeddings = (output[:count].cpu().numpy() for output in captured.outputs)
        return logits, embeddings

    def _work(self, values: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        logits, embeddings = self._model(values.to(self._kind))
        return logits.float(), embeddings.float()

    def _capture(self, shape: tuple[int, ...]) -> CapturedGraph | None:
        """None for a network that cannot be captured, because its control flow depends on computed values."""
        torch = self._torch
        host, values = torch.zeros(shape, pin_memory=True), torch.zeros(shape, device="cuda")
        # Warm-up: what networks and libraries do and allocate on their first calls must not be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._work(values)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another model may run in another thread: its CUDA calls would break a capture of the whole process.
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self._work(values)
        except RuntimeError as error:
            log.warning("this network runs without CUDA graphs: %s", str(error).partition("\n")[0])
            return None
        return CapturedGraph(graph, host, values, outputs)


@cache
def _core() -> "openvino.Core":
    """OpenVINO's Core, one per process and never released.

    Its CPU plugin sets an alternate signal stack for the thread that loads it, and unmaps that stack on the last release. If another
    thread does that, the first one is left with an unmapped stack, and its next signal kills the process.
    """
    import openvino

    return openvino.Core()


def read(graph: Path) -> "openvino.Model":
    """Read a graph: .onnx, or .xml with the weights in a .bin beside it."""
    return _core().read_model(graph)


def compiled(graph: "openvino.Model", kind: Precision = "f32") -> "openvino.CompiledModel":
    """Compile a graph. By default, OpenVINO would use bfloat16 wherever the processor has it, whatever that costs in accuracy."""
    settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": kind}
    if cores() < (os.cpu_count() or 1):  # the default, one thread per core of the machine, oversubscribes a container
        settings["INFERENCE_NUM_THREADS"] = cores()
    return _core().compile_model(graph, "CPU", settings)


def has_bf16() -> bool:
    """Whether the processor itself computes in bfloat16 (AVX-512 BF16, AMX)."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit integers in one instruction; without it they are no faster than 32 bits."""
    flags = CPUINFO.read_text().split() if CPUINFO.is_file() else []
    return not VNNI.isdisjoint(flags)


def has_gpu() -> bool:
    """Whether there is a GPU to run on. Looks for the driver first: importing torch only to hear `no` takes seconds."""
    if not any(map(os.path.exists, DRIVERS)):
        return False
    import torch

    return torch.cuda.is_available()


def runtime(module: "WithEmbedding", size: int) -> Runtime:
    """The runtime for a network in 32 bits on this machine.

    Args:
        module: in evaluation mode, on the CPU; it stays there.
        size: side of its input, pixels.
    """
    return TorchRuntime(copy.deepcopy(module), bf16=False) if has_gpu() else OpenVinoRuntime(traced(module, size))


def traced(module: "WithEmbedding", size: int) -> "openvino.Model":
    """Trace a network into a graph with logits and embedding, for any number of images with sides of `size` pixels."""
    import openvino
    import torch

    from pipeline.network.embedding import fixed_positions

    with fixed_positions(module, size), warnings.catch_warnings():
        # Tracing fixes the input size, as intended: preprocessing makes no other.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return openvino.convert_model(module, example_input=torch.zeros(2, 3, size, size), input=[-1, 3, size, size])
