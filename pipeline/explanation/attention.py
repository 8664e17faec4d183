"""Where a network with attention looked, from its exported graph: what a server shows, without importing PyTorch."""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.explanation.heat import Explanation, scaled
from pipeline.runtime import compiled

if TYPE_CHECKING:
    import openvino

EXTRA_TOKENS = 8
"""Before the patches: DeiT has two, DINOv2 a class token and a few registers."""
AVERAGED = ("clip", "metaclip_2")
"""Model types with a class token whose classifier reads the mean of the patches instead."""
TWO_LOGITS = "DeiTForImageClassificationWithTeacher"
"""Reads its first two tokens alike."""


class GraphAttention:
    """The attention inside an exported graph, compiled a second time: its outputs would cost every verdict time and memory."""

    def __init__(self, graph: "openvino.Model", config: Mapping[str, Any]) -> None:
        """Of the whole network's `graph` the parts up to the attention are compiled; the weights are shared. `config` is config.json."""
        import openvino

        layers = [found for node in graph.get_ordered_ops() if (found := _weights(node)) is not None]
        self._lock = threading.Lock()
        self._layers, self._config = len(layers), config
        if layers:
            self._model = compiled(openvino.Model(layers, graph.get_parameters(), "attention"))

    def __call__(self, values: np.ndarray) -> Explanation | None:
        """The rollout of one input, float32 (1, 3, size, size); None where the network's attention does not go over all places."""
        if not self._layers:
            return None
        with self._lock:
            found = self._model(values)
        layers = [found[index] for index in range(self._layers)]
        heat = rollout([layer[0] for layer in layers], self._config) if over_all(layers) else None
        return None if heat is None else Explanation("attention_rollout", scaled(heat))


def _weights(node: "openvino.Node") -> "openvino.Output | None":
    """What a node of attention multiplies its values with, (n, heads, tokens, tokens); None of any other node."""
    from openvino import opset13 as ops

    if node.get_type_name() == "Softmax" and node.get_output_partial_shape(0).rank.get_length() == 4:
        return node.output(0)
    if node.get_type_name() != "ScaledDotProductAttention":
        return None
    query, key, _, *rest = (node.input_value(index) for index in range(node.get_input_size()))
    scale = rest[1] if len(rest) > 1 else np.float32(query.get_partial_shape()[-1].get_length() ** -0.5)
    scores = ops.multiply(ops.matmul(query, key, False, True), scale)
    return ops.softmax(ops.add(scores, rest[0]) if rest else scores, -1).output(0)


def over_all(layers: list[np.ndarray]) -> bool:
    """Whether every layer of one input's attention is (1, heads, tokens, tokens), over the same places."""
    return all(layer.ndim == 4 and layer.shape[0] == 1 and layer.shape == layers[0].shape for layer in layers)


def rollout(attentions: list[np.ndarray], config: Mapping[str, Any]) -> np.ndarray | None:
    """Attention rollout (Abnar and Zuidema, ACL 2020): how much of each patch reaches what the classifier reads, whatever the class.

    Args:
        attentions: one array (heads, tokens, tokens) a layer; the patches are the last tokens.
        config: of the network, as config.json has it.

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
    """The last of (tokens, tokens) as a square, seen from the tokens that the classifier reads; None if there is no square."""
    tokens = joined.shape[-1]
    side = int(tokens**0.5)
    first, mean = joined[0], joined[-side * side :].mean(0)
    if side * side == tokens or config["model_type"] in AVERAGED or config.get("use_mean_pooling"):  # the last of BEiT and Data2Vec
        seen = mean
    elif config["model_type"].startswith("dinov2"):
        seen = first + mean
    elif TWO_LOGITS in (config.get("architectures") or ()):
        seen = first + joined[1]
    else:
        seen = first
    return seen[-side * side :].reshape(side, side) if tokens - side * side <= EXTRA_TOKENS else None
