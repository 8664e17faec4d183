"""The location of a face, and the soft masks for blending forgeries."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Face:
    """An ellipse over a face, in pixels: centre, half axes, and its tilt in degrees (clockwise)."""

    x: float
    y: float
    half_width: float
    half_height: float
    tilt: float = 0.0

    @classmethod
    def centred(cls, width: int, height: int) -> "Face":
        """The usual location in a face crop of this size in pixels, for use without a detector."""
        return cls(width / 2, height * 0.52, width * 0.3, height * 0.38)

    def mask(self, shape: tuple[int, ...], grow: float = 1.0, top: float = -1.0) -> np.ndarray:
        """float32 (height, width), 1 inside the ellipse and 0 outside.

        Args:
            shape: height and width of the picture; further items are ignored.
            grow: factor on both half axes.
            top: in -1..1, cuts the ellipse off above this height, -1 being its top and 1 its bottom; -1 keeps all of it.
        """
        rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        u, v = self.axes(columns, rows)
        inside = (u**2 + v**2 <= grow**2) & (v >= top * grow)
        return inside.astype(np.float32)

    def transform_to(self, other: "Face") -> np.ndarray:
        """The 2x3 matrix for cv2.warpAffine that maps this face onto the other."""
        return cv2.getAffineTransform(self._corners(), other._corners())

    def axes(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates -> coordinates along the ellipse's own axes, in which it is the unit circle."""
        angle = np.deg2rad(self.tilt)
        dx, dy = x - self.x, y - self.y
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / self.half_width
        v = (-dx * np.sin(angle) + dy * np.cos(angle)) / self.half_height
        return u, v

    def place(self, u: float, v: float) -> tuple[float, float]:
        """The inverse of `axes`, for one point: coordinates along the ellipse's own axes -> pixel coordinates."""
        cos, sin = np.cos(np.deg2rad(self.tilt)), np.sin(np.deg2rad(self.tilt))
        across, down = u * self.half_width, v * self.half_height
        return self.x + across * cos - down * sin, self.y + across * sin + down * cos

    def _corners(self) -> np.ndarray:
        angle = np.deg2rad(self.tilt)
        across = self.half_width * np.array([np.cos(angle), np.sin(angle)])
        down = self.half_height * np.array([-np.sin(angle), np.cos(angle)])
        centre = np.array([self.x, self.y])
        return np.stack([centre, centre + across, centre + down]).astype(np.float32)


def soften(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur a mask twice with random kernels and scale it, as self-blending does (Shiohara and Yamasaki 2022, section 3.2).

    Kernel sizes are shares of the picture's side, so that the forgery is the same at any size.

    Returns:
        float32 (height, width) in 0..1.
    """
    side = max(mask.shape)
    for widest in (0.10, 0.16):
        kernel = max(3, int(rng.uniform(0.02, widest) * side)) | 1
        mask = cv2.GaussianBlur(mask, (kernel, kernel), 0)
    mask = mask / max(float(mask.max()), 1e-6)
    return mask * float(rng.choice([0.5, 0.75, 1.0, 1.0, 1.0]))


def blend(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """mask * source + (1 - mask) * target as uint8; pixels where the mask is 0 are those of the target.

    A target without colour stays so: colour in a black-and-white photograph would give every fake away.
    """
    weight = mask[..., None]
    if (target == target[..., :1]).all():
        source = source.mean(axis=-1, keepdims=True)
    return np.clip(np.rint(weight * source + (1 - weight) * target.astype(np.float32)), 0, 255).astype(np.uint8)
