"""A heat map laid over the picture it belongs to."""

import cv2
import numpy as np

LONGEST = 1024
OPACITY = 220


def region(size: tuple[int, int], keep_aspect: bool) -> dict[str, float]:
    """The part of a picture (width, height) that the model sees: left, top, width and height as fractions of its sides.

    `keep_aspect` is that of pipeline.preprocess: the middle square, or the whole picture squeezed into a square.
    """
    width, height = size
    side = min(width, height)
    wide, high = (side / width, side / height) if keep_aspect else (1.0, 1.0)
    return {"left": (1 - wide) / 2, "top": (1 - high) / 2, "width": wide, "height": high}


def overlay(heat: np.ndarray, seen: dict[str, float], size: tuple[int, int]) -> bytes:
    """A heat map (rows, columns), 0..1, as a PNG of the picture's proportions: inferno colours, the hotter the more opaque.

    Args:
        heat: over the part of the picture that the model saw.
        seen: that part, from `region`.
        size: width and height of the picture.
    """
    scale = min(1.0, LONGEST / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    left, top = int(width * seen["left"]), int(height * seen["top"])
    inner = max(1, round(width * seen["width"])), max(1, round(height * seen["height"]))
    grown = np.clip(cv2.resize(heat, inner, interpolation=cv2.INTER_CUBIC), 0, 1)
    whole = np.zeros((height, width, 4), np.uint8)
    part = whole[top : top + inner[1], left : left + inner[0]]
    part[..., :3] = cv2.applyColorMap((grown * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    part[..., 3] = grown * OPACITY
    return cv2.imencode(".png", whole)[1].tobytes()
