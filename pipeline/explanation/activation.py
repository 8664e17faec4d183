"""Grad-CAM from the exported graph of a network with global average pooling, without importing PyTorch."""

import threading
from typing import TYPE_CHECKING

import numpy as np

from pipeline.explanation.heat import Explanation, scaled
from pipeline.labels import LABEL2ID
from pipeline.runtime import compiled

if TYPE_CHECKING:
    import openvino

STEP = 0.01
"""Step of the finite differences, as a fraction of the largest pooled feature."""


class GraphActivation:
    """Grad-CAM (Selvaraju et al., ICCV 2017) on the features before global average pooling, as in ConvNeXt, MobileNet and Swin.

    The gradient of the head is computed by finite differences: the head is only a normalisation and a matrix, so they cost next to nothing.
    """

    def __init__(self, graph: "openvino.Model") -> None:
        """Compile the part of the whole network's `graph` up to the pooling a second time; the weights are shared."""
        import openvino
        from openvino import opset13 as ops

        self._lock = threading.Lock()
        self._features = self._head = None
        if (pool := _pool(graph)) is None:
            return
        self._features = compiled(openvino.Model([pool.input_value(0), pool.output(0)], graph.get_parameters(), "features"))
        own = graph.clone()
        again = _pool(own)
        assert again is not None
        averaged = ops.parameter(again.get_output_partial_shape(0), np.float32)
        again.output(0).replace(averaged.output(0))
        self._head = compiled(openvino.Model([own.outputs[0].get_node().input_value(0)], [averaged], "head"))

    def __call__(self, values: np.ndarray) -> Explanation | None:
        """The heat map of one input, float32 (1, 3, size, size); None if the network does not average over a square of positions."""
        if self._features is None or self._head is None:
            return None
        with self._lock:
            found = self._features(values)
            features, averaged = found[0][0].reshape(len(found[0][0]), -1), found[1]
            side = int(features.shape[1] ** 0.5)
            if side < 2 or side * side != features.shape[1]:
                return None
            step = STEP * max(float(np.abs(averaged).max()), 1e-6)
            moves = (step * np.eye(averaged.size, dtype=np.float32)).reshape(-1, *averaged.shape[1:])
            logits = self._head(np.concatenate([averaged + moves, averaged - moves]))[0]
        scores = logits[:, LABEL2ID["fake"]] - logits[:, LABEL2ID["real"]]
        slopes = scores[: len(moves)] - scores[len(moves) :]
        return Explanation("grad_cam", scaled(np.maximum(slopes @ features, 0).reshape(side, side)))


def _pool(graph: "openvino.Model") -> "openvino.Node | None":
    """The average pooling over all positions, if the logits depend on it alone, else None; its input is (n, channels, positions ...)."""
    node = graph.outputs[0].get_node()
    while True:
        given = [node.input_value(index) for index in range(node.get_input_size())]
        rest = [value for value in given if value.get_node().get_type_name() not in ("Constant", "Convert")]
        if len(rest) != 1:
            return None
        if node.get_type_name() == "ReduceMean":
            shape = rest[0].get_partial_shape()
            axes = {int(axis) % shape.rank.get_length() for axis in given[1].get_node().get_data().ravel()}
            return node if axes == set(range(2, shape.rank.get_length())) else None
        node = rest[0].get_node()
