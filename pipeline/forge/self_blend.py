"""Self-blended images (Shiohara and Yamasaki, CVPR 2022): a face blended with a changed copy of itself."""

import cv2
import numpy as np

from pipeline.forge.face import Face, blend, soften


def self_blend(
    target: np.ndarray, face: Face, donor: np.ndarray, donor_face: Face, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Blend the face with a copy of itself that differs in colour, sharpness and position. The donor is not used.

    Returns:
        The fake, uint8 like `target`, and its blending mask, float32 (height, width) in 0..1.
    """
    del donor, donor_face
    height, width = target.shape[:2]
    source = changed(target, rng)
    shift = rng.uniform(-1, 1, 2) * (0.03 * width, 0.015 * height)
    move = cv2.getRotationMatrix2D((face.x, face.y), 0, rng.uniform(0.95, 1.05))
    move[:, 2] += shift
    source = cv2.warpAffine(source, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpAffine(face.mask(target.shape, rng.uniform(0.75, 1.05), rng.choice([-1.0, -0.5, -0.3])), move, (width, height))
    mask = soften(_elastic(mask, rng), rng)
    return blend(source, target, mask), mask


def changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy that differs in colour, brightness and sharpness, uint8 like the image (source-target augmentation, section 3.2)."""
    return _sharpness(_colour(image, rng), rng)


def _colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shifted = image.astype(np.float32)
    if rng.random() < 0.3:
        shifted += rng.uniform(-20, 20, 3)
    hsv = cv2.cvtColor(np.clip(shifted, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-4, 4)) % 180
    hsv[..., 1:] *= rng.uniform(0.8, 1.2, 2)
    shifted = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB).astype(np.float32)
    return np.clip((shifted - 128) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-25, 25), 0, 255).astype(np.uint8)


def _sharpness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        factor = int(rng.choice([2, 4])) if min(height, width) >= 128 else 2
        small = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_NEAREST)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    strength = rng.uniform(0.2, 0.5)
    edges = image.astype(np.float32) - cv2.GaussianBlur(image, (0, 0), 1.0)
    return np.clip(image + 4 * strength * edges, 0, 255).astype(np.uint8)


def _elastic(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = mask.shape
    side = max(height, width)
    waves = rng.uniform(-1, 1, (2, height, width)).astype(np.float32)
    moves = [cv2.GaussianBlur(wave, (0, 0), 0.035 * side) for wave in waves]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    strength = 0.4 * side
    return cv2.remap(mask, columns + strength * moves[0], rows + strength * moves[1], cv2.INTER_LINEAR)
