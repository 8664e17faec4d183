"""The network as it is exported and served: it returns an embedding along with the logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.network import model

SCALING = "interpolate_pos_encoding"
"""Name in transformers of the method that scales position embeddings to an input of another size."""


class WithEmbedding(nn.Module):
    """A classifier that also returns its last hidden state, averaged over positions, on which drift is measured."""

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


@contextmanager
def fixed_positions(module: WithEmbedding, size: int) -> Iterator[None]:
    """Context in which position embeddings that are scaled to the input are constants: those for images of `size` pixels.

    An exported graph that scaled them for each image would do so differently from PyTorch or, for DINOv2 with registers, could not be
    exported at all. The forward pass that computes them also fills LeViT's cache of attention biases, which would break tracing.
    """
    scaling = [part for part in module.modules() if hasattr(part, SCALING)]
    for part in scaling:
        setattr(part, SCALING, partial(_once, getattr(part, SCALING), []))
    try:
        with torch.no_grad():
            module(torch.zeros(2, 3, size, size))
            yield
    finally:
        for part in scaling:
            delattr(part, SCALING)


def _once(method: Callable[..., torch.Tensor], kept: list[torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    if not kept:
        kept.append(method(*args, **kwargs))
    return kept[0]
