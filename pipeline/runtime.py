"""What runs a network: its graph in OpenVINO on a CPU, where it is twice as fast as PyTorch, and PyTorch on a GPU."""

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:  # importing torch takes seconds, which a service on a CPU does not need
    import openvino

    from pipeline.explain import WithEmbedding


class Runtime(Protocol):
    """Something that runs the network."""

    name: str

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, 3, size, size) -> logits float32 (n, 2) and embeddings float32 (n, d)."""


class OpenVinoRuntime:
    """A graph on the CPU.

    Attributes:
        graph: what was compiled; whoever compiles a part of it shares its weights.
    """

    def __init__(self, graph: "Path | openvino.Model") -> None:
        self.graph = read(graph) if isinstance(graph, Path) else graph
        self._model = compiled(self.graph)
        quantised = any(node.get_type_name() == "FakeQuantize" for node in self.graph.get_ops())
        self.name = f"openvino {'int8' if quantised else 'f32'} on CPU"

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        result = self._model(values)
        return result[0], result[1]


class TorchRuntime:
    """The network itself on a GPU."""

    def __init__(self, module: "WithEmbedding", bf16: bool) -> None:
        import torch

        self._torch, self._kind = torch, torch.bfloat16 if bf16 else torch.float32
        self._model = module.to("cuda", self._kind)
        self.name = f"torch {'bf16' if bf16 else 'f32'} on {torch.cuda.get_device_name()}"

    @classmethod
    def load(cls, folder: Path, bf16: bool) -> Self:
        """Read a trained model from its folder."""
        from pipeline.explain import WithEmbedding

        return cls(WithEmbedding.load(folder), bf16)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Runtime."""
        with self._torch.inference_mode():
            logits, embeddings = self._model(self._torch.from_numpy(values).to("cuda", self._kind))
        return logits.float().cpu().numpy(), embeddings.float().cpu().numpy()


@cache
def _core() -> "openvino.Core":
    """OpenVINO, once in a process and until it ends.

    Its CPU plugin lays an alternate stack for signals under the thread that loads it, and unmaps that when the last user lets go. Where
    that is another thread, the first one keeps a stack that is not there, and its next signal kills the process.
    """
    import openvino

    return openvino.Core()


def read(graph: Path) -> "openvino.Model":
    """A graph from its file: .onnx, or .xml, beside which the .bin with its weights lies."""
    return _core().read_model(graph)


def compiled(graph: "openvino.Model") -> "openvino.CompiledModel":
    """A graph ready to run. Left alone, OpenVINO takes bfloat16 where the processor has it, and answers would change from host to host."""
    return _core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def has_gpu() -> bool:
    """Whether there is a GPU to run on. Looks for the driver first: importing torch to hear `no` takes seconds."""
    if not Path("/proc/driver/nvidia/version").exists():
        return False
    import torch

    return torch.cuda.is_available()


def runtime(module: "WithEmbedding", size: int) -> Runtime:
    """What runs a network in 32 bits here.

    Args:
        module: in evaluation mode, on the CPU, where it is left.
        size: side of its input, pixels.
    """
    return TorchRuntime(copy.deepcopy(module), bf16=False) if has_gpu() else OpenVinoRuntime(traced(module, size))


def traced(module: "WithEmbedding", size: int) -> "openvino.Model":
    """A network as a graph with logits and embedding, for any number of images of `size` pixels."""
    import openvino
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        # Tracing fixes the size of the input, which is what is wanted: preprocessing makes no other.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return openvino.convert_model(module, example_input=torch.zeros(2, 3, size, size), input=[-1, 3, size, size])
