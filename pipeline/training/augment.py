"""Random augmentation of training images, the same for both images of a pair, so that only the forgery differs."""

import io
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from PIL import Image

from pipeline.params_train import Augment

Change = Callable[[np.ndarray], np.ndarray]
Maker = Callable[[float, np.random.Generator], Change]
"""(strength, rng) -> the change."""


def augment(pictures: Sequence[np.ndarray], settings: Augment, rng: np.random.Generator) -> list[np.ndarray]:
    """Apply the same random changes to all pictures.

    Args:
        pictures: uint8 arrays of one shape (side, side, 3).
        settings: which changes, how often and how strong. Those that are off by default draw nothing while they are off.
        rng: source of all draws; each draw applies to all pictures.

    Returns:
        uint8 arrays of the same shape.
    """
    side = pictures[0].shape[0]
    changes: list[Change] = [_geometry(settings, side, rng), _colour(settings, rng)]
    if settings.hue or settings.saturation or settings.value or settings.gamma:
        changes.append(_photometry(settings, rng))
    degradations: list[tuple[float, Maker, tuple[float, float]]] = [
        (settings.resize, _resize, settings.resize_factor),
        (settings.blur, _blur, settings.blur_sigma),
        (settings.noise, _noise, settings.noise_sigma),
        (settings.jpeg, partial(jpeg, settings.jpeg_444), settings.jpeg_quality),
    ]
    more: list[tuple[float, Maker, tuple[float, float]]] = [
        (settings.webp, _webp, settings.webp_quality),
        (settings.sharpen, _sharpen, settings.sharpen_strength),
        (settings.thumbnail, partial(_thumbnail, settings), settings.thumbnail_factor),
        (settings.cutout, partial(_cutout, settings.cutout_side, side), (0, 255)),
        (settings.frequency_mask, partial(_frequency_mask, side), settings.frequency_share),
    ]
    degradations += [entry for entry in more if entry[0]]
    for position in rng.permutation(len(degradations)):
        probability, make, bounds = degradations[position]
        if rng.random() < probability:
            changes.append(make(rng.uniform(*bounds), rng))
    changed = list(pictures)
    for change in changes:
        changed = [change(picture) for picture in changed]
    return changed


def _geometry(settings: Augment, side: int, rng: np.random.Generator) -> Change:
    """Flip, rotation, zoom and crop as one warp, so that the traces of a forgery are interpolated only once."""
    flip, warp = rng.random() < settings.flip, rng.random() < settings.warp
    kept = 1 - rng.uniform(0, settings.crop)
    centre, angle = ((side - 1) / 2, (side - 1) / 2), rng.uniform(-1, 1) * settings.rotate
    matrix = cv2.getRotationMatrix2D(centre, angle, rng.uniform(*settings.scale) / kept)
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-0.5, 0.5, 2) * (1 - kept) * side

    def change(picture: np.ndarray) -> np.ndarray:
        if flip:
            picture = picture[:, ::-1]
        if not warp:
            return np.ascontiguousarray(picture)
        return cv2.warpAffine(
            np.ascontiguousarray(picture), matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )

    return change


def _colour(settings: Augment, rng: np.random.Generator) -> Change:
    gain = 1 + rng.uniform(-1, 1) * settings.contrast
    shift = 255 * rng.uniform(-1, 1) * settings.brightness + rng.uniform(-1, 1, 3) * settings.colour * 127
    gray = rng.random() < settings.grayscale
    levels = np.arange(256, dtype=np.float32)
    table = np.clip((levels[:, None] - 128) * gain + 128 + shift, 0, 255).astype(np.uint8)[None]

    def change(picture: np.ndarray) -> np.ndarray:
        if gray:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.LUT(picture, table)

    return change


def _photometry(settings: Augment, rng: np.random.Generator) -> Change:
    """A shift of hue, factors on saturation and value, and a gamma curve."""
    hue, saturation, value, gamma = rng.uniform(-1, 1, 4) * (settings.hue, settings.saturation, settings.value, settings.gamma)
    levels = np.arange(256, dtype=np.float32)
    bright = 255 * np.clip(levels / 255 * (1 + value), 0, 1) ** (1 + gamma)
    # OpenCV stores hue in half degrees, 0..179.
    table = np.stack([(levels + hue / 2) % 180, np.clip(levels * (1 + saturation), 0, 255), bright], axis=-1)
    table = np.rint(table).astype(np.uint8)[None]
    table[..., 0] %= 180

    def change(picture: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), table), cv2.COLOR_HSV2RGB)

    return change


def _resize(factor: float, rng: np.random.Generator) -> Change:
    down, up = rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 2)

    def change(picture: np.ndarray) -> np.ndarray:
        side = picture.shape[0]
        small = cv2.resize(picture, (max(8, round(side * factor)),) * 2, interpolation=int(down))
        return cv2.resize(small, (side, side), interpolation=int(up))

    return change


def _blur(sigma: float, rng: np.random.Generator) -> Change:
    return lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma)


def _sharpen(strength: float, rng: np.random.Generator) -> Change:
    """Unsharp masking."""
    return lambda picture: cv2.addWeighted(picture, 1 + strength, cv2.GaussianBlur(picture, (0, 0), 1.0), -strength, 0)


def _noise(sigma: float, rng: np.random.Generator) -> Change:
    seed = int(rng.integers(2**32))

    def change(picture: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, sigma, picture.shape).astype(np.float32)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return change


def jpeg(full_chroma: float, quality: float, rng: np.random.Generator) -> Change:
    """Save as JPEG: with OpenCV at 4:4:4, or with Pillow at 4:2:0. Left alone, both encoders give the same pixels.

    Args:
        full_chroma: probability of 4:4:4.
        quality: 1..100.
    """
    if rng.random() < full_chroma:
        sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
        return lambda picture: _with_opencv(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, round(quality), *sampling)

    def with_pillow(picture: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=round(quality))
        return np.asarray(Image.open(buffer))

    return with_pillow


def _webp(quality: float, rng: np.random.Generator) -> Change:
    return lambda picture: _with_opencv(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, round(quality))


def _with_opencv(picture: np.ndarray, suffix: str, *settings: int) -> np.ndarray:
    _, data = cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]), settings)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert decoded is not None
    return decoded


def _thumbnail(settings: Augment, factor: float, rng: np.random.Generator) -> Change:
    """A thumbnail: scaled down, saved as JPEG and enlarged again."""
    store = jpeg(settings.jpeg_444, rng.uniform(*settings.jpeg_quality), rng)
    up = int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC]))

    def change(picture: np.ndarray) -> np.ndarray:
        side = picture.shape[0]
        small = cv2.resize(picture, (max(16, round(side * factor)),) * 2, interpolation=cv2.INTER_AREA)
        return cv2.resize(store(small), (side, side), interpolation=up)

    return change


def _cutout(bounds: tuple[float, float], side: int, level: float, rng: np.random.Generator) -> Change:
    """A rectangle in one shade of gray (DeVries and Taylor, 2017)."""
    size = np.maximum(1, np.rint(side * rng.uniform(*bounds, 2))).astype(int)
    (top, left), (height, width) = rng.integers(0, side - size + 1), size

    def change(picture: np.ndarray) -> np.ndarray:
        cut = picture.copy()
        cut[top : top + height, left : left + width] = round(level)
        return cut

    return change


def _frequency_mask(side: int, share: float, rng: np.random.Generator) -> Change:
    """Set a random share of the frequencies to 0, but never the mean."""
    kept = rng.random((side, side // 2 + 1), np.float32) >= share
    kept[0, 0] = True

    def change(picture: np.ndarray) -> np.ndarray:
        waves = np.fft.rfft2(picture.astype(np.float32), axes=(0, 1)) * kept[..., None]
        return np.clip(np.rint(np.fft.irfft2(waves, s=(side, side), axes=(0, 1))), 0, 255).astype(np.uint8)

    return change
