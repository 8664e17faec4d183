"""Forges fakes from real faces; each method leaves the traces of a known kind of deepfake."""

from collections.abc import Callable

import numpy as np

from pipeline.forge.face import Face
from pipeline.forge.resynthesis import resynthesis
from pipeline.forge.self_blend import changed, self_blend
from pipeline.forge.swap import swap

Forged = tuple[np.ndarray, np.ndarray]
"""The fake, uint8 (height, width, 3), and its blending mask, float32 (height, width) in 0..1."""

Method = Callable[[np.ndarray, Face, np.ndarray, Face, np.random.Generator], Forged]
"""(target, its face, donor, its face, rng) -> the forged target. Images are uint8 (height, width, 3) RGB."""

METHODS: dict[str, Method] = {"self_blend": self_blend, "swap": swap, "resynthesis": resynthesis}
"""Name of a generator -> the function that makes its fakes."""

__all__ = ["METHODS", "Face", "Forged", "Method", "changed", "resynthesis", "self_blend", "swap"]
