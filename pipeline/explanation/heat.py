"""What a heat map is, whatever method made it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Explanation:
    """A heat map.

    Attributes:
        method: "attention_rollout" or "attention_relevance" of a network with attention over all places, "grad_cam" of any other.
        heat: float32 (rows, columns), 0..1, a coarse grid that lies over the whole picture.
    """

    method: str
    heat: np.ndarray


def scaled(heat: np.ndarray) -> np.ndarray:
    """The same map with its least value at 0 and its largest at 1."""
    low, high = float(heat.min()), float(heat.max())
    return ((heat - low) / max(high - low, 1e-12)).astype(np.float32)
