"""Attention rollout from a network's exported graph: where it looked, without importing PyTorch in the server."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.explanation.heat import Explanation, scaled
from pipeline.runtime import compiled

if TYPE_CHECKING:
    import openvino

EXTRA_TOKENS = 8
"""Most tokens before the patches: DeiT has two, DINOv2 a class token and a few registers."""
AVERAGED = ("clip", "metaclip_2")
"""Model types with a class token whose classifier reads the mean of the patches instead."""
TWO_LOGITS = "DeiTForImageClassificationWithTeacher"
"""Architecture whose classifier reads the first two tokens equally."""


class GraphAttention:
    """The attention inside an exported graph, compiled separately: as an output of the graph it would cost verdicts time and memory."""

    def __init__(self, graph: "openvino.Model", config: Mapping[str, Any]) -> None:
        """Compile the parts of the whole network's `graph` up to the attention; the weights are shared. `config` is config.json."""
        import openvino

        layers = [found for node in graph.get_ordered_ops() if (found := _weights(node)) is not None]
        self._lock = threading.Lock()
        self._layers, self._config = len(layers), config
        if layers:
            self._model = compiled(openvino.Model(layers, graph.get_parameters(), "attention"))

    def __call__(self, values: np.ndarray) -> Explanation | None:
        """The rollout of one input, float32 (1, 3, size, size); None if the network has no global attention over a square of patches."""
        if not self._layers:
            return None
        with self._lock:
            found = self._model(values)
        layers = [found[index] for index in range(self._layers)]
        heat = rollout([layer[0] for layer in layers], self._config) if is_global(layers) else None
        return None if heat is None else Explanation("attention_rollout", scaled(heat))


def _weights(node: "openvino.Node") -> "openvino.Output | None":
    """The attention weights (n, heads, tokens, tokens) that a node computes; None if it is not attention."""
    from openvino import opset13 as ops

    if node.get_type_name() == "Softmax" and node.get_output_partial_shape(0).rank.get_length() == 4:
        return node.output(0)
    if node.get_type_name() != "ScaledDotProductAttention":
        return None
    query, key, _, *rest = (node.input_value(index) for index in range(node.get_input_size()))
    scale = rest[1] if len(rest) > 1 else np.float32(query.get_partial_shape()[-1].get_length() ** -0.5)
    scores = ops.multiply(ops.matmul(query, key, False, True), scale)
    return ops.softmax(ops.add(scores, rest[0]) if rest else scores, -1).output(0)


def is_global(layers: list[np.ndarray]) -> bool:
    """Whether the attention is global: of the same shape (1, heads, tokens, tokens) in every layer."""
    return all(layer.ndim == 4 and layer.shape[0] == 1 and layer.shape == layers[0].shape for layer in layers)


def rollout(attentions: list[np.ndarray], config: Mapping[str, Any]) -> np.ndarray | None:
    """Attention rollout (Abnar and Zuidema, ACL 2020): how much of each patch reaches what the classifier reads, whatever the class.

    Args:
        attentions: one array (heads, tokens, tokens) per layer; the patches are the last tokens.
        config: the network's, as in config.json.

    Returns:
        float (rows, columns), or None if the patches form no square.
    """
    own = np.eye(attentions[0].shape[-1], dtype=np.float32)
    joined = own
    for layer in attentions:
        mixed = (layer.mean(0) + own) / 2
        joined = mixed / mixed.sum(-1, keepdims=True) @ joined
    return patches(joined, config)


def patches(joined: np.ndarray, config: Mapping[str, Any]) -> np.ndarray | None:
    """What reaches the classifier from each patch, as a square, from `joined` (tokens, tokens); None if the patches form no square."""
    tokens = joined.shape[-1]
    side = int(tokens**0.5)
    first, mean = joined[0], joined[-side * side :].mean(0)
    if side * side == tokens or config["model_type"] in AVERAGED or config.get("use_mean_pooling"):  # the last: BEiT, Data2Vec
        seen = mean
    elif config["model_type"].startswith("dinov2"):
        seen = first + mean
    elif TWO_LOGITS in (config.get("architectures") or ()):
        seen = first + joined[1]
    else:
        seen = first
    return seen[-side * side :].reshape(side, side) if tokens - side * side <= EXTRA_TOKENS else None
