"""The heat map that all methods return."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Explanation:
    """A heat map.

    Attributes:
        method: "attention_rollout" or "attention_relevance" for a network with global attention, "grad_cam" for any other.
        heat: float32 (rows, columns), 0..1, a coarse grid over the network's whole input.
    """

    method: str
    heat: np.ndarray


def scaled(heat: np.ndarray) -> np.ndarray:
    """The same map scaled to a minimum of 0 and a maximum of 1."""
    low, high = float(heat.min()), float(heat.max())
    return ((heat - low) / max(high - low, 1e-12)).astype(np.float32)
