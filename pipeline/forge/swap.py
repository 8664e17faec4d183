"""Face swap: the face of another picture, pasted over this one and matched in colour."""

import cv2
import numpy as np

from pipeline.forge.face import Face, blend, soften


def swap(target: np.ndarray, face: Face, donor: np.ndarray, donor_face: Face, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put the donor's face over the target's: affine alignment, matching of each channel's mean and standard deviation, soft mask.

    Returns:
        The fake, uint8 like `target`, and its blending mask, float32 (height, width) in 0..1.
    """
    height, width = target.shape[:2]
    mask = face.mask(target.shape, rng.uniform(0.8, 1.0), rng.choice([-1.0, -0.5]))
    warped = cv2.warpAffine(donor, donor_face.transform_to(face), (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    inside = mask > 0.5
    source, wanted = warped.astype(np.float32), target.astype(np.float32)
    for channel in range(3):
        own, other = source[..., channel][inside], wanted[..., channel][inside]
        if own.size:
            spread = np.clip(other.std() / max(float(own.std()), 1.0), 0.7, 1.4)
            source[..., channel] = (source[..., channel] - own.mean()) * spread + other.mean()
    mask = soften(mask, rng)
    return blend(np.clip(source, 0, 255), target, mask), mask
