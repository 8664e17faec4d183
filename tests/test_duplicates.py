"""Near-duplicates, against a plain loop over all pairs."""

import numpy as np
import pandas as pd
import pytest

from pipeline.ingestion import duplicates
from pipeline.ingestion.duplicates import clusters, near_duplicates


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


@pytest.mark.parametrize("fold", [duplicates.FOLD, 3])
def test_clusters_are_chains_of_near_duplicates(fold: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(duplicates, "FOLD", fold)
    hashes = hashes_with_neighbours(0)
    found = clusters(pd.DataFrame({"phash": [f"{value:016x}" for value in hashes.tolist()]}, index=np.arange(1000, 1600)), 4)
    expected = np.arange(600)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 4
    for _ in range(600):
        expected = np.where(near, expected, 600).min(axis=1)
    assert (found.to_numpy()[:, None] == found.to_numpy()).tolist() == (expected[:, None] == expected).tolist()
    assert list(found.index) == list(range(1000, 1600)) and 1 < found.nunique() < 590
