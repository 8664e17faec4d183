"""Warnings that a verdict is less reliable, from a picture's size, brightness, detail and compression."""

from functools import cache, lru_cache

import cv2
import numpy as np

from pipeline.images import Picture

TOO_SMALL = 64
"""Pixels of the shorter side of what is judged: networks take 224 and more, and would see mostly interpolation."""

TOO_DARK = 30.0
"""Mean luma, 0..255: below it there is little but sensor noise and compression."""

TOO_BLURRY = 8.0
"""Variance of the Laplacian: below it, traces of forgery, which are finer than facial features, are gone."""

HEAVILY_COMPRESSED = 72.0
"""Mean of a JPEG's luma quantisation table, as libjpeg's at quality 40: verdicts were seen to flip from there down."""

MANY_FACES = 5
"""The image's probability is that of its most suspicious face: with 5% false alarms per face, 23% of images with 5 real faces get one."""

UPSCALED = 0.0055
"""Of `fineness`. Of 100 published face crops each, 0 (StyleGAN), 1 (DFDC) and 32 (UTKFace, which was resized before publication) are
below it, and so are 94 of StyleGAN's, the sharpest, after twofold enlargement. JPEG compression after enlarging hides it."""

SAMPLE = 512
"""Pixels: side of the central crop whose spectrum is measured: enough for a mean, and fast."""


def warnings(seen: dict[str, float], picture: Picture, faces: int | None) -> list[str]:
    """The names of the warnings that apply.

    Args:
        seen: pipeline.images.statistics of what was judged.
        picture: what was judged: the image, or the face in it.
        faces: how many were found in the image; None without face detection.
    """
    found = {
        "no_face": faces == 0,
        "many_faces": faces is not None and faces >= MANY_FACES,
        "several_frames": picture.several,
        "too_small": min(seen["width"], seen["height"]) < TOO_SMALL,
        "too_blurry": seen["blur"] < TOO_BLURRY,
        "too_dark": seen["brightness"] < TOO_DARK,
        "heavily_compressed": picture.luma_table is not None and float(np.mean(picture.luma_table)) > HEAVILY_COMPRESSED,
    }
    # Without sharp edges, a picture tells nothing about its history.
    found["upscaled"] = not found["too_blurry"] and not found["too_small"] and fineness(picture) < UPSCALED
    return [name for name, holds in found.items() if holds]


def fineness(picture: Picture) -> float:
    """Ratio of fine to coarser detail in a picture: 0 if there is no fine detail.

    Enlarging adds pixels but no detail: the finest detail moves to lower frequencies, and there is almost nothing above. So the mean
    power above 0.6 of the highest frequency is compared with that between 0.2 and 0.4, where a picture enlarged twofold still has
    detail.
    """
    sides = [_quick(min(side, SAMPLE)) for side in picture.rgb.size]
    left, top = ((whole - side) // 2 for whole, side in zip(picture.rgb.size, sides, strict=True))
    # Only the centre: the whole picture may have 50 megapixels.
    part = picture.luma[top : top + sides[1], left : left + sides[0]].astype(np.float32)
    window, bands = _spectrum(part.shape)
    part = (part - part.mean()) * window
    # The spectrum of real numbers is symmetric: OpenCV's packed half takes a quarter of the time of the whole one.
    power = np.square(cv2.dft(part))
    rounding = float(np.vdot(window, window)) / 12  # power of the noise from rounding to integers
    fine, coarse = (max(float(np.vdot(power, band)) - rounding, 0.0) for band in bands)
    return fine / max(coarse, 1e-6)


@cache
def _quick(side: int) -> int:
    """The largest size up to this one whose Fourier transform is fast: a product of twos, threes and fives."""
    while cv2.getOptimalDFTSize(side) != side:
        side -= 1
    return side


@lru_cache(maxsize=16)
def _spectrum(shape: tuple[int, int]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For pictures of this (height, width): the window, and weights for the mean over the fine and the coarse band of the spectrum."""
    # Without a window the jump from one border to the opposite one would look like fine detail.
    window = np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)
    rows, columns = np.abs(np.fft.fftfreq(shape[0])) * 2, np.fft.rfftfreq(shape[1]) * 2
    radius = np.maximum(rows[:, None], columns[None])
    shares = ((band / max(band.sum(), 1)).astype(np.float32) for band in (radius > 0.6, (radius > 0.2) & (radius < 0.4)))
    fine, coarse = (_packed(share, shape) for share in shares)
    return window, (fine, coarse)


def _packed(weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rearrange weights of half a spectrum, (height, width // 2 + 1), like OpenCV's packed real and imaginary parts: (height, width).

    These alternate along a row. In the first column, and in the last one of an even width, they alternate down the column instead, for
    half of the rows; the other half mirrors them.
    """
    (height, width), down, right = shape, *((np.arange(side) + 1) // 2 for side in shape)
    packed = weights[:, right]
    for column in {0, width - 1} if width % 2 == 0 else {0}:
        packed[:, column] = weights[down, right[column]] * 2
        packed[:: height - 1 if height % 2 == 0 else height, column] /= 2
    return np.ascontiguousarray(packed)
