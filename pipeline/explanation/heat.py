"""The heat map that all methods return."""

from dataclasses import dataclass, replace
from typing import Self

import cv2
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

    def turned(self, degrees: float) -> Self:
        """The map turned clockwise about its centre; where it does not reach, it is 0."""
        rows, columns = self.heat.shape
        turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), -degrees, 1.0)
        return replace(self, heat=cv2.warpAffine(self.heat, turn, (columns, rows)))


def scaled(heat: np.ndarray) -> np.ndarray:
    """The same map scaled to a minimum of 0 and a maximum of 1."""
    low, high = float(heat.min()), float(heat.max())
    return ((heat - low) / max(high - low, 1e-12)).astype(np.float32)
