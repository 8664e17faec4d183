"""The network as it is exported and served: with its view of a picture beside its logits."""

from pathlib import Path
from typing import Self

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline import model


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
