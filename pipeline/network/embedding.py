"""The network as it is exported and served: with its view of a picture beside its logits."""

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
"""How transformers calls the method that scales position embeddings to an input of another size."""


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


@contextmanager
def fixed_positions(module: WithEmbedding, size: int) -> Iterator[None]:
    """While it is open, position embeddings that are scaled to the input are constants: those of pictures of `size` pixels.

    A graph that scaled them for each picture would do so differently from PyTorch or, as that of DINOv2 with registers, could not be
    written. The call that finds them also fills LeViT's cache of its attention biases, which tracing would stumble over.
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
