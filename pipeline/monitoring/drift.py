"""The drift test: does the window look like more of the reference?

One permutation test over all statistics: the pooled rows are shuffled into a reference and a window of the same sizes, and each
permutation is measured like the real split. So the false-alarm rate holds at any window size, for all statistics together, however they
are correlated. It is a rate over random references as well as windows: checks against the same reference are not independent. And it
holds for independent pictures: the reference has one of each group, and of a window `diagnosis.pictures` takes each picture once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist
from sklearn.metrics import roc_auc_score

from pipeline import params_loop
from pipeline.monitoring.predictions import STATISTICS
from pipeline.package import REFERENCE

SCALARS = ("probability_fake", *STATISTICS)
VERDICTS = ("real", "fake", "uncertain")
FREQUENCIES = 128
"""Number of random Fourier frequencies; each gives a cosine and a sine."""

MEDIAN_ROWS = 1000
"""Rows sampled to estimate the median distance."""

DIRECTIONS = 32
"""Principal components of the embeddings that the classifier uses to tell the samples apart."""

DIRECTION_ROWS = 10_000
"""Rows sampled to estimate the principal components."""

STEPS = 2000
"""Most steps of a distribution function: more cost time and find nothing new."""

BINS = 10
"""Bins of the population stability index, with equal shares of the reference."""

CHUNK = 64
"""Permutations measured at a time: bounds the memory, and keeps it in the CPU cache."""


def compare(reference: pd.DataFrame, window: pd.DataFrame, settings: params_loop.Drift, seed: int = 0) -> dict[str, Any]:
    """Test whether two samples come from the same distribution.

    Args:
        reference, window: at least two rows each, with the columns of `pipeline.monitoring.predictions.measures`; `verdict` and
            `warnings` are compared if both have them.
        settings: `alpha` is the false-alarm rate, `permutations` the number of shuffles. The caller enforces the window's bounds.

    Returns:
        drift: whether `p_value` is at most `alpha`. p_value: of all statistics together. alpha. window, reference: number of rows.
        verdicts: share of each verdict in the window, if it has them.
        statistics: name, kind, value, p_value, psi, reference_mean, window_mean of each, most shifted first. The p-values are adjusted for
        the number of statistics, so any statistic at or below `alpha` may be called shifted. Kinds: `mmd`, the maximum mean discrepancy of
        the embeddings; `auc`, the AUC of a classifier that tells reference from window by the embedding; neither has a PSI or means.
        `ks`, the Kolmogorov-Smirnov distance of a scalar; `share`, the difference between the shares of a verdict or warning.
    """
    rng = np.random.default_rng(seed)
    columns = _columns(reference, window)
    standard = _standardised(np.concatenate([np.stack(part["embedding"].tolist()) for part in (reference, window)]))
    features, halves = _features(standard, rng), _halves(_directions(standard, rng), rng)
    del standard

    rows, size = len(features), len(window)
    real = np.arange(len(reference), rows)
    windows = [real, *(rng.choice(rows, size, replace=False, shuffle=False) for _ in range(settings.permutations))]
    values = np.column_stack([*_distances(features, halves, windows), *(_ks(column, windows) for column in columns.values())])
    # Equal values must not differ by rounding errors: those would rank the permutations of a constant column.
    p_values = _p_values(np.round(values, 9))
    values[0, 1] = _auc(halves, real)

    measured = zip(["embedding", "embedding_auc", *columns], values[0].round(9).tolist(), p_values.tolist(), strict=True)
    statistics = [_described(name, columns.get(name), size) | {"value": value, "p_value": p} for name, value, p in measured]
    p_value = float(p_values.min())
    report = {
        "drift": p_value <= settings.alpha,
        "p_value": p_value,
        "alpha": settings.alpha,
        "window": size,
        "reference": len(reference),
        "statistics": sorted(statistics, key=lambda found: (found["p_value"], -(found["psi"] or 0))),
    }
    if "verdict" in window:
        report["verdicts"] = window["verdict"].value_counts(normalize=True).to_dict()
    return report


def references(folder: Path) -> list[pd.DataFrame]:
    """A package's answers to images not seen in training, with the columns of `measures`: in 32 bits, then in reduced precision."""
    return [pd.read_parquet(path) for path in sorted(folder.glob(REFERENCE.format("*")), key=lambda path: (len(path.name), path.name))]


def nearest(known: list[pd.DataFrame], window: pd.DataFrame, settings: params_loop.Drift) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The reference that the window is most like, and the report of their comparison.

    The log does not record the precision of an answer, so the references of all precisions are tried. More references do not raise the
    false-alarm rate: for drift, the window has to differ from all of them.
    """

    def likeness(found: tuple[pd.DataFrame, dict[str, Any]]) -> tuple[float, float]:
        _, report = found
        return report["p_value"], -next((row["value"] for row in report["statistics"] if row["kind"] == "auc"), 0.0)

    return max(((reference, compare(reference, window, settings)) for reference in known), key=likeness)


def shifted(report: dict[str, Any]) -> list[str]:
    """Names of the statistics that shifted, most shifted first."""
    return [found["name"] for found in report["statistics"] if found["p_value"] <= report["alpha"]]


def psi(reference: np.ndarray, window: np.ndarray) -> float:
    """Population stability index (Siddiqi, Credit Risk Scorecards, 2006) of two samples of a scalar: 0 if equal, above 0.25 a large shift.

    The bins lie between the reference's deciles, plus one on either side for values outside its range; a value that fills several deciles
    has one bin. Half a row of the smaller sample is added to each bin, so that an empty one does not give infinity.
    """
    deciles = np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:], method="inverted_cdf")
    edges = np.unique(np.r_[np.nextafter(reference.min(), -np.inf), deciles])
    least = 0.5 / min(len(reference), len(window))
    shares = [np.bincount(np.searchsorted(edges, part), minlength=len(edges) + 1) / len(part) + least for part in (reference, window)]
    before, now = (share / share.sum() for share in shares)
    return float(((now - before) * np.log(now / before)).sum())


def _columns(reference: pd.DataFrame, window: pd.DataFrame) -> dict[str, np.ndarray]:
    """The scalars, and an indicator for each verdict and warning: float (n,) each, the reference's rows first."""
    found = {name: np.concatenate([part[name].to_numpy(np.float64) for part in (reference, window)]) for name in SCALARS}
    if "verdict" in reference and "verdict" in window:
        verdicts = np.concatenate([reference["verdict"].to_numpy(str), window["verdict"].to_numpy(str)])
        found |= {f"verdict_{name}": (verdicts == name).astype(np.float64) for name in VERDICTS}
    if "warnings" in reference and "warnings" in window:
        warnings = [set(names) for part in (reference, window) for names in part["warnings"]]
        for name in sorted(set().union(*warnings)):
            found[f"warning_{name}"] = np.array([name in names for names in warnings], np.float64)
    return found


def _described(name: str, column: np.ndarray | None, size: int) -> dict[str, Any]:
    if column is None:
        return {"name": name, "kind": "mmd" if name == "embedding" else "auc", "psi": None, "reference_mean": None, "window_mean": None}
    before, now = column[:-size], column[-size:]
    kind = "ks" if name in SCALARS else "share"
    return {"name": name, "kind": kind, "psi": psi(before, now), "reference_mean": float(before.mean()), "window_mean": float(now.mean())}


def _standardised(embeddings: np.ndarray) -> np.ndarray:
    """float32 (n, d) with mean 0 and standard deviation 1 per dimension, over the pooled rows: scaling must not tell the samples apart."""
    embeddings = embeddings.astype(np.float32)
    spread = embeddings.std(0, dtype=np.float64)
    centred = embeddings - embeddings.mean(0, dtype=np.float64).astype(np.float32)
    centred *= np.where(spread > 1e-6 * np.abs(embeddings).max(0, initial=1e-30), 1 / np.maximum(spread, 1e-30), 0).astype(np.float32)
    return centred


def _features(standard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random Fourier features (Rahimi and Recht, NIPS 2007) of a Gaussian kernel, with mean 0.

    The kernel's width is the median distance between two rows (Gretton et al., JMLR 2012).

    Args:
        standard: float32 (n, d), standardised.

    Returns:
        float32 (n, 2 * FREQUENCIES).
    """
    width = float(np.median(pdist(standard[rng.permutation(len(standard))[:MEDIAN_ROWS]])))
    angles = standard @ rng.normal(0, 1 / (width or 1), (standard.shape[1], FREQUENCIES)).astype(np.float32)
    features = np.empty((len(standard), 2 * FREQUENCIES), np.float32)
    np.cos(angles, out=features[:, :FREQUENCIES])
    np.sin(angles, out=features[:, FREQUENCIES:])
    features /= np.float32(np.sqrt(FREQUENCIES))
    features -= features.mean(0, dtype=np.float64).astype(np.float32)
    return features


def _directions(standard: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pooled rows in their first principal components, each with standard deviation 1: float32 (n, at most DIRECTIONS)."""
    sample = standard[rng.permutation(len(standard))[:DIRECTION_ROWS]]
    strengths, vectors = np.linalg.eigh((sample.T @ sample).astype(np.float64) / len(sample))
    kept = np.flatnonzero(strengths > 1e-6)[::-1][:DIRECTIONS]
    return standard @ (vectors[:, kept] / np.sqrt(strengths[kept])).astype(np.float32)


def _halves(directions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows with a 1 appended, twice, float32 (2, n, d + 1): first with one random half set to 0, then with the other half."""
    first = (rng.permutation(len(directions)) % 2 == 0)[:, None]
    whole = np.hstack([directions, np.ones((len(directions), 1), np.float32)])
    return np.stack([whole * first, whole * ~first])


def _distances(features: np.ndarray, halves: np.ndarray, windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The distance between the mean features, and how well a classifier does on rows it was not fitted on, each float (permutations,).

    The classifier is Fisher's linear discriminant: on whitened data its weights are the difference between the two means. It is fitted on
    one half and judged on the other by the difference between the mean scores (Cheng and Cloninger, IEEE Trans. Inf. Theory 2022), which is
    the same with the halves swapped.

    Args:
        features: float32 (n, m), with mean 0.
        halves: from `_halves`.
        windows: the window's rows in each permutation, those of the real window first.
    """
    rows, size, wide = len(features), len(windows[0]), features.shape[1]
    everything = np.hstack([features, *halves])
    totals = halves.sum(1, dtype=np.float64)
    mmd, classifier = [], []
    for start in range(0, len(windows), CHUNK):
        chunk = np.stack(windows[start : start + CHUNK])
        mask = np.zeros((len(chunk), rows), np.float32)
        np.put_along_axis(mask, chunk, np.float32(1), axis=1)
        sums = (mask @ everything).astype(np.float64)
        # The features sum to 0: the sum over the reference is minus the sum over the window.
        mmd.append(np.linalg.norm(sums[:, :wide], axis=1) * (1 / size + 1 / (rows - size)))
        gaps = [_gap(part, total) for part, total in zip(np.split(sums[:, wide:], 2, axis=1), totals, strict=True)]
        classifier.append((gaps[0] * gaps[1]).sum(1))
    return np.concatenate(mmd), np.concatenate(classifier)


def _gap(sums: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean of the window's rows minus that of the reference's, (m, d - 1), from sums (m, d) whose last column counts the rows."""
    others = total - sums
    return sums[:, :-1] / np.maximum(sums[:, -1:], 1) - others[:, :-1] / np.maximum(others[:, -1:], 1)


def _auc(halves: np.ndarray, window: np.ndarray) -> float:
    """Mean AUC of the two classifiers, each on the half that it was not fitted on."""
    found = []
    for fitted, judged in ((0, 1), (1, 0)):
        weights = _gap(halves[fitted][window].sum(0, dtype=np.float64)[None], halves[fitted].sum(0, dtype=np.float64))[0]
        there = halves[judged][:, -1] > 0
        ours = np.zeros(len(there), bool)
        ours[window] = True
        ours, scores = ours[there], (halves[judged][there, :-1] @ weights).round(9)
        found.append(roc_auc_score(ours, scores) if ours.any() and not ours.all() else 0.5)
    return float(np.mean(found))


def _ks(column: np.ndarray, windows: list[np.ndarray]) -> np.ndarray:
    """Kolmogorov-Smirnov distance of a column (n,) in each permutation, (permutations,); `windows` as for `_distances`."""
    values, codes = np.unique(column, return_inverse=True)
    steps = min(len(values), STEPS)
    codes = codes * steps // len(values)
    all_below = np.bincount(codes, minlength=steps).cumsum()
    rows, size = len(column), len(windows[0])
    found = np.empty(len(windows))
    for number, window in enumerate(windows):
        below = np.bincount(codes[window], minlength=steps).cumsum()
        found[number] = np.abs(below * (1 / size + 1 / (rows - size)) - all_below / (rows - size)).max()
    return found


def _p_values(values: np.ndarray) -> np.ndarray:
    """p-value of each statistic of the real split, adjusted for multiple testing by single-step min-p (Westfall and Young, 1993).

    Each statistic has its own most extreme permutation, and these all tie at the smallest p-value: with many statistics, none could ever
    be significant. So ties are broken by how many standard deviations the statistic lies above its mean.

    Args:
        values: float (permutations, statistics), the real split first.
    """
    number = len(values)
    p_values = np.column_stack([(number - np.searchsorted(np.sort(column), column)) / number for column in values.T])
    spread = values.std(0)
    excess = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    # An excess is at most sqrt(number), so this term is smaller than the step of 1 / number between p-values.
    ordered = p_values - excess / number**2
    return (ordered.min(1)[:, None] <= ordered[0]).mean(0)
