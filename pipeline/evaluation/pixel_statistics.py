"""Simple statistics of an image: colour, noise and frequencies, without any notion of a face."""

from functools import cache, lru_cache

import cv2
import numpy as np

SIDE = 256
"""Side in pixels of the centre crop that is analysed, unscaled: scaling would erase the traces."""
RINGS = 16
LEVELS = 2


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Colour, residual, DCT and spectrum statistics of a picture.

    Args:
        pixels: uint8 (height, width, 3), at least 8 pixels a side.

    Returns:
        float32 (d,), the same d for every picture.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    middle = pixels[top : top + SIDE, left : left + SIDE]
    luma = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
    parts = [_colour(middle), _residual(middle, luma), _cosine(luma), _spectrum(luma)]
    return np.concatenate(parts).astype(np.float32)


def _colour(pixels: np.ndarray) -> np.ndarray:
    found = []
    for space in (None, cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2YCrCb):
        mean, deviation = cv2.meanStdDev(pixels if space is None else cv2.cvtColor(pixels, space))
        found += [mean[:, 0], deviation[:, 0]]
    return np.concatenate(found)


def _residual(pixels: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The noise residual: standard deviation and kurtosis, correlation between channels, and co-occurrence of neighbouring values."""
    fine = pixels.astype(np.float32) - cv2.GaussianBlur(pixels, (0, 0), 1.0)
    flat = np.ascontiguousarray(fine.reshape(-1, 3).T)
    deviation = flat.std(1) + 1e-6
    scaled = (flat - flat.mean(1, keepdims=True)) / deviation[:, None]
    between, squared = scaled @ scaled.T / scaled.shape[1], scaled * scaled
    rough = luma.astype(np.int16) - cv2.medianBlur(luma, 3)
    level, levels = np.clip(rough, -LEVELS, LEVELS) + LEVELS, 2 * LEVELS + 1
    pairs = [level[:, :-1] * levels + level[:, 1:], level[:-1] * levels + level[1:]]
    follow = sum(np.bincount(pair.ravel(), minlength=levels**2) / pair.size for pair in pairs)
    return np.concatenate([deviation, (squared * squared).mean(1), between[np.triu_indices(3, 1)], follow])


def _cosine(luma: np.ndarray) -> np.ndarray:
    """Log of the mean magnitude of each of the 63 AC coefficients of JPEG's 8x8 blocks."""
    rows, columns = luma.shape[0] // 8, luma.shape[1] // 8
    blocks = luma[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 64)
    return np.log(np.abs(blocks.astype(np.float32) @ _transform()).mean(0)[1:] + 1e-3)


def _spectrum(luma: np.ndarray) -> np.ndarray:
    """Mean log power in rings of spatial frequency, up to half a cycle per pixel."""
    window, ring, size = _rings(luma.shape)
    found = np.fft.rfft2((luma - luma.mean()) * window)
    power = np.log(found.real**2 + found.imag**2 + 1e-3)
    return np.bincount(ring, power.ravel(), RINGS) / size


@cache
def _transform() -> np.ndarray:
    """The DCT-II of an 8x8 block as one matrix, (64, 64)."""
    table = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(8) + 1) / 16) / 2
    table[0] /= np.sqrt(2)
    return np.kron(table, table).T.astype(np.float32)


@lru_cache(maxsize=64)
def _rings(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A Hann window, the ring of each frequency, and the number of frequencies in each ring."""
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    ring = np.minimum((radius * 2 * RINGS).astype(int), RINGS - 1).ravel()
    window = np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)
    return window, ring, np.maximum(np.bincount(ring, minlength=RINGS), 1)
