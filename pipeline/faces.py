"""Face detection: YuNet (Wu et al., Machine Intelligence Research 2023) through OpenCV."""

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import StageError

LONGEST = 640
"""Pixels: a larger picture is scaled down to this for detection, which still finds a face of a tenth of its side."""

MARGIN = 0.3
"""Around a face, on each side, as a share of its size: chin, ears and the seam of a swapped face lie outside the detector's box."""


def chosen_detector() -> Path | None:
    """The ONNX file that UNMASK_FACE_DETECTOR names, None if it is not set: the service and batch scoring judge the same faces."""
    return Path(os.environ["UNMASK_FACE_DETECTOR"]) if os.environ.get("UNMASK_FACE_DETECTOR") else None


@dataclass(frozen=True)
class FaceBox:
    """A face: upper left corner and size in pixels of the picture, and the detector's confidence in 0..1."""

    x: float
    y: float
    width: float
    height: float
    score: float


class FaceDetector:
    """A loaded detector. Not thread-safe."""

    def __init__(self, weights: Path, confidence: float = 0.6) -> None:
        """Load the ONNX file. Raises StageError if it is missing or is not YuNet."""
        if not weights.is_file():
            raise StageError(f"face detector: {weights} does not exist; it should be YuNet's ONNX file (opencv_zoo, face_detection_yunet)")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of a setting that its own YuNet wrapper makes
        try:
            self._network = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), confidence)
        except cv2.error as error:
            raise StageError(f"face detector: {weights} cannot be loaded: {error.err}") from None

    def find(self, pixels: np.ndarray) -> list[FaceBox]:
        """Faces in uint8 (height, width, 3) RGB, the largest first."""
        height, width = pixels.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if scale < 1:
            bgr = cv2.resize(bgr, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
        self._network.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, found = self._network.detect(bgr)
        rows = np.empty((0, 15)) if found is None else np.asarray(found, float)
        boxes = [FaceBox(x, y, w, h, score) for x, y, w, h, score in np.c_[rows[:, :4] / scale, rows[:, -1]].tolist()]
        return sorted(boxes, key=lambda box: -box.width * box.height)


def surroundings(box: FaceBox, size: tuple[int, int], margin: float = MARGIN) -> tuple[int, int, int, int]:
    """The square around a face that a network judges: left, top, right, bottom in pixels, inside a picture of this (width, height)."""
    width, height = size
    side = max(1, min(round(max(box.width, box.height) * (1 + 2 * margin)), width, height))
    left = round(min(max(box.x + box.width / 2 - side / 2, 0), width - side))
    top = round(min(max(box.y + box.height / 2 - side / 2, 0), height - side))
    return left, top, left + side, top + side
