"""Face detection: YuNet (Wu et al., Machine Intelligence Research 2023) through OpenCV, for faces at any angle."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from pipeline.errors import StageError

LONGEST = 640
"""Pixels: a larger picture is scaled down to this for detection, which still finds a face of a tenth of its side."""

LEAST_SIDE = 16
"""Pixels: smaller pictures are not searched."""

MARGIN = 0.3
"""Around a face, on each side, as a share of its size, for a network of which nothing is known: chin, ears and the seam of a swapped face
lie outside the detector's box."""

FRAMED = 0.8
"""Pictures are pictures of faces if at least this share of them shows one."""


SURE = 0.9
"""Of 400 face crops of DFDC, 92% of the upright faces are found with more confidence than this, and none of those on their side."""

LEAST_TILT = 10.0
"""Degrees: faces that are tilted less are judged as they are. Networks know such a tilt, and turning costs some sharpness."""

TURNS, CLOSE = 3, 5.0
"""How often the angle of a tilted face is measured again at most, and the change in degrees after which it is not: at 45 degrees the eyes
are first found at less than half of the angle."""

MOST_FACES = 32
"""At most this many faces of a picture are looked at closely and judged: the largest."""

OVERLAP = 0.3
"""Boxes that share more of their union than this are one face."""

LOOK = 256
"""Pixels: side of the square in which a face and as much around it is looked at again."""

LEAST_EYES = 80.0
"""Pixels: eyes of smaller faces are found level, even if the face is tilted by 40 degrees."""


@dataclass(frozen=True)
class FaceBox:
    """A face.

    Attributes:
        x, y: upper left corner of its box, in pixels of the picture.
        width, height: of the box; its sides are parallel to those of the picture, however the face is tilted.
        score: the detector's confidence, 0..1.
        tilt: degrees clockwise, -180..180; 0 is upright.
    """

    x: float
    y: float
    width: float
    height: float
    score: float
    tilt: float = 0.0

    @property
    def turned(self) -> bool:
        """Whether the face is tilted so much that it is turned upright before it is judged."""
        return abs(self.tilt) > LEAST_TILT

    @property
    def sides(self) -> tuple[float, float]:
        """Width and height along the axes of the face, not those of the picture, in pixels."""
        return (self.height, self.width) if 45 < abs(self.tilt) < 135 else (self.width, self.height)

    @property
    def centre(self) -> np.ndarray:
        """x and y of the centre, in pixels."""
        return np.array([self.x + self.width / 2, self.y + self.height / 2])

    def scaled(self, factor: float) -> "FaceBox":
        """The same face in the picture scaled by this factor."""
        x, y, width, height = (value * factor for value in (self.x, self.y, self.width, self.height))
        return replace(self, x=x, y=y, width=width, height=height)


class FaceDetector:
    """A loaded detector. Not thread-safe."""

    def __init__(self, weights: Path, confidence: float = 0.6) -> None:
        """Load the ONNX file. Raises StageError if it is missing or is not YuNet."""
        if not weights.is_file():
            raise StageError(f"face detector: {weights} does not exist; it should be YuNet's ONNX file, or `yunet` to fetch that")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of a setting that its own YuNet wrapper makes
        try:
            self._network = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), confidence)
        except cv2.error as error:
            raise StageError(f"face detector: {weights} cannot be loaded: {error.err}") from None

    def find(self, pixels: np.ndarray) -> list[FaceBox]:
        """Faces in uint8 (height, width, 3) RGB, the largest first."""
        height, width = pixels.shape[:2]
        if min(height, width) < LEAST_SIDE:
            return []
        scale = min(1.0, LONGEST / max(height, width))
        bgr = small = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        if scale < 1:
            small = cv2.resize(bgr, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)
        found = self._upright(small)
        # YuNet learned upright faces: others it misses, or it is less sure and finds their eyes in the wrong places.
        if min((face.score for face in found), default=0.0) < SURE:
            high, wide = small.shape[:2]
            for tilt, size in ((90, (high, wide)), (180, (wide, high)), (-90, (high, wide))):
                found += [face for face in self._tilted(small, tilt, np.array([wide, high]) / 2, size) if face.score >= SURE]
        boxes = [(face.x, face.y, face.width, face.height) for face in found]
        kept = cv2.dnn.NMSBoxes(boxes, [face.score for face in found], 0.0, OVERLAP)
        faces = sorted((found[index].scaled(1 / scale) for index in kept), key=_area, reverse=True)
        faces[:MOST_FACES] = [self._measured(bgr, small, scale, face) for face in faces[:MOST_FACES]]
        return sorted(faces, key=_area, reverse=True)

    def _upright(self, bgr: np.ndarray) -> list[FaceBox]:
        """Faces that are tilted little."""
        self._network.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, found = self._network.detect(bgr)
        rows = np.empty((0, 15)) if found is None else np.asarray(found, float)
        across, down = (rows[:, 6:8] - rows[:, 4:6]).T  # from the eye on the left to that on the right
        return [FaceBox(*row) for row in np.c_[rows[:, :4], rows[:, -1], np.degrees(np.arctan2(down, across))].tolist()]

    def _tilted(self, bgr: np.ndarray, tilt: float, centre: np.ndarray, size: tuple[int, int], scale: float = 1.0) -> list[FaceBox]:
        """Faces that are tilted by about `tilt`, in a part of a picture.

        Args:
            bgr: the picture.
            tilt: as in FaceBox.
            centre: of the part, x and y in pixels.
            size: width and height of the part after it is turned upright and scaled.
            scale: factor.
        """
        half = np.array([0.5, 0.5])  # OpenCV's coordinates are those of the middles of pixels
        near, corner = _around(bgr, centre, math.hypot(*size) / 2 / scale)
        turn = cv2.getRotationMatrix2D(centre - corner - half, tilt, scale)
        turn[:, 2] += np.array(size) / 2 - (centre - corner)
        back = cv2.invertAffineTransform(turn)
        found = []
        for face in self._upright(cv2.warpAffine(near, turn, size)):
            x, y = (back @ [*(face.centre - half), 1] + half + corner).tolist()
            own = FaceBox(0, 0, face.width / scale, face.height / scale, face.score, math.remainder(face.tilt + tilt, 360))
            width, height = own.sides
            found.append(replace(own, x=x - width / 2, y=y - height / 2, width=width, height=height))
        return found

    def _measured(self, bgr: np.ndarray, small: np.ndarray, scale: float, face: FaceBox) -> FaceBox:
        """The same face with a better angle and box, if it is tilted, or so small in the scaled picture that this cannot be told there."""
        zoom = LOOK / (2 * max(face.width, face.height))
        picture, size = (bgr, 1.0) if zoom > scale else (small, scale)
        for _ in range(TURNS if face.turned or max(face.width, face.height) * scale < LEAST_EYES else 0):
            seen = self._tilted(picture, face.tilt, face.scaled(size).centre, (LOOK, LOOK), zoom / size)
            near = min((other.scaled(1 / size) for other in seen), key=lambda other: np.abs(other.centre - face.centre).max(), default=face)
            if np.abs(near.centre - face.centre).max() > LOOK / zoom / 4:  # a neighbour
                break
            before, face = face, near
            if abs(math.remainder(face.tilt - before.tilt, 360)) < CLOSE:
                break
        return face


def _area(face: FaceBox) -> float:
    return face.width * face.height


def framing(detector: FaceDetector, pictures: Iterable[np.ndarray]) -> float | None:
    """The margin, as in `surroundings`, that shows a face in the same size as these pictures do.

    A network that learned from faces in one size misses most forgeries in another, even if that differs by a third.

    Args:
        detector: finds the faces.
        pictures: uint8 (height, width, 3).

    Returns:
        The median, at least 0; None if these are not pictures of faces.
    """
    seen = [(min(pixels.shape[:2]), detector.find(pixels)) for pixels in pictures]
    margins = [(side / max(faces[0].width, faces[0].height) - 1) / 2 for side, faces in seen if faces]
    return max(0.0, float(np.median(margins))) if margins and len(margins) >= FRAMED * len(seen) else None


def surroundings(box: FaceBox, size: tuple[int, int], margin: float = MARGIN) -> tuple[int, int, int, int]:
    """The square around a face that a network judges: left, top, right, bottom in pixels, inside a picture of this (width, height)."""
    width, height = size
    side = max(1, min(round(max(box.width, box.height) * (1 + 2 * margin)), width, height))
    left = round(min(max(box.x + box.width / 2 - side / 2, 0), width - side))
    top = round(min(max(box.y + box.height / 2 - side / 2, 0), height - side))
    return left, top, left + side, top + side


def upright(picture: np.ndarray, crop: tuple[int, int, int, int], face: FaceBox) -> np.ndarray:
    """What a network judges of a face: a square of the picture, turned so that the face is upright, unless it hardly is tilted.

    Args:
        picture: uint8 (height, width, 3).
        crop: the square: left, top, right, bottom in pixels.
        face: in it.

    Returns:
        uint8 (side, side, 3). What lies beyond the picture mirrors it.
    """
    left, top, right, bottom = crop
    if not face.turned:
        return picture[top:bottom, left:right]
    side = right - left
    near, (x, y) = _around(picture, np.array([left, top]) + side / 2, side)
    turn = cv2.getRotationMatrix2D(((left + right - 1) / 2 - x, (top + bottom - 1) / 2 - y), face.tilt, 1.0)
    turn[:, 2] -= (left - x, top - y)
    return cv2.warpAffine(near, turn, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def largest(pixels: np.ndarray, detector: FaceDetector, margin: float) -> np.ndarray | None:
    """The largest face of uint8 (height, width, 3), upright, with its `surroundings`: uint8 (side, side, 3). None if there is no face."""
    if not (found := detector.find(pixels)):
        return None
    return upright(pixels, surroundings(found[0], (pixels.shape[1], pixels.shape[0]), margin), found[0])


def _around(picture: np.ndarray, centre: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """The part of a picture up to `reach` pixels from a point in it, and the x and y where that begins: OpenCV turns no larger pictures."""
    left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
    right, bottom = np.ceil(centre + reach).astype(int)
    return picture[top:bottom, left:right], np.array([left, top])
