"""Random changes of training images. The same draw goes over every picture of a pair, so that only the forgery differs."""

import io
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from PIL import Image

from pipeline.params import Augment

Change = Callable[[np.ndarray], np.ndarray]


def augment(pictures: Sequence[np.ndarray], settings: Augment, rng: np.random.Generator) -> list[np.ndarray]:
    """Change all pictures alike.

    Args:
        pictures: uint8 arrays of one shape (side, side, 3).
        settings: which changes, how often and how strong.
        rng: every draw comes from here, one for all pictures.

    Returns:
        uint8 arrays of the same shape.
    """
    changes: list[Change] = [_geometry(settings, pictures[0].shape[0], rng), _colour(settings, rng)]
    degradations: list[tuple[float, Callable[[float, np.random.Generator], Change], tuple[float, float]]] = [
        (settings.resize, _resize, settings.resize_factor),
        (settings.blur, _blur, settings.blur_sigma),
        (settings.noise, _noise, settings.noise_sigma),
        (settings.jpeg, _jpeg, settings.jpeg_quality),
        (settings.webp, _webp, settings.jpeg_quality),
        (settings.gamma, _gamma, (0.7, 1.4)),
        (settings.hue, _hue, (-10, 10)),
        (settings.sharpen, _sharpen, (0.2, 1.0)),
        (settings.thumbnail, _thumbnail, settings.thumbnail_share),
        (settings.frequency, _frequency, (0.1, 0.9)),
        (settings.cutout, _cutout, (0.1, 0.35)),
    ]
    degradations = [degradation for degradation in degradations if degradation[0]]
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


def _resize(factor: float, rng: np.random.Generator) -> Change:
    down, up = rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 2)

    def change(picture: np.ndarray) -> np.ndarray:
        side = picture.shape[0]
        small = cv2.resize(picture, (max(8, round(side * factor)),) * 2, interpolation=int(down))
        return cv2.resize(small, (side, side), interpolation=int(up))

    return change


def _blur(sigma: float, rng: np.random.Generator) -> Change:
    return lambda picture: cv2.GaussianBlur(picture, (0, 0), sigma)


def _noise(sigma: float, rng: np.random.Generator) -> Change:
    seed = int(rng.integers(2**32))

    def change(picture: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(seed).normal(0, sigma, picture.shape).astype(np.float32)
        return np.clip(picture + noise, 0, 255).astype(np.uint8)

    return change


def _jpeg(quality: float, rng: np.random.Generator) -> Change:
    """Half the time libjpeg through Pillow, half through OpenCV, which subsample colour differently."""
    if rng.random() < 0.5:

        def with_pillow(picture: np.ndarray) -> np.ndarray:
            return _through(picture, "JPEG", round(quality))

        return with_pillow

    def with_opencv(picture: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        assert decoded is not None
        return decoded

    return with_opencv


def _webp(quality: float, rng: np.random.Generator) -> Change:
    return lambda picture: _through(picture, "WEBP", round(quality))


def _through(picture: np.ndarray, kind: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _gamma(power: float, rng: np.random.Generator) -> Change:
    table = np.rint(255 * (np.arange(256) / 255) ** power).astype(np.uint8)
    return lambda picture: cv2.LUT(picture, table)


def _hue(degrees: float, rng: np.random.Generator) -> Change:
    gain = rng.uniform(0.7, 1.3)

    def change(picture: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # hue in 0..360
        hsv[..., 0] = (hsv[..., 0] + degrees) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] * gain, 0, 1)
        return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)

    return change


def _sharpen(amount: float, rng: np.random.Generator) -> Change:
    return lambda picture: cv2.addWeighted(picture, 1 + amount, cv2.GaussianBlur(picture, (0, 0), 1.0), -amount, 0)


def _thumbnail(share: float, rng: np.random.Generator) -> Change:
    quality = int(rng.integers(60, 91))

    def change(picture: np.ndarray) -> np.ndarray:
        side = picture.shape[0]
        small = cv2.resize(picture, (max(16, round(side * share)),) * 2, interpolation=cv2.INTER_AREA)
        return cv2.resize(_through(small, "JPEG", quality), (side, side), interpolation=cv2.INTER_CUBIC)

    return change


def _frequency(centre: float, rng: np.random.Generator) -> Change:
    width = rng.uniform(0.03, 0.1)

    def change(picture: np.ndarray) -> np.ndarray:
        height, across = picture.shape[:2]
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(across)[None]) / 0.5
        kept = (np.abs(radius - centre) > width / 2)[..., None]
        filtered = np.fft.irfft2(np.fft.rfft2(picture, axes=(0, 1)) * kept, s=(height, across), axes=(0, 1))
        return np.clip(np.rint(filtered), 0, 255).astype(np.uint8)

    return change


def _cutout(share: float, rng: np.random.Generator) -> Change:
    top, left, taller = rng.uniform(), rng.uniform(), rng.uniform(0.7, 1.4)

    def change(picture: np.ndarray) -> np.ndarray:
        side = picture.shape[0]
        height, width = round(side * share), min(side, round(side * share * taller))
        y, x = round(top * (side - height)), round(left * (side - width))
        changed = picture.copy()
        changed[y : y + height, x : x + width] = 128
        return changed

    return change
