"""Images, and a reader of the quarantine list."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, **options: int) -> None:
    """A picture of smooth blobs, so that its perceptual hash survives JPEG and scaling."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(path, **options)


def noise(width: int = 300, height: int = 200, seed: int = 0) -> Image.Image:
    """An image with the spectrum of a natural one, but no face."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    values = np.fft.irfft2(spectrum / np.maximum(radius, 1 / width)[..., None], s=(height, width), axes=(0, 1))
    values = 127 + 45 * (values - values.mean()) / values.std()
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def quarantined() -> dict[str, str]:
    """Name of each quarantined file -> the reason."""
    with Path("reports/quarantine.csv").open(encoding="utf-8") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
