"""A heat map as a transparent PNG that lies over its image."""

import cv2
import numpy as np

LONGEST = 1024
OPACITY = 220
COLOURS = ((31, 59, 224), (106, 26, 232), (200, 0, 216), (255, 20, 144))
"""RGB at even steps from cold to hot: hues that skin never has, neither as bright as a bright image nor as dark as a dark one."""


def region(size: tuple[int, int], keep_aspect: bool, crop: tuple[int, int, int, int] | None = None) -> dict[str, float]:
    """The part of an image that the model sees: left, top, width and height as fractions of the image's sides.

    Args:
        size: width and height of the image.
        keep_aspect: as in pipeline.preprocess: the central square if true, else everything squeezed into a square.
        crop: left, top, right, bottom of what preprocessing was given, if it was not the whole image.
    """
    left, top, right, bottom = map(float, crop or (0, 0, *size))
    wide, high = right - left, bottom - top
    if keep_aspect:
        side = min(wide, high)
        left, top, wide, high = left + (wide - side) / 2, top + (high - side) / 2, side, side
    return {"left": left / size[0], "top": top / size[1], "width": wide / size[0], "height": high / size[1]}


def colours(heat: np.ndarray) -> np.ndarray:
    """The colours of a heat map (rows, columns), 0..1, as float (rows, columns, 3), 0..255."""
    steps = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(heat, steps, channel) for channel in np.transpose(COLOURS)], axis=-1)


def overlay(heat: np.ndarray, seen: dict[str, float], size: tuple[int, int]) -> bytes:
    """A heat map (rows, columns), 0..1, as a PNG with the image's aspect ratio; hotter is more opaque.

    Args:
        heat: over the part of the image that the model saw.
        seen: that part, from `region`.
        size: width and height of the image.
    """
    scale = min(1.0, LONGEST / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = int(width * seen["left"]), int(height * seen["top"])
    inner = max(1, round(width * seen["width"])), max(1, round(height * seen["height"]))
    grown = np.clip(cv2.resize(heat, inner, interpolation=cv2.INTER_CUBIC), 0, 1)
    whole = np.zeros((height, width, 4), np.uint8)
    part = whole[top : top + inner[1], left : left + inner[0]]
    part[..., :3] = colours(grown)[..., ::-1]
    part[..., 3] = grown * OPACITY
    return cv2.imencode(".png", whole)[1].tobytes()
