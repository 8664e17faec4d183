"""What in a picture makes a verdict less reliable: found from its size, its light, its detail and the way it was stored."""

from functools import cache, lru_cache

import cv2
import numpy as np

from pipeline.images import Picture

TOO_SMALL = 64
"""Pixels of the shorter side of what is judged: networks look at 224 and more, and would see mostly interpolation."""

TOO_DARK = 30.0
"""Mean luma, of 255: below it the sensor's noise and the compression are all there is."""

TOO_BLURRY = 8.0
"""Variance of the Laplacian: below it traces of a forgery, which are finer than a face, are gone."""

HEAVILY_COMPRESSED = 72.0
"""Mean step of a JPEG's luma table, which is libjpeg's at quality 40: verdicts were seen to flip from there down."""

MANY_FACES = 5
"""The image's probability is that of its most suspicious face: with 5% false alarms a face, 5 real faces give one in 23% of images."""

UPSCALED = 0.0055
"""Of `fineness`. Of 100 face crops each, as they were published, 0 (StyleGAN), 1 (DFDC) and 32 (UTKFace, whose makers scaled them) are
below it, and so are 94 of StyleGAN's, the sharpest, once they are enlarged twofold. JPEG after the enlarging hides it."""

SAMPLE = 512
"""Side of the middle part whose frequencies are looked at: enough for a mean, and quick."""


def warnings(seen: dict[str, float], picture: Picture, faces: int | None) -> list[str]:
    """The names of what is wrong.

    Args:
        seen: pipeline.images.statistics of what was judged.
        picture: what was judged: the image, or the face in it.
        faces: how many were found in the image; None if nobody looked.
    """
    found = {
        "no_face": faces == 0,
        "many_faces": faces is not None and faces >= MANY_FACES,
        "too_small": min(seen["width"], seen["height"]) < TOO_SMALL,
        "too_blurry": seen["blur"] < TOO_BLURRY,
        "too_dark": seen["brightness"] < TOO_DARK,
        "heavily_compressed": picture.luma_table is not None and float(np.mean(picture.luma_table)) > HEAVILY_COMPRESSED,
    }
    # A picture without any sharp edge says nothing of its history.
    found["upscaled"] = not found["too_blurry"] and not found["too_small"] and fineness(picture) < UPSCALED
    return [name for name, holds in found.items() if holds]


def fineness(picture: Picture) -> float:
    """How much fine detail a picture has for its coarser detail: 0 for none.

    Enlarging adds pixels and no detail: what was the finest detail lies at lower frequencies afterwards, and above it there is almost
    nothing. So the mean power above 0.6 of the highest frequency is compared with that between 0.2 and 0.4, where also a picture
    enlarged twofold has detail.
    """
    sides = [_quick(min(side, SAMPLE)) for side in picture.rgb.size]
    left, top = ((whole - side) // 2 for whole, side in zip(picture.rgb.size, sides, strict=True))
    # The middle, and not all of it, which may have 50 megapixels.
    part = picture.luma[top : top + sides[1], left : left + sides[0]].astype(np.float32)
    window, bands = _spectrum(part.shape)
    part = (part - part.mean()) * window
    # A real picture's spectrum says everything twice. OpenCV's packed half takes a quarter of the time of the whole one.
    power = np.square(cv2.dft(part))
    rounding = float(np.vdot(window, window)) / 12  # the power of the noise that whole numbers bring
    fine, coarse = (max(float(np.vdot(power, band)) - rounding, 0.0) for band in bands)
    return fine / max(coarse, 1e-6)


@cache
def _quick(side: int) -> int:
    """The largest size up to this one whose Fourier transform is quick: a product of twos, threes and fives."""
    while cv2.getOptimalDFTSize(side) != side:
        side -= 1
    return side


@lru_cache(maxsize=16)
def _spectrum(shape: tuple[int, int]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """For pictures of a (height, width): the window, and weights for the mean over the fine and over the coarse part of the spectrum."""
    # Without a window the jump from one border to the opposite one would look like fine detail.
    window = np.outer(np.hanning(shape[0]), np.hanning(shape[1])).astype(np.float32)
    rows, columns = np.abs(np.fft.fftfreq(shape[0])) * 2, np.fft.rfftfreq(shape[1]) * 2
    radius = np.maximum(rows[:, None], columns[None])
    shares = ((band / max(band.sum(), 1)).astype(np.float32) for band in (radius > 0.6, (radius > 0.2) & (radius < 0.4)))
    fine, coarse = (_packed(share, shape) for share in shares)
    return window, (fine, coarse)


def _packed(weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Weights of half a spectrum, (height, width // 2 + 1), where OpenCV packs its real and imaginary parts: (height, width).

    They take turns along a row. In the columns without imaginary parts, the first and of an even width the last, they take turns downwards,
    for half of the rows, which stand for the other half.
    """
    (height, width), down, right = shape, *((np.arange(side) + 1) // 2 for side in shape)
    packed = weights[:, right]
    for column in {0, width - 1} if width % 2 == 0 else {0}:
        packed[:, column] = weights[down, right[column]] * 2
        packed[:: height - 1 if height % 2 == 0 else height, column] /= 2
    return np.ascontiguousarray(packed)
