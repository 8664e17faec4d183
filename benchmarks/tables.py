"""Synthetic manifests, with perceptual hashes that cluster like those of real images."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from pipeline import manifest
from pipeline.images import Limits
from pipeline.ingestion.describe import describe

COPIES = 0.3
"""Share of the images that are copies of another one."""

NOISE = 0.35

SCENES, ALIKE = 100, 0.4
"""Images share pose and light with others: number of such scenes, and their share of the variance."""


def real_hashes(folder: Path, limit: int) -> np.ndarray:
    """Perceptual hashes, bool (images, 64), of a sample of the images under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    chosen = np.random.default_rng(0).permutation(len(paths))[:limit]
    hashes = [describe(paths[index].read_bytes(), Limits())[0]["phash"] for index in chosen]
    return np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(value), np.uint8)).astype(bool) for value in hashes])


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """About the hashes of the mirror images, uint64 (n,): a mirror turns the sign of every other wave from side to side."""
    return hashes ^ np.uint64(0x5555555555555555)


def simulate(real: np.ndarray, rows: int) -> np.ndarray:
    """Simulated hashes that cluster like real ones, uint64 (rows,).

    A Gaussian copula with the frequencies and correlations of the real bits. In each row the 32 highest values become set bits, because
    the perceptual hash cuts at the median. Rows share scenes; without them, pairs at 10 to 16 bits would be too rare. A share COPIES of
    the rows are copies of the last other row, with noise of up to NOISE standard deviations on the Gaussian: like scaling, JPEG or a
    swapped face, it flips the bits near the cut.

    Args:
        real: bool (images, 64).
        rows: how many.
    """
    rng = np.random.default_rng(0)
    varies = real.any(axis=0) & ~real.all(axis=0)
    correlation = np.eye(64)
    correlation[np.ix_(varies, varies)] = np.corrcoef(real[:, varies].T.astype(float))
    values, vectors = np.linalg.eigh(np.sin(correlation * np.pi / 2))  # bits cut at the median of a Gaussian correlate by 2/pi asin(r)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    height = norm.ppf(np.clip(real.mean(axis=0), 1e-4, 1 - 1e-4)).astype(np.float32)
    scenes = rng.standard_normal((SCENES, 64), np.float32) @ root.T
    blocks = []
    for start in range(0, rows, 100_000):
        size = min(100_000, rows - start)
        latent = rng.standard_normal((size, 64), np.float32) @ root.T
        latent = np.sqrt(1 - ALIKE) * latent + np.sqrt(ALIKE) * scenes[rng.integers(0, len(scenes), size)]
        copies = np.flatnonzero(rng.random(size) < COPIES)
        own = np.arange(size)
        own[copies] = 0
        origin = np.maximum.accumulate(own)[copies]
        noise = rng.uniform(0, NOISE, (len(copies), 1)).astype(np.float32)
        latent[copies] = latent[origin] + noise * rng.standard_normal((len(copies), 64), np.float32)
        latent += height
        middle = np.partition(latent, 32, axis=1)[:, 32:33]
        blocks.append(np.packbits(latent >= middle, axis=1).view(">u8").ravel().astype(np.uint64))
    return np.concatenate(blocks)


def people(hashes: np.ndarray) -> pd.DataFrame:
    """A manifest with these hashes: a third reals, fakes made from them by eight generators, 1 to 3 reals a person."""
    rng = np.random.default_rng(1)
    rows = len(hashes)
    ids = pd.Series(rng.permutation(rows)).map("{:064x}".format)
    real = np.arange(rows) % 3 == 0
    person = np.repeat(np.arange(rows), rng.integers(1, 4, rows))[: -(-rows // 3)][np.arange(rows) // 3]
    generators = np.array([f"generator{number}" for number in range(8)])[rng.integers(0, 8, rows)]
    side = rng.choice([224, 256, 512], rows)
    quality = rng.integers(70, 98, rows)
    columns = {
        "image_id": ids,
        "path": [f"data/raw/faces/{number // 1000:04}/{number:07}.jpg" for number in range(rows)],
        "label": np.where(real, "real", "fake"),
        "generator": np.where(real, manifest.NO_GENERATOR, generators),
        "group": [f"faces/person{number:07}" for number in person],
        "source": "faces",
        "parents": ids.to_numpy()[np.arange(rows) // 3 * 3],
        "seed": pd.array([pd.NA] * rows, "Int64"),
        "width": side,
        "height": side,
        "format": "JPEG",
        "bytes": (side**2 * rng.uniform(0.1, 0.3, rows)).astype(int),
        "phash": [f"{value:016x}" for value in hashes.tolist()],
        "mirrored_phash": [f"{value:016x}" for value in mirrored(hashes).tolist()],
        "pixel_hash": [f"{value:016x}" for value in rng.integers(0, 2**62, rows).tolist()],
        **{name: rng.normal(120, 20, rows).clip(0, 255) for name in ("brightness", "contrast", "red", "green", "blue")},
        "blur": rng.lognormal(4, 1, rows),
        "jpeg_quality": quality.astype(float),
        "quantisation": pd.Series(quality).map("{:08x}".format),
        "subsampling": "4:2:0",
        "metadata_bytes": rng.integers(0, 2, rows) * 120,
        "faces": 1,
        "face_share": rng.uniform(0.2, 0.6, rows),
    }
    table = pd.DataFrame(columns)
    table["parents"] = table["parents"].where(~real, "")
    return manifest.check(table, "the benchmark")
