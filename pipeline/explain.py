"""Where a network looked, as a heat map over its input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline import model
from pipeline.manifest import LABEL2ID


@dataclass(frozen=True)
class Explanation:
    """A heat map.

    Attributes:
        method: "attention_rollout" or "gradient_x_activation".
        heat: float32 (rows, columns), 0..1, a coarse grid that lies over the whole picture.
    """

    method: str
    heat: np.ndarray


class WithEmbedding(nn.Module):
    """A classifier that also gives its last hidden state, averaged over places: what drift is measured on."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a trained model from its folder."""
        return cls(model.load(folder)).eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float (n, 3, size, size) -> logits (n, 2), embedding (n, d)."""
        outputs = self.network(pixel_values=pixel_values, output_hidden_states=True)
        last = outputs.hidden_states[-1]
        return outputs.logits, last.mean(1) if last.ndim == 3 else last.mean((2, 3))


def explain(network: PreTrainedModel, values: np.ndarray) -> Explanation:
    """Heat map of one input, float32 (1, 3, size, size): rollout where the network has attention over all places, else gradients."""
    tensor = torch.from_numpy(values)
    with torch.no_grad():
        try:
            attentions = network(pixel_values=tensor, output_attentions=True).attentions
        except (TypeError, ValueError):  # networks without attention refuse the argument
            attentions = None
    if attentions and all(layer is not None and layer.ndim == 4 and layer.shape == attentions[0].shape for layer in attentions):
        heat = rollout([layer[0] for layer in attentions])
        if heat is not None:
            return Explanation("attention_rollout", _scaled(heat))
    return Explanation("gradient_x_activation", _scaled(gradients(network, tensor)))


def rollout(attentions: list[torch.Tensor]) -> np.ndarray | None:
    """Attention rollout (Abnar and Zuidema, ACL 2020) from the class token to the patches.

    Args:
        attentions: one tensor (heads, tokens, tokens) a layer; the first token is the class token.

    Returns:
        float (rows, columns), or None if the patches form no square.
    """
    tokens = attentions[0].shape[-1]
    joined = torch.eye(tokens)
    for layer in attentions:
        mixed = (layer.mean(0) + torch.eye(tokens)) / 2
        joined = mixed / mixed.sum(-1, keepdim=True) @ joined
    side = int((tokens - 1) ** 0.5)
    return joined[0, 1:].reshape(side, side).numpy() if side * side == tokens - 1 else None


def gradients(network: PreTrainedModel, tensor: torch.Tensor) -> np.ndarray:
    """Gradient of the score of fake times the last map of features (Grad-CAM, Selvaraju et al., ICCV 2017, without its pooling)."""
    with torch.enable_grad():
        outputs = network(pixel_values=tensor, output_hidden_states=True)
        maps = [state for state in outputs.hidden_states if state.requires_grad]
        last = next((state for state in reversed(maps) if _is_map(state)), maps[-1])
        (slope,) = torch.autograd.grad(outputs.logits[0, LABEL2ID["fake"]] - outputs.logits[0, LABEL2ID["real"]], last)
    weight = (slope * last).detach().abs()[0]
    if weight.ndim == 3:
        return weight.sum(0).numpy()
    side = int(weight.shape[0] ** 0.5)
    return weight[-side * side :].sum(-1).reshape(side, side).numpy()


def _is_map(state: torch.Tensor) -> bool:
    return state.ndim == 4 or int(state.shape[1] ** 0.5) ** 2 in (state.shape[1], state.shape[1] - 1)


def _scaled(heat: np.ndarray) -> np.ndarray:
    low, high = float(heat.min()), float(heat.max())
    return ((heat - low) / max(high - low, 1e-12)).astype(np.float32)
