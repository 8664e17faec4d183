"""Images and a reader of the quarantine list, for the tests of the data stages."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, seed: int, **options: int) -> None:
    """A picture of smooth blobs, so that its perceptual hash survives JPEG and scaling."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(path, **options)


def quarantined() -> dict[str, str]:
    """Name of each quarantined file -> the reason."""
    with Path("reports/quarantine.csv").open(encoding="utf-8") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
