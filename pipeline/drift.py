"""Two samples in, a drift report out: does the window look like more of the reference?

One permutation test over all statistics: the pooled rows are dealt anew to a reference and a window of the same sizes, and each deal is
measured as the real one was. So the false-alarm rate holds at any window size, and however the statistics depend on each other. It
holds over references as well as windows: checks against one reference share its luck.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from pipeline import params
from pipeline.predictions import STATISTICS

SCALARS = ("probability_fake", *STATISTICS)
FREQUENCIES = 256
"""Of the random Fourier features; each gives a cosine and a sine."""

MEDIAN_ROWS = 1000
"""A sample of this size settles the median distance."""

BINS = 10
"""Of the population stability index, with equal shares of the reference."""

CHUNK = 64
"""Deals that are measured at a time: bounds the memory, and keeps it in the processor's cache."""


def compare(reference: pd.DataFrame, window: pd.DataFrame, settings: params.Drift, seed: int = 0) -> dict[str, Any]:
    """Test whether two samples come from one source.

    Args:
        reference, window: at least one row each, with the columns of `pipeline.predictions.measures`; the window may have `verdict`.
        settings: `alpha` is the false-alarm rate, `permutations` the number of deals. The window's bounds are the caller's business.

    Returns:
        drift: whether `p_value` is at most `alpha`. p_value: of all statistics together. alpha. window, reference: rows.
        verdicts: share of each verdict in the window, if it has them.
        statistics: name, kind, value, p_value, psi, reference_mean, window_mean of each, most shifted first. Kind `mmd` is the maximum mean
        discrepancy of the embeddings, which has no PSI and no means; `ks` is the Kolmogorov-Smirnov distance of a scalar.
    """
    rng = np.random.default_rng(seed)
    parts = (reference, window)
    embeddings = np.concatenate([np.stack(part["embedding"].tolist()) for part in parts]).astype(np.float64)
    features = _features(embeddings, rng)
    columns = [np.concatenate([part[name].to_numpy(np.float64) for part in parts]) for name in SCALARS]

    real = np.arange(len(embeddings)) >= len(reference)
    deals = np.vstack([real, rng.permuted(np.tile(real, (settings.permutations, 1)), axis=1)])
    chunks = [deals[start : start + CHUNK] for start in range(0, len(deals), CHUNK)]
    values = np.concatenate([np.column_stack([_mmd(features, deal), *(_ks(column, deal) for column in columns)]) for deal in chunks])
    # Rounding errors must not part what is equal: a constant column would be ranked by them.
    values = np.round(values, 9)
    p_values, p_value = _p_values(values)

    measured = zip(["embedding", *SCALARS], values[0].tolist(), p_values.tolist(), strict=True)
    statistics = [_described(name, reference, window) | {"value": value, "p_value": p} for name, value, p in measured]
    report = {
        "drift": p_value <= settings.alpha,
        "p_value": p_value,
        "alpha": settings.alpha,
        "window": len(window),
        "reference": len(reference),
        "statistics": sorted(statistics, key=lambda found: (found["p_value"], -(found["psi"] or 0))),
    }
    if "verdict" in window:
        report["verdicts"] = window["verdict"].value_counts(normalize=True).to_dict()
    return report


def psi(reference: np.ndarray, window: np.ndarray) -> float:
    """Population stability index (Siddiqi, Credit Risk Scorecards, 2006) of two samples of a scalar: 0 if equal, above 0.25 a large shift.

    The bins lie between the reference's deciles, and one on either side is for what lies outside it; a value that fills several deciles
    has one bin. Each bin gets half a row of the smaller sample on top, so that an empty one gives no infinity.
    """
    deciles = np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:], method="inverted_cdf")
    edges = np.unique(np.r_[np.nextafter(reference.min(), -np.inf), deciles])
    least = 0.5 / min(len(reference), len(window))
    shares = [np.bincount(np.searchsorted(edges, part), minlength=len(edges) + 1) / len(part) + least for part in (reference, window)]
    before, now = (share / share.sum() for share in shares)
    return float(((now - before) * np.log(now / before)).sum())


def _described(name: str, reference: pd.DataFrame, window: pd.DataFrame) -> dict[str, Any]:
    if name == "embedding":
        return {"name": name, "kind": "mmd", "psi": None, "reference_mean": None, "window_mean": None}
    before, now = (part[name].to_numpy(np.float64) for part in (reference, window))
    return {"name": name, "kind": "ks", "psi": psi(before, now), "reference_mean": float(before.mean()), "window_mean": float(now.mean())}


def _features(embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random Fourier features (Rahimi and Recht, NIPS 2007) of a Gaussian kernel on standardised embeddings, with mean 0.

    Its width is the median distance of two rows (Gretton et al., JMLR 2012). Scale, width and mean come from the pooled rows: they must
    not tell the reference from the window.

    Args:
        embeddings: float (n, d).

    Returns:
        float32 (n, 2 * FREQUENCIES).
    """
    spread = embeddings.std(0)
    standard = (embeddings - embeddings.mean(0)) / np.where(spread > 0, spread, 1)
    width = float(np.median(pdist(standard[rng.permutation(len(standard))[:MEDIAN_ROWS]])))
    angles = standard @ rng.normal(0, 1 / (width or 1), (standard.shape[1], FREQUENCIES))
    features = np.hstack([np.cos(angles), np.sin(angles)]) / np.sqrt(FREQUENCIES)
    return (features - features.mean(0)).astype(np.float32)


def _mmd(features: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """Distance of the mean features of reference and window: features (n, f), deals bool (m, n), true for the window -> (m,)."""
    rows, size = deals.shape[1], deals[0].sum()
    # The features sum to 0: the sum over the reference is that over the window with the other sign.
    return np.linalg.norm(deals.astype(np.float32) @ features, axis=1) * (1 / size + 1 / (rows - size))


def _ks(column: np.ndarray, deals: np.ndarray) -> np.ndarray:
    """Largest distance of the distribution functions of reference and window: column (n,), deals bool (m, n) -> (m,)."""
    order = np.argsort(column)
    ends = np.flatnonzero(np.r_[np.diff(column[order]) != 0, True])  # equal values are one step
    rows, size = deals.shape[1], deals[0].sum()
    below = np.cumsum(deals[:, order], axis=1, dtype=np.int32)[:, ends]
    return np.abs(below / size - (ends + 1 - below) / (rows - size)).max(1)


def _p_values(values: np.ndarray) -> tuple[np.ndarray, float]:
    """p-value of each statistic of the first deal, and of all together by min-p (Westfall and Young, 1993).

    Each statistic has its own most extreme deal, and all of those share the smallest p-value: with many statistics none could ever be
    found extreme. So deals with equal p-values are ordered by how many standard deviations the statistic lies above its mean.

    Args:
        values: float (deals, statistics), the real deal first.
    """
    deals = len(values)
    p_values = np.column_stack([(deals - np.searchsorted(np.sort(column), column)) / deals for column in values.T])
    spread = values.std(0)
    excess = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    # No excess is above the root of the number of deals: divided so, it is less than the step from one p-value to the next.
    least = (p_values - excess / deals**2).min(1)
    return p_values[0], float((least <= least[0]).mean())
