"""The data of the report's plots, and selective prediction."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.evaluation.metrics import BINS, Figure, blocks, interval, mean
from pipeline.labels import ID2LABEL
from pipeline.package import Thresholds


def curves(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, pd.DataFrame]:
    """roc, pr, calibration, confusion and selective; roc and pr are empty if there is only one class.

    Args:
        labels: int (n,), 1 for fake.
        probabilities: float (n,) of fake.
        threshold: at or above it an image is called fake.
    """
    fpr, tpr, precision, recall = (np.array([]),) * 4
    if len(set(labels)) == 2:
        fpr, tpr, _ = roc_curve(labels, probabilities)
        precision, recall, _ = precision_recall_curve(labels, probabilities)
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    grouped = pd.DataFrame({"bin": bins, "predicted": probabilities, "observed": labels}).groupby("bin")
    called = pd.Series(probabilities >= threshold).map({True: "fake", False: "real"})
    return {
        "roc": pd.DataFrame({"fpr": fpr, "tpr": tpr}),
        "pr": pd.DataFrame({"recall": recall, "precision": precision}),
        "calibration": grouped.mean().assign(n=grouped.size()).reset_index(drop=True),
        "confusion": pd.DataFrame({"actual": pd.Series(labels).map(ID2LABEL), "predicted": called}),
        "selective": risk_coverage(labels, probabilities, threshold),
    }


def risk_coverage(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> pd.DataFrame:
    """Selective prediction (Geifman and El-Yaniv, NeurIPS 2017): error rate among the most confident images.

    Confidence is the distance of the log odds from the threshold's.

    Returns:
        coverage: share of the images that get a verdict, rising to 1; risk: error rate among them.
    """
    (risk,) = _risk(labels, probabilities, threshold, np.ones((1, len(labels))))[1]
    return pd.DataFrame({"coverage": np.arange(1, len(labels) + 1) / len(labels), "risk": risk})


def selective(labels: np.ndarray, probabilities: np.ndarray, thresholds: Thresholds, weights: np.ndarray) -> dict[str, Figure]:
    """What is gained by answering `uncertain` between two thresholds.

    Args:
        weights: (draws, n), see pipeline.evaluation.metrics.group_weights.

    Returns:
        coverage: share of the images with another verdict; error: error rate among them; area: area under the risk-coverage curve.
    """
    covered = (probabilities >= thresholds.fake_above) | (probabilities < thresholds.real_below)
    wrong = (probabilities >= thresholds.fake_above) != (labels == 1)

    def area(weighted: np.ndarray) -> np.ndarray:
        counted, risk = _risk(labels, probabilities, thresholds.f1, weighted)
        return (counted * risk).sum(1) / counted.sum(1)

    return {
        "coverage": mean(covered, weights),
        "error": mean(wrong[covered], weights[:, covered]),
        "area": interval(area(np.ones((1, len(labels)))), np.concatenate([area(block) for block in blocks(weights)])),
    }


def _risk(labels: np.ndarray, probabilities: np.ndarray, threshold: float, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (draws, n) with the most confident image first, and the error rate of the images up to each."""
    sureness = np.abs(_log_odds(probabilities) - _log_odds(np.array([threshold])))
    order = np.argsort(-sureness, kind="stable")
    wrong, weights = ((probabilities >= threshold) != (labels == 1))[order], weights[:, order]
    return weights, (weights * wrong).cumsum(1) / np.maximum(weights.cumsum(1), 1e-12)


def write(found: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each curve as a CSV file, for `dvc plots`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, curve in found.items():
        curve.to_csv(folder / f"{name}.csv", index=False)


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped))
