"""A small camera: linear light -> lens -> Bayer sensor -> demosaiced, noisy, gamma-encoded picture."""

import cv2
import numpy as np


def photograph(light: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Take a picture of a scene.

    Args:
        light: float32 (side, side, 3), linear, about 0..1; side at least `size`.
        size: side of the picture in pixels.
        rng: draws exposure, focus, white balance and noise.

    Returns:
        uint8 (size, size, 3), RGB, gamma-encoded.
    """
    blurred = cv2.GaussianBlur(light, (0, 0), light.shape[0] / size * rng.uniform(0.3, 0.8))
    sensor = cv2.resize(blurred, (size, size), interpolation=cv2.INTER_AREA)
    sensor = np.clip(sensor * rng.uniform(0.7, 1.25) * rng.uniform(0.93, 1.07, 3), 0, 1)
    mosaic = np.empty((size, size), np.float32)
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = sensor[row::2, column::2, channel]
    electrons = rng.uniform(1500, 6000)
    mosaic += rng.normal(0, 1, mosaic.shape).astype(np.float32) * np.sqrt(mosaic / electrons + 1e-5)
    raw = (np.clip(mosaic, 0, 1) * 65535).astype(np.uint16)
    # OpenCV names a Bayer pattern after its second row and column, so that its BG is what others call RGGB.
    colour = cv2.cvtColor(raw, cv2.COLOR_BayerBG2RGB).astype(np.float32) / 65535
    return np.rint(np.clip(colour, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
