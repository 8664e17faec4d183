"""Describes an image file for the manifest: identity, encoding and quality, all from decoding it once."""

import hashlib
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.faces import FaceDetector
from pipeline.images import Limits, identify, load, luma_statistics

SAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (1, 2): "4:4:0", (2, 2): "4:2:0", (4, 1): "4:1:1", (4, 2): "4:1:0"}
ENCODING = ("format", "jpeg_quality", "quantisation", "subsampling", "metadata_bytes")
"""Columns that say how a file was encoded."""
METADATA = ("exif", "icc_profile", "xmp", "comment")

# Luma quantisation table from Annex K of the JPEG standard (ITU-T T.81), which libjpeg scales by the quality.
LUMA_TABLE = np.fromstring(
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 "
    "24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99",
    int,
    sep=" ",
)


def describe(data: bytes, limits: Limits, detector: FaceDetector | None = None) -> tuple[dict[str, Any], np.ndarray]:
    """Decode an image file once and describe it.

    Returns:
        The columns of pipeline.manifest.COLUMNS that are derived from the file alone, and the upright picture, uint8 (height, width, 3).

    Raises:
        ImageError: as pipeline.images.decode does.
    """
    image = identify(data, limits)
    pixels = load(image, data)
    luma = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = luma.shape
    red, green, blue, _ = cv2.mean(pixels)
    phash, mirrored = perceptual_hashes(luma)
    row = {
        "image_id": hashlib.sha256(data).hexdigest(),
        "width": width,
        "height": height,
        "format": image.format or "",
        "bytes": len(data),
        "phash": phash,
        "mirrored_phash": mirrored,
        "pixel_hash": pixel_hash(luma, (red, green, blue)),
        **luma_statistics(luma),
        "red": red,
        "green": green,
        "blue": blue,
        **_stored(image),
        "faces": None,
        "face_share": None,
    }
    if detector is not None:
        found = detector.find(pixels)
        row["faces"] = len(found)
        row["face_share"] = min(found[0].width * found[0].height / luma.size, 1.0) if found else None
    return row, pixels


def perceptual_hashes(luma: np.ndarray) -> tuple[str, str]:
    """64-bit DCT hashes (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010) of area averages.

    Args:
        luma: uint8 (height, width).

    Returns:
        The hash of the picture and that of its mirror image, 16 hex digits each: one bit for each of the lowest 8x8 DCT coefficients of
        the picture at 32x32, 1 for the upper half of them.
    """
    small = cv2.resize(luma, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = _cosines() @ small @ _cosines().T
    return _upper_half(low), _upper_half(low * (-1) ** np.arange(8))  # a mirror turns the sign of the odd waves from side to side


def _upper_half(values: np.ndarray) -> str:
    flat = values.ravel()
    return np.packbits(flat > np.partition(flat, 32)[:32].max()).tobytes().hex()


def pixel_hash(luma: np.ndarray, means: tuple[float, float, float]) -> str:
    """16 hex digits, equal if luma, uint8 (height, width), and channel means are equal: the same picture in two files."""
    digest = hashlib.sha256(np.array(luma.shape, np.int32).tobytes() + np.array(means).tobytes())
    digest.update(luma.data)
    return digest.hexdigest()[:16]


def jpeg_quality(luma_table: list[int]) -> int:
    """The libjpeg quality, 1..100, whose luma quantisation table has the closest sum; the order of the entries does not matter."""
    return int(np.abs(_table_sums() - sum(luma_table)).argmin()) + 1


def _stored(image: Image.Image) -> dict[str, Any]:
    tables: dict[int, list[int]] = getattr(image, "quantization", None) or {}
    layers = getattr(image, "layer", None) or []
    sampling = ""
    if layers:
        sampling = "4:0:0" if len(layers) == 1 else SAMPLING.get((layers[0][1] // layers[1][1], layers[0][2] // layers[1][2]), "other")
    return {
        "jpeg_quality": float(jpeg_quality(tables[0])) if 0 in tables else None,
        "quantisation": hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:8] if tables else "",
        "subsampling": sampling,
        "metadata_bytes": sum(len(image.info.get(name) or b"") for name in METADATA),
    }


@cache
def _cosines() -> np.ndarray:
    """The 8 lowest rows of the DCT-II of 32 points, (8, 32)."""
    return np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)


@cache
def _table_sums() -> np.ndarray:
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((LUMA_TABLE * scale[:, None] + 50) // 100, 1, 255).sum(axis=1)
