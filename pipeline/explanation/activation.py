"""What of a picture spoke for a fake, from the exported graph of a network that averages over places: without importing PyTorch."""

import threading
from typing import TYPE_CHECKING

import numpy as np

from pipeline.explanation.heat import Explanation, scaled
from pipeline.labels import LABEL2ID
from pipeline.runtime import compiled

if TYPE_CHECKING:
    import openvino

STEP = 0.01
"""Of the largest of the averaged features, by which each is moved to see what it does to the score."""


class GraphActivation:
    """Grad-CAM (Selvaraju et al., ICCV 2017) on the features that the classifier averages over places, as ConvNeXt, MobileNet and Swin do.

    The gradient of what comes after the average is found by differences: that is a norm and a matrix, and takes no time.
    """

    def __init__(self, graph: "openvino.Model") -> None:
        """`graph` is the whole network's, of which the part up to the average is compiled a second time; the weights are shared."""
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
        """The map of one input, float32 (1, 3, size, size); None where the network averages over no places that form a square."""
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
    """The average over places that the logits come from, and nothing else does in between; its input is (n, channels, places ...)."""
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
