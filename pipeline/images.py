"""Bytes of an untrusted file -> a checked, upright RGB picture. Everything that looks at an image comes through here."""

import io
import stat
import struct
import sys
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict

from pipeline import shards

try:
    from pillow_heif import register_heif_opener
except ImportError:  # the extra `heif`
    HEIF: tuple[str, ...] = ()
else:
    register_heif_opener(thumbnails=False)
    HEIF = ("HEIF",)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *HEIF)
"""Pillow decoders that may open a file; the others (EPS, PSD, ...) would only widen the attack surface."""

LONGEST_SIDE = 65_535
"""Pixels: the most that JPEG allows. An image of 1 x 50,000,000 takes ten times as long as a square one: each pixel is a row of its own."""

JPEG_END = b"\xff\xd9"
"""Marker at the end of a complete JPEG file."""

JPEG_SCAN = b"\xff\xda\x00"
"""Start of each scan of a JPEG."""

MOST_SCANS = 100
"""Of a JPEG; progressive ones have about 10. Decoding a scan visits the whole picture, and an empty one is 12 bytes: 20 MB take an hour."""

Image.MAX_IMAGE_PIXELS = None  # Limits decides: Pillow's own limit would undercut a higher one


class Limits(BaseModel):
    """Limits above which an image is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = FORMATS


OWN = Limits(max_bytes=sys.maxsize, max_pixels=sys.maxsize)
"""For the project's own images: ingest has applied its own limits to them."""


class ImageError(ValueError):
    """A file that cannot be used as an image.

    Attributes:
        code: stable name for programs: empty, too_large, not_an_image, too_many_pixels, truncated; from ingest also too_small.
        message: what is wrong.
        hint: what to do.
    """

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(f"{message}. {hint}")
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True)
class Picture:
    """A decoded image: `rgb` is upright, in mode RGB; `format` is the file's; `luma_table` is a JPEG's luma quantisation table.

    `several` is whether the file holds further frames or pages, which are not decoded.
    """

    rgb: Image.Image
    format: str
    luma_table: tuple[int, ...] | None = None
    several: bool = False

    @cached_property
    def pixels(self) -> np.ndarray:
        """uint8 array of shape (height, width, 3)."""
        return np.asarray(self.rgb)

    @cached_property
    def luma(self) -> np.ndarray:
        """uint8 array of shape (height, width)."""
        return np.asarray(self.rgb.convert("L"))


def read(path: Path, limits: Limits | None = None) -> Picture:
    """Decode a file, or a member of a shard. Raises ImageError as `decode` does, OSError if the file cannot be read."""
    return decode(read_bytes(path, limits), limits)


def read_bytes(path: Path, limits: Limits | None = None) -> bytes:
    """The bytes of a file, or of a member of a shard.

    Raises:
        ImageError: if the file is over the limit; it is not read then. Members of shards have no limit here.
        OSError: if the file cannot be read.
    """
    limits = limits or Limits()
    if (shard := shards.of(path)) is not None:
        return shards.read(shard, path.relative_to(shard).as_posix())
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a regular file")  # reading a named pipe would block for ever
    if found.st_size > limits.max_bytes:
        raise _too_large(found.st_size, limits)
    return path.read_bytes()


def decode(data: bytes, limits: Limits | None = None) -> Picture:
    """Decode an image file: first frame, EXIF orientation applied, transparency on white, 16 bit scaled to 8.

    Raises:
        ImageError: if the bytes are empty, over a limit, not an image of an allowed format, or damaged.
    """
    return picture(identify(data, limits), data)


def picture(image: Image.Image, data: bytes) -> Picture:
    """Decode `data` that `identify` opened. Raises ImageError as `decode` does."""
    pixels = load(image, data)
    tables: dict[int, list[int]] = getattr(image, "quantization", None) or {}
    found = Picture(Image.fromarray(pixels), image.format or "", tuple(tables[0]) if 0 in tables else None, _several(image))
    vars(found)["pixels"] = pixels  # fills the cached property
    return found


def identify(data: bytes, limits: Limits | None = None) -> Image.Image:
    """Read an image file's header and check it against the limits; no pixel is decoded yet. Raises ImageError as `decode` does."""
    limits = limits or Limits()
    if not data:
        raise ImageError("empty", "The file is empty", "Choose an image file.")
    if len(data) > limits.max_bytes:
        raise _too_large(len(data), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=limits.formats)
        tile = _tile(data) if image.format == "TIFF" else 0
    except Exception:  # mostly UnidentifiedImageError; AVIF's decoder raises RuntimeError, others anything
        raise ImageError("not_an_image", "The file is not an image that can be read", "Use JPEG, PNG or WebP.") from None
    if image.format == "MPO":  # Pillow's name for a JPEG that a phone has appended another picture to
        image.format = "JPEG"
    if max(image.size) > LONGEST_SIDE:
        size = f"{image.width:,} x {image.height:,}"
        raise ImageError("too_many_pixels", f"The image has {size} pixels; a side may have {LONGEST_SIDE:,}", "Crop it first.")
    if image.width * image.height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"The image has {image.width} x {image.height} pixels, more than {limits.max_pixels:,}",
            "Scale it down first.",
        )
    if tile > limits.max_pixels:
        raise ImageError("too_many_pixels", f"A tile of the TIFF has {tile:,} pixels, more than {limits.max_pixels:,}", "Save it again.")
    if image.format == "JPEG" and (scans := data.count(JPEG_SCAN)) > MOST_SCANS:
        raise ImageError("not_an_image", f"The JPEG has {scans:,} scans, more than {MOST_SCANS}", "Save it again.")
    return image


def load(image: Image.Image, data: bytes) -> np.ndarray:
    """The upright pixels, uint8 (height, width, 3), of `data` that `identify` opened. Raises ImageError as `decode` does."""
    turned = "exif" in image.info or "xmp" in image.info  # either may hold the orientation, and OpenCV reads only one of them
    if image.format == "JPEG" and image.mode == "RGB" and not turned and data.endswith(JPEG_END):
        # OpenCV uses the same libjpeg-turbo: the same pixels at half the cost. What it cannot read, Pillow tries.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if pixels is not None and pixels.shape[1::-1] == image.size:
            return pixels
    try:
        ImageOps.exif_transpose(image, in_place=True)  # in place: no copy if there is nothing to rotate
        return np.asarray(_rgb(image))
    except Exception:  # decoders raise anything on hostile bytes; all of it means a damaged file
        raise ImageError("truncated", "The image file is damaged or cut off", "Save or upload it again.") from None


def statistics(picture: Picture) -> dict[str, float]:
    """Numbers that describe a picture's quality, for warnings, slices and drift.

    Returns:
        width, height (pixels); brightness, contrast (mean and standard deviation of luma, 0..255);
        blur (variance of the Laplacian of luma at its stored size, higher is sharper); saturation (mean, 0..255).
    """
    return {
        "width": float(picture.rgb.width),
        "height": float(picture.rgb.height),
        **luma_statistics(picture.luma),
        "saturation": mean_saturation(picture.pixels),
    }


def mean_saturation(rgb: np.ndarray) -> float:
    """Mean HSV saturation as Pillow computes it, 0..255, of uint8 (height, width, 3), in a seventh of the time of a conversion."""
    red, green, blue = cv2.split(rgb)
    most, least = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    pairs = cv2.calcHist([most, cv2.subtract(most, least)], [0, 1], None, [256, 256], [0, 256, 0, 256])
    return float((pairs.astype(np.float64) * _saturations()).sum() / most.size)


@cache
def _saturations() -> np.ndarray:
    """Saturation by (largest channel, largest minus smallest), with Pillow's rounding: float32, then truncated to an integer."""
    most, spread = np.mgrid[:256, :256].astype(np.float32)
    share = spread / np.maximum(most, 1)
    return np.clip(np.trunc(share.astype(np.float64) * 255), 0, 255)


def luma_statistics(luma: np.ndarray) -> dict[str, float]:
    """brightness, contrast and blur of `statistics`, from luma: uint8 (height, width)."""
    mean, deviation = cv2.meanStdDev(luma)
    edges = cv2.Laplacian(luma, cv2.CV_16S)  # integers, which 16 bits hold exactly
    # From sums, because meanStdDev takes three times as long on 16 bits.
    blur = cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - (cv2.sumElems(edges)[0] / edges.size) ** 2
    return {"brightness": float(mean[0, 0]), "contrast": float(deviation[0, 0]), "blur": float(blur)}


def _too_large(size: int, limits: Limits) -> ImageError:
    message = f"The file has {size / 1e6:.1f} MB, more than {limits.max_bytes / 1e6:.0f} MB"
    return ImageError("too_large", message, "Send a smaller file.")


def _tile(data: bytes) -> int:
    """Pixels of a tile of a TIFF, 0 if it has none: libtiff decodes whole tiles, however small the picture is.

    Parsed here, because Pillow ignores number types that libtiff reads. Raises KeyError if a side has such a type.
    """
    order, big = "<" if data.startswith(b"II") else ">", 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    first, size, room = (start + 8, 20, 8) if big else (start + 2, 12, 4)
    sides = {322: 0, 323: 0}
    for place in range(first, min(first + count * size, len(data) - size + 1), size):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag in sides:
            (side,) = struct.unpack_from(order + {3: "H", 4: "I"}[kind], data, place + size - room)
            sides[tag] = max(sides[tag], side)
    return sides[322] * sides[323]


def _several(image: Image.Image) -> bool:
    """Whether more frames or pages follow the first. What phones append to a JPEG, such as a depth map, is no such frame."""
    try:
        return image.format != "JPEG" and bool(getattr(image, "is_animated", False))
    except Exception:  # there is a second frame, and it is damaged
        return True


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode != "F" else max(float(values.max()), 1.0)
        image = Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.new("RGBA", rgba.size, "white")
        flat.alpha_composite(rgba)
        return flat.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
