"""Exports a trained network as graphs that run without PyTorch."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pipeline.errors import StageError
from pipeline.network.embedding import WithEmbedding, fixed_positions
from pipeline.preprocess import Preprocess
from pipeline.runtime import OpenVinoRuntime, compiled, read, traced

BATCH = OpenVinoRuntime.batch
RANKING_BATCHES = 10
"""Batches used to rank the operations by what 8 bits cost in each."""
MOST_DROP = 0.001
"""Of AUC on the validation part: half of what pipeline.exporting.precision allows on the test part, which the search never sees."""


def to_openvino(folder: Path, graph: Path, values: np.ndarray) -> float:
    """Write a network as an OpenVINO graph that outputs logits and embedding, for any batch size.

    Args:
        folder: a trained model's folder.
        graph: the .xml file to write; the weights go into a .bin next to it.
        values: float32 (n, 3, size, size), real inputs on which network and graph are compared.

    Returns:
        The largest difference between their logits, both in float32.
    """
    import openvino

    module = WithEmbedding.load(folder)
    graph.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(traced(module, values.shape[-1]), graph, compress_to_fp16=False)
    return _difference(module, graph, values)


def to_onnx(folder: Path, target: Path, values: np.ndarray) -> float:
    """The same, as an ONNX file: pixel_values in, logits and embedding out. OpenVINO runs it for the comparison.

    Raises:
        StageError: if the network has an operation that ONNX does not support.
    """
    module = WithEmbedding.load(folder)
    names = ["pixel_values", "logits", "embedding"]
    with fixed_positions(module, values.shape[-1]), warnings.catch_warnings():
        # The tracing exporter warns that it is deprecated; the new one takes half a minute.
        warnings.simplefilter("ignore")
        try:
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
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).partition("\n")[0]
            raise StageError(
                f"this network cannot be exported to ONNX: {reason}. Skip it: python -m pipeline.settings -S export.onnx=false"
            ) from None
    return _difference(module, target, values)


def to_int8(graph: Path, target: Path, preprocess: Preprocess, seen: np.ndarray, judged: np.ndarray, labels: np.ndarray) -> None:
    """Write a graph that computes in 8-bit integers where that is faster, but in 32 bits where 8 would cost too much AUC.

    Post-training quantisation by NNCF with its scheme for transformers: SmoothQuant (Xiao et al., ICML 2023), bias correction, and
    symmetric activations, which cost a ViT-tiny less AUC than asymmetric ones (benchmarks/results/detection.md). If the AUC drops by more
    than MOST_DROP, it is repeated without SmoothQuant: NNCF ranks the operations by what 8 bits cost in each, and reverts them to 32 bits
    one by one, the costliest first.

    Args:
        graph: the .xml file of the 32-bit network.
        target: the .xml file to write.
        preprocess: the network's.
        seen: uint8 (n, size, size, 3), inputs seen in training, to calibrate the activation ranges.
        judged: uint8 (m, size, size, 3), inputs to measure the AUC on: not seen in training, and not used for any reported figure.
        labels: int (m,), 1 for a fake.
    """
    import nncf
    import openvino

    def auc(network: openvino.CompiledModel, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, None]:
        found = [(network(preprocess.normalise(images))[0], truth) for images, truth in batches]
        logits, truths = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return float(roc_auc_score(truths, logits[:, 1] - logits[:, 0])), None

    order = np.random.default_rng(0).permutation(len(judged))  # so that the first batches, used for ranking, contain both classes
    batches = [(judged[chosen], labels[chosen]) for chosen in np.split(order, range(BATCH, len(order), BATCH))]
    calibration = nncf.Dataset(range(len(seen)), lambda index: preprocess.normalise(seen[index : index + 1]))
    scheme = {"preset": nncf.QuantizationPreset.PERFORMANCE, "model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(seen)}
    found = nncf.quantize(read(graph), calibration, **scheme)
    if auc(compiled(read(graph)), batches)[0] - auc(compiled(found), batches)[0] > MOST_DROP:
        # NNCF reverts an operation to its weights from before SmoothQuant, but its inputs would stay scaled for those after it.
        plain = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        found = nncf.quantize_with_accuracy_control(
            read(graph),
            calibration,
            validation_dataset=nncf.Dataset(batches, lambda batch: preprocess.normalise(batch[0])),
            validation_fn=auc,
            max_drop=MOST_DROP,
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=plain),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=RANKING_BATCHES),
            **scheme,
        )
    openvino.save_model(found, target, compress_to_fp16=False)


def _difference(module: WithEmbedding, graph: Path, values: np.ndarray) -> float:
    with torch.no_grad():
        expected = np.concatenate([module(torch.from_numpy(values[start : start + BATCH]))[0] for start in range(0, len(values), BATCH)])
    found, _ = OpenVinoRuntime(graph)(values)
    return float(np.abs(found - expected).max())
