"""A trained network as graphs that run without PyTorch."""

import warnings
from pathlib import Path

import numpy as np
import torch

from pipeline.embedding import WithEmbedding
from pipeline.runtime import OpenVinoRuntime, read, traced


def to_openvino(folder: Path, graph: Path, values: np.ndarray) -> float:
    """Write a network as an OpenVINO graph with logits and embedding, for any number of images.

    Args:
        folder: a trained model's folder.
        graph: the .xml file to write; its .bin lies beside it.
        values: float32 (n, 3, size, size), real inputs to compare both on.

    Returns:
        The largest difference of a logit, both in float32.
    """
    import openvino

    module = WithEmbedding.load(folder)
    graph.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(traced(module, values.shape[-1]), graph, compress_to_fp16=False)
    return _difference(module, graph, values)


def to_onnx(folder: Path, target: Path, values: np.ndarray) -> float:
    """The same as an ONNX file: pixel_values in, logits and embedding out. OpenVINO reads it back to compare."""
    module = WithEmbedding.load(folder)
    names = ["pixel_values", "logits", "embedding"]
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter that traces is called old; the new one takes half a minute.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.from_numpy(values[:2]),),
            str(target),
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "images"} for name in names},
            opset_version=17,
            dynamo=False,
        )
    return _difference(module, target, values)


def to_int8(graph: Path, target: Path, values: np.ndarray) -> None:
    """Write a graph that computes in 8-bit integers where that is faster.

    NNCF's quantisation after training, in its scheme for transformers: SmoothQuant (Xiao et al., ICML 2023) and corrected biases.
    Symmetric activations cost a ViT-tiny less AUC than NNCF's asymmetric ones: benchmarks/results/detection.md.

    Args:
        graph: the .xml file of the network in 32 bits.
        target: the .xml file to write.
        values: float32 (n, 3, size, size), inputs that show how large activations get; of images that training has seen.
    """
    import nncf
    import openvino

    data = nncf.Dataset([values[index : index + 1] for index in range(len(values))])
    preset = nncf.QuantizationPreset.PERFORMANCE
    found = nncf.quantize(read(graph), data, preset=preset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(values))
    openvino.save_model(found, target, compress_to_fp16=False)


def _difference(module: WithEmbedding, graph: Path, values: np.ndarray) -> float:
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(values[start : start + 16]))[0] for start in range(0, len(values), 16)])
    found, _ = OpenVinoRuntime(graph)(values)
    return float(np.abs(found - expected).max())
