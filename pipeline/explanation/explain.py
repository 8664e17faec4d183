"""Heat maps of where a network looked, by every method, including those that need gradients from PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.explanation.attention import is_global, patches, rollout
from pipeline.explanation.heat import Explanation, scaled
from pipeline.labels import LABEL2ID


def explain(network: PreTrainedModel, values: np.ndarray) -> Explanation:
    """The heat map of one input, float32 (1, 3, size, size): the first of `heat_maps`."""
    return heat_maps(network, values)[0]


def heat_maps(network: PreTrainedModel, values: np.ndarray) -> list[Explanation]:
    """Heat maps of one input by every method that fits the network.

    Rollout comes first: on the demonstration it points at the forged part more often (reports/evaluation.html compares them).

    Args:
        network: in evaluation mode, on the CPU.
        values: float32 (1, 3, size, size).
    """
    tensor = torch.from_numpy(values)
    with torch.enable_grad():
        try:
            outputs = network(pixel_values=tensor, output_attentions=True)
        except (TypeError, ValueError):  # networks without attention reject the argument
            outputs = None
        attentions = list(outputs.attentions or ()) if outputs is not None and "attentions" in outputs else []
        # Some networks have layers without attention, and PVT v2's layers have several parts.
        layers = [layer.detach().numpy() for layer in attentions if isinstance(layer, torch.Tensor)]
        if outputs is not None and layers and len(layers) == len(attentions) and is_global(layers):
            slopes, config = torch.autograd.grad(_score(outputs.logits), attentions), network.config.to_dict()
            found = {
                "attention_rollout": rollout([layer[0] for layer in layers], config),
                "attention_relevance": relevance(attentions, slopes, config),
            }
            maps = [Explanation(name, scaled(heat)) for name, heat in found.items() if heat is not None]
            if maps:
                return maps
        return [Explanation("grad_cam", scaled(grad_cam(network, tensor)))]


def relevance(attentions: Sequence[torch.Tensor], slopes: Sequence[torch.Tensor], config: Mapping[str, Any]) -> np.ndarray | None:
    """Attention weighted with its gradient (Chefer et al., ICCV 2021): which patches speak for "fake".

    Args:
        attentions: one tensor (1, heads, tokens, tokens) per layer; the patches are the last tokens.
        slopes: gradients of the score of "fake", of the same shapes.
        config: the network's, as in config.json.

    Returns:
        float (rows, columns), or None if the patches form no square.
    """
    joined = torch.eye(attentions[0].shape[-1])
    for layer, slope in zip(attentions, slopes, strict=True):
        joined = joined + (layer.detach() * slope)[0].clamp(min=0).mean(0) @ joined
    return patches(joined.numpy(), config)


def grad_cam(network: PreTrainedModel, tensor: torch.Tensor) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., ICCV 2017) on the last feature map with more than one position, for the score of "fake"."""
    seen: list[torch.Tensor | None] = []
    hook = network.base_model.register_forward_hook(lambda module, inputs, output: seen.append(getattr(output, "last_hidden_state", None)))
    try:
        with torch.enable_grad():
            outputs = network(pixel_values=tensor, output_hidden_states=True)
            maps = [state for state in (*outputs.hidden_states, *seen) if state is not None and state.requires_grad]
            last = next((state for state in reversed(maps) if _is_map(state)), maps[-1])
            # Some networks return a map that the logits do not depend on: it has no gradient, and the heat map is empty.
            (slope,) = torch.autograd.grad(_score(outputs.logits), last, allow_unused=True)
    finally:
        hook.remove()
    slope = torch.zeros_like(last) if slope is None else slope
    if last.ndim == 4:
        weight = slope.mean((2, 3), keepdim=True)
        return (weight * last).sum(1).clamp(min=0)[0].detach().numpy()
    cam = (slope.mean(1, keepdim=True) * last).sum(-1).clamp(min=0)[0].detach()
    side = int(cam.shape[0] ** 0.5)
    return cam[-side * side :].reshape(side, side).numpy()


def _score(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, LABEL2ID["fake"]] - logits[0, LABEL2ID["real"]]


def _is_map(state: torch.Tensor) -> bool:
    if state.ndim == 4:
        return state.shape[2] * state.shape[3] > 1
    return state.shape[1] > 1 and int(state.shape[1] ** 0.5) ** 2 in (state.shape[1], state.shape[1] - 1)
