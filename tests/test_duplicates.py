"""Near-duplicates, against a plain loop over all pairs."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from pipeline.images import Limits
from pipeline.ingestion import duplicates
from pipeline.ingestion.describe import describe
from pipeline.ingestion.duplicates import clusters, near_duplicates
from tests.data_helpers import picture


def hashes_with_neighbours(seed: int, skew: float = 0.5) -> np.ndarray:
    """600 hashes with bits set with probability `skew`; half are up to 9 bits from another one, the last ten equal others."""
    rng = np.random.default_rng(seed)
    hashes = np.packbits(rng.random((600, 64)) < skew, axis=1).view(np.uint64).ravel()
    for index in range(300):
        flips = np.uint64(1) << rng.integers(0, 64, rng.integers(1, 10)).astype(np.uint64)
        hashes[index] = hashes[rng.integers(index, 600)] ^ np.bitwise_or.reduce(flips)
    hashes[590:] = hashes[580:590]
    return hashes


@pytest.mark.parametrize("skew", [0.5, 0.1])
@pytest.mark.parametrize("radius", [0, 1, 4, 7, 10])
def test_near_duplicates_are_those_of_a_plain_loop(radius: int, skew: float):
    hashes = hashes_with_neighbours(radius, skew)
    values = hashes.tolist()
    expected = {(i, j) for i in range(600) for j in range(i + 1, 600) if (values[i] ^ values[j]).bit_count() <= radius}
    found = [tuple(sorted(pair)) for block in near_duplicates(hashes, radius) for pair in block.tolist()]
    assert len(found) == len(expected) and set(found) == expected and len(expected) >= 10


def test_the_hash_of_the_mirror_image_is_that_of_the_mirrored_file(tmp_path: Path):
    upright, mirrored = (tmp_path / name for name in ("upright.png", "mirrored.png"))
    picture(upright, 1)
    with Image.open(upright) as image:
        ImageOps.mirror(image).save(mirrored)
    one, other = (describe(path.read_bytes(), Limits())[0] for path in (upright, mirrored))
    assert (one["mirrored_phash"], one["phash"]) == (other["phash"], other["mirrored_phash"]) and one["phash"] != other["phash"]


@pytest.mark.parametrize("fold", [duplicates.FOLD, 3])
def test_clusters_are_chains_of_near_duplicates(fold: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "FOLD", fold)
    hashes, mirrored = hashes_with_neighbours(0), hashes_with_neighbours(1)
    mirrored[:20] = hashes[20:40]
    columns = {"phash": hashes, "mirrored_phash": mirrored}
    table = {name: [f"{value:016x}" for value in values.tolist()] for name, values in columns.items()}
    found = clusters(pd.DataFrame(table, index=np.arange(1000, 1600)), 4)
    expected = np.arange(600)
    pairs = itertools.product(columns.values(), repeat=2)
    near = np.any([np.bitwise_count(one[:, None] ^ other) <= 4 for one, other in pairs], axis=0)
    for _ in range(600):
        expected = np.where(near, expected, 600).min(axis=1)
    assert (found.to_numpy()[:, None] == found.to_numpy()).tolist() == (expected[:, None] == expected).tolist()
    assert list(found.index) == list(range(1000, 1600)) and 1 < found.nunique() < 590
