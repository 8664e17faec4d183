"""Resynthesis: the upsampling traces of a generator, without the generator."""

import cv2
import numpy as np

from pipeline.forge.face import Face, blend, soften


def resynthesis(
    target: np.ndarray, face: Face, donor: np.ndarray, donor_face: Face, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Downsample and upsample the face, or one time in three the whole picture, and apply a random 3x3 filter.

    Part of the lost fine detail is replaced by noise, as by generators that are trained to look sharp. The donor is not used.

    Returns:
        The fake, uint8 like `target`, and the mask of what was rebuilt, float32 (height, width) in 0..1.
    """
    del donor, donor_face
    height, width = target.shape[:2]
    factor = rng.choice([0.5, 0.5, 0.65])
    small = cv2.resize(target, (int(width * factor), int(height * factor)), interpolation=cv2.INTER_AREA)
    way = int(rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    rebuilt: np.ndarray = cv2.resize(small, (width, height), interpolation=way).astype(np.float32)
    kernel = rng.normal(0, 0.06, (3, 3)).astype(np.float32)
    kernel[1, 1] += 1 - kernel.sum()
    rebuilt = cv2.filter2D(rebuilt, -1, kernel)
    lost = float((target.astype(np.float32) - cv2.GaussianBlur(target, (0, 0), 1.0)).std())
    left = float((rebuilt - cv2.GaussianBlur(rebuilt, (0, 0), 1.0)).std())
    coarse = cv2.resize(rng.normal(0, 1, (height // 2, width // 2)).astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    rebuilt += 0.6 * np.sqrt(max(lost**2 - left**2, 0.0)) * coarse[..., None]
    whole = rng.random() < 1 / 3
    mask = np.ones((height, width), np.float32) if whole else soften(face.mask(target.shape, rng.uniform(0.9, 1.1)), rng)
    return blend(np.clip(rebuilt, 0, 255), target, mask), mask
